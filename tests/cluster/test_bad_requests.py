"""What is no proper request is refused in OpenAI's form, names its field, and never makes the server fail."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.http import api
from tests.cluster.asking import COMPLETIONS, INFILL, JSON, SCORE, ask, error

TOKENIZE, DETOKENIZE = "/v1/tokenize", "/v1/detokenize"
POSTED = [COMPLETIONS, INFILL, SCORE, TOKENIZE, DETOKENIZE]
FIELDS = sorted({*api.CompletionRequest.model_fields, *api.InfillRequest.model_fields, *api.Settings.model_fields})


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
    assert error(response, 400 if response.status_code == 400 else 422)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETIONS, {"promt": "a"}, "promt"),
        (COMPLETIONS, {"tools": []}, "tools"),
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
        (COMPLETIONS, {"temperature": -1}, "temperature"),
        (COMPLETIONS, {"stream": 0}, "stream"),
        (COMPLETIONS, {"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        (COMPLETIONS, {"stop": ["a"] * 5}, "stop"),
        (COMPLETIONS, {"stop": "a" * 65}, "stop"),
        (COMPLETIONS, {"n": 0}, "n"),
        (COMPLETIONS, {"max_tokens": 0}, "max_tokens"),
        (COMPLETIONS, {"max_tokens": 4097}, "max_tokens"),
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
        (INFILL, {"tokens": [None], "stop": "a"}, "stop"),
        (INFILL, {}, None),
        (INFILL, {"tokens": [None], "parts": ["a"]}, None),
        (SCORE, {"text": "a", "draws": 1}, "draws"),
        (SCORE, {}, None),
        (TOKENIZE, {}, "text"),
        (TOKENIZE, {"text": "\ud800"}, "text"),
        (DETOKENIZE, {"tokens": [True]}, "tokens.0"),
    ],
)
def test_a_field_that_is_wrong_is_named(url, path, body, param):
    assert error(ask(url, path, body), 422)["param"] == param


@pytest.mark.parametrize("kind", ["text/plain", "", "multipart/form-data", "application/jsonp"])
def test_only_json_is_read(url, kind):
    refused = error(ask(url, COMPLETIONS, "{}", headers={"content-type": kind}), 415)
    assert refused["code"] == "unsupported_media_type"


def test_unknown_routes_and_methods_have_the_same_form(url):
    refused = error(ask(url, "/v1/chat/completions", {}), 404)
    assert "/v1/completions" in refused["message"]
    assert "chat" in refused["message"]
    error(ask(url, COMPLETIONS, method="GET"), 405)


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
        assert response.status_code in (200, 400, 404, 422), response.text
