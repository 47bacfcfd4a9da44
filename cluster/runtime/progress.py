"""Progress lines: sent by workers, printed by the command that the user runs, without the workers' names."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray

NAME, NAMESPACE = "progress", "edlm"
POLL_SECONDS = 0.5


@ray.remote(num_cpus=0)
class _Mailbox:
    def __init__(self) -> None:
        self._lines: list[str] = []

    def put(self, line: str) -> None:
        self._lines.append(line)

    def take(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines


class Speaker:
    """Sender of progress lines to the command; the command creates it (`speaker`) and sends it to its workers."""

    def __init__(self, mailbox) -> None:
        self._mailbox = mailbox

    def __call__(self, line: str) -> None:
        self._mailbox.put.remote(line)


_mailboxes: list = []


def speaker() -> Speaker:
    """Return the `Speaker` for the workers of the current connection."""
    return Speaker(_mailboxes[-1])


@contextmanager
def relaying() -> Iterator[None]:
    """Print the lines that workers send, within a second, while the context is open."""
    mailbox, done = _Mailbox.remote(), threading.Event()
    _mailboxes.append(mailbox)

    def relay() -> None:
        while not done.wait(POLL_SECONDS):
            _print(mailbox)

    thread = threading.Thread(target=relay, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _print(mailbox)
        _mailboxes.remove(mailbox)


def _print(mailbox) -> None:
    for line in ray.get(mailbox.take.remote()):
        print(line, flush=True)
