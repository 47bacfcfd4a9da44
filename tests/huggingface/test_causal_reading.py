"""Causal networks of transformers, read in both directions, have the library's own values at every masked position."""

import pytest
import torch

from edlm import equations
from edlm.checkpoints.networks import open_denoiser, save_denoiser
from edlm.config import ConfigurationError, parse
from edlm.data.tokenizer_kinds import HuggingFaceTokenizer
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.huggingface.causal_reading import CausalReading
from edlm.huggingface.denoiser import HuggingFaceDenoiserSource
from edlm.inference.components import Bundle
from edlm.inference.engine import InferenceEngine
from edlm.inference.generator import open_bundle, save_bundle
from edlm.sampling.sampler import Sampler
from edlm.schedule import LogLinear
from tests.engines import PATIENT, SECONDS, alone, new_request
from tests.huggingface.networks import ROLES, WORDS, save_network, transformers, vocabulary_of
from tests.networks import stirred

V, L = len(WORDS), 6
SIZE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZE |= {"max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
CLS, SEP, MASK = (WORDS.index(word) for word in ("[CLS]", "[SEP]", "[MASK]"))
WITHOUT_MASK = {role: token for role, token in ROLES.items() if role != "mask_token"}
END = "<|endoftext|>"
LETTERS = [END, "[UNK]", *"abcdefghijklmn"]
"""As many tokens as WORDS, of a tokenizer that puts nothing around a text and knows no mask."""
OF_LETTERS = {"unk_token": "[UNK]", "bos_token": END, "eos_token": END}


def gpt2(**settings):
    size = {"vocab_size": V, "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**size | settings))


def llama(**settings):
    size = {"vocab_size": V, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZE | size | settings))


NETWORKS = {
    "gpt2": gpt2,
    "padded-gpt2": lambda: gpt2(vocab_size=V + 8),
    "llama": llama,
    "tied-llama": lambda: llama(tie_word_embeddings=True),
}


@pytest.fixture(scope="module", params=NETWORKS)
def folder(request, tmp_path_factory):
    """A network whose tokenizer surrounds texts with [CLS] and [SEP] and has a mask token."""
    return save_network(tmp_path_factory.mktemp(request.param), NETWORKS[request.param]())


@pytest.fixture(scope="module", params=[*NETWORKS, "qwen2"])
def plain_folder(request, tmp_path_factory):
    """A network as published for generation from left to right, without a mask token."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param != "qwen2":
        return save_network(folder, NETWORKS[request.param](), LETTERS, **OF_LETTERS)
    config = transformers.Qwen2Config(**SIZE, vocab_size=V, num_key_value_heads=2)
    save_network(folder, transformers.Qwen2ForCausalLM(config))
    ids = {letter: index for index, letter in enumerate(LETTERS)}
    tokenizer = transformers.Qwen2Tokenizer(vocab=ids, merges=[], unk_token="[UNK]", eos_token=END, pad_token=END)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def gpt2_folder(tmp_path):
    return save_network(tmp_path / "gpt2", gpt2(), LETTERS, **OF_LETTERS)


def opened(folder, length=L, separator="[SEP]", **reading):
    source = HuggingFaceDenoiserSource(folder=str(folder), causal=CausalReading(**reading))
    return source.open(vocabulary_of(folder, separator), length)


def opened_plain(folder, length=L, **reading):
    return opened(folder, length, END, **{"new_mask": True, **reading})


def canvases(n=5):
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(5, V, (n, L), generator=generator)
    xt = torch.where(torch.rand(n, L, generator=generator) < 0.6, V, x)
    xt[0], xt[1, 0] = V, x[1, 0]
    return x, xt


def log_p(denoiser, xt):
    return denoiser.log_p(denoiser.read(xt, torch.ones(len(xt))), xt == V)


def theirs(folder, xt, shift, before, after, mask, never):
    """log p at the masked positions by the library alone, with an explicit mask that opens its attention.

    Without a `mask`, one is embedded as the mean of all tokens.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table = torch.cat([table, table.mean(dim=0, keepdim=True)])
        row = len(table) - 1 if mask is None else mask
        ids = torch.tensor([[*before, *(row if token == V else token for token in row_xt), *after] for row_xt in xt])
        everything = torch.zeros(len(ids), 1, ids.shape[1], ids.shape[1])
        logits = model(inputs_embeds=table[ids], attention_mask=everything, use_cache=False).logits
    at = [max(len(before) + position - shift, 0) for position in range(L)]
    logits = logits[:, at, :V]
    logits[..., never] = -torch.inf
    return logits.log_softmax(-1)[xt == V]


@pytest.mark.parametrize("shift", [0, 1])
def test_log_p_equals_the_librarys_own_with_open_attention_between_its_special_tokens(folder, shift):
    _, xt = canvases()
    expected = theirs(folder, xt, shift, [CLS], [SEP], MASK, [0, 1, CLS, MASK])
    torch.testing.assert_close(log_p(opened(folder, shift=shift), xt), expected)


@pytest.mark.parametrize(
    ("reading", "before"),
    [
        ({"shift": 0}, []),
        ({"shift": 1, "bos": END}, [0]),
        ({"shift": 1, "first_from_itself": True}, []),
    ],
)
def test_a_new_mask_is_the_mean_token_and_the_first_position_has_the_declared_output(plain_folder, reading, before):
    _, xt = canvases()
    denoiser = opened_plain(plain_folder, **reading)
    torch.testing.assert_close(log_p(denoiser, xt), theirs(plain_folder, xt, reading["shift"], before, [], None, [1]))
    assert denoiser.config.mask == denoiser.model.get_input_embeddings().num_embeddings - 1 >= V


def test_a_mask_that_the_tokenizer_does_not_call_so_is_named_and_never_generated(tmp_path):
    folder, (_, xt) = save_network(tmp_path, llama(), **WITHOUT_MASK), canvases()
    actual = log_p(opened(folder, shift=0, mask_token="[MASK]"), xt)
    torch.testing.assert_close(actual, theirs(folder, xt, 0, [CLS], [SEP], MASK, [0, 1, CLS, MASK]))
    actual = log_p(opened(folder, shift=0, mask_token="far"), xt)
    far = WORDS.index("far")
    torch.testing.assert_close(actual, theirs(folder, xt, 0, [CLS], [SEP], far, [0, 1, CLS, far]))


def test_every_position_attends_to_all_others(plain_folder):
    denoiser, (x, _) = opened_plain(plain_folder, shift=1, bos=END), canvases()
    changed = x.clone()
    changed[:, -1] = (changed[:, -1] + 1) % V
    before, after = (denoiser.read(row, torch.ones(len(row))) for row in (x, changed))
    assert ((before - after).abs().amax(dim=-1) > 1e-5).all()


def test_a_network_of_this_class_that_attends_both_ways_by_itself_keeps_its_own_values(tmp_path):
    settings = {**SIZE, "vocab_size": V, "num_attention_heads": 2}
    folder = save_network(tmp_path, transformers.BertForMaskedLM(transformers.BertConfig(**settings)))
    masked = HuggingFaceDenoiserSource(folder=str(folder)).open(vocabulary_of(folder), L)
    _, xt = canvases()
    torch.testing.assert_close(log_p(opened(folder, shift=0), xt), log_p(masked, xt))


def test_a_model_folder_opens_without_the_original_with_equal_bits(plain_folder, tmp_path, monkeypatch):
    denoiser, (_, xt) = opened_plain(plain_folder, shift=1, bos=END), canvases()
    again = saved(denoiser, plain_folder, tmp_path, monkeypatch)
    assert (log_p(again, xt) == log_p(denoiser, xt)).all()
    assert again.config == denoiser.config
    assert {*again.state_dict()} == {name for name, _ in again.named_parameters()}


def saved(denoiser, folder, tmp_path, monkeypatch):
    HuggingFaceTokenizer(uri=str(folder), separator=END).build([]).save(tmp_path)
    weights, tokenizer = denoiser.state_dict(), tmp_path / "tokenizer.json"
    save_denoiser(tmp_path / "ours", weights, denoiser.config, LogLinear(), L, tokenizer, {})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return open_denoiser(tmp_path / "ours").network


def test_the_diffusion_loss_falls_and_reaches_every_weight_the_new_mask_included(plain_folder):
    denoiser = opened_plain(plain_folder, shift=1, bos=END).requires_grad_(True)
    x, xt = canvases(16)
    optimizer, losses = torch.optim.Adam(denoiser.parameters(), lr=3e-3), []
    for step in range(20):
        nll = -denoiser.log_p_of(denoiser.read(xt, torch.ones(len(xt))), xt == V, x)
        loss = equations.nelbo_integrand(nll, torch.ones(len(xt))).mean()
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            assert all(weight.grad.isfinite().all() and weight.grad.any() for weight in denoiser.parameters())
            assert denoiser.model.get_input_embeddings().weight.grad[denoiser.config.mask].any()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("kind", [StepEnergyConfig(width=8, heads=2), ConditionalEnergyConfig(width=8, heads=2)])
@pytest.mark.parametrize(("reading", "before"), [({"bos": END}, 1), ({"first_from_itself": True}, 0)])
@pytest.mark.parametrize("position", [0, 3])
def test_a_head_reads_at_a_position_what_the_network_says_of_it(gpt2_folder, kind, reading, before, position):
    """The network says it one place earlier: the gradient of an energy reaches that output alone."""
    denoiser = opened_plain(gpt2_folder, shift=1, **reading).requires_grad_(True)
    energy, (x, _) = stirred(kind.build(denoiser)), canvases()
    outputs = []
    denoiser.model.lm_head.register_forward_hook(lambda _, __, output: outputs.append(output))
    xt = x.clone()
    xt[:, position] = V
    context = denoiser.read(xt, torch.ones(len(xt)))
    outputs[0].retain_grad()
    log_p_x = denoiser.log_p_of(context, xt == V, x)[:, None].detach()
    energy(x[:, None], xt, torch.ones(len(xt)), log_p_x, context).sum().backward()
    reached = outputs[0].grad.abs().sum(dim=(0, 2)).nonzero().flatten().tolist()
    assert reached == [max(before + position - 1, 0)]


def test_the_engine_and_the_sampler_fill_the_same_texts(gpt2_folder, tmp_path):
    denoiser = opened_plain(gpt2_folder, shift=1, bos=END)
    HuggingFaceTokenizer(uri=str(gpt2_folder), separator=END).build([]).save(tmp_path)
    tokenizer = tmp_path / "tokenizer.json"
    save_denoiser(tmp_path / "ours", denoiser.state_dict(), denoiser.config, LogLinear(), L, tokenizer, {})
    save_bundle(tmp_path / "bundle", Bundle(name="gpt2", sampler=Sampler(steps=4)), tmp_path / "ours", {})
    generator = open_bundle(tmp_path / "bundle")
    asked = [
        new_request((5, 7), L - 2, seed=3),
        new_request((None, 6, None, None, 8, None), None, seed=4),
        new_request((), L, seed=5),
    ]
    with InferenceEngine(generator, "1", PATIENT) as engine:
        for request, future in zip(asked, engine.submit(asked), strict=True):
            assert future.result(SECONDS).tokens == alone(generator, request).tokens
    x = Sampler(steps=4).sample(torch.full((8, L), V), generator.denoiser.network, None, LogLinear(), torch.arange(8))
    assert not torch.isin(x, torch.tensor([LETTERS.index("[UNK]"), V])).any()


def test_a_network_without_a_mask_token_asks_for_one(gpt2_folder):
    with pytest.raises(ConfigurationError, match=r"names no mask token.*causal\.mask_token.*causal\.new_mask"):
        opened_plain(gpt2_folder, shift=0, new_mask=False)
    with pytest.raises(ConfigurationError, match=r"causal\.mask_token: '\[MASK\]' is no token of the network"):
        opened_plain(gpt2_folder, shift=0, new_mask=False, mask_token="[MASK]")
    with pytest.raises(ConfigurationError, match=r"mask token of .* is never generated"):
        opened_plain(gpt2_folder, shift=0, new_mask=False, mask_token=END)


def test_a_new_mask_beside_the_networks_own_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"causal\.new_mask: .* has the mask token '\[MASK\]'"):
        opened(save_network(tmp_path, gpt2()), shift=0, new_mask=True)


