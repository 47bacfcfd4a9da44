"""A stage starts from another model's weights, and from no model that is not like the one it trains."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edlm.checkpoints.energies import open_energy
from edlm.checkpoints.networks import open_denoiser, save_autoregressive, save_denoiser
from edlm.config import ConfigurationError, load, parse, plain
from edlm.data.preparation import Data, prepare
from edlm.data.splits import Shares
from edlm.data.synthetic import Markov
from edlm.data.tokenizer_kinds import Symbols
from edlm.models.autoregressive import TransformerAutoregressiveConfig
from edlm.models.denoiser import Denoiser, TransformerDenoiserConfig
from edlm.schedule import Cosine, LogLinear
from edlm.storage import publish
from edlm.training.settings import Training
from tests.bundles import ENERGIES, LENGTH, save_models
from tests.networks import TRANSFORMER, autoregressive, stirred
from tests.paths import SMALLEST
from tests.tracking_database import open_copied_tracking
from workflows.autoregress import autoregress
from workflows.experiment import Experiment, Finetune
from workflows.finetune import finetune
from workflows.pretrain import pretrain
from workflows.stage_runner import RunningSession
from workflows.training.energy_objective_factories import finetune_objective
from workflows.training.initial_weights import initial_input, load_initial, training_settings
from workflows.training.objective_factories import denoising, next_token

# SQLAlchemy's own complaint about MLflow's models, and about nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

DENOISER = TransformerDenoiserConfig(**plain(TRANSFORMER))
AUTOREGRESSIVE = TransformerAutoregressiveConfig(**plain(TRANSFORMER))
SYMBOLS = 5
TOKENIZER = Symbols(size=SYMBOLS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Prepared data, and a denoiser, energies and an autoregressive model on its tokens, all published."""
    folder = tmp_path_factory.mktemp("models")
    source = Markov(symbols=SYMBOLS, length=LENGTH, sequences=200)
    data = Data(corpus=source, tokenizer=TOKENIZER, length=LENGTH, shares=Shares(validation=0.2, judge=0.0))
    prepare(data, folder / "data", lambda _: None)
    save_models(folder / "models", TOKENIZER)
    file = folder / "data" / "tokenizer.json"
    save_autoregressive(folder / "models/ar", autoregressive(SYMBOLS).state_dict(), TRANSFORMER, LENGTH, file, {})
    for path in (folder / "data", *(folder / "models" / name for name in ("denoiser", "step", "conditional", "ar"))):
        publish(path, str(path))
    return folder


def finetune_entry(init_from: str | None = None, width: int = 16) -> Finetune:
    energy = replace(ENERGIES["step"], width=width)
    return Finetune(name="step", energy=energy, training=Training(steps=2, batch=8, init_from=init_from))


def session(folder: Path, root: Path, **changes) -> RunningSession:
    """A session whose data is prepared and whose denoiser is there."""
    settings = plain(load(Experiment, SMALLEST))
    settings["data"] |= {"length": LENGTH}
    settings["denoiser"] = settings["autoregressive"] = plain(TRANSFORMER)
    settings |= changes
    session = RunningSession(parse(Experiment, settings), str(root), open_copied_tracking(root))
    session.results["prepare"] = str(folder / "data")
    return session


def test_training_starts_with_the_weights_of_the_model_and_with_fresh_ones_without(folder):
    uri = str(folder / "models/denoiser")
    saved = open_denoiser(Path(uri)).network.state_dict()
    started = denoising(DENOISER, SYMBOLS, LogLinear(), 0, uri).trained
    assert all(torch.equal(saved[name], weight) for name, weight in started.state_dict().items())
    assert all(weight.requires_grad for weight in started.parameters())
    fresh = denoising(DENOISER, SYMBOLS, LogLinear(), 0, None).trained.state_dict()
    assert any(not torch.equal(fresh[name], weight) for name, weight in saved.items())
    model = next_token(AUTOREGRESSIVE, SYMBOLS, 0, str(folder / "models/ar")).trained.state_dict()
    assert all(torch.equal(weight, model[name]) for name, weight in autoregressive(SYMBOLS).state_dict().items())


