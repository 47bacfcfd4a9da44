"""What other servers' clients send is accepted where it asks for nothing, and never ignored in silence."""

import json
import logging

import httpx
import pytest

from cluster.http.unsupported_fields import NEUTRAL
from tests.cluster.asking import COMPLETIONS, INFILL, SCORE, ask, error, eventually, stream

ROUTES = [(COMPLETIONS, {"prompt": "ab"}), (INFILL, {"parts": ["ab", 2]}), (SCORE, {"text": "ab"})]
# What `vllm bench serve`, guidellm, sglang's bench_serving, lm-eval, LangChain and the openai client send.
CLIENTS = [
    {"repetition_penalty": 1.0, "logprobs": None, "stream": True, "stream_options": {"include_usage": True}},
    {"max_tokens": 4, "stop": None, "stream": True,
     "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"best_of": 1, "stream": True, "temperature": 0.0},
    {"temperature": 0.7, "top_p": 1},
    {"temperature": 0, "max_tokens": 8, "seed": 1234,
     "stop": ["\n\n", "Question:", "</s>", "<|im_end|>", "long" * 20]},
    {"prompt": ["a", "b"], "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "n": 1, "top_p": 1},
    {"prompt": [[1, 2], [3]], "max_tokens": 1, "seed": 1234, "echo": True},
    {"prompt": "a", "user": "me" * 200, "top_k": -1, "min_p": 0.0, "skip_special_tokens": True},
]  # fmt: skip


@pytest.mark.parametrize("body", CLIENTS)
def test_a_clients_request_is_answered(url, body):
    response = ask(url, COMPLETIONS, {"model": "tiny", "prompt": "ab", **body})
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        assert response.json()["edlm"]["ignored"] == []


@pytest.mark.parametrize("field", ["max_tokens", "echo", "n", "stream", "prompt", "best_of", "stop", "suffix", "seed",
                                   "stream_options", "model", "user", "edlm", "logprobs", "whatever"])  # fmt: skip
def test_null_is_the_default(url, field):
    body = {"prompt": "ab", "max_tokens": 3, "seed": 1}
    left_out = {name: value for name, value in body.items() if name != field}
    if field == "seed":
        assert ask(url, COMPLETIONS, {**body, "seed": None}).status_code == 200
        return
    answer, same = (ask(url, COMPLETIONS, sent) for sent in ({**body, field: None}, left_out))
    assert answer.status_code == 200, answer.text
    assert (answer.json()["choices"], answer.json()["edlm"]["ignored"]) == (same.json()["choices"], [])


def test_null_is_the_default_within_an_object(url):
    body = {"seed": 1, "edlm": {"steps": None, "return": None}, "stream": True, "stream_options": {"denoising": None}}
    assert stream(url, COMPLETIONS, body)[-1]["edlm"]["details"]["steps"] == 4


def test_a_list_of_token_lists_is_several_prompts(url):
    answer = ask(url, COMPLETIONS, {"prompt": [[1, 2], [3]], "seed": 5}).json()
    alone = [ask(url, COMPLETIONS, {"prompt": prompt, "seed": 5}).json() for prompt in ("ab", "c")]
    assert [text["text"] for text in answer["choices"]] == [text["choices"][0]["text"] for text in alone]
    assert answer["edlm"]["prompt"] == ["ab", "c"]


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_unknown_fields_are_named_in_the_answer_and_in_the_log(url, path, body, caplog):
    caplog.set_level(logging.INFO, "edlm.access")
    answer = ask(
        url, path, {**body, "seed": 1, "store": True, "promt": "b", "metadata": {"a": "b"}, "cache_salt": None}
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["edlm"]["ignored"] == ["metadata", "promt", "store"]
    eventually(lambda: caplog.records)
    assert json.loads(caplog.records[-1].getMessage())["ignored"] == ["metadata", "promt", "store"]


def test_a_stream_names_what_was_ignored(url):
    body = {"prompt": "a", "promt": "b", "stream_options": {"include_use": True}}
    assert stream(url, COMPLETIONS, body)[-1]["edlm"]["details"]["ignored"] == ["promt", "stream_options.include_use"]


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_values_that_ask_for_nothing_are_accepted(url, path, body):
    neutral = {name: values[0] for name, values in NEUTRAL.items() if values}
    answer = ask(url, path, {**body, **neutral, "top_k": 0})
    assert answer.status_code == 200, answer.text
    assert answer.json()["edlm"]["ignored"] == []


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_what_would_change_the_text_is_refused_by_name(url, name):
    for path, body in ROUTES:
        for value in ("a", True, 0.7):
            if value is True and True in NEUTRAL[name]:
                continue
            refused = error(ask(url, path, {**body, name: value}), 400)
            assert (refused["param"], refused["code"]) == (name, "unsupported_parameter")


@pytest.mark.parametrize(("path", "body"), [(COMPLETIONS, {"prompt": "ab", "n": 2}), (INFILL, {"parts": ["ab", 8]})])
def test_every_piece_shows_the_tokens_up_to_now_where_it_is_asked_to(url, path, body):
    options = {"include_usage": True, "continuous_usage_stats": True}
    pieces = stream(url, path, {**body, "seed": 1, "stream_options": options})
    usages = [piece["usage"] for piece in pieces]
    written = [usage["completion_tokens"] for usage in usages]
    assert written == sorted(written)
    assert written[-1] == ask(url, path, {**body, "seed": 1}).json()["usage"]["completion_tokens"] > written[0]
    assert {usage["prompt_tokens"] for usage in usages} == {2}
    assert all(usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] for usage in usages)


@pytest.mark.parametrize("path", ["/health", "/ping"])
def test_probes_of_other_servers_are_answered_as_readiness_is(url, path):
    same = {"beat_age_seconds", "backlog_seconds"}
    probe, ready = (ask(url, at, method="GET") for at in (path, "/readyz"))
    assert probe.status_code == ready.status_code == 200
    assert probe.json().items() - ready.json().items() <= {(name, probe.json()[name]) for name in same}


def test_a_ping_may_be_posted_with_any_body_or_none(url):
    for body in (b"", b"{}", b"ping"):
        assert httpx.post(f"{url}/ping", content=body, trust_env=False).json()["status"] == "ready"
    assert error(ask(url, "/health", {}), 405)["code"] == "method_not_allowed"


def test_the_interface_names_its_version(url):
    assert ask(url, "/version", method="GET").json() == {
        "version": ask(url, "/openapi.json", method="GET").json()["info"]["version"]
    }


@pytest.mark.parametrize("path", ["/", "/readyz", "/healthz", "/health", "/ping", "/version", "/v1/models", "/metrics"])
def test_head_is_get_without_a_body(url, path):
    head, get = (ask(url, path, method=method) for method in ("HEAD", "GET"))
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert ask(url, COMPLETIONS, method="HEAD").status_code == 405


def test_many_prompts_and_choices_are_limited_by_slots_and_queue_alone(url):
    answer = ask(url, COMPLETIONS, {"prompt": ["ab"] * 9, "n": 2, "max_tokens": 1}).json()
    assert len(answer["choices"]) == 18
    assert len(ask(url, COMPLETIONS, {"n": 20, "max_tokens": 1}).json()["choices"]) == 20
