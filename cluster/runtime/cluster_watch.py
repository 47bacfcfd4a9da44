"""Watch over the GCS of a command's Ray: without it the command ends with one line that says what to do.

Ray itself would wait for a minute and then end the process with a line that says nothing of it.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

POLL_SECONDS = 2.0
GONE_SECONDS = 45.0  # less than the 60 s after which Ray ends the process; a GCS that is started again needs some
CONNECT_SECONDS = 5.0


@contextmanager
def watched_gcs(address: str, gone_seconds: float = GONE_SECONDS) -> Iterator[None]:
    """Watch over the GCS at HOST:PORT while the context is open.

    If nothing has listened there for `gone_seconds`, the process ends with status 1: every call of Ray waits by then,
    so that nothing could be cleaned up.
    """
    host, _, port = address.rpartition(":")
    done = threading.Event()
    arguments = (host.strip("[]"), int(port), gone_seconds, done)
    threading.Thread(target=_watch, args=arguments, name="gcs-watch", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _watch(host: str, port: int, gone_seconds: float, done: threading.Event) -> None:
    answered = time.monotonic()
    while not done.wait(min(POLL_SECONDS, gone_seconds / 4)):
        if _listens(host, port):
            answered = time.monotonic()
        elif time.monotonic() - answered > gone_seconds and not done.is_set():
            sys.stdout.flush()
            print(
                f"error: Ray's GCS at {host}:{port} has not answered for {gone_seconds:.0f} s: it was killed, or its "
                "machine cannot be reached; run the same command again: a training resumes from its last checkpoint",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
