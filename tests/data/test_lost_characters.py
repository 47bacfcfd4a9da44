import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from edlm.data import lost_characters
from edlm.data.lost_characters import Losses
from edlm.data.tokenizer import Tokenizer
from edlm.data.tokenizer_kinds import BPE, Bytes, Characters

ENGLISH = "Some text, with punctuation: 7 + 1 = 8 -- naïve façades, too!\n" * 20
ARABIC, CHINESE, GREEK = "مرحبا بالعالم " * 20, "你好，世界。" * 20, "καλημέρα " * 20


def lost(tokenizer, *texts):
    losses = Losses()
    losses.look(tokenizer, texts)
    return losses.notable()


@pytest.mark.parametrize("text", [ARABIC, CHINESE, GREEK])
def test_an_alphabet_that_lacks_a_script_states_so_with_its_letters(text):
    actual = lost(Characters().build([]), text)
    assert actual.share > 0.6
    assert set(actual.examples) <= set(text)
    assert all(letter.isalpha() for letter in actual.examples)
    assert actual.sample == sum(not letter.isspace() for letter in text)


def test_what_an_alphabet_spells_otherwise_is_not_lost():
    assert lost(Characters().build([]), ENGLISH) is None


@pytest.mark.parametrize("tokenizer", [Bytes(), BPE(size=260)])
def test_bytes_lose_nothing(tokenizer):
    built = tokenizer.build([ENGLISH])
    assert lost(built, ENGLISH, ARABIC, CHINESE, GREEK, "🤗 \0") is None


def test_the_share_is_of_characters_and_the_most_frequent_are_named_first():
    text = "a" * 90 + "я" * 6 + "ж" * 4
    actual = lost(Characters().build([]), text)
    assert (actual.share, actual.examples, actual.sample) == (pytest.approx(0.1), ("я", "ж"), 100)
    assert lost(Characters().build([]), "a" * 99 + "я") is None
    assert lost(Characters().build([]), "a" * 98 + "яя").share == pytest.approx(0.02)


def unknowing(model):
    rust = tokenizers.Tokenizer(model)
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    rust.add_special_tokens(["<end>"])
    end = [("<end>", rust.token_to_id("<end>"))]
    rust.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=end)
    return Tokenizer(rust.to_str())


@pytest.mark.parametrize(
    "model",
    [
        models.WordPiece({"[UNK]": 0, "some": 1, "text": 2}, unk_token="[UNK]"),
        models.Unigram([("<unk>", 0.0), ("some", -1.0), ("text", -1.0)], unk_id=0),
    ],
    ids=["word-piece", "unigram"],
)
def test_what_the_unknown_token_stands_for_is_lost(model):
    actual = lost(unknowing(model), "some text ☃☃ some")
    assert (actual.share, actual.examples) == (pytest.approx(2 / 14), ("☃",))


def test_a_bounded_part_of_each_batch_is_looked_at(monkeypatch):
    monkeypatch.setattr(lost_characters, "SAMPLED", 10)
    losses, tokenizer = Losses(), Characters().build([])
    losses.look(tokenizer, ["abcdefg", "яяяяяя", "ж"])
    losses.look(tokenizer, ["ab", "c"])
    actual = losses.notable()
    assert (actual.examples, actual.sample, actual.share) == (("я",), 13, pytest.approx(3 / 13))
