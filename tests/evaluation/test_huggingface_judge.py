import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edlm.config import ConfigurationError
from edlm.data.tokenizer_kinds import BPE, Characters, HuggingFaceTokenizer
from edlm.evaluation.judge_models import HuggingFaceJudge
from tests.paths import GPT2

CHARACTERS = Characters().build([])
TEXTS = ["the cat sat on the mat", "a dog and a cat"]
WEIGHTS = "model.safetensors"
END = "<|endoftext|>"
transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")


def save_gpt2(folder: Path, tokenizer, positions: int = 24, bos: str | None = END) -> Path:
    """Save a tiny GPT-2 with random weights to `folder`, in the format of its publisher."""
    tokenizer.save(folder)
    end = {"eos_token": END, "bos_token": bos} if bos else {}
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **end)
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    size = {"vocab_size": tokenizer.size, "n_positions": positions, "n_embd": 16, "n_layer": 2, "n_head": 2}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**size)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    return BPE(size=270).build(TEXTS * 3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    return save_gpt2(tmp_path_factory.mktemp("gpt2"), tokenizer)


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def opened(folder: Path, **settings):
    return HuggingFaceJudge(name=str(folder), **settings).open(CHARACTERS)


def ids_of(text: str) -> torch.Tensor:
    return torch.from_numpy(CHARACTERS.encode(text)).long()[None]


def reference(folder: Path, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """log p of every token but the first, and the features at the last, by the library alone."""
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    with torch.no_grad():
        output = model(torch.tensor([ids]), output_hidden_states=True)
    log_p = output.logits[0].double().log_softmax(-1)
    return log_p[range(len(ids) - 1), ids[1:]], output.hidden_states[-1][0, -1]


def test_the_text_is_scored_in_the_judges_tokens_after_its_bos(saved, tokenizer):
    judge = opened(saved)
    reading = judge.read(ids_of(TEXTS[0]))
    ids = tokenizer.encode(TEXTS[0]).tolist()
    log_p, features = reference(saved, [tokenizer.separator, *ids])
    assert judge.retokenised
    assert (judge.context, judge.start) == (24, tokenizer.separator)
    assert reading.nats.item() == pytest.approx(-log_p.sum().item(), rel=1e-5)
    torch.testing.assert_close(reading.features[0], features)
    assert reading.judge_tokens.tolist() == [len(ids)]
    assert reading.characters.tolist() == [len(TEXTS[0])]


def test_bos_and_eos_are_the_users_to_choose(saved, tokenizer):
    ids = tokenizer.encode(TEXTS[1]).tolist()
    log_p, _ = reference(saved, [tokenizer.separator, *ids, tokenizer.separator])
    with_end = opened(saved, eos=True).read(ids_of(TEXTS[1]))
    assert with_end.nats.item() == pytest.approx(-log_p.sum().item(), rel=1e-5)
    assert with_end.judge_tokens.tolist() == [len(ids) + 1]
    log_p, _ = reference(saved, ids)
    without_start = opened(saved, bos=False).read(ids_of(TEXTS[1]))
    assert without_start.nats.item() == pytest.approx(-log_p.mean().item() * len(ids), rel=1e-5)


def test_a_separator_becomes_the_judges_end_of_text_and_its_spelling_does_not(saved, tokenizer):
    judge = HuggingFaceJudge(name=str(saved)).open(tokenizer)
    a, b = (tokenizer.encode(text).tolist() for text in ("the cat", "a dog"))
    for text in ([*a, tokenizer.separator, *b], [*a, tokenizer.separator], tokenizer.encode(f"a{END}").tolist()):
        log_p, _ = reference(saved, [tokenizer.separator, *text])
        assert judge.read(torch.tensor([text])).nats.item() == pytest.approx(-log_p.sum().item(), rel=1e-5)
    ended = HuggingFaceJudge(name=str(saved), eos=True).open(tokenizer).read(torch.tensor([[*a, tokenizer.separator]]))
    assert ended.judge_tokens.tolist() == [len(a) + 1]


def test_texts_of_many_lengths_do_not_disturb_one_another(saved):
    judge = opened(saved)
    texts = torch.cat([ids_of(TEXTS[0]), ids_of("q q q q q q q q q q q ")])
    lengths = torch.tensor([22, 9])
    together = judge.read(texts, lengths)
    for row in (0, 1):
        alone = judge.read(texts[row : row + 1], lengths[row : row + 1])
        torch.testing.assert_close(together.nats[row], alone.nats[0], rtol=1e-6, atol=1e-4)
        torch.testing.assert_close(together.features[row], alone.features[0], rtol=1e-4, atol=1e-4)


def test_a_text_beyond_the_context_slides_and_a_context_beyond_the_model_is_refused(saved, tokenizer):
    ids = [tokenizer.separator, *tokenizer.encode(TEXTS[0]).tolist()]
    assert len(ids) > 8
    log_p, _ = reference(saved, ids[:8])
    rest = [reference(saved, ids[start : start + 8])[0][3:] for start in range(4, len(ids) - 4, 4)]
    expected = -(log_p.sum() + sum(part.sum() for part in rest)).item()
    assert opened(saved, context=8).read(ids_of(TEXTS[0])).nats.item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ConfigurationError, match=r"judge\.context 25 is above the 24 positions"):
        opened(saved, context=25)


def test_its_name_shows_one_set_of_weights_from_another(saved, folder):
    assert opened(saved).name.rpartition("@")[2] == opened(folder).name.rpartition("@")[2]
    weights = load_file(folder / WEIGHTS)
    weights["transformer.ln_f.weight"] += 1
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    assert opened(saved).name.rpartition("@")[2] != opened(folder).name.rpartition("@")[2]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: w.pop("transformer.h.1.mlp.c_fc.weight"), r"1 missing weights: transformer\.h\.1\.mlp\.c_fc"),
        (lambda w: w.update(head=torch.ones(2)), "1 unexpected weights: .*head"),
        (lambda w: w.update({"transformer.ln_f.weight": torch.ones(3)}), r"mismatched|size mismatch"),
        (
            lambda w: w["transformer.ln_f.bias"].fill_(torch.nan),
            r"weights that are not finite: transformer\.ln_f\.bias",
        ),
    ],
)
def test_weights_that_do_not_fill_the_network_are_refused(folder, damage, message):
    weights = load_file(folder / WEIGHTS)
    damage(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(ConfigurationError, match=message):
        opened(folder)


def test_a_pickle_is_not_opened(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(ConfigurationError, match=r"holds no safetensors but pytorch_model\.bin.*workflows\.convert"):
        opened(folder)


def test_adapters_beside_the_weights_are_refused_before_they_are_read(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "a/b"}))
    with pytest.raises(ConfigurationError, match=r"holds adapters of peft \(adapter_config\.json\).*merge them first"):
        opened(folder)


