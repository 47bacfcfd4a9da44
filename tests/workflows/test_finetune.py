"""Energies are made for denoisers that are given, if they have the tokens and the canvas of the data."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

import edlm
from edlm.config import ConfigurationError, parse
from edlm.data.tokenizer_kinds import Symbols
from edlm.local_copies import local_copy
from tests.published.checkpoints import TOKENS, published
from tests.workflows.local_session import LocalSession
from workflows.experiment import Experiment
from workflows.finetune import finetune
from workflows.import_published import Choices, import_published
from workflows.prepare import prepare
from workflows.register import bundle

LENGTH = 9
STEP = {
    "name": "step",
    "energy": {"kind": "step", "width": 16, "layers": 1, "heads": 2},
    "training": {"steps": 1, "batch": 2},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


def session_of(home: Path, given: dict, finetune: list, **register) -> LocalSession:
    settings = {
        "name": "given",
        "data": {
            "corpus": {"kind": "markov", "symbols": TOKENS, "length": LENGTH, "sequences": 200},
            "tokenizer": {"kind": "symbols", "size": TOKENS},
            "length": LENGTH,
            "shares": {"validation": 0.2},
        },
        "given": given,
        "finetune": finetune,
        "register": {"sampler": {"steps": 2}, **register},
    }
    return LocalSession(parse(Experiment, settings), str(home))


def imported(folder: Path, network, tokenizer: Path, tokens: int = TOKENS, length: int = LENGTH, **choices) -> str:
    """The URI of the model folder that a checkpoint with random weights becomes."""
    save_file(published(network, tokens=tokens), folder / f"{network}.safetensors")
    chosen = Choices(tokenizer=tokenizer, length=length, time_conditioning=False, bos=0, **choices)
    import_published(folder / f"{network}.safetensors", str(folder / network), chosen)
    return str(folder / network)


@pytest.fixture(scope="module")
def tokenizer(home) -> Path:
    """The tokenizer of the prepared data."""
    return local_copy(prepare(session_of(home, {"denoiser": "elsewhere"}, []))) / "tokenizer.json"


def test_imported_models_are_given_and_registered_without_training(home, tokenizer, tmp_path):
    denoiser = imported(tmp_path, "denoiser", tokenizer)
    given = {
        "denoiser": denoiser,
        "autoregressive": imported(tmp_path, "autoregressive", tokenizer),
        "energies": {"nce": imported(tmp_path, "energy", tokenizer, denoiser=denoiser)},
    }
    energies = [{"name": "nce", "energy": {"kind": "edlm_nce"}}, {"name": "coar", "energy": {"kind": "coar"}}]
    session = session_of(home, given, energies, energy="nce", sampler={"steps": 2, "candidates": 2})
    folder = local_copy(bundle(session))
    assert session.ran == ["finetune-coar", "register"]
    model = edlm.load(folder)
    for energy in ("nce", "coar"):
        texts = model.generate("", n=2, max_tokens=LENGTH, energy=energy, candidates=2, seed=1)
        assert len({text.text for text in texts}) == 2


def test_a_given_denoiser_of_another_canvas_is_refused_with_its_length(home, tokenizer, tmp_path):
    given = {"denoiser": imported(tmp_path, "denoiser", tokenizer, length=LENGTH - 2)}
    with pytest.raises(ConfigurationError, match=r"data\.length is 9, .* has a canvas of 7 tokens, .* to 7$"):
        finetune(session_of(home, given, [STEP]))


@pytest.mark.parametrize("energy", [STEP, {"name": "coar", "energy": {"kind": "coar"}}], ids=["trained", "built"])
def test_given_models_of_another_tokenizer_are_refused(home, tokenizer, tmp_path, energy):
    other = tmp_path / "other"
    other.mkdir()
    Symbols(size=TOKENS + 1).build([]).save(other)
    given = {
        "denoiser": imported(other, "denoiser", other / "tokenizer.json", TOKENS + 1),
        "autoregressive": imported(tmp_path, "autoregressive", tokenizer),
    }
    with pytest.raises(ConfigurationError, match=r"was made with another tokenizer than the (data|denoiser)"):
        finetune(session_of(home, given, [energy]))
