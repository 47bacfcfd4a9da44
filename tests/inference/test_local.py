"""Texts without an engine: every one as alone, in passes that hold a few of them."""

from dataclasses import replace

import pytest
import torch

from edlm.inference.generator import TextGenerator, open_bundle
from edlm.inference.local import run_sequences
from edlm.inference.request import BrokenRow, Request
from edlm.inference.sequence import RunningSequence
from edlm.sampling.sampler import Sampler
from tests.bundles import make_bundle

REQUEST = Request((1, 2), 20, seed=0, sampler=Sampler(steps=4, candidates=2), energy=None, key="", deadline=0.0)


@pytest.fixture
def generator(tmp_path) -> TextGenerator:
    return open_bundle(make_bundle(tmp_path))


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_every_text_is_what_it_is_alone_however_many_share_a_pass(generator, rows):
    samplers = [REQUEST.sampler, Sampler(steps=3), Sampler(steps=2, candidates=4)]
    requests = [replace(REQUEST, seed=seed, sampler=sampler) for seed, sampler in enumerate(samplers)]
    sequences = [RunningSequence(request, generator) for request in requests]
    for _ in run_sequences(sequences, rows):
        pass
    alone = [generator.write(r.known, r.max_tokens, [r.seed], r.sampler, r.energy)[0].tokens for r in requests]
    assert [sequence.text().tokens for sequence in sequences] == alone


def test_a_broken_text_ends_the_run(generator):
    for parameter in generator.denoiser.network.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    with pytest.raises(BrokenRow, match="not numbers"):
        list(run_sequences([RunningSequence(REQUEST, generator)]))
