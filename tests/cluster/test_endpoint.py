"""Every request, good or bad, has its answer: the app itself, in this process, around a tiny real generator."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest
import torch
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import api
from cluster.endpoint import Endpoint, make_app
from cluster.gate import MAX_BODY_BYTES
from cluster.queue import Queue
from cluster.registry import ModelVersion
from edlm.generator import TextGenerator
from edlm.storage import publish
from tests.bundles import LENGTH, make_bundle

BASE = "http://127.0.0.1:8000"
JSON = {"content-type": "application/json"}
FIELDS = sorted({*api.CompletionRequest.model_fields, *api.InfillRequest.model_fields, *api.Settings.model_fields})
COMPLETIONS, INFILL, SCORE = "/v1/completions", "/v1/infill", "/v1/score"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = make_bundle(tmp_path_factory.mktemp("endpoint"))
    publish(folder, str(folder))
    return folder


@pytest.fixture
def generator(bundle) -> TextGenerator:
    return TextGenerator.load(str(bundle), bundle)


def app_with(generator: TextGenerator, queue: Queue) -> FastAPI:
    return make_app(Endpoint(generator, ModelVersion("7", "file:///nowhere", "0" * 64), queue), loopback=True)


@pytest.fixture(scope="module")
def app(bundle) -> FastAPI:
    return app_with(TextGenerator.load(str(bundle), bundle), Queue(most=64, timeout_seconds=60))


def ask(app, path: str, body=None, method: str = "POST", **options) -> httpx.Response:
    """One request; `body` is sent as JSON, or as it is where it is text, bytes or an iterator."""
    if isinstance(body, dict):
        body = json.dumps(body)
    options = {"headers": JSON, **options}

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
            return await client.request(method, path, content=body, **options)

    return asyncio.run(send())


def error(response: httpx.Response, status: int) -> dict:
    """The error of a refusal, which has OpenAI's form."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    return response.json()["error"]


