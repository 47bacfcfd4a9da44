"""Masked networks of transformers have the library's own values at masked positions, and nothing impossible."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from edlm import equations
from edlm.checkpoints.networks import open_denoiser, save_denoiser
from edlm.config import ConfigurationError
from edlm.data.tokenizer_kinds import HuggingFaceTokenizer
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.energies.whole_sequence import BidirectionalEnergyConfig
from edlm.huggingface.denoiser import HuggingFaceDenoiserSource
from edlm.sampling.sampler import Sampler
from edlm.schedule import LogLinear
from tests.huggingface.networks import ROLES, SPECIAL, WORDS, save_network, transformers, vocabulary_of

V, L = len(WORDS), 6
SIZE = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SIZE |= {"max_position_embeddings": 16, "pad_token_id": 0}
OF_DISTILBERT = {"vocab_size": V, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
OF_ESM = {"mask_token_id": WORDS.index("[MASK]"), "position_embedding_type": "rotary", "token_dropout": True}
OF_MODERNBERT = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
NEVER = [i for i, word in enumerate(WORDS) if word in SPECIAL and word != "[SEP]"]


def bert(**settings):
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZE | settings))


NETWORKS = {
    "bert": bert,
    "padded-bert": lambda: bert(vocab_size=V + 8),
    "untied-bert": lambda: bert(tie_word_embeddings=False),
    "roberta": lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**SIZE)),
    "distilbert": lambda: transformers.DistilBertForMaskedLM(
        transformers.DistilBertConfig(**OF_DISTILBERT, max_position_embeddings=16, pad_token_id=0)
    ),
    "modernbert": lambda: transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**SIZE | OF_MODERNBERT)),
    "esm": lambda: transformers.EsmForMaskedLM(transformers.EsmConfig(**SIZE, **OF_ESM)),
}


@pytest.fixture(scope="module", params=NETWORKS)
def folder(request, tmp_path_factory):
    return save_network(tmp_path_factory.mktemp(request.param), NETWORKS[request.param]())


@pytest.fixture(scope="module")
def saved_bert(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp("bert"), bert())


@pytest.fixture
def bert_folder(saved_bert, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved_bert, tmp_path / "copy")


def opened(folder, length=L, **settings):
    return HuggingFaceDenoiserSource(folder=str(folder), **settings).open(vocabulary_of(folder), length)


def canvases(n=4):
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(5, V, (n, L), generator=generator)
    xt = torch.where(torch.rand(n, L, generator=generator) < 0.6, V, x)
    return x, xt


def theirs(folder, xt, never=NEVER):
    """log p of every token at the masked positions by the library alone, restricted to the allowed tokens."""
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    cls, sep, mask = (WORDS.index(word) for word in ("[CLS]", "[SEP]", "[MASK]"))
    rows = [[cls, *(mask if token == V else token for token in row), sep] for row in xt.tolist()]
    ids = torch.tensor(rows)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 1:-1, :V]
    logits[..., never] = -torch.inf
    return logits.log_softmax(-1)[xt == V]


def test_log_p_equals_the_librarys_own_at_every_masked_position(folder):
    denoiser, (_, xt) = opened(folder), canvases()
    actual = denoiser.log_p(denoiser.read(xt, torch.ones(len(xt))), xt == V)
    torch.testing.assert_close(actual, theirs(folder, xt))
    assert actual.shape[1] == V


def test_special_tokens_are_never_generated_and_the_rest_is_normalised(bert_folder):
    denoiser, (_, xt) = opened(bert_folder), canvases()
    log_p = denoiser.log_p(denoiser.read(xt, torch.ones(len(xt))), xt == V)
    assert (log_p[:, NEVER] == -torch.inf).all()
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(len(log_p)))
    assert log_p[:, [i for i in range(V) if i not in NEVER]].isfinite().all()


def test_named_special_tokens_may_be_generated(bert_folder):
    denoiser, (_, xt) = opened(bert_folder, generated=("[UNK]",)), canvases()
    never = [i for i in NEVER if i != WORDS.index("[UNK]")]
    actual = denoiser.log_p(denoiser.read(xt, torch.ones(len(xt))), xt == V)
    torch.testing.assert_close(actual, theirs(bert_folder, xt, never))
    with pytest.raises(ConfigurationError, match=r"generated: '\[FOO\]' is no token of the network"):
        opened(bert_folder, generated=("[FOO]",))
    with pytest.raises(ConfigurationError, match=r"mask token of .* is never generated"):
        opened(bert_folder, generated=("[MASK]",))


def test_a_model_folder_opens_without_the_original_and_without_the_hub(folder, tmp_path, monkeypatch):
    denoiser, (_, xt) = opened(folder), canvases()
    HuggingFaceTokenizer(uri=str(folder), separator="[SEP]").build([]).save(tmp_path)
    save_denoiser(
        tmp_path / "ours", denoiser.state_dict(), denoiser.config, LogLinear(), L, tmp_path / "tokenizer.json", {}
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again, t = open_denoiser(tmp_path / "ours").network, torch.ones(len(xt))
    assert (again.read(xt, t) == denoiser.read(xt, t)).all()
    assert (again.log_p(again.read(xt, t), xt == V) == denoiser.log_p(denoiser.read(xt, t), xt == V)).all()
    assert str(folder) not in (tmp_path / "ours" / "model.yaml").read_text()


def test_the_loss_trains_every_weight_that_the_logits_depend_on(folder):
    denoiser, (x, xt) = opened(folder).requires_grad_(True), canvases()
    nll = -denoiser.log_p_of(denoiser.read(xt, torch.ones(len(xt))), xt == V, x)
    equations.nelbo_integrand(nll, torch.ones(len(xt))).mean().backward()
    still = {name for name, weight in denoiser.named_parameters() if weight.grad is None}
    unused = ("contact_head", "predictions.bias")  # by the library, too: of ESM, and of BERT with untied weights
    assert not [name for name in still if not any(part in name for part in unused)]
    gradients = [weight.grad for weight in denoiser.parameters() if weight.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert len([gradient for gradient in gradients if gradient.any()]) > len(gradients) / 2


@pytest.mark.parametrize("kind", [StepEnergyConfig(width=8, heads=2), ConditionalEnergyConfig(width=8, heads=2)])
def test_heads_on_its_features_sample_texts_without_special_tokens(bert_folder, kind):
    denoiser = opened(bert_folder)
    torch.manual_seed(0)
    energy = kind.build(denoiser)
    xt = torch.full((3, L), V)
    x = Sampler(steps=3, candidates=4).sample(xt, denoiser, energy, LogLinear(), torch.arange(3))
    assert not torch.isin(x, torch.tensor([*NEVER, V])).any()


def test_the_papers_energy_needs_our_transformer(bert_folder):
    with pytest.raises(ConfigurationError, match=r"HuggingFaceDenoiser.*step or conditional"):
        BidirectionalEnergyConfig().build(opened(bert_folder))


def test_the_time_is_not_read(bert_folder):
    denoiser, (_, xt) = opened(bert_folder), canvases()
    assert (denoiser.read(xt, torch.zeros(len(xt))) == denoiser.read(xt, torch.ones(len(xt)))).all()


def test_a_tokenizer_without_a_mask_is_refused(tmp_path):
    save_network(tmp_path, bert(), **{role: token for role, token in ROLES.items() if role != "mask_token"})
    with pytest.raises(ConfigurationError, match="has no mask token"):
        opened(tmp_path)


def test_another_vocabulary_is_refused_with_the_token_that_differs(bert_folder, tmp_path):
    other = save_network(tmp_path / "other", bert(), [*WORDS[:-1], "bird"])
    with pytest.raises(ConfigurationError, match=r"id 15 is 'bird' there and 'far' here; set data\.tokenizer"):
        HuggingFaceDenoiserSource(folder=str(other)).open(vocabulary_of(bert_folder), L)


def test_a_tokenizer_file_without_the_mask_token_is_the_same_vocabulary(tmp_path):
    """Its id has no token here, so that every id means one thing."""
    words = [*(word for word in WORDS if word != "[MASK]"), "[MASK]"]
    whole = save_network(tmp_path / "whole", bert(), words)
    save_network(tmp_path / "fewer", bert(), words[:-1], **{r: t for r, t in ROLES.items() if t != "[MASK]"})
    denoiser = HuggingFaceDenoiserSource(folder=str(whole)).open(vocabulary_of(tmp_path / "fewer"), L)
    assert (denoiser.vocabulary, denoiser.mask, denoiser.config.mask) == (V - 1, V - 1, V - 1)


def test_canvases_longer_than_the_network_reads_are_refused(bert_folder):
    with pytest.raises(ConfigurationError, match=r"cannot read 17 tokens: data\.length 15 and 2 special ones"):
        opened(bert_folder, length=15)


def test_weights_that_are_not_numbers_are_named(bert_folder):
    weights = load_file(bert_folder / "model.safetensors")
    weights["bert.embeddings.LayerNorm.weight"][3] = torch.nan
    save_file(weights, bert_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigurationError, match=r"not finite: bert\.embeddings\.LayerNorm\.weight"):
        opened(bert_folder)


def test_missing_weights_are_named_and_other_tasks_heads_are_not_read(bert_folder):
    weights = load_file(bert_folder / "model.safetensors")
    more = {"cls.seq_relationship.weight": torch.zeros(2, 16), "bert.pooler.dense.bias": torch.zeros(16)}
    save_file(weights | more, bert_folder / "model.safetensors", {"format": "pt"})
    assert opened(bert_folder).width == 16
    save_file(weights | {"adapter.weight": torch.zeros(1)}, bert_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigurationError, match=r"1 unexpected weights: adapter\.weight"):
        opened(bert_folder)
    del weights["cls.predictions.transform.dense.bias"]
    save_file(weights, bert_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigurationError, match=r"1 missing weights: cls\.predictions\.transform\.dense\.bias"):
        opened(bert_folder)


def test_an_architecture_without_a_masked_head_is_refused(tmp_path):
    size = {"vocab_size": V, "n_positions": 12, "n_embd": 16, "n_layer": 1, "n_head": 2}
    save_network(tmp_path, transformers.GPT2LMHeadModel(transformers.GPT2Config(**size)))
    with pytest.raises(ConfigurationError, match="cannot be opened as AutoModelForMaskedLM"):
        opened(tmp_path)


def test_an_unknown_architecture_is_refused(bert_folder):
    settings = json.loads((bert_folder / "config.json").read_text())
    (bert_folder / "config.json").write_text(json.dumps(settings | {"model_type": "bert9000"}))
    with pytest.raises(ConfigurationError, match="bert9000"):
        opened(bert_folder)
