"""The client and the load against the service itself: they read what it says, and their accounts agree with its own."""

from collections import Counter
from collections.abc import Iterator

import pytest

from cluster.http.local import Service, serving
from edlm.client.client import Client
from edlm.client.errors import Busy, InvalidRequest
from edlm.client.settings import Settings
from edlm.client.types import Choice, Ended, Infilled, State
from edlm.inference.request import Limits
from tests.bundles import LENGTH
from tests.cluster.asking import eventually
from tests.cluster.conftest import DIGEST, PATIENT, VERSION
from workflows.benchmarking.arrivals import plan
from workflows.benchmarking.load import RequestSettings, burst, load

WEIGHED = Settings(steps=6, candidates=3)


@pytest.fixture
def client(url) -> Iterator[Client]:
    with Client(url) as opened:
        yield opened


def accounts(service: Service):
    return service.endpoint.engine.statistics()


def idle(service: Service) -> bool:
    return accounts(service).running + accounts(service).waiting == 0


def test_every_answer_of_the_service_is_read(client):
    done = client.complete("ab", max_tokens=8, seed=3, settings=WEIGHED, n=2)
    assert [len(choice.text) for choice in done.choices] == [8, 8]
    assert (done.details.seed, done.details.model_version, done.details.digest) == (3, VERSION, DIGEST)
    assert done.usage.completion_tokens == 16
    filled = client.infill(["ab", 3, "c"], seed=3).choices[0]
    assert (filled.text[:2], filled.text[5:], len(filled.tokens)) == ("ab", "c", 6)
    assert set(client.score("abc", seed=1, draws=2).energies) == {"step", "conditional"}
    (model,) = client.models()
    assert (model.facts.length, model.facts.energy) == (LENGTH, "step")
    read = client.tokenize("ab")
    assert (read.pieces, client.detokenize(read.tokens)) == (("a", "b"), "ab")
    with pytest.raises(InvalidRequest, match="max_tokens") as error:
        client.complete("ab", max_tokens=-1)
    assert (error.value.status, error.value.param) == (400, "max_tokens")


def test_texts_without_a_seed_differ_and_can_be_made_again_alone(client):
    done = client.complete(["ab"] * 3, max_tokens=12, n=2)
    assert len({choice.text for choice in done.choices}) == 6
    assert (done.details.streams, done.details.ignored) == ("independent", ())
    for choice, seed in zip(done.choices, done.details.seeds, strict=True):
        assert client.complete("ab", max_tokens=12, seed=seed).choices[0].text == choice.text
    again = client.complete(
        ["ab"] * 3, max_tokens=12, n=2, seed=done.details.seed, settings=Settings(streams="independent")
    )
    assert again.choices == done.choices


def test_fields_of_a_request_besides_its_settings_are_sent(client):
    assert client.complete("ab", settings=Settings(candidates=1), edlm={"steps": 3}).details.steps == 3
    assert client.complete("ab", metadata={}).details.ignored == ("metadata",)
    assert client.complete("ab", steps=3, candidates=1).details.steps == 3


def test_logprobs_and_truncation_are_read_and_named(client):
    asked = {"max_tokens": 8, "seed": 5, "logprobs": 2, "top_k": 4, "top_p": 0.9}
    done = client.complete("ab", **asked)
    assert (done.details.top_k, done.details.top_p, done.details.distribution) == (4, 0.9, "another distribution")
    assert done.details.logprobs == {"generated": "p_theta", "prompt": None, "prompt_distribution": None}
    found = done.choices[0].logprobs
    assert "".join(found.tokens) == done.text
    assert all(
        top[token] == log_p
        for token, log_p, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True)
    )
    with client.stream("ab", **asked) as stream:
        parts = [event.logprobs for event in stream if isinstance(event, Choice) and event.logprobs]
    assert tuple(log_p for part in parts for log_p in part.token_logprobs) == found.token_logprobs


