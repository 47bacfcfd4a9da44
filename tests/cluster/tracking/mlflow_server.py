"""A real MLflow server, and a proxy before it that refuses, delays or loses what a test says."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import requests


class MlflowServer:
    """A real MLflow server in a process group of its own, on a port that stays the same."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self.port}", "--workers=1"]
        stores = [f"--backend-store-uri=sqlite:///{self.folder}/m.db", f"--artifacts-destination={self.folder}/files"]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command + stores, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(600):
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
def mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    """A server that runs while the context is open."""
    server = MlflowServer(folder)
    server.start()
    try:
        yield server
    finally:
        if server.process is not None:
            server.kill()


@dataclass(frozen=True)
class ProxyFault:
    """What happens to a request: a pause before it, a status in place of its answer, or no answer at all."""

    delay_seconds: float = 0.0
    status: int | None = None
    lost: bool = False


def no_fault(_method: str, _path: str, _size: int) -> ProxyFault | None:
    """Let every request through."""


class FaultyProxy:
    """A proxy before a server; `fault(method, path, bytes)` says what happens to a request, None that nothing does."""

    def __init__(self, target: str) -> None:
        self.fault: Callable[[str, str, int], ProxyFault | None] = no_fault
        proxy = self

        class ProxyHandler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_request(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy.fault(self.command, self.path, len(body)) or ProxyFault()
                time.sleep(fault.delay_seconds)
                if fault.status is not None:
                    self.answer(fault.status, {}, b"<html>refused by the proxy</html>")
                    return
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                response = requests.request(self.command, target + self.path, headers=headers, data=body, timeout=60)
                if fault.lost:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                kind = {"Content-Type": response.headers.get("Content-Type", "application/json")}
                self.answer(response.status_code, kind, response.content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request

            def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
                try:
                    self.send_response(status)
                    for name, value in {**headers, "Content-Length": str(len(content))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:  # the client did not wait
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), ProxyHandler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FaultyProxy":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
