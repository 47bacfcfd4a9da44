"""Texts of a model with a constraint: inside it, the same alone and in company, or refused before they begin."""

import json
import re
from dataclasses import replace

import jsonschema
import pytest
import torch

import edlm
from edlm.config import ConfigurationError
from edlm.constraints.specification import JsonSchema, OneOf, Regex
from edlm.data.tokenizer_kinds import Bytes
from edlm.inference.engine import InferenceEngine
from edlm.inference.generator import TextGenerator, open_bundle
from edlm.inference.language_model import LanguageModel
from edlm.inference.offline_generation import run_sequences
from edlm.inference.request import Request
from edlm.inference.sequence import RunningSequence
from edlm.sampling.sampler import Sampler
from tests.bundles import make_bundle
from tests.engines import PATIENT, SECONDS

FRAME = Regex(pattern="the [a-m]+ of [n-z ]+")
SAMPLER = Sampler(steps=3, candidates=2)


@pytest.fixture(scope="module")
def characters(tmp_path_factory) -> LanguageModel:
    return edlm.load(make_bundle(tmp_path_factory.mktemp("characters")))


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> LanguageModel:
    """A model with a separator, so that texts may end early."""
    return edlm.load(make_bundle(tmp_path_factory.mktemp("bytes"), tokenizer=Bytes()))


@pytest.mark.parametrize(("energy", "candidates"), [(None, 1), ("step", 3), ("conditional", 3)])
@pytest.mark.parametrize("prompt", ["", "a prompt "])
def test_every_text_matches_and_a_seed_repeats_it(characters, energy, candidates, prompt):
    settings = {"energy": energy, "candidates": candidates, "max_tokens": 30, "constraint": FRAME}  # of 12 a canvas
    texts = characters.generate(prompt, n=4, seed=3, **settings)
    assert all(re.fullmatch(FRAME.pattern, text.text) for text in texts)
    assert len({text.text for text in texts}) == 4
    assert characters.generate(prompt, n=1, seed=5, **settings)[0] == texts[2]
    streamed = [state.text for state in characters.stream(prompt, seed=5, **settings)]
    assert "".join(streamed) == texts[2].text


def test_no_stop_string_occurs_in_a_constrained_text(characters):
    settings = {"max_tokens": 30, "constraint": Regex("[a-c ]*"), "n": 6, "seed": 3}
    stops = ["a", "c b"]
    assert any(stop in text.text for text in characters.generate("a ", **settings) for stop in stops)
    for text in characters.generate("a ", stop=stops, **settings):
        assert re.fullmatch("[bc ]{30}", text.text)
        assert "c b" not in text.text
    settings["constraint"] = FRAME
    for text in characters.generate(stop=" x", **settings):
        assert re.fullmatch(FRAME.pattern, text.text)
        assert " x" not in text.text


def test_a_text_may_end_before_its_length_and_is_json_of_its_schema(letters):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"enum": [1, 22]}}, "required": ["a"]}
    texts = letters.generate("json: ", n=5, max_tokens=40, steps=2, seed=1, constraint=JsonSchema.of(schema))
    for text in texts:
        jsonschema.validate(json.loads(text.text), schema)
    assert any(text.finish_reason == "stop" for text in texts)
    answers = letters.generate(n=20, max_tokens=4, steps=1, seed=1, constraint=OneOf(texts=("no", "yes")))
    assert {text.text for text in answers} == {"no", "yes"}


def test_the_gaps_of_a_text_are_filled_so_that_the_whole_matches(characters):
    texts = characters.infill(["x", 4, "a", 3], n=6, seed=2, constraint=Regex(pattern="x[ab]+a(?:cd|dc)[cd]"))
    assert all(re.fullmatch("x[ab]{4}a(?:cd|dc)[cd]", text.text) for text in texts)
    assert len({text.text for text in texts}) > 1


def test_at_temperature_0_it_is_the_likeliest_text_that_satisfies_the_constraint(characters):
    """One step draws the whole text, whose tokens are independent given the empty canvas."""
    choice = OneOf(texts=("abc", "bca", "cab", "aaa", "zzz", "the"))
    settings = {"constraint": choice, "max_tokens": 3, "steps": 1, "candidates": 1}
    (text,), (same,) = (characters.generate(temperature=0, seed=seed, **settings) for seed in (1, 2))
    assert same.text == text.text
    generator = characters.generator
    xt = torch.full((1, generator.length), generator.mask)
    network = generator.denoiser.network
    with torch.no_grad():
        log_p = network.log_p(network.read(xt, torch.ones(1)), xt == generator.mask)
    likelihood = {each: sum(log_p[i, token] for i, token in enumerate(generator.read(each))) for each in choice.texts}
    assert text.text == max(likelihood, key=lambda each: float(likelihood[each]))


def requests() -> list[Request]:
    plain = Request((1, 2), 20, 0, SAMPLER, None)
    return [
        replace(plain, constraint=constraint, seed=seed, sampler=sampler)
        for seed, (constraint, sampler) in enumerate(
            [
                (FRAME, SAMPLER),
                (None, SAMPLER),
                (Regex(pattern="[ab]+"), Sampler(steps=5)),
                (FRAME, Sampler(steps=2, candidates=4)),
                (None, Sampler(steps=4)),
            ]
        )
    ]


def generated(generator: TextGenerator, asked: list[Request]) -> list:
    sequences = [RunningSequence(request, generator) for request in asked]
    for _ in run_sequences(sequences):
        pass
    return [sequence.text() for sequence in sequences]


def test_a_text_is_the_same_alone_among_others_and_in_the_engine(tmp_path):
    generator = open_bundle(make_bundle(tmp_path))
    together = generated(generator, requests())
    assert together == [generated(generator, [request])[0] for request in requests()]
    assert re.fullmatch(FRAME.pattern, together[0].text)
    engine = InferenceEngine(generator, "1", PATIENT)
    try:
        waiting = [engine.submit([request])[0] for request in requests()]
        assert [future.result(timeout=SECONDS) for future in waiting] == together
    finally:
        engine.close()


def test_what_cannot_be_is_refused_before_it_begins(characters):
    generate = characters.generate
    with pytest.raises(ConfigurationError, match="no text of 9 tokens satisfies the constraint: its texts have 4 to 6"):
        generate(max_tokens=9, constraint=Regex(pattern="[ab]{4,6}"))
    with pytest.raises(ConfigurationError, match=r"can be spelt .*: for '0000', .* lacks '0'"):
        generate(constraint=Regex(pattern=r"\d{4}"))
    with pytest.raises(ConfigurationError, match="exact draws"):
        generate(candidates=0, energy="conditional", constraint=FRAME)
    with pytest.raises(ConfigurationError, match=r"a stop string .'the '. occurs in every text"):
        generate(stop="the ", constraint=FRAME)
    with pytest.raises(ConfigurationError, match=r"known token .* at position 0 contradicts"):
        characters.infill(["b", 3], constraint=Regex(pattern="a[a-z]+"))
