"""The calls of a plan are those of its steps."""

import math

import torch

from edlm.planning.compute_budget import PlannedSampler, StepChoice
from edlm.sampling.sampler import Sampler
from edlm.schedule import LogLinear
from tests.worlds import Constant, Marginals, world
from workflows.evaluation.measurements.compute_budget import ADAPTIVE, planned_calls, widest
from workflows.evaluation.measurements.likelihood import sampler_columns
from workflows.reporting.sampler_labels import words

DENSE = world("dense", seed=1)

USUAL = {"precision": "float32", "published": False}


def test_the_calls_of_a_plan_are_those_of_its_steps_and_its_k_is_what_it_holds():
    """A choice of one candidate is a plain step; a step may have fewer than two new tokens and asks nothing then."""
    energies = {"whole": Constant(0.0, whole_sequence=False), "pairs": Constant(0.0, whole_sequence=False, block=2)}
    plan = (
        StepChoice("whole", 3),
        StepChoice("pairs", 1),
        StepChoice(),
        StepChoice("pairs", 2),
        StepChoice("whole", 2),
    )
    planned, n, steps = PlannedSampler(Sampler(steps=5), plan), 4000, []
    planned.sample(DENSE.canvas(n), Marginals(DENSE), energies, LogLinear(), torch.arange(n), steps.append)
    expected = planned_calls(planned, energies, LogLinear(), DENSE.length)
    for name in ("denoiser_calls", "energy_calls"):
        made = torch.stack([getattr(step, name) for step in steps]).sum(0).double()
        assert abs(made.mean().item() - expected[name]) < 4 * made.std().item() / math.sqrt(n) + 1e-9
    assert widest(planned) == Sampler(steps=5, candidates=3)
    assert widest(PlannedSampler(Sampler(steps=2), (StepChoice("whole", 0), StepChoice()))).candidates == 1
    assert words(sampler_columns(f"{ADAPTIVE}, 2 times plain", widest(planned)) | USUAL) == "k by plan"
