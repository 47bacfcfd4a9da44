"""A real MLflow server, which tests stop and kill."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import requests

from tests.tracking_database import copy_database

START_SECONDS = 180.0  # on a machine that is busy with other tests


class MlflowServer:
    """A real MLflow server in a process group of its own, on a port that stays the same.

    `within`: words before its command, which put it on another machine, that of `host`.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1", within: Sequence[str] = ()) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.host, self.within = folder, host, within
        self.uri = f"http://{host}:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [*self.within, sys.executable, "-m", "mlflow", "server", f"--host={self.host}", f"--port={self.port}"]
        stores = [
            "--workers=1",
            f"--backend-store-uri=sqlite:///{self.folder}/mlflow.db",
            f"--artifacts-destination={self.folder}/files",
        ]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command + stores, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                requests.get(f"{self.uri}/health", timeout=1).raise_for_status()
            except requests.RequestException:
                time.sleep(0.1)
            else:
                return
        raise TimeoutError((self.folder / "log").read_text())

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()
        self.process = None


@contextmanager
def mlflow_server(folder: Path, host: str = "127.0.0.1", within: Sequence[str] = ()) -> Iterator[MlflowServer]:
    """A server that runs while the context is open."""
    copy_database(folder)
    server = MlflowServer(folder, host, within)
    server.start()
    try:
        yield server
    finally:
        if server.process is not None:
            server.kill()
