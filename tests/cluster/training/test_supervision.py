"""What ends an attempt decides whether there is another, and the last line names the cause; without Ray."""

import os
import re
import signal
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from cluster.training import supervision
from cluster.training.outcomes import TrainingFailed, TrainingStopped, WorkerReport
from cluster.training.supervision import Restarts, cause, supervise
from edlm.config import ConfigurationError
from edlm.training.interfaces import NonFiniteLoss

DIED = WorkerGroupError("", {1: WorkerHealthCheckFailedError("", RayActorError())})
OUT_OF_MEMORY = WorkerHealthCheckFailedError(
    "", OutOfMemoryError("Task was killed due to the node running low on memory")
)
HUNG = WorkerReport(1, "process 7 on node", "has taken no step for 16 s; it stands at loader.py:3", hung=True)
PEER = WorkerReport(0, "process 6 on node", "ended with RuntimeError: Timed out waiting", "Traceback ...")


class WorkerGroupStartupTimeoutError(Exception):
    """Of the name of Ray Train's."""


class Board:
    """A monitor without Ray."""

    def __init__(self) -> None:
        self.delivered, self.step, self.asked = [], None, threading.Event()

    def reports(self) -> list[WorkerReport]:
        return self.delivered

    def stopped_at(self) -> int | None:
        return self.step

    def nodes(self) -> set[str]:
        return {"a"}

    def request_stop(self) -> None:
        self.asked.set()


