"""The way to the hub, against a server on this machine that speaks the hub's resolve protocol.

huggingface_hub reads its environment once, when it is imported, so every set of settings is one process:
it runs several command lines and loads, and writes what became of each as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from minivit import ModelUnavailableError, load
from minivit.weights.files import without_password

WEIGHTS = "model.safetensors"


def commit_of(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """HEAD and GET /{owner}/{model}/resolve/{revision}/{file}: the headers huggingface_hub reads, the hub's errors."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Resolve)
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}  # repository -> commit -> file -> content
        self.refs: dict[str, dict[str, str]] = {}  # repository -> branch or tag -> commit
        self.closed: dict[str, tuple[int, dict[str, str]]] = {}  # repository -> what every request is answered
        self.cut: set[str] = set()  # repositories whose weights break off half way
        self.moving: dict[str, str] = {}  # repository -> where main goes once config.json was fetched
        self.asked: list[str] = []  # "METHOD /path" of every request

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, repo: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Put files up as one commit that a branch or tag points to; returns the commit."""
        commit = commit_of(f"{repo} {revision} {sorted(files)}")
        self.commits.setdefault(repo, {})[commit] = files
        self.refs.setdefault(repo, {})[revision] = commit
        return commit


class Resolve(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        hub = self.server
        hub.asked.append(f"{self.command} {self.path}")
        owner, model, _, revision, file = self.path.strip("/").split("/", 4)
        repo = f"{owner}/{model}"
        commits = hub.commits.get(repo, {})
        commit = hub.refs.get(repo, {}).get(revision, revision)
        if repo in hub.closed:
            self.refuse(*hub.closed[repo])
        elif not commits:
            self.refuse(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif commit not in commits:
            self.refuse(404, {"X-Error-Code": "RevisionNotFound"})
        elif file not in commits[commit]:
            self.refuse(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        else:
            self.send(repo, commit, file, body)

    def send(self, repo: str, commit: str, file: str, body: bool) -> None:
        hub = self.server
        content = hub.commits[repo][commit][file]
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body and repo in hub.cut and file == WEIGHTS:
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(content)
            if repo in hub.moving and file == "config.json":
                hub.refs[repo]["main"] = hub.moving[repo]

    def refuse(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


# What one process does. Naps are counted instead of taken: waiting for a door that stays shut is what
# makes a failure slow.
DRIVER = """
import contextlib, io, json, sys, time
naps = []
time.sleep = naps.append
import minivit.weights.shards
from minivit.cli import main

minivit.weights.shards.SAFE_TO_UNPICKLE = (2, 6)  # as in conftest.py
results = []
for job in json.load(sys.stdin):
    naps.clear()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(job)
    results.append({"code": code, "out": out.getvalue(), "err": err.getvalue(), "naps": sum(naps)})
json.dump(results, sys.stdout)
"""


def run(endpoint: str, cache: Path, jobs: list[list[str]]) -> list[dict[str, Any]]:
    """Run command lines in one process that knows this hub and this cache; nothing may reach its real outputs."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "*",
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(jobs),
        env={**clean, **settings},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return json.loads(done.stdout)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def sharded(folder: Path) -> dict[str, bytes]:
    """The same checkpoint in two shards and an index."""
    files = files_of(folder)
    tensors = load_file(folder / WEIGHTS)
    weight_map = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in sorted(set(weight_map.values())):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, folder / shard)
        files[shard] = (folder / shard).read_bytes()
        (folder / shard).unlink()
    del files[WEIGHTS]
    return {**files, f"{WEIGHTS}.index.json": json.dumps({"weight_map": weight_map}).encode()}


def pickled(folder: Path) -> dict[str, bytes]:
    """The same checkpoint as a pytorch_model.bin."""
    import torch

    files = files_of(folder)
    path = folder / "pytorch_model.bin"
    torch.save(load_file(folder / WEIGHTS), path)
    files["pytorch_model.bin"] = path.read_bytes()
    path.unlink()
    del files[WEIGHTS]
    return files


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    path = tmp_path_factory.mktemp("picture") / "red.png"
    Image.new("RGB", (9, 9), "red").save(path)
    return path


