import math
from dataclasses import replace

import pytest
import torch

from edlm.checkpoints.model_folder import TOKENIZER
from edlm.checkpoints.networks import save_denoiser
from edlm.config import load
from edlm.data.tokenizer_kinds import Characters
from edlm.evaluation.calibration import energies_of_pairs
from edlm.interfaces import Model
from edlm.likelihood.estimate import Estimate
from edlm.likelihood.exact_order import FIXED_ORDER
from edlm.planning.compute_budget import PlannedSampler, StepChoice
from edlm.sampling.sampler import Sampler
from edlm.sampling.unmasking import MostCertain, Remasking
from edlm.schedule import Cosine, LogLinear
from edlm.storage import publish
from tests.enumeration import chi_square
from tests.networks import TRANSFORMER, autoregressive, denoiser
from tests.paths import SMALLEST
from tests.worlds import Constant, Marginals, OnProposal, Residual, cartesian, world
from workflows.evaluate import speculative_rows
from workflows.evaluation.grid import fitted_grid, grid
from workflows.evaluation.measurements.calibration import Calibration, auc, reliability
from workflows.evaluation.measurements.compute_budget import ADAPTIVE, planned_calls, widest
from workflows.evaluation.measurements.fitted_step_times import FittedGrid
from workflows.evaluation.measurements.likelihood import MOST_REPEATS, Bound, expected_calls, sampler_columns, tightened
from workflows.evaluation.measurements.measurement import MeasuredRows, Subject
from workflows.experiment import Experiment
from workflows.reporting.sampler_labels import words

DENSE = world("dense", seed=1)
USUAL = {"precision": "float32", "published": False}


def test_repeats_are_doubled_until_a_doubling_no_longer_pays():
    asked = []

    def bound(repeats: int) -> Estimate:
        asked.append(repeats)
        return Estimate(torch.tensor([10.0, 12.0]) + 8.0 / repeats, 1)

    estimate, repeats, gained = tightened(bound, 1, 0.2, length=2)
    # Halves of what is left: 8 / R over 2 tokens gains 2, 1, 0.5, 0.25, 0.125.
    assert asked == [1, 2, 4, 8, 16, 32]
    assert (repeats, gained) == (32, pytest.approx(0.125))
    assert estimate.mean == pytest.approx(11.25)
    assert tightened(bound, 3, None, length=2)[1:] == (3, None)
    assert tightened(lambda r: Estimate(torch.tensor([-float(r)]), 1), 1, 1e-9, length=1)[1] == MOST_REPEATS


def test_the_area_counts_pairs_in_the_right_order_and_half_of_the_ties():
    data, drafts = torch.tensor([0.0, 1.0]).double(), torch.tensor([1.0, 2.0, -1.0]).double()
    assert auc(data, drafts) == pytest.approx((2 + 1.5) / 6)
    assert auc(data, -data.flip(0) + 10) == 1.0


def test_bins_weight_both_sides_equally_whatever_their_sizes():
    even = reliability(torch.zeros(3).double(), torch.zeros(9).double())
    assert even == [{"predicted": 0.5, "observed": pytest.approx(0.5), "count": 12}]
    apart = reliability(torch.full((2,), -9.0).double(), torch.full((5,), 9.0).double())
    assert [bin["observed"] for bin in apart] == [0.0, 1.0]


@pytest.mark.parametrize("drafts", [True, False])
def test_the_exact_energy_is_calibrated_and_its_opposite_is_not(drafts):
    """sigmoid(-E*) = q / (q + p_theta): among the samples of which it says so, that share is data."""
    copies = 3000
    x0 = DENSE.texts[torch.multinomial(DENSE.p, copies, replacement=True, generator=torch.Generator().manual_seed(0))]
    reader, exact = Marginals(DENSE, mix=0.2), Residual(DENSE, whole_sequence=drafts)
    data, noise = energies_of_pairs(x0, Model(reader, exact, LogLinear()), 0, 2, (0.25, 1.0))
    for bin in reliability(data, noise):
        assert abs(bin["predicted"] - bin["observed"]) < 4 * 0.5 / math.sqrt(bin["count"])
    assert auc(data, noise) > 0.55
    assert auc(-data, -noise) < 0.45


