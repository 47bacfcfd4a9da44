"""The generator writes, fills gaps and scores; every text is a function of its own seed."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.checkpoints.networks import OpenDenoiser
from edlm.data.tokenizer_kinds import Bytes, Characters, TokenizerConfig
from edlm.inference.canvas import context_tokens
from edlm.inference.components import Bundle
from edlm.inference.generator import TextGenerator, save_bundle
from edlm.inference.offline_generation import run_sequences
from edlm.inference.progress import document_end
from edlm.inference.request import Request
from edlm.inference.sequence import RunningSequence
from edlm.local_cache import LocalCache
from edlm.models.denoiser import Denoiser
from edlm.sampling.sampler import Sampler
from edlm.sampling.unmasking import MostCertain, Remasking
from edlm.schedule import LogLinear
from edlm.storage import committed, publish
from tests.bundles import LENGTH, make_bundle, save_models
from tests.engines import alone, canvases, requests, watched
from tests.networks import TRANSFORMER
from tests.vocabularies import GivenTokenizer

QUICK = settings(max_examples=15, deadline=None)
SAMPLER = Sampler(steps=4, candidates=2)
VOCABULARY = 27
tokens = st.integers(0, VOCABULARY - 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = make_bundle(tmp_path_factory.mktemp("generator"))
    publish(folder, str(folder))
    return folder


@pytest.fixture(scope="module")
def generator(folder) -> TextGenerator:
    return TextGenerator.load(str(folder), digest=committed(str(folder)).digest)


def uniform_generator(tokenizer: TokenizerConfig | GivenTokenizer) -> TextGenerator:
    """A fresh network gives every token the same probability, whatever stands beside it."""
    built = tokenizer.build([])
    denoiser = OpenDenoiser(Denoiser(TRANSFORMER, built.size).eval(), LogLinear(), LENGTH, Path())
    return TextGenerator(Bundle(name="uniform", sampler=Sampler(steps=1)), denoiser, {}, built)


def canvas_count(known: int, new_tokens: int) -> int:
    """How many canvases it takes to write `new_tokens` tokens after `known` ones."""
    count = 0
    while new_tokens > 0:
        written = min(new_tokens, LENGTH - context_tokens(known, new_tokens, LENGTH))
        known, new_tokens, count = known + written, new_tokens - written, count + 1
    return count


@QUICK
@given(known=st.lists(st.none() | tokens, min_size=1, max_size=LENGTH), seed=st.integers(0, 2**53))
def test_infilling_keeps_what_is_given_and_fills_every_gap(generator, known, seed):
    (text,) = generator.infill(known, [seed], SAMPLER)
    assert len(text.tokens) == len(known)
    assert all(0 <= token < VOCABULARY for token in text.tokens)
    assert all(given in (None, token) for given, token in zip(known, text.tokens, strict=True))


def test_parts_become_tokens_and_holes(generator):
    assert generator.read_parts(["ab", 3, "C"]) == (1, 2, None, None, None, 3)


@settings(max_examples=40, deadline=None)
@given(wish=requests())
def test_every_text_is_what_the_sampler_makes_of_its_canvases(generator, wish):
    if wish.max_tokens is None:
        found = generator.infill(wish.known, [wish.seed], wish.sampler, wish.energy)
    else:
        found = generator.write(wish.known, wish.max_tokens, [wish.seed], wish.sampler, wish.energy)
    assert found == [alone(generator, wish)]


@QUICK
@given(prompt=st.lists(tokens, max_size=30), new_tokens=st.integers(1, 40))
def test_a_text_of_any_length_is_written_on_whole_canvases(generator, prompt, new_tokens):
    with canvases(generator) as seen:
        (text,) = generator.write(prompt, new_tokens, [5], SAMPLER)
    assert len(text.tokens) == new_tokens
    assert text.finish_reason == "length"
    assert {xt.shape for xt in seen} == {(1, LENGTH)}
    blocks = canvas_count(len(prompt), new_tokens)
    assert blocks <= len(seen) == text.cost.denoiser_calls <= SAMPLER.steps * blocks


def test_what_is_written_is_the_fixed_context_of_the_next_block(generator):
    prompt, half = [1, 2, 3], LENGTH // 2
    sequence = RunningSequence(Request(tuple(prompt), 3 * LENGTH, 5, SAMPLER, None), generator)
    with canvases(generator) as seen:
        blocks = [sequence.progress.block for _ in run_sequences([sequence])]
    whole = [*prompt, *sequence.text().tokens]
    for block, xt in zip(blocks, seen, strict=True):
        if block < 3:  # the last ones show more, as there is room
            canvas, final = xt[0].tolist(), whole[block * half : block * half + LENGTH]
            given = half if block else len(prompt)
            assert canvas[:given] == final[:given]
            assert all(token in (generator.mask, kept) for token, kept in zip(canvas, final, strict=True))
    assert {0, 1, 2} < set(blocks)


def test_each_block_has_its_own_randomness():
    generator = uniform_generator(Characters())
    (text,) = generator.write([], 2 * LENGTH, [1], Sampler(steps=1))
    half = LENGTH // 2
    assert text.tokens[half:LENGTH] != text.tokens[LENGTH : LENGTH + half]


@pytest.mark.parametrize("energy", ["step", "conditional"])
def test_a_text_depends_on_its_own_seed_alone(generator, energy):
    seeds = [7, 1, 2**53 - 1, 7]
    together = generator.write([3, 4], 20, seeds, SAMPLER, energy)
    alone = [generator.write([3, 4], 20, [seed], SAMPLER, energy)[0] for seed in seeds]
    assert together == alone
    assert together[0] == together[3]
    assert len({text.text for text in together}) == 3
    gaps = [1, None, None, 2, None]
    assert generator.infill(gaps, seeds, SAMPLER, energy) == [
        generator.infill(gaps, [seed], SAMPLER, energy)[0] for seed in seeds
    ]


def test_a_document_that_ends_ends_its_text_and_no_other():
    generator = uniform_generator(Bytes())
    separator, seeds = generator.tokenizer.separator, list(range(6))
    together = generator.write([], 250, seeds, Sampler(steps=1))
    assert {text.finish_reason for text in together} == {"stop", "length"}
    for text in together:
        assert separator not in text.tokens
        assert (len(text.tokens) == 250) == (text.finish_reason == "length")
    assert together == [generator.write([], 250, [seed], Sampler(steps=1))[0] for seed in seeds]


@pytest.mark.parametrize("row", [[], [5, 9, 1], [9, 5, 1], [1, 2]])
def test_a_document_has_not_ended_while_something_before_its_separator_is_masked(row):
    assert document_end(row, mask=9, separator=5) == (0 if row[:1] == [5] else None)
    assert document_end(row, mask=9, separator=None) is None


def test_a_separator_in_the_prompt_ends_nothing():
    generator = uniform_generator(Bytes())
    separator = generator.tokenizer.separator
    assert separator is not None
    (text,) = generator.write([separator, 65], 3, [0], Sampler(steps=1))
    assert (len(text.tokens), text.finish_reason) == (3, "length")


def test_the_cost_counts_what_the_energy_was_asked(generator):
    (plain,) = generator.write([], LENGTH, [1], Sampler(steps=4))
    assert (plain.cost.energy_calls, plain.cost.mean_ess) == (0, None)
    (scored,) = generator.write([], LENGTH, [1], Sampler(steps=4, candidates=3))
    assert scored.cost.energy_calls == 3 * len(scored.cost.ess)  # steps with one new token a block ask nothing
    assert 0 < len(scored.cost.ess) <= scored.cost.denoiser_calls
    assert scored.cost.mean_ess is not None
    assert 1 <= scored.cost.mean_ess <= 3
    (exact,) = generator.write([], LENGTH, [1], Sampler(steps=4, candidates=0), "conditional")
    assert exact.tokens != plain.tokens


@pytest.mark.parametrize("steps", [3, 7, 11])
def test_a_window_of_the_last_step_holds_it_however_its_time_rounds(generator, steps):
    sampler = Sampler(steps=steps, candidates=3, window=(0.0, 1 / steps))
    costs = [generator.write([], LENGTH, [seed], sampler)[0].cost for seed in range(40)]
    assert {cost.energy_calls for cost in costs} - {0} == {3}  # 0: nothing was left to choose


def test_a_uniform_model_scores_every_text_at_log_of_the_vocabulary():
    generator = uniform_generator(Characters())
    score = generator.score(generator.read("hello"), seed=3, draws=64, sampler=Sampler(steps=4))
    assert score.bound.mean == pytest.approx(5 * math.log(27), rel=1e-6)
    assert score.bound.standard_error < 1e-5
    assert abs(score.nelbo.mean - 5 * math.log(27)) < 3 * score.nelbo.standard_error


@QUICK
@given(text=st.lists(tokens, min_size=1, max_size=LENGTH), candidates=st.integers(1, 3))
def test_every_text_has_a_finite_score(generator, text, candidates):
    sampler = replace(SAMPLER, candidates=candidates)
    score = generator.score(text, seed=1, draws=2, sampler=sampler)
    assert set(score.energies) == {"step", "conditional"}
    for estimate in (score.nelbo, score.bound, *score.energies.values()):
        assert math.isfinite(estimate.mean)
        assert math.isfinite(estimate.standard_error)
    again = generator.score(text, seed=1, draws=2, sampler=sampler)
    assert torch.equal(again.bound.values, score.bound.values)


def test_the_prompt_is_read_as_the_tokenizer_reads_it(generator):
    assert generator.tokenizer.decode(generator.read("The 5!")) == "the five "


@pytest.mark.parametrize("token", [-1, VOCABULARY, 2**60])
def test_tokens_outside_the_vocabulary_are_refused(generator, token):
    with pytest.raises(ValueError, match=f"token {token} is not in the vocabulary"):
        generator.read([1, token])


@pytest.mark.parametrize("size", [0, LENGTH + 1])
def test_a_text_that_fits_no_canvas_is_not_scored(generator, size):
    with pytest.raises(ValueError, match=f"has {size} tokens; a score needs 1 to {LENGTH}"):
        generator.score([1] * size, 1, 2, SAMPLER)


def test_energies_that_cannot_be_used_are_refused(generator):
    with pytest.raises(ValueError, match="energy 'nce' is not in this model; it has: conditional, step"):
        generator.energy_for(SAMPLER, "nce")
    with pytest.raises(ValueError, match="energy 'step' is not normalised"):
        generator.energy_for(Sampler(steps=4, candidates=0), "step")
    with pytest.raises(ValueError, match="this model has no energy"):
        uniform_generator(Characters()).energy_for(SAMPLER, None)


def test_a_bundle_of_another_digest_is_refused(folder):
    with pytest.raises(ValueError, match=f"expected {'0' * 64}; register the model again"):
        TextGenerator.load(str(folder), digest="0" * 64)


def test_a_damaged_bundle_is_refused(tmp_path):
    folder = make_bundle(tmp_path)
    publish(folder, str(folder))
    weights = folder / "energies" / "step" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"'energies/step/weights.safetensors' has SHA-256"):
        TextGenerator.load(str(folder))


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "file").write_text("content")
    publish(tmp_path / "model", str(tmp_path / "model"))
    with pytest.raises(ValueError, match="is no bundle"):
        TextGenerator.load(str(tmp_path / "model"))


def test_a_bundle_that_could_not_generate_is_not_made(tmp_path):
    denoiser, energies = save_models(tmp_path / "models")
    with pytest.raises(ValueError, match="energy 'nce' is not in this model"):
        save_bundle(tmp_path / "one", Bundle(name="x", energy="nce", sampler=SAMPLER), denoiser, energies)
    with pytest.raises(ValueError, match="no energy to choose with"):
        save_bundle(tmp_path / "two", Bundle(name="x", sampler=SAMPLER), denoiser, {})
    other, _ = save_models(tmp_path / "others", length=LENGTH + 1)
    with pytest.raises(ValueError, match="was made for the denoiser"):
        save_bundle(tmp_path / "three", Bundle(name="x", energy="step", sampler=SAMPLER), other, energies)


def test_a_bundle_is_made_of_published_models(tmp_path):
    denoiser, energies = save_models(tmp_path / "models")
    for place in (denoiser, *energies.values()):
        publish(place, str(place))
    save_bundle(tmp_path / "bundle", Bundle(name="x", energy="step", sampler=SAMPLER), denoiser, energies)
    publish(tmp_path / "bundle", "memory://bundles/x")
    generator = TextGenerator.load("memory://bundles/x", LocalCache(tmp_path / "cache"))
    assert list(generator.energies) == ["conditional", "step"]


@pytest.mark.parametrize("unmasking", [MostCertain(), Remasking(share=0.5)])
def test_a_text_unmasks_at_random_and_the_refusal_says_what_does_not(generator, unmasking):
    sampler = Sampler(steps=4, unmasking=unmasking)
    for refused in (
        lambda: generator.write((1, 2), 3, [0], sampler),
        lambda: generator.infill((1, None), [0], sampler),
    ):
        with pytest.raises(
            ValueError,
            match=f"unmasking is {unmasking.kind}: texts unmask at_random, .*`Sampler.sample` fills canvases",
        ):
            refused()


@pytest.mark.parametrize("passes", [0, 2])
def test_a_text_whose_numbers_are_none_is_named_by_its_seed_in_every_block(folder, passes):
    generator, sampler, seen = TextGenerator.load(str(folder)), Sampler(steps=1), []

    def spoil(_: torch.Tensor) -> None:
        if len(seen) == passes:
            for parameter in generator.denoiser.network.parameters():
                torch.nn.init.constant_(parameter, torch.nan)
        seen.append(passes)

    watched(generator, before=spoil)
    with pytest.raises(FloatingPointError, match=r"of the text of seed 50 are not numbers"):
        generator.write((), 3 * LENGTH, [50, 60], sampler)
    assert len(seen) == passes + 1