@pytest.fixture(scope="module")
def world(
    hf_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, picture: Path
) -> Iterator[dict[str, Any]]:
    """All processes that see the hub alive, then those after it is gone; the tests below look at what they said."""
    folder = Path(shutil.copytree(hf_checkpoint(), tmp_path_factory.mktemp("hub") / "whole"))
    other = Path(shutil.copytree(hf_checkpoint(seed=1), tmp_path_factory.mktemp("hub") / "other"))
    whole = files_of(folder)
    hub = Hub()
    hub.add("org/whole", whole)
    hub.add("org/whole", files_of(other), revision="v2")
    hub.add("org/sharded", sharded(folder))
    hub.add("org/pickled", pickled(folder))
    hub.add("org/no-config", {WEIGHTS: whole[WEIGHTS]})
    hub.add("org/no-weights", {"config.json": whole["config.json"]})
    hub.add("org/no-preprocessor", {name: whole[name] for name in ("config.json", WEIGHTS)})
    hub.add("org/lost-shard", {k: v for k, v in sharded(folder).items() if k != "model-00002-of-00002.safetensors"})
    hub.add("org/damaged", {**whole, WEIGHTS: whole[WEIGHTS][:-9]})
    hub.add("org/cut", whole)
    hub.cut.add("org/cut")
    hub.add("org/moving", whole)
    later = hub.add("org/moving", files_of(other), revision="later")
    hub.moving["org/moving"] = later
    hub.closed = {
        "org/gated-401": (401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}),
        "org/gated-403": (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "You are not on the list."}),
        "org/private": (401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}),
        "org/bad-token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
        "org/forbidden": (403, {"X-Error-Message": "Forbidden by your organisation"}),
        "org/busy": (503, {}),
        "org/limited": (429, {"Retry-After": "60"}),
        "org/no-hub": (200, {}),
    }
    Thread(target=hub.serve_forever, daemon=True).start()
    cache = tmp_path_factory.mktemp("cache")

    def classify(repo: str, *options: str) -> list[str]:
        return ["classify", str(picture), "--jsonl", "--device", "cpu", "--model", repo, *options]

    seen: dict[str, Any] = {"endpoint": hub.endpoint, "cache": cache, "hub": hub, "folder": folder, "other": other}
    online = {
        "whole": classify("org/whole"),
        "whole again": classify("org/whole"),
        "v2": classify("org/whole", "--revision", "v2"),
        "by commit": classify("org/whole", "--revision", hub.refs["org/whole"]["v2"]),
        "no such revision": classify("org/whole", "--revision", "v3"),
        "local": classify(str(folder)),
        "local other": classify(str(other)),
        "sharded": classify("org/sharded"),
        "pickled": classify("org/pickled"),
        "moving": classify("org/moving"),
        "no-preprocessor": ["info", "org/no-preprocessor"],
        "no such file": ["info", "org--x/y"],
        **{
            repo: ["info", f"org/{repo}"]
            for repo in ("none", "no-config", "no-weights", "lost-shard", "damaged", "cut")
        },
        **{repo.partition("/")[2]: ["info", repo] for repo in hub.closed},
    }
    results = run(hub.endpoint, cache, list(online.values()))
    seen["online"] = dict(zip(online, results, strict=True))
    seen["asked"] = list(hub.asked)

    hub.shutdown()
    hub.server_close()
    gone = {
        "whole": classify("org/whole"),
        "v2": classify("org/whole", "--revision", "v2"),
        "sharded": classify("org/sharded"),
        "pickled": classify("org/pickled"),
        "no-preprocessor": ["info", "org/no-preprocessor"],
        "none": ["info", "org/none"],
        "cut": ["info", "org/cut"],
        "other revision": ["info", "org/whole", "--revision", "v3"],
    }
    seen["gone"] = dict(zip(gone, run(hub.endpoint, cache, list(gone.values())), strict=True))
    # A cache filled by another program: it noted nothing about files that do not exist.
    for note in cache.glob("hub/models--*/.no_exist"):
        shutil.rmtree(note)
    switched_off = {name: [*gone[name], "--offline"] for name in gone}
    seen["--offline"] = dict(zip(gone, run(hub.endpoint, cache, list(switched_off.values())), strict=True))
    yield seen