def test_a_residual_energy_is_distinguished_from_its_own_proposal():
    x0 = DENSE.texts[torch.multinomial(DENSE.p, 3000, replacement=True, generator=torch.Generator().manual_seed(0))]
    same, other = OnProposal(DENSE, DENSE), OnProposal(DENSE, world("dense", seed=5))
    data, noise = energies_of_pairs(x0, Model(Marginals(DENSE), same, LogLinear()), 0, 1, (0.5, 1.0))
    assert data.abs().max() < 1e-9
    assert noise.abs().max() < 1e-9
    data, noise = energies_of_pairs(x0, Model(Marginals(DENSE), other, LogLinear()), 0, 1, (0.5, 1.0))
    for bin in reliability(data, noise):
        assert abs(bin["predicted"] - bin["observed"]) < 4 * 0.5 / math.sqrt(bin["count"])


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()])
@pytest.mark.parametrize("block", [None, 2])
@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(steps=4),
        Sampler(steps=5, candidates=3, window=(0.0, 0.6)),
        Sampler(steps=4, unmasking=MostCertain()),
        Sampler(steps=4, candidates=2, unmasking=Remasking(share=0.8)),
    ],
)
def test_the_calls_that_are_expected_are_the_mean_of_those_that_are_made(schedule, sampler, block):
    n, steps = 4000, []
    energy = Constant(0.0, whole_sequence=False, block=block)
    sampler.sample(DENSE.canvas(n), Marginals(DENSE), energy, schedule, torch.arange(n), on_step=steps.append)
    expected = expected_calls(sampler, schedule, DENSE.length, energy)
    for name in ("denoiser_calls", "energy_calls"):
        made = torch.stack([getattr(step, name) for step in steps]).sum(0).double()
        assert abs(made.mean().item() - expected[name]) < 4 * made.std().item() / math.sqrt(n) + 1e-9
    assert expected_calls(sampler, schedule, DENSE.length, None)["energy_calls"] == 0


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()])
@pytest.mark.parametrize(
    "sampler",
    [Sampler(steps=3, candidates=2, unmasking=FIXED_ORDER), Sampler(steps=7, unmasking=FIXED_ORDER),
     Sampler(steps=2, candidates=2, window=(0.0, 0.5), unmasking=FIXED_ORDER)],
)  # fmt: skip
def test_with_fixed_counts_the_calls_are_known(schedule, sampler):
    steps = []
    energy = Constant(0.0, whole_sequence=False)
    sampler.sample(DENSE.canvas(50), Marginals(DENSE), energy, schedule, torch.arange(50), on_step=steps.append)
    expected = expected_calls(sampler, schedule, DENSE.length, energy)
    for name in ("denoiser_calls", "energy_calls"):
        made = torch.stack([getattr(step, name) for step in steps]).sum(0)
        assert made.tolist() == [expected[name]] * 50


def test_with_fixed_counts_pairs_within_blocks_are_those_of_positions_chosen_alike():
    sampler, pairs = Sampler(steps=2, candidates=2, unmasking=FIXED_ORDER), Constant(0.0, False, block=2)
    expected = expected_calls(sampler, LogLinear(), 4, pairs)["energy_calls"]
    assert expected == pytest.approx(2 * 2 * 2 / 6)  # two of six choices of two positions share a block of two


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


def test_the_autoregressive_model_draws_its_own_distribution_and_each_row_its_own_text():
    model, n, length = autoregressive(3), 20_000, 3
    texts = model.draw(torch.arange(n), length)
    every = cartesian(3, length)
    distribution = model.log_p(every).sum(dim=1).exp().double().detach()
    counts = torch.bincount((texts * torch.tensor([9, 3, 1])).sum(1), minlength=27)
    assert distribution.sum().item() == pytest.approx(1, abs=1e-5)
    assert chi_square(counts, distribution / distribution.sum()) < 3.9
    assert torch.equal(model.draw(torch.tensor([17]), length)[0], texts[17])
    assert torch.equal(model.draw(torch.arange(n), 2), texts[:, :2])


