"""The worlds of these tests agree with an oracle that shares no code with them: plain numpy, no sampling, no torch.

The oracle stands beside the repository, not in it; where it is absent the comparison is skipped.
"""

import importlib.util
import itertools

import pytest
import torch

from edlm.schedule import LogLinear
from tests.enumeration import Step, exact_bound, subsets
from tests.paths import SHARED
from tests.worlds import Marginals, Residual, world

ORACLE = SHARED / "oracle.py"
SOURCES = ["agree", "markov", "dense"]
ENERGIES = {"draft": (True, None), "step": (False, None), "blocks": (False, 2)}


@pytest.fixture(scope="module")
def oracle():
    if not ORACLE.is_file():
        pytest.skip(f"there is no independent oracle at {ORACLE}")
    spec = importlib.util.spec_from_file_location("oracle", ORACLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def theirs(oracle, source: str, mix: float, length: int = 3):
    return oracle.Oracle(oracle.make_source(source, 3, length, 0), 3, length, mix)


@pytest.mark.parametrize("source", SOURCES)
def test_the_sources_are_the_oracles(oracle, source):
    here, reference = world(source), theirs(oracle, source, 0.0)
    distribution = torch.tensor([reference.p[tuple(text)] for text in here.texts.tolist()], dtype=torch.float64)
    torch.testing.assert_close(here.p, distribution, rtol=1e-12, atol=0)
    assert here.entropy == pytest.approx(reference.H)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("energy", ENERGIES)
@pytest.mark.parametrize(("k", "mix"), [(2, 0.2), (0, 0.0)])  # at k = 0 the oracle leaves single tokens to p_theta
def test_a_step_unmasks_by_the_distribution_of_the_oracle(oracle, source, energy, k, mix):
    drafts, block = ENERGIES[energy]
    length = 4 if block else 3
    here, reference = world(source, length=length), theirs(oracle, source, mix, length)
    step = Step(here, Marginals(here, mix), Residual(here, drafts, block), k)
    texts = [x for x, p in zip(here.texts, here.p, strict=True) if p > 0][:: 4 if length == 3 else 27]
    for x0, masked in itertools.product(texts, subsets(torch.ones(length, dtype=torch.bool))):
        xt = torch.where(masked, here.mask, x0)
        z = tuple(-1 if hidden else token for token, hidden in zip(x0.tolist(), masked, strict=True))
        for unmasked in subsets(masked)[1:]:
            positions = tuple(torch.nonzero(unmasked)[:, 0].tolist())
            expected = reference.reveal(z, positions, tuple(x0.tolist()), k, "draft" if drafts else "step", block)
            assert step.nll(x0, xt, 0.5, unmasked) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("energy", "steps", "k", "mix"),
    [("draft", 1, 2, 0.3), ("draft", 2, 2, 0.0), ("draft", 2, 2, 0.3), ("step", 3, 2, 0.3), ("step", 2, 0, 0.0)],
)
def test_the_bounds_of_the_worlds_are_the_oracles(oracle, source, energy, steps, k, mix):
    here, reference = world(source), theirs(oracle, source, mix)
    step = Step(here, Marginals(here, mix), Residual(here, *ENERGIES[energy]), k)
    assert exact_bound(step, steps, LogLinear()) == pytest.approx(reference.bound(steps, k, energy), rel=1e-9)
