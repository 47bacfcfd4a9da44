"""`make serve` before Ray starts: what is missing is one line, and nothing is written."""

import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.http.middleware.api_keys import add_key
from edlm.config import load
from tests.paths import SMALLEST
from workflows.experiment import Experiment
from workflows.serve import promotion, serve


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Nothing of it was made yet, and Ray is not started."""

    def started(*_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", started)
    return replace(load(Experiment, SMALLEST), storage=str(tmp_path / "home"))


def printed(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that `serve` ends with."""
    with pytest.raises(SystemExit) as ended:
        serve(experiment)
    assert ended.value.code == 1
    reported = capsys.readouterr()
    assert reported.out == ""
    assert reported.err.count("\n") == 1
    return reported.err


def test_without_a_model_serve_states_what_to_run_first_and_writes_nothing(experiment, tmp_path, capsys):
    assert "run `make run` first" in printed(experiment, capsys)
    assert list(tmp_path.iterdir()) == []


def keys(folder: Path, state: str) -> Path:
    """A file of API keys that is no good."""
    path = folder / "keys"
    if state == "readable":
        add_key(path, "anna")
        path.chmod(0o644)
    elif state != "missing":
        path.write_text("" if state == "empty" else "anna 1234\n")
        path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    ("state", "reported"),
    [
        ("missing", "workflows.serve key NAME --file"),
        ("readable", "has mode 0644, but API keys must be readable by their owner only: chmod 600"),
        ("empty", "holds no API key"),
        ("damaged", "line 1 is not `NAME sha256:HASH`"),
    ],
)
def test_a_file_of_keys_that_is_no_good_is_named_before_ray_starts(experiment, tmp_path, capsys, state, reported):
    path = keys(tmp_path, state)
    line = printed(replace(experiment, serving=replace(experiment.serving, key_file=str(path))), capsys)
    assert reported in line
    assert str(path) in line


def test_a_port_that_is_taken_is_named_before_ray_starts(experiment, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("workflows.serve.require_servable", lambda _: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = printed(replace(experiment, serving=replace(experiment.serving, port=port)), capsys)
    assert f"serving.port: {port} on 127.0.0.1 cannot be bound" in line
    assert list(tmp_path.iterdir()) == []


def test_the_promotion_line_names_the_interpreter_as_it_is_typed_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    line = ".venv/bin/python -m workflows.serve promote --address 127.0.0.1:6379"
    assert promotion("127.0.0.1:6379", keyed=False) == line
    assert promotion("127.0.0.1:6379", keyed=True) == f"EDLM_API_KEY=YOUR-API-KEY {line}"
    monkeypatch.setattr(sys, "executable", "/opt/a b/python")
    assert promotion("127.0.0.1:6379", keyed=False).startswith("'/opt/a b/python' -m workflows.serve promote")
