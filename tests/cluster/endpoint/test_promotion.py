"""Promotion: a good version answers in every replica, and no bad one ever does."""

import os
import shlex
import signal
import subprocess
import threading

import pytest

from cluster.http.local import listening
from cluster.runtime.ray_connection import address
from cluster.serving import promotion
from cluster.serving.deploy import APPLICATION, apply, deployed
from cluster.serving.promotion import NotPromoted, Promotion, with_version
from edlm.config import ConfigurationError
from tests.cluster.endpoint.stage import SECONDS, SPOILED, until
from workflows.promote import CANARY
from workflows.serve import promotion as promotion_line

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def text(stage, name: str) -> str:
    stage.promote(name)
    return stage.ask().json()["choices"][0]["text"]


def test_under_load_another_version_follows_in_place_and_no_request_fails(stage):
    """R16: every answer is whole, and names the version whose text it is."""
    texts = {stage.versions[name].digest: text(stage, name) for name in ("second", "first")}
    assert len(set(texts.values())) == 2
    pids, answers, done = stage.pids(), [], threading.Event()

    def load() -> None:
        while not done.is_set():
            answers.append(stage.ask())

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for name in ("second", "first", "second"):
        stage.promote(name)
    done.set()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {200}
    assert {(reply.json()["edlm"]["digest"], reply.json()["choices"][0]["text"]) for reply in answers} == set(
        texts.items()
    )
    assert stage.pids() == pids


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_version_is_not_promoted_and_the_old_one_answers_on(stage, name):
    """R17"""
    stage.promote("first")
    pids = stage.pids()
    with pytest.raises(NotPromoted, match=f"{SPOILED[name]}(.|\n)*; the previous version is serving"):
        stage.promote(name)
    assert stage.answers() == ["first", "first"]
    assert stage.ask().json()["edlm"]["digest"] == stage.versions["first"].digest
    assert stage.pids() == pids


@pytest.mark.parametrize("breaks", [KeyError("digest"), KeyboardInterrupt()])
def test_whatever_ends_a_promotion_the_version_before_answers(stage, monkeypatch, breaks):
    stage.promote("first")
    output = []

    def interrupted(*_: object) -> None:
        output.extend(deployed()[APPLICATION].deployments)
        raise breaks

    monkeypatch.setattr(promotion, "unanswered", interrupted)
    with pytest.raises(NotPromoted if isinstance(breaks, Exception) else KeyboardInterrupt) as raised:
        stage.promote("second")
    assert [asked.user_config["digest"] for asked in output] == [stage.versions["second"].digest]  # it was in progress
    if isinstance(breaks, Exception):
        assert str(raised.value) == "KeyError: 'digest'; the previous version is serving"
    until(lambda: stage.answers() == ["first", "first"])


def test_replicas_that_do_not_answer_in_time_are_asked_again(stage, monkeypatch):
    """Ray raises TimeoutError, as while a replica is busy, or dies."""
    stage.promote("first")
    with monkeypatch.context() as hasty:
        hasty.setattr(promotion, "ASK_SECONDS", 1e-9)
        assert stage.swap_statuses() == []
    assert stage.answers() == ["first", "first"]


def test_a_promotion_that_is_only_ever_refused_states_so(stage, monkeypatch):
    stage.promote("first")

    async def busy(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 429, "headers": []})
        await send({"type": "http.response.body", "body": b"work is used up"})

    with listening(busy) as elsewhere:
        monkeypatch.setattr(promotion, "url", lambda _: elsewhere)
        promoting = Promotion(4.0, key=None)
        with pytest.raises(NotPromoted, match=r"after 4 s the test request was answered with status 429.*used up"):
            promoting.run(stage.versions["second"], CANARY)
    until(lambda: stage.answers() == ["first", "first"])


def test_of_quick_promotions_the_last_wins_in_every_replica(stage):
    """R18"""
    stage.promote("first")
    for name in ("second", "first", "second"):
        apply(with_version(deployed()[APPLICATION], stage.versions[name]))
    until(lambda: stage.answers() == ["second", "second"])
    stage.promote("second")


def test_a_running_text_is_finished_by_the_model_that_began_it(stage):
    """R18"""
    stage.promote("first")
    long = {"prompt": "", "max_tokens": 600, "seed": 3}
    alone = stage.ask(**long).json()["choices"][0]["text"]
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(stage.ask(**long).json())) for _ in range(2)]
    for thread in threads:
        thread.start()
    stage.promote("second")
    for thread in threads:
        thread.join()
    for answer in answers:
        if answer["edlm"]["digest"] == stage.versions["first"].digest:
            assert answer["choices"][0]["text"] == alone
        else:
            assert answer["choices"][0]["text"] != alone


@pytest.mark.chaos
def test_the_line_that_serve_prints_promotes_from_any_shell_and_states_why_it_does_not(stage):
    output = command("--alias", "second")
    assert output.returncode == 0, output.stderr
    assert "INFO" not in output.stderr
    assert stage.answers() == ["second", "second"]
    output = command("--version", stage.versions["numbers"].version)
    assert output.returncode == 1
    assert "error: not promoted" in output.stderr
    assert "not finite" in output.stderr
    assert stage.answers() == ["second", "second"]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The line that `make serve` prints, in a shell that knows nothing of this process."""
    reported = shlex.split(promotion_line(address(), keyed=False))
    unknown = ("RAY_AUTH_MODE", "RAY_ADDRESS", "EDLM_HOME")
    return subprocess.run(
        [*reported, *arguments],
        env={name: value for name, value in os.environ.items() if name not in unknown},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.usefixtures("stage")
def test_what_the_registry_does_not_know_is_not_tried():
    promoting = Promotion(SECONDS, key=None)
    with pytest.raises(ValueError, match=r"has no alias 'unknown' \(aliases: "):
        promoting.resolve("unknown", None, None)
    with pytest.raises(ValueError, match=r"has no version 99 \(versions: 1, 2, 3, "):
        promoting.resolve(None, 99, None)


@pytest.mark.usefixtures("stage")
def test_an_endpoint_that_asks_for_keys_is_not_promoted_without_one(monkeypatch):
    asking = deployed()[APPLICATION]
    asking.args["serving"]["key_file"] = "/etc/edlm/keys"
    monkeypatch.setattr(promotion, "deployed", lambda: {APPLICATION: asking})
    with pytest.raises(ConfigurationError, match="EDLM_API_KEY"):
        Promotion(SECONDS, key=None)


@pytest.mark.chaos
def test_without_registry_and_storage_the_endpoint_answers_and_a_replica_starts_again(stage):
    """The registry is queried by the promoting command, never by a replica; its model is cached."""
    stage.promote("first")
    (stage.root / "mlflow.db").rename(stage.root / "away.db")
    (stage.root / "first").rename(stage.root / "gone")
    try:
        killed = min(stage.pids())
        os.kill(killed, signal.SIGKILL)
        until(lambda: killed not in stage.pids() and len(stage.pids()) == 2)
        assert stage.ask().json()["edlm"]["digest"] == stage.versions["first"].digest
        assert stage.answers() == ["first", "first"]
    finally:
        (stage.root / "away.db").rename(stage.root / "mlflow.db")
        (stage.root / "gone").rename(stage.root / "first")
