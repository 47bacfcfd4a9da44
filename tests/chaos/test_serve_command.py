"""`make serve` from its first line to Ctrl-C: it names its logs, shows their errors, and ends quietly."""

import json
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from cluster.config import Tracking
from cluster.tracking.runs import open_tracking
from tests.bundles import make_bundle
from tests.cluster.asking import COMPLETIONS, ask
from tests.cluster.endpoint.spoiled import published
from tests.workflows.commands import command

pytestmark = pytest.mark.chaos
ERROR = {"event": "log", "level": "ERROR", "logger": "cluster", "message": "the disk is full\nTraceback ..."}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("home")
    runs = open_tracking(Tracking(), str(root))
    bundle = make_bundle(root / "bundle", "smallest")
    runs.registry.register("smallest", str(bundle), runs.settled(None, "register"), "champion", published(bundle))
    return root


def test_the_command_names_its_logs_shows_their_errors_and_ends_quietly(home):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments, settings = command(home, "serve", "--serving.port", str(port))
    with subprocess.Popen(arguments, **settings) as served:
        lines = [next(served.stdout) for _ in range(6)]
        url, logs = f"http://127.0.0.1:{port}", home / "logs"
        assert lines[:3] == [
            "[serve] starting Ray, which takes some seconds\n",
            f"[serve] starting smallest (champion); logs in {logs}\n",
            f"[serve] ready on {url}\n",
        ]
        assert [line.partition(":")[0] for line in lines[3:]] == ["try", "another version", "Ctrl-C stops it\n"]
        ask(url, COMPLETIONS, {"max_tokens": 4}, headers={"content-type": "application/json", "x-request-id": "mine"})
        (log,) = logs.glob("replica-*.log")
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        assert [entry["status"] for entry in entries if entry.get("request_id") == "mine"] == [200]
        with log.open("a") as file:
            file.write(json.dumps(ERROR) + "\n")
        assert next(served.stdout) == f"error: the disk is full; see {log}\n"
        served.send_signal(signal.SIGINT)
        assert list(served.stdout) == ["[serve] stopping; running requests may finish\n"]
    assert served.returncode == 0
