"""The cells of the grid: by what they are known, how they are named, and which run together."""

from dataclasses import replace

import pytest
import torch

from edlm.checkpoints.energies import network_on, save_energy
from edlm.checkpoints.model_folder import TOKENIZER
from edlm.checkpoints.networks import open_denoiser, save_denoiser
from edlm.config import load, parse, plain
from edlm.data.tokenizer_kinds import Characters
from edlm.energies.edlm_nce import EDLMEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.equations import group_count
from edlm.sampling.sampler import Sampler
from edlm.sampling.unmasking import MostCertain, Remasking
from edlm.schedule import LogLinear
from edlm.storage import publish
from tests.counting import chi_square
from tests.networks import TRANSFORMER, autoregressive, denoiser, stirred
from tests.paths import SMALLEST
from tests.worlds import cartesian
from workflows.evaluate import speculative_rows, stage_settings
from workflows.evaluation.grid import exact_kinds, fitted_grid, grid
from workflows.evaluation.measurements.calibration import Calibration
from workflows.evaluation.measurements.fitted_step_times import FittedGrid
from workflows.evaluation.measurements.likelihood import Bound, sampler_columns
from workflows.evaluation.measurements.measurement import MeasuredRows, Subject, energy_model
from workflows.evaluation_settings import ComposedEnergy, Evaluate
from workflows.experiment import Experiment


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


def test_a_cell_of_a_composed_energy_is_known_by_its_terms_and_their_weights(tmp_path):
    for name in ("data", "denoiser", "step", "coar", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        publish(tmp_path / name, str(tmp_path / name))

    def key(weights: dict[str, float], coar: str = "coar") -> str:
        data, denoiser, step, second = (str(tmp_path / name) for name in ("data", "denoiser", "step", coar))
        energies = {"step": step, "coar": second}
        subject = Subject(data, denoiser, None, None, energies, sequences=4, seed=0, composed={"both": weights})
        return Bound(subject=subject, energy="both", sampler=Sampler(steps=2, candidates=2)).key("code")

    known = key({"step": 1.0, "coar": 0.5})
    assert key({"coar": 0.5, "step": 1.0}) == known
    assert key({"step": 1.0}, coar="other") == key({"step": 1.0})
    assert key({"step": 1.0, "coar": 0.5}, coar="other") != known
    assert len({known, key({"step": 1.0}), key({"step": 2.0}), key({"step": 1.0, "coar": 0.25})}) == 4


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


def test_a_given_energy_is_calibrated_as_one_that_the_experiment_trains(tmp_path):
    Characters().build(()).save(tmp_path)
    tokenizer, network = tmp_path / TOKENIZER, denoiser(27)
    save_denoiser(tmp_path / "denoiser", network.state_dict(), TRANSFORMER, LogLinear(), 8, tokenizer, {})
    opened = open_denoiser(tmp_path / "denoiser")
    energy = EDLMEnergyConfig(width=16, layers=1, heads=2, conditioning_width=8)
    weights = energy.build(opened.network).state_dict()
    save_energy(tmp_path / "nce", weights, network_on(energy, opened), 8, tokenizer, {})
    for name in ("denoiser", "nce"):
        publish(tmp_path / name, str(tmp_path / name))
    entry, uri = {"name": "nce", "energy": plain(energy)}, str(tmp_path / "nce")
    changed = {"finetune": [entry], "given": {"energies": {"nce": uri}}}
    changed |= {"register": {"energy": "nce", "sampler": {"steps": 4, "candidates": 2}}}
    experiment = parse(Experiment, plain(load(Experiment, SMALLEST)) | changed)
    assert experiment.evaluate is not None
    settings = replace(experiment.evaluate, judge=experiment.judge_config)
    subject = Subject("", str(tmp_path / "denoiser"), "", "", {"nce": uri}, sequences=4, seed=0)
    together, _ = grid(experiment, settings, subject)
    assert [cell.energy for cell in together if isinstance(cell, Calibration)] == ["nce"]


def test_a_composed_energy_is_measured_as_the_sum_of_its_terms(tmp_path):
    Characters().build(()).save(tmp_path)
    tokenizer, network = tmp_path / TOKENIZER, denoiser(27)
    save_denoiser(tmp_path / "denoiser", network.state_dict(), TRANSFORMER, LogLinear(), 8, tokenizer, {})
    opened = open_denoiser(tmp_path / "denoiser")
    kinds = {
        "step": StepEnergyConfig(width=16, layers=1, heads=2, block=2),
        "wider": StepEnergyConfig(width=16, layers=1, heads=2, block=3),
        "whole": EDLMEnergyConfig(width=16, layers=1, heads=2, conditioning_width=8),
    }
    for name, kind in kinds.items():
        weights = stirred(kind.build(opened.network)).state_dict()
        save_energy(tmp_path / name, weights, network_on(kind, opened), 8, tokenizer, {})
    for name in ("denoiser", *kinds):
        publish(tmp_path / name, str(tmp_path / name))
    sums = {"steps": {"step": 1.0, "wider": -0.5}, "all": {"step": 2.0, "whole": 1.0}}
    uris = {name: str(tmp_path / name) for name in kinds}
    subject = Subject("", str(tmp_path / "denoiser"), None, None, uris, sequences=4, seed=0, composed=sums)
    x, t = torch.randint(0, 27, (1, 3, 8)), torch.tensor([1.0])
    xt, log_p = torch.full((1, 8), opened.network.mask), torch.zeros(1, 3, 1)
    for name, terms in sums.items():
        energy = energy_model(subject, name).energy
        context = opened.network.read(xt, t)
        found = energy(x, xt, t, log_p.expand(1, 3, group_count(8, energy.block)), context).sum(-1)
        by_hand = 0.0
        for term, weight in terms.items():
            alone = energy_model(subject, term).energy
            groups = group_count(8, alone.block)
            by_hand += weight * alone(x, xt, t, log_p.expand(1, 3, groups), context).double().sum(-1)
        torch.testing.assert_close(found, by_hand)
    settings = Evaluate(steps=(2,), candidates=(1, 2))
    together, alone = grid(load(Experiment, SMALLEST), settings, subject)
    named = {(type(cell).__name__, getattr(cell, "energy", None)) for cell in (*together, *alone)}
    rows = {(cell, name) for cell, name in named if name in sums}
    assert rows == {(cell, name) for cell in ("Bound", "Partition", "Cost") for name in sums} | {("Paper", "all")}
    assert {"exact-step-6", "exact-step-2"} <= exact_kinds(kinds, sums).keys()


def test_composed_energies_are_settings_of_the_stage_where_there_are_some():
    experiment, total = load(Experiment, SMALLEST), ComposedEnergy(name="both", weights={"step": 1.0})
    assert "composed" not in stage_settings(experiment, Evaluate())["evaluate"]
    assert stage_settings(experiment, Evaluate(composed=(total,)))["evaluate"]["composed"] == [plain(total)]
