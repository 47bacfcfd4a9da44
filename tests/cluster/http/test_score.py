"""Scores are those of the generator, under any other load; texts and tokens convert to one another."""

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


@pytest.mark.parametrize("candidates", [1, 2])
def test_a_model_whose_numbers_are_none_has_no_score(generator, candidates):
    broken = watched(generator, after=lambda _, context: context * torch.nan)
    with serving(broken, "1/0") as own:
        refused = error(ask(own.url, SCORE, {"text": "hello", "edlm": {"candidates": candidates}}), 500)
        assert refused["code"] == "numerical_error"
        assert own.endpoint.engine.alive


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"text": ""}, "text", "text is empty"),
        ({"text": "a" * (LENGTH + 1)}, "text", "scores at most 12"),
        ({"tokens": [27]}, "tokens", "not in the vocabulary"),
    ],
)
def test_what_cannot_be_scored_is_reported(url, body, param, message):
    refused = error(ask(url, SCORE, body), 400)
    assert refused["param"] == param
    assert message in refused["message"]


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
