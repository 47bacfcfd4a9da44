"""One model follows another: only a good one, in the background, and the one asked for last."""

import threading
import time
from collections import Counter

import pytest

from cluster.serving.model_swap import ModelSwap
from cluster.tracking.model_version import ModelVersion

FIRST, SECOND, THIRD, BAD = (ModelVersion(name, f"file:///{name}", name * 64) for name in "123b")


class LoadedModels:
    """What loads and what answers; loading waits until it may end."""

    def __init__(self) -> None:
        self.answers, self.loaded, self.ends = [FIRST], [], Counter()
        self.may_end, self.loading = threading.Event(), threading.Event()
        self.may_end.set()
        self.model_swap = ModelSwap(FIRST, self.load, self.swap, lambda end: self.ends.update([end]))

    def load(self, version: ModelVersion) -> ModelVersion:
        self.loading.set()
        assert self.may_end.wait(10)
        self.loaded.append(version)
        if version == BAD:
            raise ValueError("its weights are not finite")
        return version

    def swap(self, model: ModelVersion, version: ModelVersion) -> None:
        assert model == version
        self.answers.append(version)

    def settled(self) -> str:
        deadline = time.monotonic() + 10
        while self.model_swap.status.state == "loading":
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return self.model_swap.status.state


@pytest.fixture
def stage() -> LoadedModels:
    return LoadedModels()


def test_a_good_model_follows_and_is_named(stage):
    stage.model_swap.request(SECOND)
    assert stage.settled() == "ready"
    assert stage.model_swap.status.current == SECOND
    assert (stage.answers, stage.ends) == ([FIRST, SECOND], {"done": 1})


def test_a_bad_model_never_answers_and_the_old_one_goes_on(stage):
    stage.model_swap.request(BAD)
    assert stage.settled() == "failed"
    status = stage.model_swap.status
    assert (status.current, status.target) == (FIRST, BAD)
    assert status.error == "ValueError: its weights are not finite"
    assert (stage.answers, stage.ends) == ([FIRST], {"failed": 1})


def test_after_a_failure_the_old_model_is_asked_for_without_loading_it_again(stage):
    stage.model_swap.request(BAD)
    stage.settled()
    stage.model_swap.request(FIRST)
    assert stage.settled() == "ready"
    assert stage.loaded == [BAD]
    assert stage.answers == [FIRST]


def test_asking_returns_while_the_model_is_still_loading(stage):
    stage.may_end.clear()
    stage.model_swap.request(SECOND)
    assert stage.loading.wait(10)
    assert stage.model_swap.status.state == "loading"
    assert stage.model_swap.status.current == FIRST
    stage.may_end.set()
    assert stage.settled() == "ready"


def test_of_two_quick_requests_the_last_wins_and_the_first_never_answers(stage):
    stage.may_end.clear()
    stage.model_swap.request(SECOND)
    assert stage.loading.wait(10)
    stage.model_swap.request(THIRD)
    stage.may_end.set()
    assert stage.settled() == "ready"
    assert stage.answers == [FIRST, THIRD]


def test_the_old_model_asked_for_while_a_new_one_loads_stays(stage):
    stage.may_end.clear()
    stage.model_swap.request(SECOND)
    assert stage.loading.wait(10)
    stage.model_swap.request(FIRST)
    stage.may_end.set()
    assert stage.settled() == "ready"
    assert (stage.answers, stage.model_swap.status.current) == ([FIRST], FIRST)


def test_the_same_request_again_loads_nothing(stage):
    stage.model_swap.request(SECOND)
    stage.settled()
    stage.model_swap.request(SECOND)
    assert stage.settled() == "ready"
    assert stage.loaded == [SECOND]


def test_what_is_no_version_is_refused_and_changes_nothing(stage):
    stage.model_swap.refuse("digest: missing")
    status = stage.model_swap.status
    assert (status.current, status.target, status.state, status.error) == (
        FIRST,
        None,
        "failed",
        "digest: missing",
    )
    stage.model_swap.request(SECOND)
    assert stage.settled() == "ready"
