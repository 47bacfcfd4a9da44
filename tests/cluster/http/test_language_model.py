"""A text from Python is the text from the endpoint: the same names, the same settings, the same seed."""

import pytest

from edlm.client import Client, Settings
from edlm.client.types import Choice
from edlm.inference.generator import VersionedGenerator
from edlm.inference.language_model import LanguageModel

CASES = [
    {},
    {"steps": 3, "candidates": 4},
    {"candidates": 1},
    {"candidates": 0, "energy": "conditional"},
    {"steps": 7, "window": (0.3, 0.9), "energy_temperature": 0.5},
]


@pytest.fixture
def model(generator) -> LanguageModel:
    return LanguageModel(VersionedGenerator(generator, "1"))


@pytest.mark.parametrize("settings", CASES)
@pytest.mark.parametrize("temperature", [1, 0, 0.7])
def test_texts_are_the_endpoints(model, url, settings, temperature):
    with Client(url) as client:
        asked = {"max_tokens": 30, "n": 2, "seed": 5, "temperature": temperature, "stop": ["e"]}
        theirs = client.complete("ab", settings=Settings(**settings), **asked)
        ours = model.generate("ab", **settings, **asked)
        assert [text.text for text in ours] == [choice.text for choice in theirs.choices]
        assert [text.finish_reason for text in ours] == [choice.finish_reason for choice in theirs.choices]
        assert [text.seed for text in ours] == list(theirs.details.seeds or ())
        used = theirs.details
        assert (ours.settings.energy, ours.settings.sampler.candidates) == (used.energy, used.candidates)
        echoed = client.complete("ab", settings=Settings(**settings), **asked, echo=True)
        assert [text.text for text in model.continue_("ab", **settings, **asked)] == [c.text for c in echoed.choices]
        del asked["max_tokens"], asked["stop"]
        filled = client.infill(["ab", 6, "c"], settings=Settings(**settings), **asked)
        assert [text.text for text in model.infill(["ab", 6, "c"], **settings, **asked)] == [
            choice.text for choice in filled.choices
        ]


@pytest.mark.parametrize("settings", CASES)
def test_scores_are_the_endpoints(model, url, settings):
    with Client(url) as client:
        theirs = client.score("abcde", seed=4, draws=3, settings=Settings(**settings))
    ours = model.score("abcde", seed=4, draws=3, **settings)
    assert (ours.nelbo.mean, ours.bound.mean) == (theirs.nelbo.nats, theirs.bound.nats)
    assert {name: value.mean for name, value in ours.energies.items()} == {
        name: value.nats for name, value in theirs.energies.items()
    }


TRUNCATED = [{"top_k": 3}, {"top_p": 0.5}, {"top_k": 5, "top_p": 0.9, "temperature": 0.7}]


@pytest.mark.parametrize("settings", CASES)
@pytest.mark.parametrize("truncation", TRUNCATED)
def test_truncated_texts_and_their_logprobs_are_the_endpoints(model, url, settings, truncation):
    asked = {"max_tokens": 20, "seed": 5, "logprobs": 2, **truncation}
    with Client(url) as client:
        theirs = client.complete("ab", settings=Settings(**settings), **asked).choices[0]
    ours = model.generate("ab", **settings, **asked)
    assert ours.text == theirs.text
    assert [one.log_p for one in ours[0].logprobs] == list(theirs.logprobs.token_logprobs)
    assert all(len(one.likeliest) == 2 for one in ours[0].logprobs)
    assert "another distribution" in repr(ours)
    assert model.continue_("ab", **settings, **asked)[0].logprobs == (None, None, *ours[0].logprobs)


def test_a_stream_shows_what_the_endpoints_stream_tells(model, url):
    with Client(url) as client, client.stream("ab", max_tokens=20, seed=9) as stream:
        theirs = "".join(event.text for event in stream if isinstance(event, Choice))
    assert "".join(map(str, model.stream("ab", max_tokens=20, seed=9))) == theirs
