"""What is no proper request is refused in OpenAI's form, names its field, and never makes the server fail."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.http.schemas import requests as api
from tests.cluster.asking import COMPLETIONS, INFILL, JSON, SCORE, ask, error

TOKENIZE, DETOKENIZE = "/v1/tokenize", "/v1/detokenize"
POSTED = [COMPLETIONS, INFILL, SCORE, TOKENIZE, DETOKENIZE]
FIELDS = sorted(
    {*api.CompletionRequest.model_fields, *api.InfillRequest.model_fields, *api.SamplerSettings.model_fields}
)


@pytest.mark.parametrize("path", POSTED)
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
def test_what_is_no_proper_json_is_refused(url, path, body):
    response = ask(url, path, body.encode("latin-1"))
    assert error(response, 400)["code"]


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        (b"", 400, "invalid_json", "the body is empty"),
        (b'{"n": 1,}', 400, "invalid_json", "line 1, column 9"),
        (b'{"seed": NaN}', 400, "invalid_json", "NaN is not a number"),
        (b'{"prompt": "\xff"}', 400, "invalid_encoding", "byte 12 (0xff)"),
        ('{"prompt": "a"}'.encode("utf-16"), 400, "invalid_encoding", "not UTF-8"),
        (gzip.compress(b"{}", mtime=0), 400, "invalid_encoding", "not UTF-8"),
        (b'{"seed": ' + b"1" * 5000 + b"}", 400, "number_too_long", "5000 digits"),
        (b'{"prompt": ' + b"[" * 100_000, 400, "too_deep", "nests"),
        (b"[]", 400, "invalid_value", "not a JSON object"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_body_that_cannot_be_read_is_reported_why(url, body, status, code, message):
    refused = error(ask(url, COMPLETIONS, body), status)
    assert refused["code"] == code
    assert message in refused["message"]


def test_a_compressed_body_is_reported_to_come_as_it_is(url):
    headers = {**JSON, "content-encoding": "gzip"}
    refused = error(ask(url, COMPLETIONS, gzip.compress(b"{}"), headers=headers), 415)
    assert refused["code"] == "unsupported_encoding"
    assert ask(url, COMPLETIONS, "{}", headers={**JSON, "content-encoding": "identity"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETIONS, {"tools": [{}]}, "tools"),
        (COMPLETIONS, {"not a name": 1}, None),
        (COMPLETIONS, {"edlm-key": 1}, None),
        (COMPLETIONS, {"\ud800": 1}, None),
        (COMPLETIONS, {"a" * 65: 1}, None),
        (COMPLETIONS, {f"x{i}": 1 for i in range(65)}, "x0"),
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
        (COMPLETIONS, {"edlm": {"energy_temperature": 1e-46}}, "edlm.energy_temperature"),
        (COMPLETIONS, {"edlm": {"timeout_seconds": 0}}, "edlm.timeout_seconds"),
        (COMPLETIONS, {"edlm": {"return": ["thoughts"]}}, "edlm.return.0"),
        (COMPLETIONS, {"edlm": {"\ud800": 1}}, "edlm"),
        (COMPLETIONS, {"edlm": {"streams": "other"}}, "edlm.streams"),
        (COMPLETIONS, {"temperature": -1}, "temperature"),
        (COMPLETIONS, {"stream": 0}, "stream"),
        (COMPLETIONS, {"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        (COMPLETIONS, {"stop": [f"{i}" for i in range(2000)]}, "stop"),
        (COMPLETIONS, {"stop": "a" * 4097}, "stop"),
        (COMPLETIONS, {"stop": ["a", 1]}, "stop.1"),
        (COMPLETIONS, {"stop": 1}, "stop"),
        (COMPLETIONS, {"n": 0}, "n"),
        (COMPLETIONS, {"max_tokens": -1}, "max_tokens"),
        (COMPLETIONS, {"max_tokens": 4097}, "max_tokens"),
        (COMPLETIONS, {"seed": 2**63}, "seed"),
        (COMPLETIONS, {"seed": -(2**63) - 1}, "seed"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"prompt": 1}, "prompt"),
        (COMPLETIONS, {"prompt": [None]}, "prompt"),
        (COMPLETIONS, {"prompt": [True]}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", 1]}, "prompt.1"),
        (COMPLETIONS, {"prompt": [-1]}, "prompt.0"),
        (COMPLETIONS, {"prompt": [1, "a"]}, "prompt.1"),
        (COMPLETIONS, {"prompt": [[1], []]}, "prompt.1"),
        (COMPLETIONS, {"prompt": [[1], [1, -1]]}, "prompt.1.1"),
        (COMPLETIONS, {"prompt": [[1], "a"]}, "prompt.1"),
        (COMPLETIONS, {"prompt": ["a"] * 81}, "prompt"),
        (COMPLETIONS, {"prompt": "\ud800"}, "prompt"),
        (COMPLETIONS, {"prompt": "a" * (api.MAX_PROMPT + 1)}, "prompt"),
        (INFILL, {"parts": [0]}, "parts.0"),
        (INFILL, {"parts": ["a", 0]}, "parts.1"),
        (INFILL, {"parts": ["a", [1]]}, "parts.1"),
        (INFILL, {"parts": ["a", 1], "prompt": "b"}, "prompt"),
        (INFILL, {"parts": [1] * 65}, "parts"),
        (INFILL, {"tokens": []}, "tokens"),
        (INFILL, {"tokens": [-1]}, "tokens.0"),
        (INFILL, {"tokens": [None], "stop": "a"}, "stop"),
        (INFILL, {}, None),
        (INFILL, {"tokens": [None], "parts": ["a"]}, None),
        (SCORE, {"text": "a", "draws": 1}, "draws"),
        (SCORE, {}, None),
        (SCORE, {"text": ""}, "text"),
        (SCORE, {"text": "a" * 100}, "text"),
        (SCORE, {"text": "a", "temperature": 0.5}, "temperature"),
        (TOKENIZE, {}, None),
        (TOKENIZE, {"prompt": "\ud800"}, "prompt"),
        (TOKENIZE, {"text": "\ud800"}, "text"),
        (DETOKENIZE, {"tokens": [True]}, "tokens.0"),
    ],
)
def test_a_field_that_is_wrong_is_named(url, path, body, param):
    refused = error(ask(url, path, body), 400)
    assert refused["param"] == param
    assert refused["code"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (COMPLETIONS, {"prompt": ["a"] * 81}, "81 texts in one request; this server runs and queues at most 80"),
        (COMPLETIONS, {"prompt": []}, "no list may be empty"),
        (COMPLETIONS, {"prompt": -1}, "give a text, a list of texts, a list of token ids"),
        (COMPLETIONS, {"prompt": [-1]}, "greater than or equal to 0"),
        (COMPLETIONS, {"prompt": ["a", 1]}, "valid string"),
        (COMPLETIONS, {"stop": ["a" * 4096, "b"]}, "4097 characters in all"),
        (TOKENIZE, {"text": "a", "prompt": "a"}, "give exactly one of text and prompt and messages"),
        (COMPLETIONS, {"prompt_logprobs": 0}, "not supported; leave it out"),
        (COMPLETIONS, {"logprobs": 21}, "less than or equal to 20"),
        (COMPLETIONS, {"repetition_penalty": 1.1}, "only as 1"),
        (INFILL, {"parts": ["a", 0]}, "greater than or equal to 1"),
        (INFILL, {"parts": ["a", 1.5]}, "give a text, or the number of tokens that fill the gap"),
        (SCORE, {"text": ""}, "text is empty"),
    ],
)
def test_an_error_names_the_fault_of_the_value(url, path, body, message):
    assert message in error(ask(url, path, body), 400)["message"]


@pytest.mark.parametrize("kind", ["text/plain", "", "multipart/form-data", "application/jsonp"])
def test_only_json_is_read(url, kind):
    refused = error(ask(url, COMPLETIONS, "{}", headers={"content-type": kind}), 415)
    assert refused["code"] == "unsupported_media_type"


def test_unknown_routes_and_methods_have_the_same_form(url):
    refused = error(ask(url, "/v1/embeddings", {}), 404)
    assert "/v1/completions" in refused["message"]
    assert refused["code"] == "not_found"
    assert error(ask(url, COMPLETIONS, method="GET"), 405)["code"] == "method_not_allowed"
    for path in ("/v1/models", "/readyz", "/"):
        refused = ask(url, path, b"a=b", headers={"content-type": "application/x-www-form-urlencoded"})
        assert error(refused, 405)["code"] == "method_not_allowed"
        assert refused.headers["allow"] == "GET"
    assert error(ask(url, "/v1/embeddings", b"a", headers={"content-type": "text/plain"}), 404)["code"] == "not_found"


@settings(max_examples=40, deadline=None)
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
def test_no_body_makes_the_server_fail(url, body):
    for path in POSTED:
        response = ask(url, path, json.dumps(body), headers=JSON)
        assert response.status_code in (200, 400, 404), response.text
