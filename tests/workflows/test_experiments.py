import dataclasses
import math
import re

import pytest
import torch

from edlm.config import ConfigurationError, load, parse, plain
from edlm.likelihood.estimate import Estimate
from edlm.sampling.sampler import Sampler
from edlm.sampling.unmasking import AtRandom, MostCertain, Remasking
from edlm.storage import publish
from tests.paths import PROJECT, SMALLEST
from workflows.evaluate import bound_rows, metrics_of, tabulate
from workflows.evaluation.measurements.likelihood import Bound, bound_columns, sampler_columns
from workflows.evaluation.measurements.measurement import MeasuredRows, Subject
from workflows.experiment import Experiment
from workflows.reporting.terminal import report
from workflows.stage import storage_root
from workflows.stage_fingerprint import stage_inputs

DATA = plain(load(Experiment, SMALLEST).data)
EXPERIMENTS = sorted((PROJECT / "workflows" / "experiments").glob("*.yaml"))


def _sums(*weights: dict[str, float], name: str = "both") -> dict:
    return {"evaluate": {"composed": [{"name": name, "weights": each} for each in weights]}}


@pytest.mark.parametrize("path", [*EXPERIMENTS, SMALLEST], ids=lambda path: path.name)
def test_every_shipped_experiment_is_valid_and_reads_back(path):
    experiment = load(Experiment, path)
    assert parse(Experiment, plain(experiment)) == experiment


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_every_shipped_experiment_names_the_hub_by_commit(path):
    leaves = [value for value in _leaves(plain(load(Experiment, path))) if isinstance(value, str)]
    names = [value for value in leaves if value.startswith("hf://")]
    assert all(re.search("@[0-9a-f]{40}/|@[0-9a-f]{40}$", name) for name in names if "/pubmed/" not in name), names
    for node in _nodes(plain(load(Experiment, path))):
        if node.get("kind") == "huggingface" and "name" in node:
            assert re.fullmatch("[0-9a-f]{40}", node["revision"] or ""), node


def _nodes(tree):
    """The mappings of a configuration, and those in them."""
    if isinstance(tree, dict):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(value)