def test_a_mask_token_without_an_embedding_is_refused(tmp_path):
    save_network(tmp_path / "fewer", gpt2(), LETTERS, **OF_LETTERS)
    whole = save_network(tmp_path / "whole", gpt2(), [*LETTERS, "[MASK]"], **OF_LETTERS, mask_token="[MASK]")
    source = HuggingFaceDenoiserSource(folder=str(whole), causal=CausalReading(shift=0))
    with pytest.raises(ConfigurationError, match=r"embeds 16 ids, and its tokenizer's special tokens have ids \[16\]"):
        source.open(vocabulary_of(tmp_path / "fewer", END), L)


def test_what_predicts_the_first_position_must_be_declared(gpt2_folder, tmp_path):
    with pytest.raises(ConfigurationError, match=r"puts no token before a text.*causal\.bos.*first_from_itself"):
        opened_plain(gpt2_folder, shift=1)
    with pytest.raises(ConfigurationError, match=r"causal\.bos: '<s>' is no token of the network"):
        opened_plain(gpt2_folder, shift=1, bos="<s>")
    with pytest.raises(ConfigurationError, match=r"first_from_itself: .* puts \[CLS\] before a text"):
        opened(save_network(tmp_path / "spoken", gpt2()), shift=1, first_from_itself=True)


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ({"shift": 2}, r"causal\.shift"),
        ({"shift": -1}, r"causal\.shift"),
        ({}, r"causal\.shift"),
        ({"shift": 0, "mask_token": "a", "new_mask": True}, "new_mask is set; give one of them"),
        ({"shift": 0, "first_from_itself": True}, "the shift is 0; leave it out"),
        ({"shift": 1, "bos": "a", "first_from_itself": True}, "bos is 'a'; leave it out"),
    ],
)
def test_a_reading_that_no_network_has_is_refused(reading, message):
    with pytest.raises(ConfigurationError, match=message):
        parse(HuggingFaceDenoiserSource, {"folder": "gpt2", "causal": reading})


