"""Progress lines are printed if they arrive; that they do not is no reason for anything to fail."""

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