def test_a_completion_has_openais_form_and_says_what_made_it(app):
    settings = {"steps": 16, "candidates": 8, "window": [0.25, 1.0], "energy_temperature": 2.0, "energy": "conditional"}
    response = ask(app, COMPLETIONS, {"prompt": "The 5", "max_tokens": 30, "n": 2, "seed": 1, "edlm": settings})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["object"], answer["model"]) == ("text_completion", "tiny")
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert all(len(choice["text"]) == 30 and choice["finish_reason"] == "length" for choice in answer["choices"])
    assert answer["usage"] == {"prompt_tokens": 9, "completion_tokens": 60, "total_tokens": 69}
    details = answer["edlm"]
    assert {**settings, "seed": 1, "model_version": "7"}.items() <= details.items()
    assert details["prompt"] == ["the five "]
    assert details["context_tokens"] == [LENGTH // 2]
    assert 1 <= details["ess"] <= 8
    assert details["energy_calls"] > details["denoiser_calls"] > 0


def test_an_empty_request_writes_with_the_models_own_settings(app):
    details = ask(app, COMPLETIONS, {}).json()["edlm"]
    assert (details["steps"], details["candidates"], details["energy"]) == (4, 2, "step")
    again = ask(app, COMPLETIONS, {"seed": details["seed"]}).json()
    assert again["choices"] == ask(app, COMPLETIONS, {"seed": details["seed"]}).json()["choices"]


def test_choices_differ_repeat_on_resend_and_are_the_texts_of_their_own_seeds(app):
    first = ask(app, COMPLETIONS, {"prompt": "ab", "n": 3, "seed": 5}).json()["choices"]
    assert first == ask(app, COMPLETIONS, {"prompt": "ab", "n": 3, "seed": 5}).json()["choices"]
    assert len({choice["text"] for choice in first}) == 3
    for i, choice in enumerate(first):
        (alone,) = ask(app, COMPLETIONS, {"prompt": "ab", "seed": 5 + i}).json()["choices"]
        assert alone["text"] == choice["text"]


def test_prompts_in_one_request_are_answered_as_if_alone(app):
    both = ask(app, COMPLETIONS, {"prompt": ["a", "bcd"], "n": 2, "seed": 5}).json()["choices"]
    alone = [
        choice["text"]
        for prompt in ("a", "bcd")
        for choice in ask(app, COMPLETIONS, {"prompt": prompt, "n": 2, "seed": 5}).json()["choices"]
    ]
    assert [choice["text"] for choice in both] == alone
    assert ask(app, COMPLETIONS, {"prompt": [1], "n": 2, "seed": 5}).json()["choices"] == both[:2]


def test_requests_at_once_give_the_texts_they_give_alone(app):
    requests = [
        {"prompt": "ab" * i, "seed": i, "max_tokens": 5 + 5 * i, "edlm": {"steps": 1 + i, "candidates": 1 + i}}
        for i in range(6)
    ]
    alone = [ask(app, COMPLETIONS, request).json()["choices"] for request in requests]

    async def together() -> list:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as client:
            answers = await asyncio.gather(*(client.post(COMPLETIONS, json=request) for request in requests))
            return [answer.json()["choices"] for answer in answers]

    assert asyncio.run(together()) == alone


@settings(max_examples=10, deadline=None)
@given(tokens=st.lists(st.none() | st.integers(0, 26), min_size=1, max_size=LENGTH))
def test_infilling_keeps_what_is_given(app, tokens):
    answer = ask(app, INFILL, {"tokens": tokens, "seed": 1}).json()
    (choice,) = answer["choices"]
    assert all(token in (None, filled) for token, filled in zip(tokens, choice["tokens"], strict=True))
    assert answer["usage"]["completion_tokens"] == tokens.count(None)


def test_infilling_between_parts(app):
    (choice,) = ask(app, INFILL, {"parts": ["the ", 3, " of"], "seed": 1}).json()["choices"]
    assert (choice["text"][:4], choice["text"][7:]) == ("the ", " of")


def test_a_text_without_gaps_comes_back_as_it_is(app):
    answer = ask(app, INFILL, {"parts": ["a" * LENGTH]}).json()
    assert answer["choices"][0]["text"] == "a" * LENGTH
    assert answer["edlm"]["denoiser_calls"] == 0


def test_a_score_names_both_bounds_and_every_energy(app):
    answer = ask(app, SCORE, {"text": "Hello", "seed": 1, "draws": 4}).json()
    assert (answer["tokens"], answer["text"]) == (5, "hello")
    assert set(answer["energies"]) == {"step", "conditional"}
    for measured in (answer["nelbo"], answer["bound"], *answer["energies"].values()):
        assert isinstance(measured["nats"], float)
        assert measured["standard_error"] >= 0
    same = ask(app, SCORE, {"tokens": [8, 5, 12, 12, 15], "seed": 1, "draws": 4}).json()
    assert same["bound"] == answer["bound"]


def test_the_model_and_its_health_are_told(app):
    (model,) = ask(app, "/v1/models", method="GET").json()["data"]
    assert (model["id"], model["edlm"]["model_version"], model["edlm"]["length"]) == ("tiny", "7", LENGTH)
    assert ask(app, "/healthz", method="GET").json() == {"status": "ok"}
    assert ask(app, "/readyz", method="GET").json()["digest"] == model["edlm"]["digest"]
    assert set(ask(app, "/openapi.json", method="GET").json()["paths"]) >= {COMPLETIONS, INFILL, SCORE}


@pytest.mark.parametrize("path", [COMPLETIONS, INFILL, SCORE])
@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "null",
        "\xff",
        '{"seed": NaN}',
        '{"seed": ' + "1" * 5000 + "}",
        '{"seed": ' + "[" * 100_000,
        '{"edlm": {"steps": 1e400}}',
        '{"edlm": {"window": [NaN, 1]}}',
        '{"edlm": {"energy_temperature": Infinity}}',
    ],
    ids=lambda body: body[:20],
)
def test_what_is_no_proper_json_is_refused(app, path, body):
    response = ask(app, path, body.encode("latin-1"))
    assert error(response, 400 if response.status_code == 400 else 422)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETIONS, {"promt": "a"}, "promt"),
        (COMPLETIONS, {"edlm": {"step": 8}}, "edlm.step"),
        (COMPLETIONS, {"edlm": {"steps": "8"}}, "edlm.steps"),
        (COMPLETIONS, {"edlm": {"steps": True}}, "edlm.steps"),
        (COMPLETIONS, {"edlm": {"steps": 0}}, "edlm.steps"),
        (COMPLETIONS, {"edlm": {"steps": -1}}, "edlm.steps"),
        (COMPLETIONS, {"edlm": {"steps": 2**63}}, "edlm.steps"),
        (COMPLETIONS, {"edlm": {"candidates": -1}}, "edlm.candidates"),
        (COMPLETIONS, {"edlm": {"candidates": 65}}, "edlm.candidates"),
        (COMPLETIONS, {"edlm": {"window": [0.6, 0.5]}}, "edlm.window"),
        (COMPLETIONS, {"edlm": {"window": [0.5]}}, "edlm.window"),
        (COMPLETIONS, {"edlm": {"window": [0, 1.5]}}, "edlm.window.1"),
        (COMPLETIONS, {"edlm": {"energy_temperature": 0}}, "edlm.energy_temperature"),
        (COMPLETIONS, {"temperature": -1}, "temperature"),
        (COMPLETIONS, {"stream": 0}, "stream"),
        (COMPLETIONS, {"n": 9}, "n"),
        (COMPLETIONS, {"max_tokens": 0}, "max_tokens"),
        (COMPLETIONS, {"seed": -1}, "seed"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", 1]}, "prompt"),
        (COMPLETIONS, {"prompt": [-1]}, "prompt"),
        (COMPLETIONS, {"prompt": ["a"] * 9}, "prompt"),
        (COMPLETIONS, {"prompt": "\ud800"}, "prompt"),
        (COMPLETIONS, {"prompt": "a" * (api.MAX_PROMPT + 1)}, "prompt"),
        (INFILL, {"parts": [0]}, "parts.0"),
        (INFILL, {"parts": [1] * 65}, "parts"),
        (INFILL, {"tokens": []}, "tokens"),
        (INFILL, {"tokens": [-1]}, "tokens.0"),
        (INFILL, {}, None),
        (INFILL, {"tokens": [None], "parts": ["a"]}, None),
        (SCORE, {"text": "a", "draws": 1}, "draws"),
        (SCORE, {}, None),
    ],
)
def test_a_field_that_is_wrong_is_named(app, path, body, param):
    assert error(ask(app, path, body), 422)["param"] == param


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        (COMPLETIONS, {"prompt": [27]}, "prompt", "token 27 is not in the vocabulary"),
        (COMPLETIONS, {"edlm": {"energy": "nce"}}, "edlm.energy", "it has: conditional, step"),
        (COMPLETIONS, {"edlm": {"candidates": 0}}, "edlm.energy", "not normalised"),
        (INFILL, {"tokens": [27]}, "tokens", "not in the vocabulary"),
        (INFILL, {"tokens": [None] * (LENGTH + 1)}, "tokens", "do not fit"),
        (INFILL, {"parts": ["ab", 4096]}, "parts", "do not fit"),
        (SCORE, {"text": ""}, "text", "a score needs 1 to 12"),
        (SCORE, {"text": "a" * (LENGTH + 1)}, "text", "a score needs 1 to 12"),
        (SCORE, {"tokens": [27]}, "tokens", "not in the vocabulary"),
    ],
)
def test_what_this_model_cannot_do_is_said(app, path, body, param, message):
    refused = error(ask(app, path, body), 400)
    assert refused["param"] == param
    assert message in refused["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("best_of", 2),
        ("echo", True),
        ("frequency_penalty", 0.5),
        ("logit_bias", {"1": 2.0}),
        ("logprobs", 0),
        ("presence_penalty", -1.0),
        ("stop", "a"),
        ("stream", True),
        ("stream_options", {"include_usage": True}),
        ("suffix", "b"),
        ("temperature", 0.7),
        ("top_p", 0.9),
    ],
)
def test_openais_fields_are_never_ignored_in_silence(app, field, value):
    refused = error(ask(app, COMPLETIONS, {field: value}), 400)
    assert (refused["param"], refused["code"]) == (field, "unsupported_parameter")