def test_a_stream_shows_the_same_text_and_how_each_token_came(client):
    whole = client.complete("ab", max_tokens=10, seed=5, settings=WEIGHED)
    asked = {"stream_options": {"candidate_tokens": True}}
    with client.stream("ab", max_tokens=10, seed=5, settings=WEIGHED, denoising=True, **asked) as stream:
        events = list(stream)
    ended = events.pop()
    assert isinstance(ended, Ended)
    assert (ended.usage, ended.details.denoiser_calls) == (whole.usage, whole.details.denoiser_calls)
    assert "".join(event.text for event in events if isinstance(event, Choice)) == whole.choices[0].text
    states = [event for event in events if isinstance(event, State)]
    shown = {token.position: token.text for state in states for token in state.unmasked}
    assert "".join(shown[i] for i in range(10)) == whole.choices[0].text
    masked = [state.masked for state in states]
    assert (masked, masked[-1]) == (sorted(masked, reverse=True), 0)
    assert {len(group) for state in states for group in state.energies or ()} == {3}
    shown_candidates = [state.candidate_tokens for state in states if state.candidate_tokens is not None]
    assert {len(candidates.texts) for candidates in shown_candidates} == {3}


def test_an_infill_streams_its_states_and_then_its_text(client):
    whole = client.infill(["ab", 4], seed=2).choices[0]
    with client.stream_infill(["ab", 4], seed=2) as stream:
        events = list(stream)
    assert isinstance(events[-1], Ended)
    (filled,) = [event for event in events if isinstance(event, Infilled)]
    assert (filled.text, filled.tokens) == (whole.text, whole.tokens)


def test_leaving_a_stream_frees_its_slot(generator):
    with serving(generator, "1/0", limits=PATIENT) as service, Client(service.url) as client:
        with client.stream(max_tokens=4000, settings=Settings(steps=12, candidates=1), denoising=True) as stream:
            next(stream)
        eventually(lambda: accounts(service).finished == {"cancelled": 1})


def test_the_accounts_of_a_load_agree_with_those_of_the_service(generator):
    with serving(generator, "1/0", limits=Limits(slots=2, waiting=4, patience_seconds=600)) as service:
        requests = plan(40, 400.0, (2, 12), (1, 3), seed=1, cancelled_share=0.2, cancel_seconds=0.02)
        outcomes = load(service.url, requests, RequestSettings(max_tokens=LENGTH, states=True))
        eventually(lambda: idle(service))
        reported, kept = Counter(outcome.ending for outcome in outcomes), accounts(service)
        given_up = sum(request.cancel_after is not None for request in requests)
        assert reported["done"] + reported["busy"] + reported["cancelled"] == len(requests)
        assert reported["cancelled"] <= given_up
        # Who gave up may have done so before the request arrived, or when the answer was ready and in progress.
        rejected = sum(kept.rejected.values())
        assert reported["busy"] <= rejected <= reported["busy"] + reported["cancelled"]
        assert reported["done"] <= kept.finished["length"] <= reported["done"] + reported["cancelled"]
        assert kept.submitted <= len(requests) - rejected
        assert kept.submitted == sum(kept.finished.values())
        assert {outcome.tokens for outcome in outcomes if outcome.ending == "done"} == {LENGTH}
        assert all(outcome.first_seconds is not None for outcome in outcomes if outcome.ending == "done")


def test_rejected_requests_of_a_burst_have_retry_after(generator):
    with serving(generator, "1/0", limits=Limits(slots=1, waiting=2, patience_seconds=600)) as service:
        outcomes = burst(service.url, plan(30, None, (12,), (3,), seed=1), deadline=60.0)
        assert {outcome.ending for outcome in outcomes} == {"done", "busy"}
        assert all(outcome.retry_after >= 1 for outcome in outcomes if outcome.ending == "busy")
        with Client(service.url) as client:
            assert client.complete(seed=1, max_tokens=4).choices[0].text  # at once normal again
            assert idle(service)


def test_a_full_service_is_busy_for_the_client(generator):
    with serving(generator, "1/0", limits=Limits(slots=1, waiting=1, patience_seconds=600)) as service:
        with Client(service.url) as client, client.stream(max_tokens=4000, denoising=True) as first:
            next(first)
            with pytest.raises(Busy) as busy:
                client.complete(n=2)
        assert (busy.value.status, busy.value.code) == (429, "queue_full")
        assert busy.value.retry_after >= 1
