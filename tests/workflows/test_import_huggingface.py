"""Networks of transformers become model folders that the stages train on, measure and generate with."""

import itertools
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from edlm.checkpoints.energies import network_on, open_energy, save_energy
from edlm.checkpoints.model_folder import TOKENIZER
from edlm.checkpoints.networks import (
    autoregressive_config,
    denoiser_config,
    open_autoregressive,
    open_denoiser,
    save_denoiser,
)
from edlm.config import ConfigurationError, from_command_line, parse, plain
from edlm.data.token_file import TokenFile
from edlm.huggingface.lora import LowRankAdaptation, merged
from edlm.inference.components import Bundle
from edlm.inference.generator import save_bundle
from edlm.likelihood import nelbo, sampler_bound
from edlm.local_copies import local_copy
from edlm.sampling.sampler import Sampler
from edlm.training.local_training import train
from edlm.training.objectives import Denoising
from edlm.training.settings import Training
from tests.huggingface.networks import ROLES, WORDS, save_network, transformers, vocabulary_of
from tests.workflows.local_session import LocalSession
from workflows.autoregress import autoregress
from workflows.experiment import Experiment
from workflows.export import Export, export
from workflows.import_huggingface import imported_autoregressive, imported_denoiser
from workflows.prepare import prepare
from workflows.pretrain import pretrain
from workflows.stage import Session
from workflows.training.energy_objective_factories import finetune_objective
from workflows.training.objective_factories import denoising, next_token