def test_openais_fields_that_ask_for_nothing_are_accepted(app):
    assert ask(app, COMPLETIONS, {**api.NEUTRAL, "user": "me", "model": "tiny"}).status_code == 200


def test_another_model_is_not_found(app):
    assert error(ask(app, COMPLETIONS, {"model": "other"}), 404)["code"] == "model_not_found"


def test_legal_values_that_are_too_much_together_are_refused_with_their_cost(app):
    refused = error(ask(app, COMPLETIONS, {"max_tokens": 4096, "n": 8, "edlm": {"steps": 64}}), 400)
    assert refused["code"] == "work_limit_exceeded"
    assert str(api.MAX_WORK) in refused["message"]


def test_a_prompt_as_long_as_the_canvas_and_longer_is_continued(app):
    for size in (LENGTH, LENGTH + 1, api.MAX_PROMPT):
        answer = ask(app, COMPLETIONS, {"prompt": "a" * size, "max_tokens": 3}).json()
        assert answer["edlm"]["context_tokens"] == [LENGTH - 3]
        assert answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("prompt", ["\0", "‮abc", "😀", "<script>", "ﬁ"])
def test_strange_text_is_read_as_the_tokenizer_reads_it(app, prompt):
    answer = ask(app, COMPLETIONS, {"prompt": prompt, "max_tokens": 3})
    assert answer.status_code == 200
    assert set(answer.json()["edlm"]["prompt"][0]) <= set(" abcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize("kind", ["text/plain", "", "multipart/form-data", "application/jsonp"])
def test_only_json_is_read(app, kind):
    assert error(ask(app, COMPLETIONS, "{}", headers={"content-type": kind}), 415)["code"] == "unsupported_media_type"


def test_a_body_that_is_too_large_is_refused_declared_or_not(app):
    async def drip():
        for _ in range(40):
            yield b" " * 2**15

    assert error(ask(app, COMPLETIONS, b" " * (MAX_BODY_BYTES + 1)), 413)["code"] == "body_too_large"
    assert error(ask(app, COMPLETIONS, drip()), 413)["code"] == "body_too_large"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8000", "", "[::2]:8000"])
def test_a_page_of_another_host_gets_no_answer(app, host):
    assert error(ask(app, COMPLETIONS, {}, headers={**JSON, "host": host}), 403)["code"] == "forbidden_host"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1"])
def test_this_machines_own_names_are_answered(app, host):
    response = ask(app, "/v1/models", method="GET", headers={"host": host, "origin": "http://evil.example"})
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_unknown_routes_and_methods_have_the_same_form(app):
    assert "/v1/completions" in error(ask(app, "/v1/chat/completions", {}), 404)["message"]
    error(ask(app, COMPLETIONS, method="GET"), 405)


def test_a_full_queue_says_when_to_come_back(generator):
    response = ask(app_with(generator, Queue(most=0, timeout_seconds=60)), COMPLETIONS, {})
    refused = error(response, 429)
    assert (refused["type"], refused["code"]) == ("rate_limit_error", "queue_full")
    assert int(response.headers["retry-after"]) >= 1


def test_a_request_that_takes_too_long_is_ended(generator):
    impatient = app_with(generator, Queue(most=1, timeout_seconds=0.01))
    body = {"max_tokens": 200, "edlm": {"steps": 12, "candidates": 8}}
    assert error(ask(impatient, COMPLETIONS, body), 504)["code"] == "deadline_exceeded"


def test_what_goes_wrong_inside_is_not_told(generator, monkeypatch):
    app = app_with(generator, Queue(most=1, timeout_seconds=60))
    monkeypatch.setattr(TextGenerator, "write", lambda *_: 1 / 0)
    assert "zero" not in error(ask(app, COMPLETIONS, {}), 500)["message"]


def test_weights_that_give_no_number_fail_their_request_alone(generator):
    app = app_with(generator, Queue(most=1, timeout_seconds=60))
    with torch.no_grad():
        next(generator.energies["step"].parameters()).fill_(torch.nan)
    assert error(ask(app, COMPLETIONS, {"seed": 1}), 500)["code"] == "numerical_error"
    assert ask(app, COMPLETIONS, {"edlm": {"candidates": 1}}).status_code == 200


@settings(max_examples=60, deadline=None)
@given(
    body=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=3), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_no_body_makes_the_server_fail(app, body):
    for path in (COMPLETIONS, INFILL, SCORE):
        response = ask(app, path, json.dumps(body))
        assert response.status_code in (200, 400, 404, 422), response.text
