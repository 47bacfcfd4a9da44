"""No text spells a separator: of every kind of tokenizer.json it is proved, brought about or refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from edlm.config import ConfigurationError
from edlm.data.tokenizer import Tokenizer
from edlm.data.tokenizer_kinds import HuggingFaceTokenizer, separated
from tests.vocabularies import KINDS, made

END = "</s>"
LETTERS = ["▁", "a", "b", "<", "/", "s", ">"]
PIECES = ["<unk>", END, *LETTERS, "/s>", "</", "▁a", "Ċ", "the"]
VOCABULARY = {piece: index for index, piece in enumerate(PIECES)}


def unigram() -> tokenizers.Tokenizer:
    rust = tokenizers.Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(PIECES)], 0, False))
    rust.pre_tokenizer, rust.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return rust


def ignoring_merges() -> tokenizers.Tokenizer:
    rust = tokenizers.Tokenizer(models.BPE(vocab=VOCABULARY, merges=[], unk_token="<unk>", ignore_merges=True))
    rust.normalizer = normalizers.Replace(" ", "▁")
    rust.decoder = decoders.Fuse()
    return rust


def merging() -> tokenizers.Tokenizer:
    """BPE whose merges were made of the vocabulary, the separator's too."""
    merges = [("<", "/"), ("s", ">"), ("</", "s>")]
    vocabulary = {**VOCABULARY, "s>": len(VOCABULARY)}
    rust = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    rust.normalizer, rust.decoder = normalizers.Replace(" ", "▁"), decoders.Fuse()
    return rust


def word_level() -> tokenizers.Tokenizer:
    rust = tokenizers.Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return rust


def word_piece() -> tokenizers.Tokenizer:
    rust = tokenizers.Tokenizer(models.WordPiece({**VOCABULARY, "##a": len(VOCABULARY)}, unk_token="<unk>"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return rust


def normalised() -> tokenizers.Tokenizer:
    """Text that holds no separator becomes one that does before the model reads it."""
    rust = unigram()
    rust.normalizer = normalizers.Sequence([normalizers.Replace("§", END), normalizers.NFKC()])
    return rust


SPELT = [unigram, ignoring_merges, merging, word_level, word_piece, normalised]


def added(rust: tokenizers.Tokenizer, token: str | AddedToken = END) -> tokenizers.Tokenizer:
    rust.add_special_tokens([token])
    return rust


@pytest.mark.parametrize("kind", SPELT)
def test_these_would_spell_their_separator(kind):
    rust = added(kind())
    rust.encode_special_tokens = True
    assert any(1 in rust.encode(text).ids for text in (END, "§"))


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(SPELT), st.lists(st.sampled_from([END, "§", "＜/s＞", "<", "/s>", "a", " ", "b"]), max_size=8))
@example(unigram, ["a", END, "b"])
@example(word_level, ["a", " ", END])
def test_no_text_spells_a_separator_that_stands_in_it(kind, parts):
    text, tokenizer = "".join(parts), separated(added(kind()), END)
    ids = tokenizer.encode(text)
    assert tokenizer.separator == 1
    assert 1 not in ids
    (document,) = tokenizer.encode_documents([text])
    assert document.tolist() == [*ids.tolist(), 1]
    # What else a text says is read as before, and what looks like a separator keeps its letters.
    plain = added(kind())
    plain.encode_special_tokens = True
    before = plain.encode(text).ids
    if not {END, "§", "＜/s＞"} & set(parts) and END not in text:
        assert ids.tolist() == before
    elif kind in (unigram, ignoring_merges, merging):
        assert tokenizer.decode(ids) == plain.decode(before, skip_special_tokens=False)


@settings(deadline=None, max_examples=300)
@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=2, max_size=5), st.lists(st.booleans(), max_size=5))
@example("aa", [True, True])
@example("\n\\", [True])
@example("[(#- ]", [True, False])
def test_separators_of_any_letters_are_parted(separator, starts):
    rust = tokenizers.Tokenizer(models.Unigram([("", 0.0), (separator, -1.0), *[(c, -9.0) for c in separator]], 0))
    tokenizer = separated(added(rust, AddedToken(separator, normalized=False)), separator)
    text = "".join(separator if start else separator[1:] for start in starts)
    assert tokenizer.separator not in tokenizer.encode(text)


