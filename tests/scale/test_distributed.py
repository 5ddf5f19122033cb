"""The bulk job on a Ray cluster of two nodes: the records of one machine, none lost or doubled when a worker dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import minivit
from minivit.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the warnings are Ray's own
ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'minivit[ray]'")
PICTURES, BATCH = 6 * 256 + 9, 8  # seven portions
NODE = {"num_cpus": 2, "object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of two cores each on this machine; nothing is sent home."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0"}
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    cluster.add_node(**NODE)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a bad one among them; most are one file under many names."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(5)
    for i in range(PICTURES):
        path = folder / f"{i}.png"
        if i < 4:
            levels = torch.randint(256, (30 * 40 * 3,), generator=generator, dtype=torch.uint8)
            Image.frombytes("RGB", (40, 30), bytes(levels.tolist())).resize((120, 150)).save(path, compress_level=1)
        elif i == 77:
            path.write_bytes((folder / "0.png").read_bytes()[:5000])
        else:
            path.hardlink_to(folder / f"{i % 4}.png")
    return folder


def start(cluster, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(minivit.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-m", "minivit", *arguments, "--engine", "ray", "--address", cluster.address],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def workers() -> set[int]:
    """Processes of this cluster that hold a model: descendants of this one, which started the nodes."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            title = (path / "cmdline").read_bytes()
            parents = [int(path.name)]
            while parents[-1] > 1 and parents[-1] != os.getpid():
                status = Path(f"/proc/{parents[-1]}/stat").read_text()
                parents.append(int(status.rpartition(") ")[2].split()[1]))
        except OSError:
            continue
        if b"ray::MapWorker" in title and parents[-1] == os.getpid():
            found.add(int(path.name))
    return found


def rows(out: Path, by: str = "index") -> list[dict]:
    from minivit.inference.parquet import parquet_records

    return sorted(parquet_records(out), key=lambda row: row[by])


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the worker to kill in /proc")
@pytest.mark.parametrize("fault", ["worker", "node"])
def test_what_dies_in_mid_run_loses_and_doubles_nothing(cluster, folder, hf_checkpoint, tmp_path, monkeypatch, fault):
    """Struck when the first shard is there, and the last ones are not: every worker is at work on one."""
    node = cluster.add_node(**NODE) if fault == "node" else None
    model, out = str(hf_checkpoint()), tmp_path / "shards"
    monkeypatch.chdir(folder.parent)  # where no process of the cluster is
    common = [folder.name, "-m", model, "--device", "cpu", "-b", str(BATCH), "-k", "3", "--no-fast"]
    process = start(cluster, "classify", *common, "-o", os.path.relpath(out))
    while not list(out.rglob("*.parquet")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    if node is None:
        os.kill(min(workers()), signal.SIGKILL)
    else:
        cluster.remove_node(node, allow_graceful=False)
    assert process.poll() is None, "the run was over before"
    _, err = process.communicate(timeout=600)
    assert process.returncode == 3, err  # one picture is bad
    assert err.splitlines()[-1].endswith(f"shards: {PICTURES} records, 1 of them errors")

    assert main(["classify", *common, "-o", str(tmp_path / "local.jsonl")]) == 3
    local = [json.loads(line) for line in (tmp_path / "local.jsonl").read_text().splitlines()]
    shards = rows(out)
    assert [row.pop("index") for row in shards] == list(range(PICTURES))
    assert shards == local
    assert shards[77]["path"] == f"{folder.name}/77.png"
    assert shards[77]["error"]["code"] == "truncated"


def test_what_ray_lists_and_reads_is_embedded_and_searched_as_a_store(cluster, folder, hf_checkpoint, tmp_path, capsys):
    some = tmp_path / "some"
    some.mkdir()
    for i in (3, 1, 77, 2):
        (some / f"{i}.png").hardlink_to(folder / f"{i}.png")
    (some / "notes.txt").write_text("no picture")
    out, model = tmp_path / "vectors", str(hf_checkpoint())
    process = start(cluster, "embed", f"file://{some}", "-m", model, "--device", "cpu", "-o", str(out))
    _, err = process.communicate(timeout=600)
    assert process.returncode == 3, err
    assert main(["similar", str(some / "1.png"), str(out), "-k", "9", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"1.0000  {some / '1.png'}"
    assert sorted(line.split("  ")[1] for line in lines) == [str(some / f"{i}.png") for i in (1, 2, 3)]
    assert [row["error"]["code"] for row in rows(out, by="path") if "error" in row] == ["truncated"]
    assert len(rows(out, by="path")) == 4, "no notes.txt"
    process = start(cluster, "embed", f"file://{some}/gone", "-m", model, "-o", str(tmp_path / "new"))
    _, err = process.communicate(timeout=600)
    assert process.returncode == 2, err
    assert "Ray finds no images there" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one.png", "-o", "."], "already exists"),
        (["one.png", "-o", "s3://bucket/out"], "name a folder all nodes share"),
        (["one.png", "file:///photos", "-o", "new"], "not both in one run"),
        (["one.png", "-o", "new", "--resume"], "is not resumed"),
    ],
)
def test_what_the_engine_cannot_do_is_refused(hf_checkpoint, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["embed", *arguments, "--engine", "ray", "-m", str(hf_checkpoint()), "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err