def test_an_energy_starts_with_the_weights_of_one_that_was_made_for_another_denoiser(folder, tmp_path):
    weights = stirred(Denoiser(TRANSFORMER, SYMBOLS), seed=9).state_dict()
    save_denoiser(tmp_path / "other", weights, TRANSFORMER, LogLinear(), LENGTH, folder / "data/tokenizer.json", {})
    publish(tmp_path / "other", str(tmp_path / "other"))
    objective = finetune_objective(finetune_entry(), str(tmp_path / "other"), None, 0, str(folder / "models/step"))
    saved = open_energy(folder / "models/step", open_denoiser(folder / "models/denoiser")).state_dict()
    assert all(torch.equal(saved[name], weight) for name, weight in objective.trained.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "model", "problems"),
    [
        ({"denoiser": plain(replace(TRANSFORMER, layers=3))}, "denoiser", ["layers is 2 there and 3 here"]),
        ({"schedule": plain(Cosine())}, "denoiser", ["schedule.kind is 'log_linear' there and 'cosine' here"]),
        ({}, "ar", ["holds a model of kind 'autoregressive', and 'denoiser' is trained here"]),
        ({}, "twenty-seven", ["vocabulary is 27 there and 5 here", "tokenizer digest is '", "name another model"]),
    ],
)
def test_a_denoiser_that_is_another_one_is_refused_before_workers_start(folder, tmp_path, changes, model, problems):
    save_models(tmp_path / "others")
    shutil.move(tmp_path / "others/denoiser", tmp_path / "twenty-seven")
    publish(tmp_path / "twenty-seven", str(tmp_path / "twenty-seven"))
    uri = tmp_path / model if (tmp_path / model).exists() else folder / "models" / model
    changes = {**changes, "pretrain": {"steps": 2, "batch": 8, "init_from": str(uri)}}
    with pytest.raises(ConfigurationError) as raised:
        pretrain(session(folder, tmp_path / "home", **changes))
    assert str(raised.value).startswith("init_from: ")
    assert all(problem in str(raised.value) for problem in problems)


def test_an_autoregressive_model_and_an_energy_that_are_others_are_refused_before_workers_start(folder, tmp_path):
    models = folder / "models"
    changes = {
        "given": {"denoiser": str(models / "denoiser")},
        "autoregressive": plain(replace(TRANSFORMER, heads=4)),
        "autoregress": {"steps": 2, "batch": 8, "init_from": str(models / "ar")},
        "finetune": [plain(finetune_entry(str(models / "step"), width=32))],
        "register": {"energy": "step"},
    }
    other = session(folder, tmp_path, **changes)
    with pytest.raises(ConfigurationError, match=r"heads is 2 there and 4 here"):
        autoregress(other)
    with pytest.raises(ConfigurationError, match=r"energy\.width is 16 there and 32 here"):
        finetune(other)
    weights = open_denoiser(models / "denoiser").network.state_dict()
    save_denoiser(tmp_path / "cosine", weights, TRANSFORMER, Cosine(), LENGTH, folder / "data/tokenizer.json", {})
    publish(tmp_path / "cosine", str(tmp_path / "cosine"))
    changes["given"] = {"denoiser": str(tmp_path / "cosine")}
    changes["finetune"] = [plain(finetune_entry(str(models / "step")))]
    with pytest.raises(ConfigurationError, match=r"schedule\.kind is 'log_linear' there and 'cosine' here"):
        finetune(session(folder, tmp_path / "home", **changes))


def test_weights_that_do_not_fit_are_refused_with_their_shapes(folder):
    with pytest.raises(ConfigurationError, match=r"init_from: .*has shape \(.*\), expected \("):
        load_initial(Denoiser(TRANSFORMER, SYMBOLS + 1), str(folder / "models/denoiser"))


def test_a_model_that_is_not_there_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(ConfigurationError, match=r"init_from: .*/nowhere holds no finished model; .*publish"):
        initial_input(Training(steps=1, batch=1, init_from=str(tmp_path / "nowhere")))


def test_the_result_depends_on_the_content_of_the_model_and_not_on_its_place(folder):
    uri = str(folder / "models/denoiser")
    training = Training(steps=1, batch=1, init_from=uri)
    assert initial_input(training) == {"init_from": uri}
    assert initial_input(Training(steps=1, batch=1)) == {}
    assert training_settings(training) == training_settings(Training(steps=1, batch=1))
    assert not re.search("models", str(training_settings(training)))


def test_how_often_a_training_reports_and_saves_its_state_does_not_determine_its_result():
    training = Training(steps=1, batch=1)
    assert training_settings(replace(training, log_every=7, checkpoint_every=7)) == training_settings(training)
    assert training_settings(replace(training, batch=7)) != training_settings(training)
