"""Sockets at which the processes of this command's Ray listen."""

import contextlib
import ipaddress
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


def listening() -> Iterator[tuple[psutil.Process, ipaddress.IPv4Address | ipaddress.IPv6Address, int]]:
    """Yield every process of this Ray with the address and port of each socket at which it listens."""
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    ip = ipaddress.ip_address(connection.laddr.ip)
                    yield process, getattr(ip, "ipv4_mapped", None) or ip, connection.laddr.port


@contextmanager
def beyond_loopback() -> Iterator[set[tuple[int, int]]]:
    """Collect (process id, port) of every socket beyond loopback at which a process listens while the block runs."""
    seen: set[tuple[int, int]] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.2):
            seen.update((process.pid, port) for process, ip, port in listening() if not ip.is_loopback)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
