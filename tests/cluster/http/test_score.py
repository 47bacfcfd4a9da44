"""Scores are those of the generator, under any other load; texts and tokens convert to one another."""

import re
from dataclasses import replace

import pytest
import torch

from cluster.http.local import serving
from tests.bundles import LENGTH
from tests.cluster.asking import SCORE, ask, error
from tests.engines import watched


def test_a_score_names_both_bounds_and_every_energy(url):
    answer = ask(url, SCORE, {"text": "Hello", "seed": 1, "draws": 4}).json()
    assert (answer["tokens"], answer["text"]) == (5, "hello")
    assert set(answer["energies"]) == {"step", "conditional"}
    for measured in (answer["nelbo"], answer["bound"], *answer["energies"].values()):
        assert isinstance(measured["nats"], float)
        assert measured["standard_error"] >= 0
    same = ask(url, SCORE, {"tokens": [8, 5, 12, 12, 15], "seed": 1, "draws": 4}).json()
    assert same["bound"] == answer["bound"]


def test_a_score_is_the_generators_own(url, generator):
    score = generator.score(generator.read("hello"), 1, 6, generator.bundle.sampler)
    answer = ask(url, SCORE, {"text": "hello", "seed": 1, "draws": 6}).json()
    assert answer["bound"] == {"nats": score.bound.mean, "standard_error": score.bound.standard_error}
    assert answer["nelbo"]["nats"] == score.nelbo.mean


def test_a_text_is_scored_given_its_prompt_and_exactly_where_asked(url, generator):
    sampler = replace(generator.bundle.sampler, candidates=1)
    own = generator.score(generator.read("llo"), 1, 6, sampler, prompt=generator.read("he"), exact_order=True)
    body = {"text": "llo", "prompt": "he", "seed": 1, "draws": 6, "exact_order": True, "edlm": {"candidates": 1}}
    answer = ask(url, SCORE, body).json()
    assert (answer["bound"]["nats"], answer["nelbo"]["nats"]) == (own.bound.mean, own.nelbo.mean)
    assert answer["exact_order"] == {
        "nats": own.exact_order,
        "unmasking": "most certain first in fixed counts",
        "distribution": "another distribution",
    }
    assert (answer["tokens"], answer["text"], answer["edlm"]["prompt"]) == (3, "llo", ["he"])
    assert ask(url, SCORE, {**body, "prompt": [8, 5]}).json()["exact_order"] == answer["exact_order"]
    assert ask(url, SCORE, {"text": "llo", "seed": 1}).json()["exact_order"] is None


@pytest.mark.parametrize("candidates", [1, 2])
def test_a_model_whose_numbers_are_none_has_no_score(generator, candidates):
    broken = watched(generator, after=lambda _, context: context * torch.nan)
    with serving(broken, "1/0") as service:
        refused = error(ask(service.url, SCORE, {"text": "hello", "edlm": {"candidates": candidates}}), 500)
        assert refused["code"] == "numerical_error"
        assert service.endpoint.engine.alive


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"text": ""}, "text", "text is empty"),
        ({"text": "a" * (LENGTH + 1)}, "text", "scores at most 12"),
        ({"tokens": [27]}, "tokens", "not in the vocabulary"),
        ({"text": "hello", "prompt": [27]}, "prompt", "not in the vocabulary"),
        ({"text": "hello", "prompt": ["a", "b"]}, "prompt", "give a text, or a list of token ids"),
        ({"text": "hello", "prompt": "a" * 8}, "prompt", "prompt has 8 tokens and text 5; they share a canvas of 12"),
        ({"text": "hello", "exact_order": True}, "exact_order", "candidates is 2: .*give 1, or 0 with a normalised"),
    ],
)
def test_what_cannot_be_scored_is_reported(url, body, param, message):
    refused = error(ask(url, SCORE, body), 400)
    assert refused["param"] == param
    assert re.search(message, refused["message"])


@pytest.mark.parametrize("text", ["hello", "", "a 5 \0 <b> 😀"])
def test_a_text_is_shown_as_it_is_read_and_put_together_again(url, text):
    tokens = ask(url, "/v1/tokenize", {"text": text}).json()
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["pieces"])
    again = ask(url, "/v1/detokenize", {"tokens": tokens["tokens"]}).json()["text"]
    assert again == "".join(tokens["pieces"])
    assert ask(url, "/v1/tokenize", {"text": again}).json() == tokens


def test_the_mask_is_no_token(url):
    refused = error(ask(url, "/v1/detokenize", {"tokens": [1, 27]}), 400)
    assert refused["param"] == "tokens"
