"""A proxy before an HTTP server that refuses, delays or loses what a test says, and counts what it carries."""

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

OF_A_CONNECTION = ("connection", "expect", "transfer-encoding", "content-length", "server", "date")
"""Headers that are not passed on. That of the host is: S3 signs it."""


@dataclass(frozen=True)
class ProxyFault:
    """What happens to a request: a pause before it, a status in place of its answer, or no answer at all."""

    delay_seconds: float = 0.0
    status: int | None = None
    content: bytes = b"<html>refused by the proxy</html>"
    """Of the answer with that status."""
    lost: bool = False


def no_fault(_method: str, _path: str, _size: int) -> ProxyFault | None:
    """Let every request through."""


class FaultyProxy:
    """A proxy before a server; `fault(method, path, bytes)` says what happens to a request, None that nothing does."""

    def __init__(self, target: str) -> None:
        self.fault: Callable[[str, str, int], ProxyFault | None] = no_fault
        self.carried: list[tuple[str, str, int, int]] = []
        """Method, path, and bytes of the body and of the answer, of every request that reached the server."""
        proxy = self

        class ProxyHandler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_request(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy.fault(self.command, self.path, len(body)) or ProxyFault()
                time.sleep(fault.delay_seconds)
                if fault.status is not None:
                    self.answer(fault.status, {}, fault.content)
                    return
                headers = passed_on(self.headers.items())
                response = requests.request(self.command, target + self.path, headers=headers, data=body, timeout=60)
                proxy.carried.append((self.command, self.path, len(body), len(response.content)))
                if fault.lost:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                headers = passed_on(response.headers.items())
                headers.pop("Content-Encoding", None)  # the content is decoded
                if self.command == "HEAD":
                    headers["Content-Length"] = response.headers.get("Content-Length", "0")
                self.answer(response.status_code, headers, response.content)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request

            def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
                try:
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(content)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(content)
                except OSError:  # the client did not wait
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                """Print nothing."""

        self._server = _ProxyServer(("127.0.0.1", 0), ProxyHandler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FaultyProxy":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _ProxyServer(ThreadingHTTPServer):
    """Server that prints nothing of clients that are killed."""

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def passed_on(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the headers that are not of the connection."""
    return {name: value for name, value in headers if name.lower() not in OF_A_CONNECTION}