def test_code_of_the_makers_is_not_run(folder, tmp_path):
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "theirs", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ConfigurationError, match="code, which is not run otherwise"):
        opened(folder)
    assert not (tmp_path / "ran").exists()


def test_a_network_that_reads_ahead_is_no_judge(tmp_path, tokenizer):
    save_gpt2(tmp_path, tokenizer)
    size = {"vocab_size": tokenizer.size, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = transformers.BertLMHeadModel(transformers.BertConfig(**size, intermediate_size=16))
    network.save_pretrained(tmp_path)
    with pytest.raises(
        ConfigurationError, match="reads ahead of the token it predicts: it is not causal; name a causal language model"
    ):
        opened(tmp_path)


def test_special_tokens_that_are_not_there_are_asked_for_in_vain(tmp_path, tokenizer):
    save_gpt2(tmp_path, tokenizer, bos=None)
    with pytest.raises(ConfigurationError, match=r"judge\.bos: .* set judge\.bos false"):
        opened(tmp_path)
    with pytest.raises(ConfigurationError, match=r"judge\.eos: .* set judge\.eos false"):
        opened(tmp_path, bos=False, eos=True)
    assert opened(tmp_path, bos=False).start is None


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="nowhere' is no repository's name on the hub"):
        opened(tmp_path / "nowhere")


def test_without_the_library_the_extra_is_named(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigurationError, match=r'in a checkout of the project, run pip install "\.\[hf\]"'):
        opened(saved)


def test_gpt2s_vocabulary_judges_characters(tmp_path):
    if not GPT2.is_dir():
        pytest.skip(f"the vocabulary of GPT-2 is not at {GPT2}")
    tokenizer = HuggingFaceTokenizer(uri=str(GPT2)).build([])
    save_gpt2(tmp_path, tokenizer)
    reading = opened(tmp_path).read(ids_of("hello world this is gpt two s"))
    ids = tokenizer.encode("hello world this is gpt two s").tolist()
    log_p, _ = reference(tmp_path, [50256, *ids])
    assert reading.nats.item() == pytest.approx(-log_p.sum().item(), rel=1e-5)
    assert (reading.judge_tokens.item(), reading.characters.item()) == (len(ids), 29)
