"""A published checkpoint becomes a model folder that the rest of the project trains on, measures and generates with."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import edlm
from edlm.checkpoints.energies import network_on, open_energy, save_energy
from edlm.checkpoints.model_folder import WEIGHTS
from edlm.checkpoints.networks import open_autoregressive, open_denoiser
from edlm.config import ConfigurationError
from edlm.data.preparation import Data, prepare
from edlm.data.splits import Shares
from edlm.data.synthetic import Markov
from edlm.data.tokenizer_kinds import Bytes, Symbols
from edlm.energies.step import StepEnergyConfig
from edlm.inference.components import Bundle
from edlm.inference.generator import save_bundle
from edlm.interfaces import Model
from edlm.published.layout import ROTARY, LayoutError
from edlm.sampling.sampler import Sampler
from edlm.schedule import LogLinear
from edlm.training.energy_objectives import ContrastiveObjective
from edlm.training.local_training import train
from edlm.training.settings import Training
from tests.exports import exported, opened, own_modules
from tests.published.checkpoints import HEADS, TOKENS, published, reference
from workflows.import_export import import_export
from workflows.import_published import Choices, import_published, main
from workflows.stage import given_uri

LENGTH = 9
REPOSITORY = {"model_type": "mdlm", "n_heads": HEADS, "model_length": LENGTH, "time_conditioning": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    source = Markov(symbols=TOKENS, length=LENGTH, sequences=200)
    shares = Shares(validation=0.2, judge=0.0)
    prepare(Data(corpus=source, tokenizer=Symbols(size=TOKENS), length=LENGTH, shares=shares), folder, lambda _: None)
    return folder


def repository(folder: Path, tensors: dict[str, Tensor], prefix: str = "", config: dict | None = None) -> Path:
    """A folder as published: weights, and config.json where there is one."""
    folder.mkdir()
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_repository_becomes_a_denoiser_with_its_log_probabilities(data, tmp_path, capsys):
    tensors = published("denoiser")
    source, target = repository(tmp_path / "hub", tensors, "backbone.", REPOSITORY), str(tmp_path / "model")
    main([str(source), target, "--tokenizer", str(data / "tokenizer.json")])
    assert capsys.readouterr().out == f"{target}: denoiser, 3 blocks of width 40, {TOKENS} tokens\n"
    opened = open_denoiser(Path(given_uri("denoiser", target).removeprefix("file://")))
    assert (opened.length, opened.schedule) == (LENGTH, LogLinear())
    xt, t = torch.full((2, LENGTH), TOKENS), torch.tensor([0.5, 0.7])
    expected = reference(tensors, xt, -torch.log1p(-(1 - 1e-3) * t.double()))[..., :-1].log_softmax(dim=-1)
    actual = opened.network.log_p(opened.network.read(xt, t), xt == TOKENS)
    torch.testing.assert_close(actual, expected.flatten(0, 1), atol=2e-5, rtol=0)


@pytest.fixture(scope="module")
def bundle(data, tmp_path_factory) -> Path:
    """An imported denoiser with an energy of ours, trained on it, and its imported NCE energy."""
    folder = tmp_path_factory.mktemp("imported")
    choices = Choices(tokenizer=data / "tokenizer.json", length=LENGTH, bos=0, time_conditioning=True)
    folders = {}
    for network in ("denoiser", "autoregressive", "energy"):
        folders[network] = folder / network
        with_denoiser = Choices(**{**vars(choices), "denoiser": str(folders["denoiser"])})
        source = repository(folder / f"{network}-hub", published(network))
        import_published(source, str(folders[network]), with_denoiser if network == "energy" else choices)
    denoiser = open_denoiser(folders["denoiser"])
    assert open_autoregressive(folders["autoregressive"]).vocabulary == TOKENS
    assert open_energy(folders["energy"], denoiser).whole_sequence

    config = StepEnergyConfig(block=None, width=16, layers=1, heads=2)
    objective = ContrastiveObjective(
        Model(denoiser.network, config.build(denoiser.network), denoiser.schedule), negatives=3, loss="ranking", seed=0
    )
    weights = train(objective, data, Training(steps=3, batch=4), say=lambda _: None)
    network = network_on(config, denoiser)
    save_energy(folder / "step", weights, network, LENGTH, data / "tokenizer.json", {})
    energies = {"step": folder / "step", "nce": folders["energy"]}
    card = Bundle(name="imported", energy="step", sampler=Sampler(steps=3, candidates=2))
    save_bundle(folder / "bundle", card, folders["denoiser"], energies)
    return folder / "bundle"


ENERGIES = ["step", "nce"]


def test_imported_models_take_an_energy_of_ours_and_generate_texts(bundle):
    model = edlm.load(bundle)
    for energy in ENERGIES:
        texts = model.generate("", n=2, max_tokens=LENGTH, energy=energy, candidates=2, seed=1)
        assert len({text.text for text in texts}) == 2


def test_imported_models_are_exported_with_the_same_numbers_and_texts_and_come_back_bit_for_bit(bundle, tmp_path):
    ours = edlm.load(bundle)
    with own_modules(tmp_path / "modules"):
        theirs, tokenizer = opened(exported(bundle, tmp_path / "repository"))
    network, t = ours.generator.denoiser.network, torch.tensor([0.9, 0.2])
    xt = torch.tensor([[TOKENS, 1, TOKENS, 3, 4, TOKENS, 6, 7, TOKENS], [TOKENS] * LENGTH])
    expected = network.log_p(network.read(xt, t), torch.ones_like(xt, dtype=torch.bool)).view(2, LENGTH, TOKENS)
    torch.testing.assert_close(theirs(xt, timesteps=t).logits.log_softmax(dim=-1), expected, atol=1e-5, rtol=0)
    x = torch.where(xt == TOKENS, torch.arange(LENGTH), xt)[:, None]
    nce = ours.generator.energies["nce"](x, xt, t, torch.zeros(0), torch.zeros(0))
    torch.testing.assert_close(theirs.energy("nce", x, xt, t), nce, atol=1e-5, rtol=0)
    for energy in ENERGIES:
        settings = {"n": 2, "max_tokens": LENGTH, "energy": energy, "candidates": 2, "seed": 1}
        texts = [text.text for text in ours.generate("", **settings)]
        assert theirs.generate("", tokenizer=tokenizer, **settings) == texts
    import_export(tmp_path / "repository", tmp_path / "back")
    for part in ("denoiser", "energies/step", "energies/nce"):
        assert (tmp_path / "back" / part / WEIGHTS).read_bytes() == (bundle / part / WEIGHTS).read_bytes()


def test_one_of_several_networks_in_a_file_is_chosen_by_its_prefix(data, tmp_path):
    both = {f"ebm.{name}": tensor for name, tensor in published("energy").items()}
    source = repository(tmp_path / "two", both | {f"backbone.{n}": t for n, t in published("denoiser").items()})
    choices = Choices(tokenizer=data / "tokenizer.json", length=LENGTH)
    with pytest.raises(LayoutError, match=r"several networks, whose names begin with 'backbone\.' and 'ebm\.'"):
        import_published(source, str(tmp_path / "model"), choices)
    with pytest.raises(LayoutError, match=r"no names that begin with 'module\.'; there are: \['backbone\.', 'ebm\.'\]"):
        import_published(source, str(tmp_path / "model"), Choices(**{**vars(choices), "prefix": "module."}))
    line = import_published(source, str(tmp_path / "model"), Choices(**{**vars(choices), "prefix": "backbone."}))
    assert ": denoiser," in line


def refused(data: Path, tmp_path: Path, source: Path, **changes: object) -> str:
    choices = {"tokenizer": data / "tokenizer.json", "length": LENGTH, **changes}
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the callers compare the message
        import_published(source, str(tmp_path / "model"), Choices(**choices))  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "model").exists()
    return str(error.value)


def test_what_the_checkpoint_leaves_open_must_be_given(data, tmp_path):
    bare = {name: tensor for name, tensor in published("denoiser").items() if name != ROTARY}
    source = repository(tmp_path / "hub", bare)
    assert "it has no rotary frequencies); give it with --heads" in refused(data, tmp_path, source)
    assert "not known; give it with --length" in refused(data, tmp_path, source, heads=HEADS, length=None)
    whole = repository(tmp_path / "whole", published("denoiser"))
    assert "(--heads: 4; the rotary frequencies: 5)" in refused(data, tmp_path, whole, heads=4)
    energy = repository(tmp_path / "energy", published("energy"))
    assert "name its folder: --denoiser" in refused(data, tmp_path, energy)
    model = repository(tmp_path / "ar", published("autoregressive"))
    assert "bos is None; name with --bos the token, below 11" in refused(data, tmp_path, model)
    assert "bos is 11; name with --bos" in refused(data, tmp_path, model, bos=TOKENS)


def test_the_command_says_that_time_conditioning_was_assumed_only_where_nothing_tells_it(data, tmp_path):
    choices = {"tokenizer": data / "tokenizer.json", "length": LENGTH}
    silent = repository(tmp_path / "silent", published("denoiser"))
    telling = repository(tmp_path / "telling", published("denoiser"), config=REPOSITORY)
    assert "--time_conditioning if it does" in import_published(silent, str(tmp_path / "assumed"), Choices(**choices))
    given = import_published(silent, str(tmp_path / "given"), Choices(**choices, time_conditioning=False))
    from_config = import_published(telling, str(tmp_path / "told"), Choices(**choices))
    assert not [line for line in (given, from_config) if "time_conditioning" in line]


def test_another_vocabulary_is_refused_with_both_sizes(data, tmp_path):
    Bytes().build(()).save(tmp_path / "bytes")
    source = repository(tmp_path / "hub", published("denoiser"))
    message = refused(data, tmp_path, source, tokenizer=tmp_path / "bytes" / "tokenizer.json")
    assert "12 rows, which would be 11 tokens and the mask, last, and the tokenizer has 257 tokens" in message
    Symbols(size=TOKENS + 1).build(()).save(tmp_path / "more")
    message = refused(data, tmp_path, source, tokenizer=tmp_path / "more" / "tokenizer.json")
    assert "it has no row for a mask besides (uniform noise), or the mask is one of the tokenizer's" in message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "duo"}, "model_type is 'duo', no masked denoiser; known are mdlm, bd3lm"),
        ({"model_type": "bd3lm", "block_size": 4, "model_length": 9}, "block_size is 4 and model_length 9: its blocks"),
        ({"graph": {"type": "uniform"}}, "graph.type is 'uniform'; only 'absorb' has masks"),
        ({"noise": {"type": "geometric"}}, "noise.type is 'geometric'; the networks here read log-linear noise"),
        ([], "holds no JSON object"),
    ],
)
def test_networks_of_other_families_are_refused_by_their_config(data, tmp_path, config, message):
    assert message in refused(data, tmp_path, repository(tmp_path / "hub", published("denoiser"), "", config))


def test_one_block_of_bd3lm_and_absorbing_sedd_are_denoisers(data, tmp_path):
    nested = {"n_heads": HEADS, "length": LENGTH}
    sedd = {"graph": {"type": "absorb"}, "noise": {"type": "loglinear"}, "model": nested}
    bd3lm = {"model_type": "bd3lm", "block_size": LENGTH, "model_length": LENGTH, "n_heads": HEADS}
    for name, config, reads in (("sedd", sedd, True), ("bd3lm", bd3lm, False)):
        source = repository(tmp_path / f"{name}-hub", published("denoiser"), "", config)
        import_published(source, str(tmp_path / name), Choices(tokenizer=data / "tokenizer.json"))
        network = open_denoiser(tmp_path / name).network
        assert network.config.time_conditioning == reads  # pyright: ignore[reportAttributeAccessIssue]


def test_files_that_are_not_safetensors_are_refused_with_the_way_out(data, tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "pytorch_model.bin").write_bytes(b"pickle")
    for source in (tmp_path / "hub", tmp_path / "hub" / "pytorch_model.bin"):
        assert "is a pickle, which is not read; write its weights as safetensors with python -m workflows.conv" in (
            refused(data, tmp_path, source)
        )
    (tmp_path / "half.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    assert "is no whole safetensors file" in refused(data, tmp_path, tmp_path / "half.safetensors")
    assert "is not there; name a safetensors file" in refused(data, tmp_path, tmp_path / "nothing")


def test_a_target_that_holds_a_model_is_not_overwritten(data, tmp_path):
    source = repository(tmp_path / "hub", published("denoiser"), "", REPOSITORY)
    choices = Choices(tokenizer=data / "tokenizer.json")
    import_published(source, str(tmp_path / "model"), choices)
    with pytest.raises(ConfigurationError, match="holds a model already; remove it, or name another folder"):
        import_published(source, str(tmp_path / "model"), choices)


def test_sharded_weights_are_read_by_their_index(data, tmp_path):
    folder, tensors = tmp_path / "hub", published("denoiser")
    folder.mkdir()
    names = list(tensors)
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    import_published(folder, str(tmp_path / "model"), Choices(tokenizer=data / "tokenizer.json", length=LENGTH))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": files | {"more": "model-0.safetensors"}})
    )
    assert "and its files disagree about more" in refused(data, tmp_path / "other", folder)
