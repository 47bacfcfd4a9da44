"""Training in one process, from Python, resumes with the same result."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edlm.checkpoints.snapshot_retention import snapshots, step_of
from edlm.checkpoints.training_state import save_snapshot
from edlm.config import ConfigurationError
from edlm.data.preparation import Data, prepare
from edlm.data.splits import Shares, Split
from edlm.data.synthetic import Markov
from edlm.data.tokenizer_kinds import Symbols
from edlm.huggingface.lora import LowRankAdaptation
from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.denoiser import Denoiser
from edlm.schedule import LogLinear
from edlm.training.interfaces import Objective
from edlm.training.local_training import train
from edlm.training.objectives import Denoising, NextToken
from edlm.training.settings import Training
from edlm.training.validation import METRIC, validation_rows
from tests.networks import TRANSFORMER

SETTINGS = Training(steps=6, batch=8, learning_rate=1e-2, checkpoint_every=2, log_every=4, ema=0.9)


class KilledTraining(Exception):
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    source = Markov(symbols=4, length=8, sequences=300)
    shares = Shares(validation=0.2, judge=0.0)
    prepare(Data(corpus=source, tokenizer=Symbols(size=4), length=8, shares=shares), folder, lambda _: None)
    return folder


def objective() -> Denoising:
    torch.manual_seed(1)
    return Denoising(Denoiser(TRANSFORMER, 4), LogLinear(), seed=0)


def test_a_training_from_python_reports_every_step_and_resumes_with_the_same_result(data, tmp_path):
    output, curve, rest = [], {}, {}
    whole = train(objective(), data, SETTINGS, say=output.append, log=lambda step, m: curve.update({step: m}))
    assert [line.split("  ")[0] for line in output] == ["[training] step 4/6", "[training] step 6/6"]
    assert sorted(curve) == [0, 1, 2, 3, 4, 5]

    def dies(step: int, _: object) -> None:
        if step == 4:
            raise KilledTraining

    with pytest.raises(KilledTraining):
        train(objective(), data, SETTINGS, workspace=tmp_path, say=lambda _: None, log=dies)
    output.clear()
    weights = train(
        objective(), data, SETTINGS, workspace=tmp_path, say=output.append, log=lambda step, m: rest.update({step: m})
    )
    assert output[0] == "[training] resumes after step 4"
    assert [rest[step]["loss_nats_per_token"] for step in (4, 5)] == [
        curve[step]["loss_nats_per_token"] for step in (4, 5)
    ]
    assert all(torch.equal(weights[name], weight) for name, weight in whole.items())


def test_a_training_from_python_validates_on_the_validation_split_and_states_so(data):
    output, curve = [], {}
    settings = replace(SETTINGS, steps=9, validate_every=3, validation_rows=7, keep_best=True, log_every=100)
    weights = train(objective(), data, settings, say=output.append, log=lambda step, m: curve.update({step: m}))
    measured = {step: metrics[METRIC] for step, metrics in curve.items() if METRIC in metrics}
    assert list(measured) == [2, 5, 8]
    assert [line.split("  ")[2] for line in output] == [f"validation {loss:.4f}" for loss in measured.values()]
    exported = objective()
    exported.trained.load_state_dict(weights)
    rows = validation_rows(data, settings)
    assert rows is not None
    assert len(rows.tokens) == 7
    assert exported.eval()(rows)[0].item() == pytest.approx(min(measured.values()), rel=1e-6)


def test_an_early_stop_is_reported_with_its_reason(data):
    output: list[str] = []
    settings = replace(SETTINGS, steps=60, learning_rate=1.0, validate_every=1, early_stopping_patience=2, ema=None)
    train(objective(), data, settings, say=output.append)
    assert re.fullmatch(
        r"\[training\] stops early after step \d+: 2 validations in a row were not below \d\.\d{4}", output[-1]
    )
    assert len(output) < 60


def test_validation_without_a_validation_split_is_refused_with_the_way_out(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    index = json.loads((tmp_path / "data/index.json").read_text())
    del index["splits"]["validation"]
    (tmp_path / "data/index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigurationError, match=r"validate_every is 2, but .* only train; .*shares\.validation"):
        train(objective(), tmp_path / "data", replace(SETTINGS, validate_every=2))


@pytest.mark.parametrize("ema", [0.9, None])
@pytest.mark.parametrize("steps", [4, 5, 6])
def test_a_finished_training_goes_on_to_more_steps_as_if_it_had_never_ended(data, tmp_path, steps, ema):
    best = {"validate_every": 2, "keep_best": True, "early_stopping_patience": 4}
    longer = replace(SETTINGS, steps=9, decay="constant", warmup_steps=3, ema=ema, **best)
    whole, curve, rest = {}, {}, {}
    whole = train(objective(), data, longer, say=lambda _: None, log=lambda step, m: curve.update({step: m}))
    shorter = replace(longer, steps=steps, checkpoint_every=3)
    train(objective(), data, shorter, workspace=tmp_path, say=lambda _: None)
    assert [step_of(name) for name in snapshots(str(tmp_path))] == [steps]
    weights = train(
        objective(), data, longer, workspace=tmp_path, say=lambda _: None, log=lambda step, m: rest.update({step: m})
    )
    assert list(rest) == list(range(steps, 9))
    for step, metrics in rest.items():
        expected = {name: value for name, value in curve[step].items() if name != "seconds_per_step"}
        assert {name: metrics[name] for name in expected} == expected
    assert all(torch.equal(weights[name], weight) for name, weight in whole.items())


def test_a_finished_training_goes_on_from_before_its_late_decay_as_if_it_had_had_more_steps(data, tmp_path):
    shorter = replace(SETTINGS, steps=8, decay="wsd", decay_share=0.5, checkpoint_every=1, warmup_steps=1)
    longer, rest = replace(shorter, steps=16), {}
    train(objective(), data, shorter, workspace=tmp_path, say=lambda _: None)
    assert [step_of(name) for name in snapshots(str(tmp_path))] == [4]
    weights = train(
        objective(), data, longer, workspace=tmp_path, say=lambda _: None, log=lambda step, m: rest.update({step: m})
    )
    assert list(rest) == list(range(4, 16))
    whole = train(objective(), data, longer, say=lambda _: None)
    assert all(torch.equal(weights[name], weight) for name, weight in whole.items())


@pytest.mark.parametrize("ema", [0.9, None])
def test_a_training_that_ended_in_its_decay_goes_on_from_before_it_to_more_steps(data, tmp_path, ema):
    shorter = replace(SETTINGS, steps=8, decay="wsd", decay_share=0.5, checkpoint_every=1, warmup_steps=1, ema=ema)
    longer, rest, lines = replace(shorter, steps=16), {}, []

    def ending(step, _):
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(objective(), data, shorter, workspace=tmp_path, say=lambda _: None, log=ending)
    with pytest.raises(ConfigurationError, match=r"it has taken \d steps, more than steps: 5"):
        train(objective(), data, replace(shorter, steps=5), workspace=tmp_path)
    assert {step_of(name) for name in snapshots(str(tmp_path))} > {4}
    weights = train(
        objective(), data, longer, workspace=tmp_path, say=lines.append, log=lambda step, m: rest.update({step: m})
    )
    assert any(re.search(r"goes back from step [67], in the decay of a shorter training", line) for line in lines)
    assert list(rest) == list(range(4, 16))
    whole = train(objective(), data, longer, say=lambda _: None)
    assert all(torch.equal(weights[name], weight) for name, weight in whole.items())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"steps": 8}, "cosine decay to step 6 ends there, and to step 8 it has other learning rates before it"),
        ({"learning_rate": 0.5}, "learning_rate changed 0.01 -> 0.5"),
        ({"steps": 3}, "it has taken 4 steps, more than steps: 3"),
        ({"validate_every": 2}, "validate_every changed None -> 2"),
        ({"decay": "wsd", "decay_share": 0.2}, "decay changed cosine -> wsd; decay_share changed 0.1 -> 0.2"),
    ],
)
def test_a_workspace_of_another_training_is_refused_with_what_changed(data, tmp_path, changes, reason):
    train(objective(), data, SETTINGS, workspace=tmp_path, say=lambda _: None)
    with pytest.raises(ConfigurationError, match=f"cannot be continued: {reason}.*use another workspace"):
        train(objective(), data, replace(SETTINGS, **changes), workspace=tmp_path, say=lambda _: None)
    with pytest.raises(ConfigurationError, match="seed changed 0 -> 1"):
        train(objective(), data, SETTINGS, seed=1, workspace=tmp_path, say=lambda _: None)


def test_init_from_is_refused_where_no_stage_reads_it(data):
    with pytest.raises(ConfigurationError, match=r"init_from is somewhere, which is for the stages; .*load_into"):
        train(objective(), data, replace(SETTINGS, init_from="somewhere"))


def test_the_split_is_the_one_that_is_named(data):
    trained = [
        train(objective(), data, replace(SETTINGS, steps=1), split=split, say=lambda _: None)["readout.weight"]
        for split in ("train", "validation")
    ]
    assert not torch.equal(*trained)


def test_a_training_in_emulated_bfloat16_says_so_first_and_trains(data, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    output: list[str] = []
    train(objective(), data, replace(SETTINGS, precision="bfloat16"), say=output.append)
    assert output[0].startswith("[training] precision: bfloat16 is emulated here")
    assert output[-1].startswith("[training] step 6/6")


def test_a_workspace_of_other_data_or_of_another_objective_is_refused_with_what_changed(data, tmp_path):
    train(objective(), data, SETTINGS, workspace=tmp_path / "work", say=lambda _: None)
    source = Markov(symbols=4, length=8, sequences=400)
    other = Data(corpus=source, tokenizer=Symbols(size=4), length=8, shares=Shares(validation=0.2, judge=0.0))
    prepare(other, tmp_path / "other", lambda _: None)
    torch.manual_seed(2)
    elsewhere = Denoising(Denoiser(TRANSFORMER, 4), LogLinear(), seed=0)
    torch.nn.init.normal_(next(elsewhere.trained.parameters()))
    model = NextToken(AutoregressiveModel(TRANSFORMER, 4))
    cases: list[tuple[str, Objective, Path, Split]] = [
        ("data changed", objective(), tmp_path / "other", "train"),
        ("split changed train -> validation", objective(), data, "validation"),
        ("objective changed Denoising -> NextToken; initial_weights changed", model, data, "train"),
        ("initial_weights changed", elsewhere, data, "train"),
    ]
    for changed, made, folder, split in cases:
        with pytest.raises(ConfigurationError, match=f"cannot be continued: {changed}.*use another workspace"):
            train(made, folder, SETTINGS, split=split, workspace=tmp_path / "work", say=lambda _: None)


def test_a_workspace_that_records_no_training_is_refused(data, tmp_path):
    save_snapshot(str(tmp_path), {"weight": torch.zeros(1)}, 4)
    with pytest.raises(ConfigurationError, match=r"does not record which training.*use another workspace"):
        train(objective(), data, SETTINGS, workspace=tmp_path, say=lambda _: None)


def test_low_rank_adaptation_is_refused_where_no_stage_makes_the_adapters(data):
    with pytest.raises(ConfigurationError, match=r"lora is set, which is for the stages; .*with_adapters.*merged"):
        train(objective(), data, replace(SETTINGS, lora=LowRankAdaptation(rank=2)))
