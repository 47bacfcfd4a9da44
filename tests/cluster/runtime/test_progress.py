"""Progress lines are printed if they arrive; that they do not is no reason for anything to fail."""

import logging
from types import SimpleNamespace

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError

from cluster.runtime import progress


class DeadMailbox:
    """Handle of a mailbox whose process was killed: Ray raises at the call, or where its answer is waited for."""

    def __init__(self) -> None:
        self.put = self.take = SimpleNamespace(remote=self._raise)

    def _raise(self, *_: object) -> None:
        raise ActorDiedError


def test_a_worker_goes_on_where_its_line_cannot_be_sent():
    progress.Speaker(DeadMailbox())("[pretrain] step 1")


def test_a_command_goes_on_where_lines_cannot_be_fetched(monkeypatch, capsys):
    progress._print(DeadMailbox())

    def too_late(*_, **__):
        raise GetTimeoutError

    monkeypatch.setattr(ray, "get", too_late)
    progress._print(SimpleNamespace(take=SimpleNamespace(remote=lambda: None)))
    assert capsys.readouterr().out == ""


def test_lines_are_printed_without_secrets(monkeypatch, capsys):
    monkeypatch.setattr(ray, "get", lambda lines, **_: lines)
    lines = ["[pretrain] rank 1 ended with OSError: https://host/x?sig=Zq7abcdef", "[pretrain] tokens 7"]
    progress._print(SimpleNamespace(take=SimpleNamespace(remote=lambda: lines)))
    assert (
        capsys.readouterr().out == "[pretrain] rank 1 ended with OSError: https://host/x?sig=***\n[pretrain] tokens 7\n"
    )


def test_warnings_of_a_worker_are_said_to_the_command_each_in_a_line_and_what_is_less_is_not():
    lines = []
    before = {name: logging.getLogger(name).handlers[:] for name in ("edlm", "cluster")}
    try:
        progress.relay_warnings(lines.append, "[pretrain] rank 1: ")
        logging.getLogger("edlm.checkpoints.snapshot_writer").warning("step %d\ncould not be written", 7)
        logging.getLogger("cluster.tracking.journal").error("full")
        logging.getLogger("edlm").info("as usual")
        logging.getLogger("torch").warning("of others")
    finally:
        for name, handlers in before.items():
            logging.getLogger(name).handlers = handlers
    assert lines == ["[pretrain] rank 1: step 7 could not be written", "[pretrain] rank 1: full"]
