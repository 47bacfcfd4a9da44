"""Progress lines: sent by workers, printed by the command that the user runs, without the workers' names."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ray
from ray.exceptions import RayError

from cluster.runtime.placement import on_this_machine
from edlm.redaction import redacted_text

POLL_SECONDS = 0.5
ANSWER_SECONDS = 5.0  # for the mailbox, when the command ends
log = logging.getLogger(__name__)


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
    """Sender of progress lines to the command; the command creates it (`speaker`) and sends it to its workers.

    A line that cannot be delivered is lost: progress is never a reason for a worker to fail.
    """

    def __init__(self, mailbox) -> None:
        self._mailbox = mailbox

    def __call__(self, line: str) -> None:
        with suppress(RayError):
            self._mailbox.put.remote(line)


class WarningRelay(logging.Handler):
    """Handler that says the warnings of a worker to the command, whose user does not read the worker's log."""

    def __init__(self, speaker: Speaker, prefix: str) -> None:
        super().__init__(logging.WARNING)
        self._speaker, self._prefix = speaker, prefix

    def emit(self, record: logging.LogRecord) -> None:
        """Say the record's message, in one line."""
        self._speaker(f"{self._prefix}{' '.join(record.getMessage().split())}")


def relay_warnings(speaker: Speaker, prefix: str) -> None:
    """Say the warnings of edlm in this process from now on: for a worker's entry point."""
    for name in ("edlm", "cluster"):
        logging.getLogger(name).addHandler(WarningRelay(speaker, prefix))


_mailboxes: list = []


def speaker() -> Speaker:
    """Return the `Speaker` for the workers of the current connection."""
    return Speaker(_mailboxes[-1])


@contextmanager
def relaying() -> Iterator[None]:
    """Print the lines that workers send, within a second, while the context is open.

    Ray starts a mailbox whose process dies again, without the lines that were in it.
    """
    # On this machine: with another one, whose loss is to be reported, the report would be lost.
    mailbox = _Mailbox.options(max_restarts=-1, scheduling_strategy=on_this_machine()).remote()
    done = threading.Event()
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
    """Print the lines in the mailbox, without secrets; none if it does not answer."""
    try:
        lines = ray.get(mailbox.take.remote(), timeout=ANSWER_SECONDS)
    except (
        RayError
    ) as error:  # its process died, perhaps with lines; if there is more to it, the command learns elsewhere
        log.debug("progress lines are lost: %s", error)
        return
    for line in lines:
        print(redacted_text(line), flush=True)
