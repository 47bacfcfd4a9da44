"""`make try` serves the newest registered model, and says in one line why it cannot."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from cluster.http import local
from edlm.storage import publish
from tests.bundles import make_bundle
from tests.paths import PROJECT
from workflows.try_model import main, newest


def registered(home: Path, name: str, seconds: float) -> Path:
    """A bundle as the register stage of an experiment of this name leaves it, `seconds` after the others."""
    folder = home / name / "register-0123456789ab"
    publish(make_bundle(home / "made" / name, name), str(folder))
    os.utime(folder / "_COMMITTED.json", (seconds, seconds))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    for name, seconds in (("first", 100.0), ("second", 300.0), ("third", 200.0)):
        registered(folder, name, seconds)
    unfinished = folder / "fourth" / "register-ba9876543210"
    unfinished.mkdir(parents=True)
    (unfinished / "bundle.yaml").touch()
    return folder


def test_the_newest_finished_model_is_chosen_whatever_its_experiment(home):
    assert newest(str(home)) == home / "second" / "register-0123456789ab"


def test_it_is_served_in_one_process_with_its_name(home):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "workflows.try_model", "--port", str(port)]
    environment = {**os.environ, "EDLM_HOME": str(home)}
    with subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored if the tests run in the background
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline(), process.stdout.readline()]
            assert lines == [f"loading {newest(str(home))}\n", f"http://127.0.0.1:{port}; Ctrl-C stops it\n"]
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json={"prompt": "ab"}, trust_env=False)
            assert answer.json()["model"] == "second"
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("place", "message"),
    [("", "no model is registered in .*; run `make run` first"), ("s3://bucket", "s3://bucket, no folder of this")],
)
def test_without_a_model_one_line_says_what_to_do(tmp_path, monkeypatch, place, message):
    monkeypatch.setenv("EDLM_HOME", place or str(tmp_path))
    with pytest.raises(SystemExit, match=f"^error: [^\n]*{message}[^\n]*$"):
        main([])


def test_what_cannot_be_served_is_one_line(home, tmp_path, monkeypatch):
    monkeypatch.setattr(local.logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(local, "log_to_standard_error", lambda: None)
    wrong = tmp_path / "keys"
    wrong.touch(0o644)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, message in (
            ([str(tmp_path), "--port", "0"], "is no bundle"),
            (
                [str(newest(str(home))), "--port", str(port)],
                f"port {port} cannot be used .*; give another one with --port",
            ),
            ([str(newest(str(home))), "--port", "0", "--keys", str(wrong)], "keys"),
        ):
            with pytest.raises(SystemExit, match=f"^error: [^\n]*{message}") as ended:
                local.main(arguments)
            assert "\n" not in str(ended.value.code)


def test_help_is_printed_without_a_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDLM_HOME", str(tmp_path))
    main(["--help"])
    assert "python -m workflows.try_model [--port 8000]" in capsys.readouterr().out
