"""The plan of an experiment: every training of it, what would not fit, and nothing instantiated."""

import re
from dataclasses import replace

import pytest

from edlm.config import ConfigurationError, load
from tests.networks import denoiser
from tests.paths import PROJECT, SMALLEST
from workflows.benchmark import PlanBenchmark, plan
from workflows.benchmarking.plan import _unplanned, device_of
from workflows.benchmarking.planned_stages import MetaModels, PlannedStage, vocabulary_of
from workflows.experiment import Experiment
from workflows.reporting.document import Table
from workflows.reporting.markdown_page import markdown_page

OWT = str(PROJECT / "workflows/experiments/owt.yaml")
GPT2 = 50_257
CPU = PlanBenchmark(
    experiment=str(SMALLEST), devices="2xcpu", peak_tflops=0.05, memory_gb=8, link_gb_per_second=1,
    network_gb_per_second=1,
)  # fmt: skip


def page(**settings) -> str:
    return markdown_page(plan(PlanBenchmark(**settings)))


def test_every_training_of_an_experiment_is_planned():
    document = plan(CPU)
    tables = {block.caption: block for block in document.blocks if isinstance(block, Table)}
    work = {row[0]: dict(zip(tables["Work"].columns, row, strict=True)) for row in tables["Work"].rows}
    assert list(work) == [
        "pretrain",
        "autoregress",
        "judge",
        "finetune-step",
        "finetune-conditional",
        "finetune-residual",
    ]
    experiment = load(Experiment, SMALLEST)
    trained = sum(p.numel() for p in denoiser(27, experiment.denoiser).parameters())
    assert work["pretrain"]["parameters, 10^6"] == f"{trained / 1e6:,.2f}"
    assert work["finetune-step"]["frozen ones, 10^6"] == f"{trained / 1e6:,.2f}"


def test_a_training_without_a_formula_is_named():
    experiment = load(Experiment, SMALLEST)
    stage = PlannedStage("finetune-other", experiment.pretrain, None)
    assert [(bullet.lead, bullet.text) for bullet in _unplanned([stage])] == [
        ("Not planned", "finetune-other: no formula for these networks")
    ]


def test_nothing_of_a_large_model_is_instantiated():
    experiment = load(Experiment, OWT)
    network = replace(experiment.denoiser, width=4096, layers=32, heads=32)
    models = MetaModels(replace(experiment, denoiser=network), GPT2)
    assert all(parameter.is_meta for energy in models.energies.values() for parameter in energy.parameters())
    assert sum(parameter.numel() for parameter in models.denoiser.parameters()) > 6.5e9


def test_a_stage_that_does_not_fit_says_by_how_much_and_what_would():
    text = page(experiment=OWT, devices="64xH100", vocabulary=GPT2, zero_stage=1, memory_gb=8)
    missing = re.search(r"ZeRO-1 does not fit: ([\d.]+) GB per device are missing\. What would fit: (.+)\.", text)
    assert missing is not None
    assert float(missing[1]) > 0
    assert "accumulation" in missing[2]
    assert "ZeRO-1 fits" in page(experiment=OWT, devices="64xH100", vocabulary=GPT2, zero_stage=1)


def test_offload_is_planned_at_stages_that_have_it_and_refused_at_stage_0(tmp_path):
    offloading = tmp_path / "experiment.yaml"
    offloading.write_text(SMALLEST.read_text(encoding="utf-8") + "cluster: {zero: {offload: true}}\n")
    assert "ZeRO-1, offload" in markdown_page(plan(replace(CPU, experiment=str(offloading), zero_stage=1)))
    with pytest.raises(ConfigurationError, match=r"cluster\.zero\.offload: true at stage 0"):
        plan(replace(CPU, experiment=str(offloading), zero_stage=0))


def test_an_existing_tokenizer_is_read_and_none_is_trained():
    assert vocabulary_of(load(Experiment, SMALLEST)) == 27


def test_an_unknown_device_needs_its_figures():
    with pytest.raises(ConfigurationError, match=r"'TPU' is none of A100, B200, .*give peak_tflops"):
        page(experiment=str(SMALLEST), devices="8xTPU")
    assert device_of(CPU, 1).flops("float32") == 0.05e12


def test_a_number_of_devices_that_the_batch_does_not_allow_is_refused_with_the_stage():
    with pytest.raises(ConfigurationError, match=r"^pretrain: a batch of 8 rows does not divide into 3 workers"):
        page(experiment=str(SMALLEST), devices="3xH100")


def test_an_experiment_must_be_named():
    with pytest.raises(ConfigurationError, match="name the file of an experiment"):
        page()
