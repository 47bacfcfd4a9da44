"""Texts without an engine: every one as alone, in passes that hold a few of them."""

from dataclasses import replace

import pytest
import torch

from edlm.data.tokenizer_kinds import Bytes
from edlm.inference.generator import TextGenerator, open_bundle
from edlm.inference.offline_generation import run_sequences
from edlm.inference.progress import document_end
from edlm.inference.request import NonFiniteText, OutOfMemory, Request
from edlm.inference.sequence import RunningSequence
from edlm.sampling.sampler import Sampler
from tests.bundles import LENGTH, make_bundle
from tests.engines import alone, canvases, watched
from tests.inference.test_generator import uniform_generator

REQUEST = Request((1, 2), 20, seed=0, sampler=Sampler(steps=4, candidates=2), energy=None)


@pytest.fixture
def generator(tmp_path) -> TextGenerator:
    return open_bundle(make_bundle(tmp_path))


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_every_text_is_what_it_is_alone_however_many_share_a_pass(generator, rows):
    samplers = [REQUEST.sampler, Sampler(steps=3), Sampler(steps=2, candidates=4)]
    requests = [replace(REQUEST, seed=seed, sampler=sampler) for seed, sampler in enumerate(samplers)]
    sequences = [RunningSequence(request, generator) for request in requests]
    with canvases(generator) as seen:
        for _ in run_sequences(sequences, rows):
            pass
    assert max(len(xt) for xt in seen) == min(rows, len(requests))
    assert [sequence.text() for sequence in sequences] == [alone(generator, request) for request in requests]


def test_a_text_leaves_the_batch_once_nothing_more_of_it_is_wanted():
    generator, sampler = uniform_generator(Bytes()), Sampler(steps=8)
    mask, separator = generator.mask, generator.tokenizer.separator
    sequences = [RunningSequence(Request((), LENGTH, seed, sampler, None), generator) for seed in range(40)]
    unfinished = [len(sequences)]
    with canvases(generator) as seen:
        for _ in run_sequences(sequences, rows=40):
            texts = [sequence.progress.tokens for sequence in sequences]
            unfinished.append(sum(mask in text and document_end(text, mask, separator) is None for text in texts))
    assert [*map(len, seen), 0] == unfinished
    texts = [sequence.text() for sequence in sequences]
    assert 0 < sum(text.finish_reason == "stop" for text in texts) < len(texts)
    assert sum(text.cost.denoiser_calls for text in texts) == sum(map(len, seen))


def test_a_short_text_takes_no_step_for_positions_beyond_its_end(generator):
    (text,) = generator.write([], 1, [1], Sampler(steps=300))
    assert text.cost.denoiser_calls < LENGTH


def test_a_batch_that_does_not_fit_the_memory_is_halved(generator):
    def refuse(xt: torch.Tensor) -> None:
        if len(xt) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")

    fits, seeds = 2, [1, 2, 3, 4]
    expected = [alone(generator, replace(REQUEST, seed=seed)) for seed in seeds]
    watched(generator, before=refuse)
    assert generator.write(REQUEST.known, 20, seeds, REQUEST.sampler) == expected
    fits = 0
    with pytest.raises(OutOfMemory):
        generator.write(REQUEST.known, 20, seeds, REQUEST.sampler)


def test_a_broken_text_ends_the_run(generator):
    for parameter in generator.denoiser.network.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    with pytest.raises(NonFiniteText, match="seed 0 are not numbers"):
        list(run_sequences([RunningSequence(REQUEST, generator)]))
