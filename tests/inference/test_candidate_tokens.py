"""The reported candidates are those among which a step chose: what it unmasked are the tokens of the chosen ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edlm.inference.candidate_tokens import MOST_TOKENS, reported
from edlm.inference.offline_generation import run_sequences
from edlm.inference.progress import Progress
from edlm.inference.request import Request
from edlm.inference.sequence import RunningSequence
from edlm.sampling.sampler import Sampler
from tests.engines import TableEnergy

SAMPLER = Sampler(steps=3, candidates=4)
LONG = Request((1, 2, 3), 30, seed=2, sampler=SAMPLER, energy=None, candidate_tokens=True)  # of three canvases
GAPS = Request((1, None, None, 4, *[None] * 8), None, seed=3, sampler=SAMPLER, energy=None, candidate_tokens=True)


class WholeTexts(TableEnergy):
    whole_sequence = True


def scored_steps(request: Request, generator) -> list[Progress]:
    """The progress after each step that chose among candidates."""
    sequence, found = RunningSequence(request, generator), []
    for _ in run_sequences([sequence]):
        if sequence.progress.scored_step == sequence.progress.step:
            found.append(sequence.progress)
    return found


def energy_of(name: str, request: Request) -> Request:
    return Request(**{**request.__dict__, "energy": name})


@pytest.fixture(scope="module")
def models(generator):
    whole = WholeTexts(lambda b, k: torch.arange(b * k).reshape(b, k) % 3)
    return generator.with_energy("whole", whole)


@pytest.mark.parametrize("request_", [LONG, GAPS], ids=["prompt", "gaps"])
@pytest.mark.parametrize("name", ["step", "conditional", "whole"])
def test_what_a_step_unmasks_are_the_tokens_of_the_chosen_candidate_of_each_group(models, name, request_):
    found = scored_steps(energy_of(name, request_), models)
    assert found
    for progress in found:
        candidates, picked = progress.candidate_tokens, progress.picked
        assert candidates is not None
        assert picked is not None
        assert len(candidates.tokens) == SAMPLER.candidates
        assert list(candidates.positions) == sorted(set(candidates.positions))
        unmasked = [i for i, step in enumerate(progress.unmasked_at) if step == progress.step]
        assert set(unmasked) <= set(candidates.positions)
        columns = zip(candidates.positions, candidates.groups, zip(*candidates.tokens, strict=True), strict=True)
        for position, group, tokens in columns:
            if position in unmasked:
                assert progress.tokens[position] == tokens[picked[group]]


@pytest.mark.parametrize("name", ["step", "whole"])
def test_candidates_of_a_whole_sequence_also_fill_what_stays_masked(models, name):
    for progress in scored_steps(energy_of(name, GAPS), models):
        assert progress.candidate_tokens is not None
        after = [i for i, step in enumerate(progress.unmasked_at) if step == progress.step]
        masked = [i for i, token in enumerate(progress.tokens) if token == models.mask]
        expected = sorted([*after, *masked]) if name == "whole" else after
        assert list(progress.candidate_tokens.positions) == expected


def test_candidates_are_reported_on_request_only_and_change_no_text(models):
    quiet = Request(**{**LONG.__dict__, "candidate_tokens": False})
    assert all(progress.candidate_tokens is None for progress in scored_steps(quiet, models))
    assert [p.tokens for p in scored_steps(quiet, models)] == [p.tokens for p in scored_steps(LONG, models)]


@given(st.integers(1, 64), st.integers(1, 300), st.integers(0, 2**32 - 1), st.sampled_from([None, 1, 8]))
def test_at_most_a_fixed_number_of_tokens_is_reported_and_what_the_step_unmasks_comes_first(k, length, seed, block):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(9, (k, length), generator=draw)
    filled = torch.rand(length, generator=draw) < 0.8
    unmasked = filled & (torch.rand(length, generator=draw) < 0.3)
    found = reported(x, filled, unmasked, block, first=5)
    index = [position - 5 for position in found.positions]
    assert k * len(index) <= MOST_TOKENS
    assert len(index) == min(int(filled.sum()), MOST_TOKENS // k)
    assert bool(filled[index].all())
    assert int(unmasked[index].sum()) == min(int(unmasked.sum()), MOST_TOKENS // k)
    assert torch.equal(torch.tensor(found.tokens).reshape(k, len(index)), x[:, index])
    assert list(found.groups) == [0 if block is None else i // block for i in index]