def _leaves(tree):
    for node in _nodes(tree):
        for value in node.values():
            yield from value if isinstance(value, list) else (value,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"register": {"energy": "unknown", "sampler": {"steps": 4}}}, "'unknown' is not among the energies"),
        ({"finetune": [{"name": "plain", "energy": {"kind": "ar"}}]}, "'plain', a name of other rows of the tables"),
        (
            {"finetune": [{"name": "exact-step", "energy": {"kind": "ar"}}]},
            "'exact-step', a name of other rows",
        ),
        (
            {"finetune": [{"name": "a", "energy": {"kind": "step"}}]},
            "needs a `training` section, or a model's fold",
        ),
        ({"finetune": [{"name": "a", "energy": {"kind": "residual"}}]}, "is built on another energy; name in `base`"),
        (
            {
                "finetune": [
                    {"name": "a", "base": "b", "energy": {"kind": "residual"}, "training": {"steps": 1, "batch": 1}}
                ]
            },
            "finetune.0.base: 'b' is no energy that one of kind 'residual' can be built on and that stands before 'a'",
        ),
        ({"evaluate": {"windows": [[0.9, 0.1]]}}, "not .from, to. with from <= to"),
        ({"evaluate": {"judge": {"kind": "oracle"}}}, "there is no 'oracle'"),
        (
            {"judge": None, "evaluate": {"judge": {"kind": "trained"}}},
            "the `judge` section trains, and there is no such",
        ),
        ({"data": DATA | {"shares": {"validation": 0.1}}}, "data.shares.judge is 0, so that the judge has no text"),
        ({"autoregress": None}, "finetune.3: 'coar' is built on the autoregressive model, and there is none; add an"),
        ({"finetune": []}, "register.energy: 'step' is not among the energies of `finetune`, which are: none"),
        (
            {"register": {"energy": "step", "sampler": {"steps": 4, "candidates": 0}}},
            "register.energy 'step' is not normalised; give 1 or more, or name one of: conditional",
        ),
        ({"register": {"sampler": {"steps": 4, "candidates": 2}}}, "names no energy to choose among candidates; set"),
        ({"given": {"energies": {"unknown": "/a/folder"}}}, "'unknown'. are not among the energies"),
        ({"evaluate": {"candidates": [2]}}, "must hold 1"),
        ({"evaluate": {"steps": []}}, "evaluate.steps is empty"),
        ({"evaluate": {"fitted_steps": [8], "fitted_points": 4}}, "8 steps cannot be made of 4 times"),
        (
            {"register": {"energy": "step", "sampler": {"steps": 4, "unmasking": {"kind": "most_certain"}}}},
            "register.sampler.unmasking: most_certain; the endpoint unmasks at_random",
        ),
        ({"evaluate": {"unmasking": [{"kind": "at_random"}]}}, "at_random is what is measured anyway; leave it out"),
        ({"evaluate": {"unmasking": [{"kind": "most_certain"}] * 2}}, "two share the name 'most certain first'"),
        ({"evaluate": {"effort_budgets": [1.0]}}, "evaluate.effort_budgets.0: Input should be greater than 1; got 1.0"),
        ({"evaluate": {"effort_steps": [0]}}, "evaluate.effort_steps.0: Input should be greater than or equal to 1"),
        ({"evaluate": {"sample_candidates": []}}, "evaluate.sample_candidates is empty"),
        (_sums({"step": 1.0}, {"conditional": 1.0}), "evaluate.composed: two share the name 'both'; rename one"),
        (_sums({"step": 0.0}), "'both' has no term; give one energy of `finetune` a weight other than 0"),
        (_sums({"step": 1.0}, name="plain"), "evaluate.composed.name is 'plain', a name of other rows of the tables"),
        (_sums({"conditional": 1.0}, name="step"), "composed.0.name: 'step' is an energy of `finetune`; give another"),
        (_sums({"step": 1.0, "stop": 1.0}), "composed.0.weights: 'stop' not among the energies of `finetune`, which"),
        (_sums({"step": 1.0, "residual": 1.0}), "'residual' is a residual of the energy that it is built on, the oth"),
        ({"autoregressive": {"width": 16, "heads": 2, "time_conditioning": True}}, "has no diffusion time"),
        ({"denoiser": {"width": 20, "heads": 4}}, "multiple of 2 x heads"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_the_way_out(change, message):
    tree = plain(load(Experiment, SMALLEST)) | change
    with pytest.raises(ConfigurationError, match=message):
        parse(Experiment, tree)


def test_a_fingerprint_covers_settings_and_the_content_of_inputs_but_not_where_they_lie(tmp_path):
    for name, text in (("here", "text"), ("there", "text"), ("other", "another text")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
        publish(tmp_path / name, str(tmp_path / name))
    here, second, other = (str(tmp_path / name) for name in ("here", "there", "other"))
    made = stage_inputs("stage", {"steps": 1}, {"data": here}, ["edlm.schedule"])
    assert stage_inputs("stage", {"steps": 1}, {"data": second}, ["edlm.schedule"]).fingerprint == made.fingerprint
    others = [
        stage_inputs("stage", {"steps": 1}, {"data": other}, ["edlm.schedule"]),
        stage_inputs("stage", {"steps": 2}, {"data": here}, ["edlm.schedule"]),
        stage_inputs("other", {"steps": 1}, {"data": here}, ["edlm.schedule"]),
        stage_inputs("stage", {"steps": 1}, {"data": here}, ["edlm.rng"]),
        stage_inputs("stage", {"steps": 1}, {"data": here}, ["edlm.schedule"], {"corpus": "2.0"}),
    ]
    assert len({made.fingerprint, *(another.fingerprint for another in others)}) == 6


def test_an_input_that_is_not_finished_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="which is not finished; run that stage first"):
        stage_inputs("pretrain", {}, {"data": str(tmp_path / "nowhere")}, ["edlm.schedule"])


def test_outputs_go_where_the_settings_name_then_the_environment_then_the_project(tmp_path, monkeypatch):
    experiment = load(Experiment, SMALLEST)
    monkeypatch.setenv("EDLM_HOME", str(tmp_path))
    assert storage_root(experiment) == str(tmp_path)
    assert storage_root(dataclasses.replace(experiment, storage="memory://bucket")) == "memory://bucket"
    monkeypatch.delenv("EDLM_HOME")
    assert storage_root(experiment).endswith("/runs")


def test_a_ray_jobs_temporary_copy_is_no_place_for_outputs(tmp_path, monkeypatch):
    copy = tmp_path / "working_dir_files" / "_ray_pkg_1" / "workflows" / "stage.py"
    monkeypatch.setattr("workflows.stage.__file__", str(copy))
    monkeypatch.delenv("EDLM_HOME", raising=False)
    with pytest.raises(ConfigurationError, match="set EDLM_HOME before `ray start`"):
        storage_root(load(Experiment, SMALLEST))


def _measured(energy: str, candidates: int, values: list[float]) -> tuple[Bound, MeasuredRows]:
    subject = Subject("", "", "", "", {"step": ""}, len(values), seed=0)
    cell = Bound(subject=subject, energy=energy, sampler=Sampler(steps=2, candidates=candidates))
    estimate = Estimate(torch.tensor(values, dtype=torch.float64), draws=1)
    return cell, MeasuredRows({"bounds": [sampler_columns(energy, cell.sampler) | bound_columns(estimate, length=10)]})


def test_gains_are_paired_with_plain_diffusion_sequence_by_sequence():
    actual = [_measured("step", 8, [9.0, 19.0]), _measured("plain", 1, [10.0, 20.0])]
    rows = tabulate([*actual], ["plain", "step"])["bounds"]
    assert [row["energy"] for row in rows] == ["plain", "step"]
    assert rows[1]["gain_nats_per_token"] == pytest.approx(0.1)
    assert rows[1]["gain_standard_error"] == pytest.approx(0.0)
    assert rows[1]["standard_error"] == pytest.approx(0.5)


def test_a_sampler_gets_the_seconds_that_it_was_timed_at_and_no_other():
    timed = sampler_columns("step", Sampler(steps=2, candidates=8)) | {"seconds_per_text": 0.25}
    actual = [_measured("plain", 1, [10.0, 20.0]), _measured("step", 8, [9.0, 19.0])]
    rows = bound_rows([cell.rows["bounds"][0] for _, cell in actual], [timed])
    assert math.isnan(rows[0]["seconds_per_text"])
    assert rows[1]["seconds_per_text"] == 0.25


def test_the_report_states_what_is_no_bound_and_shows_entropy_beside_perplexity():
    actual = [_measured("plain", 1, [10.0, 20.0]), _measured("step", 8, [9.0, 18.0])]
    bounds = bound_rows([cell.rows["bounds"][0] for _, cell in actual], [])
    names = ["generative_perplexity", "nll_nats_per_token", "nll_standard_error", "entropy_nats"]
    names += ["entropy_standard_error", "distinct_ngrams", "divergence", "ess", "distinct_candidates"]
    names += ["denoiser_calls", "energy_calls", "seconds_per_text", "token_temperature"]
    quality = [
        dict.fromkeys(names, 1.0)
        | {"energy": energy, "steps": 2, "candidates": k, "texts": [f"text of {energy}"]}
        | {"judge": "unknown", "retokenised": False, "published": False, "flags": flags}
        for energy, k, flags in (
            ("plain", 1, []),
            ("step", 8, ["repetition above data"]),
            ("adaptive effort, 2 times plain", 32, []),
        )
    ]
    number = {"nats_per_token": 1.0, "standard_error": 0.1}
    summary = {
        "sequences": 2,
        "length": 10,
        "entropy_nats_per_token": None,
        "denoiser_nelbo": number,
        "autoregressive_nll": number,
        "log_partition_low_high": {"coar": [number, number]},
    }
    paper = [{"energy": "coar", "method": "log Z from 8 draws", **number}]
    text = report(summary, {"bounds": bounds, "quality": quality, "paper": paper})
    expected = ["NOT a bound", "entropy", "gen. ppl", "T=2", "+0.150 +3σ", "text of plain", "text of step"]
    for words in [*expected, "! repetition above data"]:
        assert words in text
    assert re.search(r"adaptive effort, 2 times plain +2 +plan ", text)


def test_every_sampler_has_a_metric_of_its_own_by_a_name_that_mlflow_takes():
    ways = [
        Sampler(steps=2, candidates=0, speculative=speculative, grid=grid, unmasking=how)
        for speculative in (False, True)
        for grid in (None, (0.0, 0.3, 1.0))
        for how in (AtRandom(), MostCertain(), Remasking(share=0.5), Remasking(share=0.25, window=(0.05, 0.5)))
    ]
    rows = [sampler_columns("conditional", how) for how in ways]
    rows += [sampler_columns(f"adaptive effort, {budget:g} times plain", Sampler(steps=2)) for budget in (1.25, 2.0)]
    number = {"nats_per_token": 1.0, "standard_error": 0.1}
    summary = {"denoiser_nelbo": number, "autoregressive_nll": number}
    actual = metrics_of(summary, [row | {"bound_nats_per_token": 2.0} for row in rows])
    assert len(actual) == 2 + len(rows)
    assert "bound/adaptive effort/2 times plain/k_by_plan/T_2" in actual
    assert all(re.fullmatch(r"[A-Za-z0-9_\-. :/]{1,250}", name) for name in actual), list(actual)