def test_a_cell_is_known_by_its_settings_and_by_the_content_of_what_it_reads(tmp_path):
    for name in ("data", "denoiser", "step", "coar"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        publish(tmp_path / name, str(tmp_path / name))

    def subject(**changed) -> Subject:
        known = {"data": "data", "denoiser": "denoiser", "autoregressive": "nowhere", "judge": "nowhere"} | changed
        energies = {"step": str(tmp_path / "step"), "coar": str(tmp_path / known.pop("coar", "coar"))}
        return Subject(**{k: str(tmp_path / v) for k, v in known.items()}, energies=energies, sequences=4, seed=0)

    cell = Bound(subject=subject(), energy="step", sampler=Sampler(steps=2, candidates=2))
    key = cell.key("code")
    assert Bound(subject=subject(coar="step"), energy="step", sampler=cell.sampler).key("code") == key
    assert Bound(subject=subject(denoiser="data"), energy="step", sampler=cell.sampler).key("code") != key
    assert Bound(subject=subject(), energy="coar", sampler=cell.sampler).key("code") != key
    assert Bound(subject=subject(), energy="step", sampler=Sampler(steps=2, candidates=3)).key("code") != key
    assert Calibration(subject=subject(), energy="step", draws=1).key("code") != key
    assert cell.key("other code") != key


def test_a_samplers_name_has_what_distinguishes_it_and_its_distribution_may_be_anothers():
    exact = Sampler(steps=2, candidates=0)
    reported = [
        sampler_columns("conditional", how)
        for how in (
            exact,
            replace(exact, speculative=True),
            replace(exact, grid=(0.0, 0.3, 1.0)),
            replace(exact, unmasking=MostCertain()),
            replace(exact, unmasking=MostCertain(counts="fixed")),
            replace(exact, candidates=2, unmasking=MostCertain(counts="fixed")),
            replace(exact, speculative=True, unmasking=Remasking(share=0.5, window=(0.1, 1.0))),
        )
    ]
    again = "conditional, remasking 0.5 at t from 0.1 to 1 (another distribution)"
    assert [(row["energy"], row["distribution"]) for row in reported] == [
        ("conditional", "conditional"),
        ("conditional, speculative", "conditional"),
        ("conditional, fitted steps", "conditional, fitted steps"),
        (
            "conditional, most certain first (another distribution)",
            "conditional, most certain first (another distribution)",
        ),
        (
            "conditional, most certain first in fixed counts (another distribution), exact likelihood",
            "conditional, most certain first in fixed counts (another distribution), exact likelihood",
        ),
        (
            "conditional, most certain first in fixed counts (another distribution)",
            "conditional, most certain first in fixed counts (another distribution)",
        ),
        (again.replace(",", ", speculative,", 1), again),
    ]


def test_speculative_samplers_have_the_bound_of_their_distribution_and_their_own_cost():
    exact = Sampler(steps=2, candidates=0)
    bound = {**sampler_columns("conditional", exact), "bound_nats_per_token": 1.5, "energy_calls": 2.0}
    cost = [
        {**sampler_columns("conditional", how), "seconds_per_text": 0.1, "denoiser_calls": 2.0, "energy_calls": 7.5}
        for how in (exact, replace(exact, speculative=True), replace(exact, steps=4, speculative=True))
    ]
    (row,) = speculative_rows([bound], cost)
    assert row["energy"] == "conditional, speculative"
    assert (row["bound_nats_per_token"], row["energy_calls"], row["seconds_per_text"]) == (1.5, 7.5, 0.1)


def test_what_runs_together_and_what_runs_alone_both_begin_with_the_longest(tmp_path):
    folder, experiment = tmp_path / "denoiser", load(Experiment, SMALLEST)
    Characters().build(()).save(tmp_path)
    save_denoiser(folder, denoiser(27).state_dict(), TRANSFORMER, LogLinear(), 8, tmp_path / TOKENIZER, {})
    publish(folder, str(folder))
    subject = Subject("", str(folder), "", "", {}, sequences=4, seed=0)
    rows = MeasuredRows({"step_grids": [{"steps": T, "times": torch.linspace(0, 1, T + 1).tolist()} for T in (2, 4)]})
    actual = [
        (
            FittedGrid(subject=subject, energy="plain", sampler=Sampler(steps=1, candidates=k), steps=(2, 4), points=4),
            rows,
        )
        for k in (1, 8)
    ]
    settings = experiment.evaluate
    assert settings is not None
    settings = replace(settings, judge=experiment.judge_config)
    for together, alone in (grid(experiment, settings, subject), fitted_grid(settings, subject, actual)):
        for cells in (together, alone):
            costs = [cell.cost for cell in cells]
            assert costs == sorted(costs, reverse=True)
            assert costs[0] > costs[-1]
