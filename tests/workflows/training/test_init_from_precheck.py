"""A model of `init_from` that is not there, or is another one, is refused before the first stage runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from edlm.checkpoints.networks import save_autoregressive
from edlm.config import ConfigurationError, load, parse, plain
from edlm.data.tokenizer_kinds import Symbols
from edlm.schedule import Cosine
from edlm.storage import publish
from edlm.training.settings import Training
from tests.bundles import ENERGIES, LENGTH, save_models
from tests.networks import TRANSFORMER, autoregressive
from tests.paths import SMALLEST
from workflows.dry_run import dry_run
from workflows.experiment import Experiment, Finetune
from workflows.pretrain import pretrain
from workflows.stage_runner import open_session
from workflows.training.init_from_precheck import require_batches, require_initial_models


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, Symbols(size=5))
    weights = autoregressive(5).state_dict()
    save_autoregressive(folder / "ar", weights, TRANSFORMER, LENGTH, folder / "denoiser/tokenizer.json", {})
    (folder / "text").mkdir()
    (folder / "damaged").mkdir()
    (folder / "damaged/model.yaml").write_text("kind: [")
    for name in ("denoiser", "step", "ar", "text", "damaged"):
        publish(folder / name, str(folder / name))
    return folder


def experiment(starts: dict[str, Path], width: int = 16, **changes) -> Experiment:
    """An experiment whose trainings start from these models, by stage."""

    def training(stage: str) -> Training:
        return Training(steps=2, batch=8, init_from=str(starts[stage]) if stage in starts else None)

    entry = Finetune(name="step", energy=replace(ENERGIES["step"], width=width), training=training("finetune"))
    tree = plain(load(Experiment, SMALLEST)) | {stage: plain(training(stage)) for stage in ("pretrain", "autoregress")}
    network = plain(TRANSFORMER)
    tree |= {"denoiser": network, "autoregressive": network, "finetune": [plain(entry)]} | changes
    return parse(Experiment, tree)


def test_models_like_those_to_be_trained_are_accepted(models):
    starts = {"pretrain": models / "denoiser", "autoregress": models / "ar", "finetune": models / "step"}
    require_initial_models(experiment(starts), "/outputs")


def test_a_batch_of_any_stage_that_the_workers_cannot_share_is_named_before_the_first_stage_runs():
    require_batches(experiment({}))
    with pytest.raises(ConfigurationError, match=r"pretrain\.batch: .* make batch a multiple of 3"):
        require_batches(experiment({}, cluster={"workers": 3}))
    accepted = dict.fromkeys(("pretrain", "autoregress", "judge"))
    given = {"denoiser": "/models/denoiser"}
    with pytest.raises(ConfigurationError, match=r"finetune\.0\.training\.batch: .* 3 workers"):
        require_batches(experiment({}, cluster={"workers": 3}, given=given, **accepted, evaluate=None))


@pytest.mark.parametrize(
    ("stage", "model", "changes", "problem"),
    [
        ("finetune", "nowhere", {}, r"finetune\.0\.training\.init_from: .*/nowhere holds no finished model"),
        ("finetune", "text", {}, r"finetune\.0\.training\.init_from: .*/text holds no model \(no model\.yaml\)"),
        ("finetune", "denoiser", {}, r"finetune\.0\.training\.init_from: .*of kind 'denoiser', and 'energy'"),
        ("finetune", "damaged", {}, r"finetune\.0\.training\..*damaged/model\.yaml is not valid YAML"),
        ("finetune", "step", {"width": 32}, r"energy\.width is 16 there and 32 here"),
        ("pretrain", "denoiser", {"schedule": plain(Cosine())}, r"schedule\.kind is 'log_linear' there"),
        (
            "autoregress", "ar", {"autoregressive": plain(replace(TRANSFORMER, heads=4))},
            r"autoregress\.init_from: .*heads is 2 there and 4 here",
        ),
    ],
)  # fmt: skip
def test_a_model_that_is_missing_or_another_one_is_refused_with_its_setting(models, stage, model, changes, problem):
    with pytest.raises(ConfigurationError, match=problem):
        require_initial_models(experiment({stage: models / model}, **changes), "/outputs")


def test_a_path_of_one_machine_is_refused_where_the_storage_is_for_several(models):
    with pytest.raises(ConfigurationError, match=r"pretrain\.init_from: .* is a path of this machine, .*publish"):
        require_initial_models(experiment({"pretrain": models / "denoiser"}), "s3://bucket/outputs")


def test_a_model_that_is_given_needs_no_initial_weights(models):
    given = {"denoiser": str(models / "denoiser")}
    require_initial_models(experiment({"pretrain": models / "nowhere"}, given=given), "/outputs")


def test_a_command_and_a_dry_run_end_before_the_first_stage(models, tmp_path, capsys):
    wrong = experiment({"finetune": models / "nowhere"}, storage=str(tmp_path / "home"))
    with pytest.raises(SystemExit):
        dry_run(wrong, pretrain)
    with pytest.raises(SystemExit), open_session(wrong):
        pytest.fail("the session is open")
    output = capsys.readouterr()
    assert output.err.count("error: finetune.0.training.init_from: ") == 2
    assert "[pretrain]" not in output.out
    assert not (tmp_path / "home").exists()
