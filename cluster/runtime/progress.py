"""Progress: lines that workers say, printed by the command that a person watches, without the workers' names."""

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
    """On a worker: says lines to the command that started it. Made by `speaker` there, it travels to the workers."""

    def __init__(self, mailbox) -> None:
        self._mailbox = mailbox

    def __call__(self, line: str) -> None:
        self._mailbox.put.remote(line)


_mailboxes: list = []


def speaker() -> Speaker:
    """What workers of this connection say lines with."""
    return Speaker(_mailboxes[-1])


@contextmanager
def relaying() -> Iterator[None]:
    """Inside, what workers say is printed within a second."""
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
