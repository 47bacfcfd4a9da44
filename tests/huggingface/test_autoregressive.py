"""Causal networks of transformers have the library's own values, and what is no such network is refused."""

import pytest
import torch
import torch.nn.functional as F

from edlm.checkpoints.networks import open_autoregressive, save_autoregressive
from edlm.config import ConfigurationError
from edlm.cooperative_work import run_to_end
from edlm.data.tokenizer_kinds import HuggingFaceTokenizer
from edlm.energies.whole_sequence import AutoregressiveEnergy, CarryOverEnergy
from edlm.huggingface.autoregressive import HuggingFaceAutoregressiveSource
from tests.huggingface.networks import WORDS, save_network, transformers, vocabulary_of

V, L = len(WORDS), 6


def gpt2(**settings):
    size = {"vocab_size": V, "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**size | settings))


def llama(**settings):
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"vocab_size": V, "num_key_value_heads": 1, "max_position_embeddings": 12, "tie_word_embeddings": False}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**size | settings))


def cohere():
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.CohereForCausalLM(transformers.CohereConfig(**size, vocab_size=V, pad_token_id=0))


NETWORKS = {"gpt2": gpt2, "llama": llama, "padded": lambda: gpt2(vocab_size=V + 8), "scaled": cohere}
ROLES = {"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "[UNK]"}


@pytest.fixture(scope="module", params=NETWORKS)
def folder(request, tmp_path_factory):
    return save_network(tmp_path_factory.mktemp(request.param), NETWORKS[request.param](), **ROLES)


@pytest.fixture
def gpt2_folder(tmp_path):
    return save_network(tmp_path / "gpt2", gpt2(), **ROLES)


def opened(folder, **settings):
    return HuggingFaceAutoregressiveSource(folder=str(folder), **settings).open(vocabulary_of(folder), L)


def rows(n=3):
    return torch.randint(5, V, (n, L), generator=torch.Generator().manual_seed(2))


def reference(folder, x, bos="[CLS]"):
    """log p of each token after BOS, by the library alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(input_ids=F.pad(x[:, :-1], (1, 0), value=WORDS.index(bos))).logits[..., :V]
    return logits.log_softmax(-1).gather(-1, x[..., None])[..., 0]


def test_log_p_equals_the_librarys_own_after_its_bos(folder):
    torch.testing.assert_close(opened(folder).log_p(rows()), reference(folder, rows()))


def test_masks_to_the_right_change_nothing_although_the_library_has_no_such_token(folder):
    model, x = opened(folder), rows()
    masked = x.clone()
    masked[:, 4:] = V
    where = torch.zeros_like(x, dtype=torch.bool)
    where[:, :4] = True
    assert torch.allclose(model.log_p(masked, where), model.log_p(x, where), atol=1e-6)


def test_a_row_is_filled_as_alone_where_another_row_needs_more_positions_and_it_holds_masks(folder):
    model, x = opened(folder), rows(2)
    where = torch.zeros_like(x, dtype=torch.bool)
    where[0, :2] = where[1, :] = True
    x[0, 2:] = V
    u = torch.rand(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    together, log_p = run_to_end(model.fill(x, where, u))
    alone, log_p_alone = run_to_end(model.fill(x[:1], where[:1], u[:1]))
    assert torch.equal(together[0], alone[0])
    assert torch.allclose(log_p[0], log_p_alone[0], atol=1e-6)


def test_a_named_token_stands_before_texts(gpt2_folder):
    actual = opened(gpt2_folder, bos="[SEP]").log_p(rows())
    torch.testing.assert_close(actual, reference(gpt2_folder, rows(), "[SEP]"))


def test_filling_draws_from_the_distribution_given_the_tokens_to_the_left(folder):
    model, x = opened(folder), rows()
    where = torch.tensor([[0, 1, 0, 1, 1, 0]] * 2 + [[1, 0, 0, 0, 0, 0]]).bool()
    u = torch.rand(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    filled, log_p = run_to_end(model.fill(x, where, u))
    assert (filled == x)[~where].all()
    assert (log_p[~where] == 0).all()
    torch.testing.assert_close(log_p[where], reference(folder, filled)[where])
    expected = model.readout.draw(model.read(filled)[where], u[where][:, None])[0][:, 0]
    assert (filled[where] == expected).all()


def test_a_model_folder_opens_without_the_original_and_without_the_hub(folder, tmp_path, monkeypatch):
    model = opened(folder)
    HuggingFaceTokenizer(uri=str(folder), separator="[SEP]").build([]).save(tmp_path)
    save_autoregressive(tmp_path / "ours", model.state_dict(), model.config, L, tmp_path / "tokenizer.json", {})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = open_autoregressive(tmp_path / "ours")
    assert (again.log_p(rows()) == model.log_p(rows())).all()
    assert again.config == model.config
    assert "_name_or_path" not in model.config.architecture
    assert str(folder) not in (tmp_path / "ours" / "model.yaml").read_text()


def test_shared_weights_are_saved_once_also_inside_of_an_energy(gpt2_folder):
    energy = AutoregressiveEnergy(opened(gpt2_folder))
    assert {*energy.state_dict()} == {name for name, _ in energy.named_parameters()}
    other = AutoregressiveEnergy(opened(gpt2_folder))
    for weight in other.parameters():
        weight.zero_()
    other.load_state_dict(energy.state_dict())
    assert (other.model.readout.weight == energy.model.readout.weight).all()
    assert other.model.readout.weight.any()


def test_the_carry_over_energy_of_a_library_model_is_normalised(gpt2_folder):
    x, mask = rows(1), V
    xt = torch.where(torch.tensor([0, 0, 1, 0, 1, 0]).bool(), mask, x)
    energy = CarryOverEnergy(opened(gpt2_folder), mask)
    pairs = torch.cartesian_prod(torch.arange(V), torch.arange(V))
    candidates = x.repeat(len(pairs), 1)
    candidates[:, [2, 4]] = pairs
    minus_e = -energy(candidates[None], xt, torch.ones(1), torch.zeros(1, len(pairs), 1), torch.zeros(()))
    assert minus_e.logsumexp(dim=1).item() == pytest.approx(0.0, abs=1e-5)


def test_another_vocabulary_is_refused_with_the_token_that_differs(gpt2_folder, tmp_path):
    words = [*WORDS[:-1], "bird"]
    other = save_network(tmp_path / "other", gpt2(), words, **ROLES)
    with pytest.raises(ConfigurationError, match=r"16 tokens there and 16 here; id 15 is 'bird' there and 'far' here"):
        HuggingFaceAutoregressiveSource(folder=str(other)).open(vocabulary_of(gpt2_folder), L)
    longer = save_network(tmp_path / "longer", gpt2(vocab_size=V + 1), [*WORDS, "bird"], **ROLES)
    with pytest.raises(ConfigurationError, match=r"17 tokens there and 16 here; id 16 is 'bird' there and no token"):
        HuggingFaceAutoregressiveSource(folder=str(longer)).open(vocabulary_of(gpt2_folder), L)


def test_a_tokenizer_without_bos_asks_for_one(tmp_path):
    save_network(tmp_path, gpt2(), unk_token="[UNK]")
    with pytest.raises(ConfigurationError, match=r"has no BOS token.* `bos`"):
        opened(tmp_path)
    with pytest.raises(ConfigurationError, match=r"bos: '<s>' is no token of the network"):
        opened(tmp_path, bos="<s>")


def test_rows_longer_than_the_network_reads_are_refused(gpt2_folder):
    with pytest.raises(ConfigurationError, match=r"at most 12 tokens, and data\.length is 13"):
        HuggingFaceAutoregressiveSource(folder=str(gpt2_folder)).open(vocabulary_of(gpt2_folder), 13)


def test_a_network_that_reads_ahead_is_refused(tmp_path):
    size = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertLMHeadModel(transformers.BertConfig(**size, intermediate_size=16))
    with pytest.raises(ConfigurationError, match=r"BertLMHeadModel\) reads ahead"):
        opened(save_network(tmp_path, bert, **ROLES))


def test_an_architecture_that_caps_its_logits_is_refused_by_name(tmp_path):
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    gemma = transformers.Gemma2Config(
        **size, vocab_size=V, pad_token_id=0, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5
    )
    with pytest.raises(ConfigurationError, match="not the logits of Gemma2ForCausalLM itself"):
        opened(save_network(tmp_path, transformers.Gemma2ForCausalLM(gemma), **ROLES))


def test_fewer_rows_of_weights_than_tokens_are_refused(tmp_path):
    save_network(tmp_path, gpt2(vocab_size=V - 1), **ROLES)
    with pytest.raises(ConfigurationError, match="knows 15 tokens and the tokenizer 16"):
        opened(tmp_path)


def test_a_card_of_an_architecture_that_the_library_lacks_names_it(gpt2_folder):
    config = opened(gpt2_folder).config
    config.architecture["model_type"] = "gpt9"
    with pytest.raises(ConfigurationError, match=r"builds no AutoModelForCausalLM of the architecture 'gpt9'"):
        config.build(V)


def test_a_tokenizer_file_may_lack_special_tokens(tmp_path):
    """A tokenizer.json without the network's last special token still means the same by every id."""
    save_network(tmp_path / "whole", gpt2(vocab_size=V + 1), [*WORDS, "[END]"], **ROLES | {"pad_token": "[END]"})
    save_network(tmp_path / "fewer", gpt2(), **ROLES)
    model = HuggingFaceAutoregressiveSource(folder=str(tmp_path / "whole")).open(vocabulary_of(tmp_path / "fewer"), L)
    assert model.distribution(model.read(rows()), rows() >= 0).shape == (3 * L, V)