def test_a_separator_that_merges_of_pieces_with_a_prefix_produce_is_parted():
    merges = [("<", "##/"), ("</", "##s"), ("</s", "##>")]
    pieces = dict.fromkeys(["<unk>", END, *(part for merge in merges for part in merge)])
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    bpe = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", continuing_subword_prefix="##")
    rust = tokenizers.Tokenizer(bpe)
    assert rust.encode(END).ids == [1]
    assert 1 not in separated(added(rust), END).encode(END)


@pytest.mark.parametrize("name", KINDS)
def test_the_usual_kinds_spell_no_separator(name):
    tokenizer = made(name)
    if tokenizer.separator is None:  # there is none to spell
        return
    token = tokenizer._rust.id_to_token(tokenizer.separator)
    assert token is not None
    for text in (token, f"a{token}b", f" {token} {token}{token}"):
        assert tokenizer.separator not in tokenizer.encode(text)


def test_a_tokenizer_that_is_built_again_is_the_same(tmp_path):
    once = separated(added(unigram()), END)
    once.save(tmp_path)
    assert HuggingFaceTokenizer(uri=str(tmp_path), separator=END).build([]).digest == once.digest


@pytest.mark.parametrize("kind", [unigram, word_level, word_piece, ignoring_merges, merging])
@pytest.mark.parametrize("word", ["the", "Ċ", END])
def test_an_ordinary_piece_of_the_vocabulary_is_refused(kind, word):
    if kind is merging and word == "the":  # no merges lead to it: no text spells it
        assert separated(kind(), word).separator == VOCABULARY[word]
        return
    with pytest.raises(ConfigurationError, match=f"separator '{word}' can be spelt by text.*name a special token"):
        separated(kind(), word)


def byte_fallback() -> tokenizers.Tokenizer:
    vocabulary = {"<unk>": 0, "a": 1, "<0x0A>": 2}
    return tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))


@pytest.mark.parametrize(
    ("kind", "token", "why"),
    [
        (word_level, "<unk>", "letters that the vocabulary lacks become it"),
        (unigram, "<unk>", "letters that the vocabulary lacks become it"),
        (byte_fallback, "<0x0A>", "a byte of letters that the vocabulary lacks becomes it"),
        (word_piece, "##a", "it is a letter or a part of words"),
        (unigram, "a", "it is a letter or a part of words"),
    ],
)
def test_what_text_spells_otherwise_is_refused_though_it_is_special(kind, token, why):
    with pytest.raises(ConfigurationError, match=why):
        separated(added(kind(), token), token)


def test_an_unknown_token_that_no_letter_becomes_may_be_the_separator():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    every = {"<end>": 0} | {piece: i + 1 for i, piece in enumerate([*letters, *[f"{c}</w>" for c in letters]])}

    def clip(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
        model = models.BPE(vocab=vocabulary, merges=[], unk_token="<end>", end_of_word_suffix="</w>")
        rust = tokenizers.Tokenizer(model)
        rust.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(r"\s+"), "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        return added(rust, "<end>")

    tokenizer = separated(clip(every), "<end>")
    assert 0 not in tokenizer.encode("<end> é\ufffd\0 🤗")
    with pytest.raises(ConfigurationError, match="letters that the vocabulary lacks"):
        separated(clip({piece: i for i, piece in enumerate(every) if piece != "Ã</w>"}), "<end>")


def undone(tree: dict) -> None:
    tree["pre_tokenizer"] = tree["pre_tokenizer"]["pretokenizers"][0]


def not_special(tree: dict) -> None:
    tree["added_tokens"][-1]["special"] = False


@pytest.mark.parametrize(
    ("change", "why"), [(undone, "it becomes one token where it stands"), (not_special, "that is not special")]
)
def test_a_file_whose_separator_text_can_spell_is_not_opened(change: Callable[[dict], None], why, tmp_path: Path):
    separated(added(unigram()), END).save(tmp_path)
    tree = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    Tokenizer(json.dumps(tree))
    change(tree)
    with pytest.raises(ValueError, match=f"text can spell the separator '</s>': .*{why}.* prepare the data again"):
        Tokenizer(json.dumps(tree))
