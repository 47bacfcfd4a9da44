"""Infills keep what is given and fill every gap."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bundles import LENGTH
from tests.cluster.asking import INFILL, ask, error


@settings(max_examples=10, deadline=None)
@given(tokens=st.lists(st.none() | st.integers(0, 26), min_size=1, max_size=LENGTH))
def test_infilling_keeps_what_is_given(url, tokens):
    answer = ask(url, INFILL, {"tokens": tokens, "seed": 1}).json()
    (choice,) = answer["choices"]
    assert all(token in (None, filled) for token, filled in zip(tokens, choice["tokens"], strict=True))
    assert all(0 <= token < 27 for token in choice["tokens"])
    assert answer["usage"]["completion_tokens"] == tokens.count(None)


def test_infilling_between_parts(url):
    (choice,) = ask(url, INFILL, {"parts": ["the ", 3, " of"], "seed": 1}).json()["choices"]
    assert (choice["text"][:4], choice["text"][7:]) == ("the ", " of")


def test_choices_differ_and_repeat_on_resend(url):
    choices = ask(url, INFILL, {"parts": ["the ", 8], "n": 3, "seed": 1}).json()["choices"]
    assert len({choice["text"] for choice in choices}) == 3
    assert choices == ask(url, INFILL, {"parts": ["the ", 8], "n": 3, "seed": 1}).json()["choices"]


def test_a_temperature_is_another_distribution_and_states_so(url):
    cold, plain = (ask(url, INFILL, {"parts": ["ab", 8], "seed": 1, "temperature": t}).json() for t in (0, 1))
    assert (cold["edlm"]["distribution"], plain["edlm"]["distribution"]) == ("another distribution", None)
    assert cold["choices"][0]["text"] != plain["choices"][0]["text"]


def test_a_text_without_gaps_comes_back_as_it_is(url):
    answer = ask(url, INFILL, {"parts": ["a" * LENGTH]}).json()
    assert answer["choices"][0]["text"] == "a" * LENGTH
    assert answer["edlm"]["denoiser_calls"] == 0


def test_the_step_of_each_token_is_shown_on_request(url):
    (choice,) = ask(url, INFILL, {"parts": ["ab", 3], "edlm": {"return": ["trajectory"]}}).json()["choices"]
    assert choice["unmasked_at"][:2] == [0, 0]
    assert min(choice["unmasked_at"][2:]) >= 1


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"tokens": [27]}, "tokens", "not in the vocabulary"),
        ({"tokens": [2**40, None]}, "tokens", "not in the vocabulary"),
        ({"tokens": [None] * (LENGTH + 1)}, "tokens", "do not fit"),
        ({"parts": ["ab", 4096]}, "parts", "do not fit"),
        ({"parts": ["a"], "n": 81}, "n", "at most 80"),
        ({"parts": [1], "edlm": {"energy": "nce"}}, "edlm.energy", "it has: conditional, step"),
        ({"parts": [1], "edlm": {"candidates": 0}}, "edlm.energy", "not normalised"),
    ],
)
def test_what_this_model_cannot_fill_is_reported(url, body, param, message):
    refused = error(ask(url, INFILL, body), 400)
    assert refused["param"] == param
    assert message in refused["message"]