@pytest.fixture
def boards(monkeypatch) -> list[Board]:
    made = []

    @contextmanager
    def monitor():
        made.append(Board())
        yield made[-1]

    monkeypatch.setattr(supervision, "_monitor", monitor)
    monkeypatch.setattr(supervision, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(supervision.ray, "nodes", list)
    monkeypatch.setattr(supervision.cluster_state, "get_draining_nodes", dict)
    return made


def run(attempts, limit=2, recovery=1800.0, shared=False, growth=lambda: None):
    """Supervise these attempts, each a function of the monitor; return what was lines and waited for."""
    remaining, lines, waited = iter(attempts), [], []
    done = threading.Event()

    def attempt(monitor) -> None:
        if next(remaining)(monitor) == "done":
            done.set()

    def supervised():
        supervise("toy", attempt, done.is_set, Restarts(limit, recovery, waited.append, growth, shared), lines.append)
        return lines, waited

    return supervised, lines, waited


def raising(error, *reports):
    def attempt(monitor):
        monitor.delivered += reports
        raise error

    return attempt


def finish(_) -> str:
    return "done"


@pytest.mark.usefixtures("boards")
def test_workers_and_controllers_that_die_are_started_again_each_with_its_cause():
    supervised, lines, waited = run([raising(DIED), raising(RayActorError()), finish], recovery=9.0, shared=True)
    supervised()
    assert lines == [
        "[toy] rank 1 died: its process was killed, or its machine is gone; restart 1 of at most 2, from the last "
        "checkpoint",
        "[toy] Ray Train's controller died; restart 2 of at most 2, from the last checkpoint",
    ]
    assert waited == [9.0, 9.0]


@pytest.mark.usefixtures("boards")
def test_restarts_are_bounded_and_the_error_names_the_last_cause(capsys):
    supervised, _, waited = run([raising(DIED), raising(DIED, PEER, HUNG)], limit=1)
    expected = r"toy failed 2 times, at last because rank 1 \(process 7 on node\) has taken no step for 16 s; it stands"
    with pytest.raises(TrainingFailed, match=expected):
        supervised()
    assert "rank 0:\nTraceback ..." in capsys.readouterr().err
    assert waited == [0], "the Ray of one command gets no more machines"


@pytest.mark.usefixtures("boards")
def test_a_workers_traceback_is_printed_without_its_secrets(capsys):
    detail = "Traceback ...\nOSError: https://host/x?sig=Zq7abcdef for s3://me:Zq7abcdef@bucket"
    supervised, _, _ = run([raising(DIED, replace(PEER, detail=detail))], limit=0)
    with pytest.raises(TrainingFailed):
        supervised()
    assert "OSError: https://host/x?sig=*** for s3://***@bucket\n" in capsys.readouterr().err


@pytest.mark.parametrize("error", [NonFiniteLoss(5, 1, "the loss"), ConfigurationError("no such tensor")])
@pytest.mark.usefixtures("boards")
def test_an_error_that_every_restart_would_meet_is_raised_as_it_is_at_once(error):
    report = WorkerReport(0, "", "", error=error)
    supervised, lines, _ = run([raising(DIED, PEER, report)])
    with pytest.raises(type(error), match=str(error)):
        supervised()
    assert lines == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_makes_the_workers_save_and_ends_the_command_with_its_status(boards, number, capsys):
    def attempt(monitor) -> None:
        os.kill(os.getpid(), number)
        assert monitor.asked.wait(30)
        monitor.step = 41

    supervised, _, _ = run([attempt])
    with pytest.raises(TrainingStopped) as stopped:
        supervised()
    name = signal.Signals(number).name
    assert stopped.value.code == 128 + number
    assert (
        stopped.value.message
        == f"toy was stopped by {name} and saved after step 41; the same command goes on from there"
    )
    assert f"[toy] {name}: saves after this step and stops" in capsys.readouterr().out
    assert len(boards) == 1


@pytest.mark.usefixtures("boards")
def test_a_second_signal_does_not_wait_for_the_workers():
    release = threading.Event()

    def attempt(monitor) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        assert monitor.asked.wait(30)
        os.kill(os.getpid(), signal.SIGTERM)
        release.wait(30)

    supervised, _, _ = run([attempt])
    with pytest.raises(SystemExit) as ended:
        supervised()
    release.set()
    assert ended.value.code == 128 + signal.SIGTERM


def test_a_drained_machine_makes_the_workers_save_and_go_on_elsewhere_without_counting(boards, monkeypatch):
    monkeypatch.setattr(supervision.cluster_state, "get_draining_nodes", lambda: {"a": 0} if len(boards) == 1 else {})

    def drained(monitor) -> None:
        assert monitor.asked.wait(30)
        monitor.step = 12

    supervised, lines, _ = run([drained, finish], limit=0, shared=True)
    supervised()
    assert lines == ["[toy] a machine is drained: saved after step 12, goes on without it"]


def test_room_for_more_workers_that_lasts_makes_them_save_and_go_on_with_more_without_counting(boards, monkeypatch):
    monkeypatch.setattr(supervision, "GROWTH_SECONDS", 0.2)
    answers = iter([3, None])  # gone again at once

    def saved(monitor) -> None:
        assert monitor.asked.wait(30)
        monitor.step = 12

    def growth() -> int | None:
        return next(answers, 3 if len(boards) == 1 else None)

    supervised, lines, _ = run([saved, finish], limit=0, shared=True, growth=growth)
    supervised()
    assert lines == ["[toy] there is room for 3 workers: saved after step 12, goes on with them"]


@pytest.mark.usefixtures("boards")
def test_a_machine_that_is_gone_is_the_cause_and_not_what_its_peers_say(monkeypatch):
    nodes = [
        {"NodeID": "a", "NodeManagerAddress": "10.0.0.1", "Alive": False},
        {"NodeID": "b", "NodeManagerAddress": "10.0.0.2", "Alive": False},
    ]
    monkeypatch.setattr(supervision.ray, "nodes", lambda: nodes)
    supervised, lines, _ = run([raising(WorkerGroupError("", {}), PEER), finish])
    supervised()
    assert lines == [
        "[toy] a machine with workers is gone, or cannot be reached: 10.0.0.1; restart 1 of at most 2, from the last "
        "checkpoint"
    ]


@pytest.mark.usefixtures("boards")
def test_a_machine_that_does_not_come_back_is_waited_for_as_long_as_the_setting_says():
    late = raising(ControllerError(WorkerGroupStartupTimeoutError("2")))
    supervised, lines, _ = run([raising(DIED), late, late, late, finish], limit=1, shared=True)
    supervised()
    assert len(lines) == 1
    supervised, _, _ = run([raising(DIED), late, late], recovery=0.0, shared=True)
    with pytest.raises(TrainingFailed, match="once, at last because the workers did not start in time"):
        supervised()


@pytest.mark.parametrize(
    ("error", "reports", "expected"),
    [
        (DIED, [PEER], "rank 1 died"),
        (
            WorkerGroupError("", {0: RayActorError(), 1: OUT_OF_MEMORY}),
            [PEER],
            "^rank 1 was killed, for its machine ran",
        ),
        (WorkerGroupError("", {0: WorkerHealthCheckTimeoutError("")}), [], "^rank 0 does not answer: its process is"),
        (DIED, [PEER, HUNG], "it stands at loader.py:3"),
        (WorkerGroupError("", {0: RuntimeError("x")}), [PEER], "rank 0 .* Timed out waiting"),
        (ControllerError(ValueError("first\nsecond")), [], "^ValueError: first$"),
        (None, [], "the workers ended without a result"),
    ],
)
def test_the_cause_is_the_first_domino(error, reports, expected):
    assert re.search(expected, cause(error, reports))
