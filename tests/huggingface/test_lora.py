"""Adapters of low rank are the identity at first, train alone, and are merged into a network like any other."""

import sys
from dataclasses import replace

import pytest
import torch

from edlm.config import ConfigurationError, parse
from edlm.data.batches import Rows
from edlm.huggingface.architecture import recorded
from edlm.huggingface.autoregressive import HuggingFaceAutoregressiveArchitecture
from edlm.huggingface.denoiser import HuggingFaceDenoiserArchitecture
from edlm.huggingface.lora import LowRankAdaptation, merged, with_adapters
from edlm.schedule import LogLinear
from edlm.training.local_engine import AVERAGE, WEIGHTS, LocalEngine
from edlm.training.loop import fit
from edlm.training.objectives import Denoising, NextToken
from edlm.training.optimizers import FIRST, SECOND
from edlm.training.settings import Training
from tests.huggingface.networks import bert_denoiser, randomised, transformers
from tests.networks import denoiser

pytest.importorskip("peft", reason="the extra `hf` is not installed")

V, L, BATCH = 7, 8, 8
SETTINGS = Training(steps=6, batch=BATCH, learning_rate=1e-2, weight_decay=0.1, clip=0.5, ema=0.9, checkpoint_every=3)
SIZE = {"vocab_size": V + 1, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZE |= {"intermediate_size": 24, "max_position_embeddings": 16, "pad_token_id": 0}
MODERN = {"cls_token_id": 0, "sep_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
DISTIL = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 16, "pad_token_id": 0}
CONFIGS = {
    "bert": lambda: transformers.BertConfig(**SIZE),
    "modernbert": lambda: transformers.ModernBertConfig(**SIZE | MODERN),
    "distilbert": lambda: transformers.DistilBertConfig(vocab_size=V + 1, **DISTIL),
    "esm": lambda: transformers.EsmConfig(**SIZE, mask_token_id=V, position_embedding_type="rotary"),
}


def masked_network(name: str):
    architecture = HuggingFaceDenoiserArchitecture(architecture=recorded(CONFIGS[name]()), mask=V)
    return randomised(architecture.build(V)).eval()


def causal_network():
    size = {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(vocab_size=V, bos_token_id=0, eos_token_id=0, **size)
    torch.manual_seed(0)
    return randomised(HuggingFaceAutoregressiveArchitecture(architecture=recorded(config), bos=0).build(V)).eval()


def canvases():
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(V, (4, L), generator=generator)
    return torch.where(torch.rand(x.shape, generator=generator) < 0.5, V, x)


@torch.no_grad()
def log_p(network):
    xt = canvases()
    return network.log_p(network.read(xt, torch.ones(len(xt))), xt == V)


def rows(step: int, start: int, stop: int) -> Rows:
    tokens = torch.randint(V, (BATCH, L), generator=torch.Generator().manual_seed(step))
    return Rows(tokens[start:stop], step, torch.arange(start, stop), BATCH)


def objective(settings: LowRankAdaptation) -> Denoising:
    network = bert_denoiser(V)
    torch.manual_seed(1)
    return Denoising(with_adapters(network, settings), LogLinear(), seed=0)


def trained(settings: LowRankAdaptation, training: Training = SETTINGS) -> LocalEngine:
    engine = LocalEngine(objective(settings), training)
    fit(engine, rows, training, 0, lambda *_: None, lambda _: None)
    return engine


@pytest.mark.parametrize("name", CONFIGS)
def test_fresh_adapters_leave_every_log_p_as_it_is_bit_for_bit(name):
    network = masked_network(name)
    before = log_p(network)
    assert torch.equal(log_p(with_adapters(network, LowRankAdaptation(rank=3, alpha=7.0)).eval()), before)
    assert {parameter.requires_grad for parameter in network.parameters()} == {True, False}


def test_the_adapters_alone_train():
    engine, begun = trained(LowRankAdaptation(rank=2)), objective(LowRankAdaptation(rank=2))
    before = dict(begun.trained.named_parameters())
    assert engine.names == [name for name in before if "lora_" in name]
    kinds = (WEIGHTS, FIRST, SECOND, AVERAGE)
    assert {*engine.state()} == {f"{kind}.{name}" for kind in kinds for name in engine.names}
    for name, weight in engine.objective.trained.named_parameters():
        assert torch.equal(weight, before[name]) == ("lora_" not in name), name


@pytest.mark.parametrize("alpha", [None, 5.0])
def test_merging_gives_an_ordinary_network_with_the_values_of_the_adapted_one(alpha):
    settings = LowRankAdaptation(rank=2, alpha=alpha)
    engine = trained(settings, replace(SETTINGS, ema=None))
    adapted = log_p(engine.objective.trained.eval())
    ordinary = bert_denoiser(V).eval()
    assert (adapted - log_p(ordinary)).abs().max() > 0.01
    weights = merged(objective(settings).trained, engine.export())
    assert {*weights} == {*ordinary.state_dict()}
    ordinary.load_state_dict(weights)
    torch.testing.assert_close(log_p(ordinary), adapted, rtol=1e-5, atol=1e-5)


def test_the_weights_move_by_alpha_over_rank_times_the_product_of_the_two_factors():
    settings = LowRankAdaptation(rank=2, alpha=5.0, modules=("query",))
    network = with_adapters(bert_denoiser(V), settings)
    adapters = {name: torch.randn(w.shape) for name, w in network.named_parameters() if w.requires_grad}
    before, after = bert_denoiser(V).state_dict(), merged(network, adapters)
    a, b = (next(adapters[name] for name in adapters if ".0." in name and factor in name) for factor in ("_A", "_B"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.bert.encoder.layer.{i}.attention.self.query.weight" for i in (0, 1)}
    name = "model.bert.encoder.layer.0.attention.self.query.weight"
    torch.testing.assert_close(after[name] - before[name], 2.5 * b @ a)


def test_a_causal_network_whose_layers_hold_transposed_weights_is_adapted_and_merged():
    x0 = torch.randint(V, (3, L), generator=torch.Generator().manual_seed(4))
    before = causal_network().log_p(x0)
    network = with_adapters(causal_network(), LowRankAdaptation(rank=2)).eval()
    assert torch.equal(network.log_p(x0), before)
    engine = LocalEngine(NextToken(network), SETTINGS)
    fit(engine, rows, SETTINGS, 0, lambda *_: None, lambda _: None)
    adapted, ordinary = network.eval().log_p(x0), causal_network()
    current = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    ordinary.load_state_dict(merged(with_adapters(causal_network(), LowRankAdaptation(rank=2)), current))
    torch.testing.assert_close(ordinary.log_p(x0), adapted, rtol=1e-5, atol=1e-5)
    assert (adapted - before).abs().max() > 0.01


def test_a_training_with_dropout_resumes_with_the_same_result():
    settings, states = LowRankAdaptation(rank=2, dropout=0.3), []

    def keep(engine: LocalEngine) -> None:
        states.append({name: tensor.clone() for name, tensor in engine.state().items()})

    whole = LocalEngine(objective(settings), SETTINGS)
    fit(whole, rows, SETTINGS, 0, lambda *_: None, keep)
    resumed = LocalEngine(objective(settings), SETTINGS)
    resumed.load(states[0], 3)
    fit(resumed, rows, SETTINGS, 0, lambda *_: None, lambda _: None)
    assert all(torch.equal(resumed.export()[name], weight) for name, weight in whole.export().items())
    dropless = trained(replace(settings, dropout=0.0)).export()
    assert not all(torch.equal(dropless[name], weight) for name, weight in whole.export().items())


@pytest.mark.parametrize("ends", [None, ("query", "attention.output.dense")])
def test_adapters_are_added_to_the_layers_with_these_ends_or_to_all(ends):
    network = with_adapters(bert_denoiser(V), LowRankAdaptation(rank=2, modules=ends))
    adapted = {name.split(".lora_")[0] for name, weight in network.named_parameters() if weight.requires_grad}
    parts = ["attention.self.query", "attention.output.dense"]
    if ends is None:
        parts += ["attention.self.key", "attention.self.value", "intermediate.dense", "output.dense"]
    layers = [f"bert.encoder.layer.{i}.{part}" for i in (0, 1) for part in parts]
    if ends is None:
        layers.append("cls.predictions.transform.dense")
    assert adapted == {f"model.base_model.model.{name}" for name in layers}


def test_a_name_of_no_linear_layer_is_refused_with_those_that_there_are():
    for name in ("q_proj", "uery", "word_embeddings", "decoder"):
        with pytest.raises(ConfigurationError, match=f"'{name}' is the end of no .*dense, key, query, value"):
            with_adapters(bert_denoiser(V), LowRankAdaptation(rank=2, modules=("key", name)))


def test_a_network_of_this_project_is_refused_with_the_way_out():
    with pytest.raises(ConfigurationError, match=r"lora: Denoiser is no network of transformers.*leave lora out"):
        with_adapters(denoiser(), LowRankAdaptation(rank=2))


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 0}, r"lora\.rank: .*greater than or equal to 1; got 0"),
        ({"rank": 2, "alpha": 0.0}, r"lora\.alpha: .*greater than 0"),
        ({"rank": 2, "dropout": 1.0}, r"lora\.dropout: .*less than 1"),
        ({"rank": 2, "modules": []}, r"lora: lora\.modules is empty"),
        ({"modules": ["query"]}, r"lora\.rank: missing"),
    ],
)
def test_impossible_settings_are_refused_by_name(lora, message):
    with pytest.raises(ConfigurationError, match=message):
        parse(Training, {"steps": 1, "batch": 1, "lora": lora})


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigurationError, match=r'library peft: .*run pip install "\.\[hf\]"'):
        with_adapters(bert_denoiser(V), LowRankAdaptation(rank=2))


def test_adapters_of_other_settings_are_not_merged():
    exported = LocalEngine(objective(LowRankAdaptation(rank=2)), SETTINGS).export()
    for other in (LowRankAdaptation(rank=3), LowRankAdaptation(rank=2, modules=("query",))):
        with pytest.raises(ValueError, match=r"are not those of this network: .*lora_A.*expected"):
            merged(with_adapters(bert_denoiser(V), other), exported)
