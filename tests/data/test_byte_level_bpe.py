"""Documents encoded in bulk have the ids of the `tokenizers` library, and tokenizers of another kind are left to it."""

import itertools
import json
import sys
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from edlm.data.byte_level_bpe import LONGEST, ByteLevelBPE, byte_level_bpe
from edlm.data.token_bytes import byte_letters
from edlm.data.tokenizer import Tokenizer
from edlm.data.tokenizer_kinds import BPE, HuggingFaceTokenizer, separated
from tests.paths import DATA

END = "<end>"
LESSON = ["Don't you'll we've 1,024 the cats sat on 3 mats\n\n    and naïve 猫 sang  \t to them 🙂🙂 again"] * 3
learnt = BPE(size=310).build(LESSON)
texts = st.text(
    st.one_of(st.sampled_from("aehtns '1204,.\n\t \u00a0\u0085\u3000é猫🙂\u0301\x00"), st.characters(codec="utf-8")),
    max_size=60,
)


def merging(merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """The library's byte-level BPE with these merges, in GPT-2's form."""
    pieces = [*byte_letters(), *("".join(pair) for pair in merges)]
    rust = tokenizers.Tokenizer(
        models.BPE(vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, merges=merges)
    )
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    return rust


def by_library(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizers.Tokenizer.from_str(tokenizer.text).encode(text).ids


def encoder_of(rust: tokenizers.Tokenizer, separator: int | None) -> ByteLevelBPE | None:
    return byte_level_bpe(rust, json.loads(rust.to_str()), separator)


def bulk(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    encoder = encoder_of(tokenizers.Tokenizer.from_str(tokenizer.text), tokenizer.separator)
    assert encoder is not None
    return lambda text: encoder.encode(text).tolist()


in_bulk = bulk(learnt)


@given(texts)
def test_documents_have_the_ids_of_the_library_and_end_with_the_separator(text):
    assert in_bulk(text) == by_library(learnt, text)
    assert learnt.encode_documents([text])[0].tolist() == [*learnt.encode(text).tolist(), learnt.separator]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=8), st.text("abc", max_size=12))
def test_whatever_the_merges_are_documents_have_the_ids_of_the_library(choices, text):
    """Tokens that their bytes do not merge to, or that two merges form, are among them: those are left to it."""
    pieces, merges = ["a", "b", "c"], []
    for left, right in choices:
        pair = pieces[left % len(pieces)], pieces[right % len(pieces)]
        if pair not in merges:
            merges.append(pair)
            pieces.append("".join(pair))
    tokenizer = separated(merging(merges), END)
    assert tokenizer.encode_documents([text])[0].tolist() == by_library(tokenizer, text)


def test_texts_around_every_bound_of_letters_numbers_and_spaces_have_the_ids_of_the_library():
    kinds = [unicodedata.category(chr(code))[0] if chr(code).isspace() is False else "space" for code in CODES]
    bounds = {code for pair in itertools.pairwise(zip(CODES, kinds, strict=True)) if pair[0][1] != pair[1][1]
              for code, _ in pair}  # fmt: skip
    assert len(bounds) > 3000
    letters = [chr(code) for code in sorted(bounds)]
    lines = [f" a{c}1{c} {c}{c}.{c}a  {c}" for c in letters]
    encoded = tokenizers.Tokenizer.from_str(learnt.text).encode_batch(lines)
    assert [in_bulk(line) for line in lines] == [one.ids for one in encoded]


CODES = [code for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]


@pytest.mark.parametrize("text", [" " * 100_000 + "x", "\n" * 50_000, "ab" * 50_000, "cat " * 20_000, "a'" * 30_000])
def test_a_long_word_has_the_ids_of_the_library(text):
    assert in_bulk(text) == by_library(learnt, text)


@pytest.mark.parametrize("blanks", [LONGEST - 2, LONGEST, 1_100_000])
def test_a_document_of_white_space_as_long_as_they_come_has_the_ids_of_the_library(blanks):
    text = f"a{' ' * blanks}b"
    assert learnt.encode_documents(["cat", text])[1].tolist() == by_library(learnt, text)


def test_a_text_that_spells_the_separator_does_not_end_there():
    ids = learnt.encode_documents(["a <|endoftext|> b"])[0].tolist()
    assert ids.count(learnt.separator) == 1
    assert learnt.decode(ids[:-1]) == "a <|endoftext|> b"


def test_half_a_surrogate_pair_is_an_error_and_nothing_else_is_lost():
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        learnt.encode_documents(["fine", "a \ud800"])
    assert learnt.lost("naïve 猫 🙂 ẞ") == []


@pytest.mark.parametrize("encoder", [learnt.bulk, encoder_of(merging([("a", "b"), ("b", "c"), ("ab", "c")]), None)])
def test_an_encoder_that_is_opened_from_its_text_gives_the_same_ids(encoder):
    opened = ByteLevelBPE.of_text(encoder.text)
    for text in (*LESSON, "abcab", "", "\x00ÿ"):
        assert opened.encode(text).tolist() == encoder.encode(text).tolist()
    assert opened.text == encoder.text


def changed(**parts: Any) -> tokenizers.Tokenizer:
    """The learnt tokenizer with other parts in its file."""
    definition = json.loads(learnt.text)
    for name, part in parts.items():
        definition[name] = part(definition[name]) if callable(part) else part
    return tokenizers.Tokenizer.from_str(json.dumps(definition))


A, LAST = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
OTHERS = {
    "normalizer": changed(normalizer={"type": "NFC"}),
    "space in front": changed(pre_tokenizer=lambda part: part | {"add_prefix_space": True}),
    "no words": changed(pre_tokenizer=lambda part: part | {"use_regex": False}),
    "no splitting": changed(pre_tokenizer=None),
    "dropout": changed(model=lambda part: part | {"dropout": 0.5}),
    "whole words": changed(model=lambda part: part | {"ignore_merges": True}),
    "a word that no merge forms": changed(model=lambda part: part | {"vocab": part["vocab"] | {"xyzzy": 999}}),
    "token in texts": changed(
        added_tokens=lambda part: [*part, part[0] | {"id": 999, "content": "q", "special": False}]
    ),
    "separator in front": changed(post_processor=lambda part: part | {"single": [LAST, A]}),
    "shortened": changed(truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}),
    "two merges form a token": merging([("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")]),
    "merges that another prevents": merging([("a", "b"), ("b", "c"), ("c", "d"), ("ab", "cd"), ("a", "bc")]),
    "characters": tokenizers.Tokenizer(models.BPE(vocab={"a": 0, " ": 1}, merges=[])),
    "no BPE": tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a")),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_tokenizer_of_another_kind_is_left_to_the_library(kind):
    assert encoder_of(OTHERS[kind], learnt.separator if "separator" in kind else None) is None


@pytest.mark.skipif(not DATA.exists(), reason="needs GPT-2's vocabulary, which is not part of the repository")
def test_gpt_2_documents_have_the_ids_of_the_library():
    gpt2 = HuggingFaceTokenizer(uri=str(DATA / "gpt2")).build([])
    lines = (DATA / "english" / "valid.jsonl").read_text().splitlines()[:40]
    encoded = tokenizers.Tokenizer.from_str(gpt2.text).encode_batch(lines)
    assert [ids.tolist() for ids in gpt2.encode_documents(lines)] == [one.ids for one in encoded]
    bulk(gpt2)