V, L = len(WORDS), 8
quiet = partial(train, say=[].append)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A corpus of sentences whose words agree, and random networks of its vocabulary."""
    folder = tmp_path_factory.mktemp("sources")
    lines = [
        "the cat sat on the mat",
        "the dog ran on the log",
        "a dog sat far and a cat ran far",
        "a cat sat on a log",
    ]
    text = "\n".join(" ".join(pair) for pair in itertools.product(lines, repeat=3))
    (folder / "text.txt").write_text(text)
    (folder / "unknown.txt").write_text(f"{text}\nthe bird sat")
    size = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    size |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    bert = transformers.BertConfig(**size, intermediate_size=24, max_position_embeddings=L + 2)
    save_network(folder / "bert", transformers.BertForMaskedLM(bert))
    gpt2 = transformers.GPT2Config(vocab_size=V, n_positions=L, n_embd=16, n_layer=1, n_head=2)
    save_network(folder / "gpt2", transformers.GPT2LMHeadModel(gpt2), **ROLES, bos_token="[CLS]")
    wider = transformers.GPT2Config(vocab_size=V, n_positions=L + 2, n_embd=16, n_layer=1, n_head=2)
    maskless = {role: token for role, token in ROLES.items() if role != "mask_token"}
    save_network(folder / "maskless-gpt2", transformers.GPT2LMHeadModel(wider), **maskless)
    return folder


def settings_of(sources, corpus="text.txt", **changed):
    return {
        "name": "foreign",
        "data": {
            "corpus": {"kind": "files", "paths": [str(sources / corpus)], "cut": "line"},
            "tokenizer": {"kind": "huggingface", "uri": str(sources / "bert"), "separator": "[SEP]"},
            "length": L,
            "shares": {"validation": 0.2, "judge": 0},
        },
        "denoiser": {"kind": "huggingface", "folder": str(sources / "bert")},
        "register": {"sampler": {"steps": 2}},
        **changed,
    }


def session_of(root, sources, **changed):
    return LocalSession(parse(Experiment, settings_of(sources, **changed)), str(root))


@pytest.fixture(scope="module")
def session(tmp_path_factory, sources):
    causal = {"kind": "huggingface", "folder": str(sources / "gpt2")}
    return session_of(tmp_path_factory.mktemp("home"), sources, autoregressive=causal)


def test_without_a_training_the_networks_are_used_as_they_are(session, sources):
    denoiser = open_denoiser(local_copy(pretrain(session)))
    model = transformers.BertForMaskedLM.from_pretrained(sources / "bert").eval()
    x = torch.tensor([[5, 7, 9, 11, 5, 12, 3, 6]])
    ids = torch.tensor([[2, 5, 7, 4, 4, 5, 12, 3, 6, 3]])
    never = [0, 1, 2, 4]
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 3:5]
    logits[:, never] = -torch.inf
    xt = torch.where((torch.arange(L) == 2) | (torch.arange(L) == 3), V, x)
    network = denoiser.network
    actual = network.log_p(network.read(xt, torch.ones(1)), xt == V)
    torch.testing.assert_close(actual, logits.log_softmax(-1))
    assert autoregress(session) == imported_autoregressive(session)
    assert open_autoregressive(local_copy(autoregress(session))).bos == WORDS.index("[CLS]")
    assert session.ran == ["prepare", "import-denoiser", "import-autoregressive"]


def test_the_import_runs_again_only_if_the_networks_files_change(tmp_path, sources):
    copy = shutil.copytree(sources / "bert", tmp_path / "bert")
    session = session_of(tmp_path, sources, denoiser={"kind": "huggingface", "folder": str(copy)})
    first = imported_denoiser(session)
    again = LocalSession(session.experiment, session.root)
    assert imported_denoiser(again) == first
    assert again.ran == []
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    changed = LocalSession(session.experiment, session.root)
    assert imported_denoiser(changed) != first
    assert changed.ran == ["import-denoiser"]


def objective_at(uri: str, session: Session) -> Denoising:
    return denoising(denoiser_config(local_copy(uri)), V, session.experiment.schedule, 0, uri)


def test_training_further_starts_from_the_imported_weights_and_lowers_the_bound(session):
    imported, data = imported_denoiser(session), local_copy(prepare(session))
    opened, objective = open_denoiser(local_copy(imported)), objective_at(imported, session)
    before = opened.network.state_dict()
    for name, weight in objective.trained.state_dict().items():
        assert (before[name] == weight).all()
    weights = quiet(objective, data, Training(steps=200, batch=32, learning_rate=1e-2))
    assert {*weights} == {*before}
    trained = denoiser_config(local_copy(imported)).build(V).eval()
    trained.load_state_dict(weights)
    untrained, after = (nelbo(_rows(data, 64), network, opened.schedule, 0, 4) for network in (opened.network, trained))
    assert after.mean + 3 * (after.standard_error + untrained.standard_error) < untrained.mean


def test_a_causal_network_becomes_a_denoiser_by_training_that_starts_from_its_weights(tmp_path, sources):
    """`[CLS]` stands before every text, whose first word its output predicts; the mask is new."""
    causal = {"shift": 1, "new_mask": True}
    denoiser = {"kind": "huggingface", "folder": str(sources / "maskless-gpt2"), "causal": causal}
    session = session_of(tmp_path, sources, denoiser=denoiser, pretrain={"steps": 150, "batch": 32})
    imported, data = imported_denoiser(session), local_copy(prepare(session))
    opened, objective = open_denoiser(local_copy(imported)), objective_at(imported, session)
    assert opened.network.config.prefix == (WORDS.index("[CLS]"),)
    before = opened.network.state_dict()
    original = transformers.GPT2LMHeadModel.from_pretrained(sources / "maskless-gpt2").state_dict()
    name = "transformer.h.0.attn.c_attn.weight"
    assert (before[f"model.{name}"] == original[name]).all()
    weights = quiet(objective, data, Training(steps=150, batch=32, learning_rate=1e-2))
    trained = denoiser_config(local_copy(imported)).build(V).eval()
    trained.load_state_dict(weights)
    untrained, after = (nelbo(_rows(data, 64), network, opened.schedule, 0, 4) for network in (opened.network, trained))
    assert after.mean + 3 * (after.standard_error + untrained.standard_error) < untrained.mean


def test_a_new_mask_needs_training(sources):
    causal = {"shift": 1, "new_mask": True}
    denoiser = {"kind": "huggingface", "folder": str(sources / "maskless-gpt2"), "causal": causal}
    with pytest.raises(ConfigurationError, match="pretrain: missing, and the denoiser's mask is new"):
        parse(Experiment, settings_of(sources, denoiser=denoiser))
    assert parse(Experiment, settings_of(sources, denoiser=denoiser, given={"denoiser": "there"}))


def test_adapters_are_trained_and_merged_into_an_ordinary_model_folder(session, tmp_path):
    imported, data = imported_denoiser(session), local_copy(prepare(session))
    opened = open_denoiser(local_copy(imported))
    config, schedule = denoiser_config(local_copy(imported)), session.experiment.schedule
    lora = LowRankAdaptation(rank=2)

    def objective() -> Denoising:
        return denoising(config, V, schedule, 0, imported, lora=lora)

    output: list[str] = []
    adapters = train(objective(), data, Training(steps=200, batch=32, learning_rate=1e-2), say=output.append)
    trained = sum(weight.numel() for weight in adapters.values())
    every = trained + sum(weight.numel() for weight in opened.network.state_dict().values())
    assert output[0] == f"[training] trains {trained:,} of {every:,} parameters"
    weights = merged(objective().trained, adapters)
    save_denoiser(tmp_path, weights, config, schedule, L, data / TOKENIZER, {})
    again = open_denoiser(tmp_path)
    assert type(again.network) is type(opened.network)
    untrained, after = (nelbo(_rows(data, 64), one.network, schedule, 0, 4) for one in (opened, again))
    assert after.mean + 3 * (after.standard_error + untrained.standard_error) < untrained.mean


def test_adapters_of_networks_that_are_not_of_the_library_are_refused_by_setting(sources):
    training = {"steps": 1, "batch": 2, "lora": {"rank": 2}}
    own = {"width": 16, "heads": 2}
    for section, network in (("pretrain", "denoiser"), ("autoregress", "autoregressive"), ("judge", "autoregressive")):
        settings = settings_of(sources, **{"pretrain": {"steps": 1, "batch": 2}, section: training, network: own})
        settings["data"] |= {"shares": {"validation": 0.2, "judge": 0.2}}
        with pytest.raises(ConfigurationError, match=rf"{section}\.lora: adapters .* this one is of kind transformer"):
            parse(Experiment, settings)
    step = {"name": "head", "energy": {"kind": "step", **own}, "training": training}
    with pytest.raises(ConfigurationError, match=r"energy .head. of kind .step.: training\.lora is for networks"):
        parse(Experiment, settings_of(sources, finetune=[step]))


def test_muon_is_refused_for_networks_of_the_library_by_setting(sources):
    training = {"steps": 1, "batch": 2, "muon": {}}
    with pytest.raises(ConfigurationError, match=r"pretrain\.muon: Muon trains .* the network is of kind huggingface"):
        parse(Experiment, settings_of(sources, pretrain=training))


def test_the_causal_network_is_trained_further_from_the_imported_weights(session):
    imported, data = imported_autoregressive(session), local_copy(prepare(session))
    config = autoregressive_config(local_copy(imported))
    objective, before = next_token(config, V, 0, imported), open_autoregressive(local_copy(imported))
    for name, weight in objective.trained.state_dict().items():
        assert (before.state_dict()[name] == weight).all()
    x0, settings = _rows(data, 64), Training(steps=60, batch=32, learning_rate=1e-2)
    trained = config.build(V).eval()
    trained.load_state_dict(quiet(objective, data, settings))
    assert trained.log_p(x0).mean() > before.log_p(x0).mean() + 0.3


@pytest.mark.parametrize("kind", ["step", "conditional"])
def test_an_energy_on_the_frozen_features_lowers_the_bound(session, kind, tmp_path):
    energy = {"kind": kind, "width": 16, "layers": 1, "heads": 2}
    settings = {"steps": 150, "batch": 32, "learning_rate": 1e-2}
    entry = parse(
        Experiment, plain(session.experiment) | {"finetune": [{"name": "head", "energy": energy, "training": settings}]}
    ).finetune[0]
    imported, data = imported_denoiser(session), local_copy(prepare(session))
    denoiser = open_denoiser(local_copy(imported))
    objective = finetune_objective(entry, imported, None, 0, None)
    weights = quiet(objective, data, entry.training)
    save_energy(tmp_path, weights, network_on(entry.energy, denoiser), L, data / TOKENIZER, {})
    opened = open_energy(tmp_path, denoiser)
    sampler, schedule = Sampler(steps=2, candidates=8), denoiser.schedule
    x0 = _rows(data, 64)
    plain_bound = sampler_bound(x0, denoiser.network, None, schedule, Sampler(steps=2, candidates=1), 0, 2)
    bound = sampler_bound(x0, denoiser.network, opened, schedule, sampler, 0, 2)
    assert bound.mean + 3 * bound.standard_error < plain_bound.mean


def test_the_export_of_another_librarys_network_is_refused_with_the_reason(session, tmp_path):
    save_bundle(
        tmp_path / "bundle",
        Bundle(name="foreign", sampler=Sampler(steps=2)),
        local_copy(imported_denoiser(session)),
        {},
    )
    with pytest.raises(ConfigurationError, match=r"denoiser of 'foreign' is a network of kind 'huggingface_architec"):
        export(tmp_path / "bundle", tmp_path / "repository", Export())
    assert not (tmp_path / "repository").exists()


def _rows(data: Path, count: int) -> torch.Tensor:
    tokens = TokenFile.open(data, "train").tokens
    return torch.from_numpy(tokens[: count * L].reshape(count, L).astype("int64"))


def test_data_with_tokens_that_are_never_generated_is_refused(tmp_path, sources):
    session = session_of(tmp_path, sources, corpus="unknown.txt")
    with pytest.raises(ConfigurationError, match=r"'\[UNK\]' 1 times.*prompts included.*denoiser\.generated"):
        imported_denoiser(session)
    allowed = {"kind": "huggingface", "folder": str(sources / "bert"), "generated": ["[UNK]"]}
    assert imported_denoiser(session_of(tmp_path, sources, corpus="unknown.txt", denoiser=allowed))


def test_a_tokenizer_of_another_vocabulary_is_refused_with_the_token(tmp_path, sources):
    data = settings_of(sources)["data"] | {"tokenizer": {"kind": "characters"}}
    with pytest.raises(ConfigurationError, match=r"16 tokens there and 27 here; id 0 is '\[PAD\]' there and ' ' here"):
        imported_denoiser(session_of(tmp_path, sources, data=data))


def test_networks_have_weights_from_one_place(sources):
    with pytest.raises(ConfigurationError, match="pretrain: missing, and the denoiser has no weights without it"):
        parse(Experiment, settings_of(sources, denoiser={"width": 16, "heads": 2}))
    training = {"steps": 1, "batch": 2, "init_from": "there"}
    with pytest.raises(ConfigurationError, match=r"pretrain\.init_from: there, and the network of kind huggingface"):
        parse(Experiment, settings_of(sources, pretrain=training))
    within = settings_of(sources)["data"] | {"attention": "within_documents"}
    with pytest.raises(ConfigurationError, match=r"data\.attention: within_documents, and the network .* attends"):
        parse(Experiment, settings_of(sources, data=within))


def test_the_command_line_overrides_settings_of_a_network(sources, tmp_path):
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(settings_of(sources)))
    experiment = from_command_line(Experiment, [str(tmp_path / "experiment.yaml"), "--denoiser.folder", "elsewhere"])
    assert experiment.denoiser.folder == "elsewhere"
    assert vocabulary_of(sources / "bert").size == V