def test_attention_that_cannot_be_opened_is_refused_by_name(tmp_path):
    size = {"vocab_size": V, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 1}
    save_network(tmp_path / "mamba", transformers.MambaForCausalLM(transformers.MambaConfig(**size)))
    with pytest.raises(ConfigurationError, match=r"MambaForCausalLM\) attends to the left alone"):
        opened(tmp_path / "mamba", shift=1)
    size = {"vocab_size": V, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 16}
    size |= {"attention_types": [[["global"], 2]]}
    save_network(tmp_path / "neo", transformers.GPTNeoForCausalLM(transformers.GPTNeoConfig(**size)))
    with pytest.raises(ConfigurationError, match=r"GPTNeoForCausalLM\) attends to the left alone"):
        opened(tmp_path / "neo", shift=1)


def test_canvases_longer_than_the_network_was_trained_for_are_refused(folder):
    positions = transformers.AutoConfig.from_pretrained(folder).max_position_embeddings
    with pytest.raises(ConfigurationError, match=rf"cannot read {positions + 1} tokens: .* and 2 special ones"):
        opened(folder, length=positions - 1, shift=0)


def test_an_architecture_without_a_causal_head_is_refused(tmp_path):
    size = {"vocab_size": V, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
    save_network(tmp_path, transformers.DistilBertForMaskedLM(transformers.DistilBertConfig(**size)))
    with pytest.raises(ConfigurationError, match="cannot be opened as AutoModelForCausalLM"):
        opened(tmp_path, shift=0)
