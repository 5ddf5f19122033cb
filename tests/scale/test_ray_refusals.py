"""What `--engine ray` refuses or says in one line, without a cluster."""

from __future__ import annotations

import socket

import pytest
from helpers.command import run

pytest.importorskip("ray", reason="Ray is not installed: pip install 'minivit[ray]'")


@pytest.fixture(scope="module")
def model(hf_checkpoint) -> str:
    return str(hf_checkpoint())


def said(err: str) -> list[str]:
    """The lines but that of the model."""
    return [line for line in err.splitlines() if "names no classes" not in line]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["nobody", "another server"])
def test_an_address_that_does_not_answer_is_given_up_in_one_line(capfd, model, photo, tmp_path, kind):
    """A server that accepts and says nothing is what Ray would wait for, for a quarter of an hour."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if kind == "nobody":
            server.close()
        command = ["classify", photo, "-m", model, "--engine", "ray", "-o", str(tmp_path / "out")]
        code, _, err = run(capfd, *command, "--address", f"127.0.0.1:{port}", "--ray-timeout", "2")
    assert code == 2
    assert len(said(err)) == 1
    assert f"--address 127.0.0.1:{port}: no Ray cluster" in err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_starts_no_cluster(capsys, model, tmp_path):
    import ray

    (tmp_path / "empty").mkdir()
    command = ["classify", str(tmp_path / "empty"), "-m", model, "--engine", "ray", "-o", str(tmp_path / "out")]
    code, _, err = run(capsys, *command)
    assert code == 0
    assert len(said(err)) == 1
    assert "no images in this folder" in err
    assert not ray.is_initialized()
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ray-timeout", "5"], "are of --engine ray"),
        (["--engine", "ray", "-o", "new", "--address", "host:port"], "expected auto or HOST:PORT"),
        (["--engine", "ray", "-o", "new", "--ray-timeout", "-5"], "--ray-timeout"),
    ],
)
def test_options_of_the_engine_are_checked(capsys, model, photo, monkeypatch, tmp_path, options, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "classify", photo, "-m", model, *options)
    assert code == 2
    assert message in err
