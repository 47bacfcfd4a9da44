"""What a request is charged is never less than what it takes."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.http.limits import request_cost as cost
from cluster.http.limits.settings import RequestLimits
from cluster.http.local import serving
from edlm.constraints.specification import Regex
from edlm.inference.batch_executor import BatchExecutor
from edlm.inference.cost_model import NetworkPasses
from edlm.inference.generator import TextGenerator, open_bundle
from edlm.inference.request import Request
from edlm.inference.sequence import RunningSequence
from edlm.sampling.sampler import EXACT, Sampler
from edlm.sampling.state import StepResult
from tests.bundles import make_bundle
from tests.cluster.asking import COMPLETIONS, INFILL, ask, error
from tests.engines import new_request, requests

FULL, STEPS = 12, 1024
PATTERN = "[a-y ]+"  # of which there are texts of every length
WORDS = [f"{a}{b}{c}" for a in "abcdefg" for b in "hijklmn" for c in "opqrs"]


@st.composite
def constrained_requests(draw: st.DrawFn) -> Request:
    """Any request with a constraint that the tiny bundle can serve."""
    wish = draw(requests(vocabulary=26).filter(lambda wish: wish.sampler.candidates > 0))
    return replace(wish, constraint=Regex(pattern=PATTERN))


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> TextGenerator:
    """A generator whose canvas is much longer than what is asked of it."""
    return open_bundle(make_bundle(tmp_path_factory.mktemp("long"), length=64))


def taken(wish: Request, generator: TextGenerator) -> tuple[RunningSequence, float]:
    """The finished sequence, and what its steps took, weighted as a charge is."""
    sequence, executor, work = RunningSequence(wish, generator), BatchExecutor(1, 1e9), NetworkPasses()
    while not sequence.finished:
        work += sequence.next_step().work
        ((_, result, row),) = executor.step([sequence])
        assert isinstance(result, StepResult)
        sequence.apply(result, row)
    exact = wish.sampler.candidates == EXACT and sequence.energy is not None
    share = cost.EXACT_SHARE * generator.length if exact else cost.CANDIDATE_SHARE
    return sequence, work.passes + share * work.candidates


@settings(max_examples=60, deadline=None)
@given(wish=requests())
def test_no_text_takes_more_than_is_charged_for_it(bundle, wish):
    generator = open_bundle(bundle)
    sequence, took = taken(wish, generator)
    charged = cost.of_request(wish, generator)
    assert sequence.text().cost.denoiser_calls <= took <= charged + 1e-9


@settings(max_examples=30, deadline=None)
@given(wish=constrained_requests())
def test_no_text_with_a_constraint_takes_more_than_is_charged_for_it(bundle, wish):
    generator = open_bundle(bundle)
    sequence, took = taken(wish, generator)
    added = cost.of_constraint(wish, generator)
    assert sequence.text().cost.denoiser_calls <= took <= cost.of_request(wish, generator) + added + 1e-9


def test_a_constraint_costs_in_proportion_to_its_automaton_and_its_steps(generator):
    plain = new_request((1,), FULL - 1, steps=4)
    small, large, longer = (
        cost.of_constraint(replace(plain, constraint=Regex(pattern=pattern), sampler=Sampler(steps=steps)), generator)
        for pattern, steps in (("[ab]+", 4), (f"(?:{'|'.join(WORDS)})+[a-z]*", 4), ("[ab]+", 8))
    )
    assert cost.of_constraint(plain, generator) == 0
    assert small < large
    assert longer == pytest.approx(2 * small)


@pytest.mark.parametrize("candidates", [1, 8])
@pytest.mark.parametrize(("known", "expected"), [((3,), 1), ((3,) * 60, 1), ((3,), 70), ((3, None, 3), None)])
def test_positions_past_a_short_text_are_charged_for(long, known, expected, candidates):
    for seed in range(3):
        wish = new_request(known, expected, seed, steps=STEPS, candidates=candidates, energy="step")
        assert taken(wish, long)[1] <= cost.of_request(wish, long)


def test_a_full_canvas_costs_no_more_passes_than_steps_and_no_more_than_masks(generator):
    for steps, passes in ((1, 1), (4, 4), (STEPS, FULL)):
        assert cost.of_request(new_request((), FULL, steps=steps), generator) == passes
    assert cost.of_request(new_request((1,) * 4, FULL - 4, steps=STEPS), generator) == FULL - 4
    assert cost.of_request(new_request((1, None), None, steps=STEPS), generator) == FULL - 1
    assert cost.of_request(new_request((1, 2), None, steps=STEPS), generator) == 0


def test_answers_report_no_more_calls_than_one_request_may_cost(generator):

    request = {"edlm": {"steps": STEPS, "candidates": 1}}
    with serving(generator, "7/0", request_limits=RequestLimits(max_work=FULL - 1)) as service:
        for path, short in ((COMPLETIONS, {"max_tokens": 1}), (INFILL, {"tokens": [None]})):
            assert error(ask(service.url, path, {**request, **short}), 400)["code"] == "work_limit_exceeded"
            for seed in range(5):
                known = {"prompt": "ab"} if path == COMPLETIONS else {"tokens": [None, 1, 2]}
                answer = ask(service.url, path, {**request, **short, **known, "seed": seed}).json()
                assert answer["edlm"]["denoiser_calls"] <= FULL - 1