def top(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The predictions of a classify that went well."""
    assert result["code"] == 0, result["err"]
    return json.loads(result["out"])["top"]


def refusal(result: dict[str, Any], code: int = 4) -> str:
    """The one line of a failure that waited for nothing."""
    assert result["code"] == code
    assert not result["out"]
    assert result["err"].startswith("minivit: ")
    assert result["err"].count("\n") == 1
    assert "Traceback" not in result["err"]
    assert result["naps"] == 0
    return result["err"]


@pytest.mark.slow
def test_the_first_download_equals_the_same_files_in_a_folder(world: dict[str, Any]) -> None:
    online = world["online"]
    assert top(online["whole"]) == top(online["local"])
    record = json.loads(online["whole"]["out"])
    assert record["model"] == "org/whole"
    assert record["revision"] == world["hub"].refs["org/whole"]["main"]


def test_the_second_run_asks_the_hub_nothing(world: dict[str, Any]) -> None:
    """Each file was fetched once in all, by all runs together."""
    assert world["online"]["whole again"]["out"] == world["online"]["whole"]["out"]
    main = [path for path in world["asked"] if path.startswith("GET /org/whole/resolve/") and "v2" not in path]
    commit = world["hub"].refs["org/whole"]["main"]
    assert sorted(path for path in main if commit in path or "/main/" in path) == [
        f"GET /org/whole/resolve/{commit}/{WEIGHTS}",
        f"GET /org/whole/resolve/{commit}/preprocessor_config.json",
        "GET /org/whole/resolve/main/config.json",
    ]


@pytest.mark.parametrize("state", ["gone", "--offline"])
def test_what_is_cached_loads_without_the_hub(world: dict[str, Any], state: str) -> None:
    assert world[state]["whole"]["out"] == world["online"]["whole"]["out"]
    for name in ("whole", "v2", "sharded", "pickled"):
        assert top(world[state][name]) == top(world["online"][name]), name
        assert world[state][name]["naps"] == 0


def test_a_revision_is_a_tag_or_a_commit(world: dict[str, Any]) -> None:
    online = world["online"]
    assert top(online["v2"]) == top(online["by commit"]) == top(online["local other"]) != top(online["local"])
    assert json.loads(online["v2"]["out"])["revision"] == world["hub"].refs["org/whole"]["v2"]


def test_shards_and_pickles_equal_the_single_file(world: dict[str, Any]) -> None:
    whole = top(world["online"]["local"])
    for name in ("sharded", "pickled"):
        # The same weights at other addresses may go through other instructions, and round otherwise.
        for mine, theirs in zip(top(world["online"][name]), whole, strict=True):
            assert mine == {**theirs, "score": pytest.approx(theirs["score"], rel=1e-6)}


def test_a_branch_that_moves_meanwhile_mixes_nothing(world: dict[str, Any]) -> None:
    """main went on after config.json: the weights still come from the commit config.json came from."""
    assert world["hub"].refs["org/moving"]["main"] == world["hub"].moving["org/moving"]
    assert top(world["online"]["moving"]) == top(world["online"]["local"])


@pytest.mark.parametrize("state", ["online", "gone", "--offline"])
def test_a_repository_without_preprocessing_is_described(world: dict[str, Any], state: str) -> None:
    result = world[state]["no-preprocessor"]
    assert result["code"] == 0
    assert "preprocessing  not stated" in result["out"]


@pytest.mark.parametrize(
    "name, parts",
    [
        ("none", ["org/none: neither a path here nor found at", "check the id", "hf auth login"]),
        ("private", ["org/private: neither a path here nor found at", "log in if it is private: hf auth login"]),
        ("no such revision", ["org/whole: no revision 'v3' at"]),
        ("gated-401", ["org/gated-401: gated; accept its terms at", "hf auth login"]),
        ("gated-403", ["org/gated-403: gated; accept its terms at", "hf auth login"]),
        ("bad-token", ["it answered 401, Invalid credentials in Authorization header"]),
        ("forbidden", ["it answered 403, Forbidden by your organisation"]),
        ("busy", ["it answered 503"]),
        ("limited", ["it answered 429"]),
        ("no-hub", ["does not seem to be served by a Hugging Face Hub endpoint"]),
    ],
)
def test_a_hub_that_says_no(world: dict[str, Any], name: str, parts: list[str]) -> None:
    text = refusal(world["online"][name])
    assert all(part in text for part in [*parts, world["endpoint"]]), text


def test_no_hub_id(world: dict[str, Any]) -> None:
    assert "org--x/y: neither a path here nor a hub id (" in refusal(world["online"]["no such file"])


def test_a_download_that_breaks_off(world: dict[str, Any]) -> None:
    """huggingface_hub tries five times, a second apart; then the message says what, where and how to go on."""
    result = world["online"]["cut"]
    assert result["code"] == 4
    assert result["naps"] <= 5
    text = result["err"].splitlines()[-1]
    assert text.startswith(f"minivit: org/cut: {WEIGHTS} is not cached and could not be downloaded from")
    assert "closed" in text
    assert "hf download org/cut" in text
    assert "Traceback" not in result["err"]
    assert not list((world["cache"] / "hub/models--org--cut/snapshots").glob(f"*/{WEIGHTS}"))


@pytest.mark.parametrize(
    "name, message",
    [
        ("no-config", "org/no-config: the repository has no config.json"),
        ("no-weights", "org/no-weights: the repository has no weights; expected one of model.safetensors"),
        ("lost-shard", "index.json lists model-00002-of-00002.safetensors, which the repository does not have"),
        ("damaged", "not a whole safetensors file"),
    ],
)
def test_a_repository_that_is_no_checkpoint(world: dict[str, Any], name: str, message: str) -> None:
    assert message in refusal(world["online"][name], code=5)


@pytest.mark.parametrize(
    "state, reason",
    [
        ("gone", "Connection refused"),
        ("--offline", "the network is switched off (--offline or HF_HUB_OFFLINE)"),
    ],
)
def test_out_of_reach_says_what_was_tried_where_the_cache_is_and_how_to_fetch(
    world: dict[str, Any], state: str, reason: str
) -> None:
    text = refusal(world[state]["none"])
    assert text.startswith(
        f"minivit: org/none: config.json is not cached and could not be downloaded from {world['endpoint']}"
    )
    assert reason in text
    assert f"the cache is {world['cache'] / 'hub'};" in text
    assert text.endswith("fetch it where there is a network: hf download org/none\n")


@pytest.mark.parametrize("state", ["gone", "--offline"])
def test_half_a_model_in_the_cache_is_no_model(world: dict[str, Any], state: str) -> None:
    assert f"org/cut: {WEIGHTS} is not cached" in refusal(world[state]["cut"])
    assert "hf download org/whole --revision v3" in refusal(world[state]["other revision"])


def test_the_environment_switches_the_network_off_too() -> None:
    """The tests themselves run under HF_HUB_OFFLINE=1."""
    with pytest.raises(ModelUnavailableError, match=r"the network is switched off \(--offline or HF_HUB_OFFLINE\)"):
        load("org/none")


def test_user_and_password_of_the_endpoint_are_not_printed(tmp_path):
    """Nobody listens at port 9; the message names the host alone."""
    (done,) = run("http://someone:s3cret@127.0.0.1:9", tmp_path, [["info", "owner/model"]])
    assert done["code"] == 4
    assert "127.0.0.1:9" in done["err"]
    assert not {word for word in ("someone", "s3cret") if word in done["err"] + done["out"]}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://me:p%40ss@hub.example/a/b: no", "at https://hub.example/a/b: no"),
        ("https://token@hub.example", "https://hub.example"),
        ("http://a:b@c@host/x and s3://k:v@bucket", "http://host/x and s3://bucket"),
        ("https://hub.example/a@b, mail me@example.org", "https://hub.example/a@b, mail me@example.org"),
    ],
)
def test_addresses_lose_their_user_and_password(text, shown):
    assert without_password(text) == shown
