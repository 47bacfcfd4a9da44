"""A completion is what the whole text adds to its prompt's, and no later token changes its stable prefix."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.data.tokenizer import Tokenizer
from edlm.inference.completion_decoding import CompletionDecoder
from tests.vocabularies import KINDS, TEXTS, made

LETTERS = "thecatsnmo .,'!|ab é살겹🤗\u0301\u200d\ufffd"


@st.composite
def rows(draw: st.DrawFn, kinds: list[str]) -> tuple[Tokenizer, list[int]]:
    """A tokenizer and tokens: a text, with any tokens among its own."""
    tokenizer = made(draw(st.sampled_from(kinds)))
    text = draw(st.text(LETTERS, max_size=12) | st.sampled_from(TEXTS))
    if not tokenizer.separator and tokenizer.size == 30:  # symbols read nothing else
        text = "".join(letter for letter in text if letter in "thecatsnmob")
    tokens = tokenizer.encode(text).tolist()
    for token in draw(st.lists(st.integers(0, tokenizer.size - 1), max_size=5)):
        tokens.insert(draw(st.integers(0, len(tokens))), token)
    return tokenizer, tokens


@settings(deadline=None, max_examples=400)
@given(rows([*KINDS]), st.data())
def test_a_prompts_text_and_the_completions_are_the_text_of_both(row, data):
    tokenizer, tokens = row
    split = data.draw(st.integers(0, len(tokens)))
    before, whole = tokenizer.decode(tokens[:split]), tokenizer.decode(tokens)
    decoder = CompletionDecoder(tokenizer, tokens[:split])
    added = decoder.whole(tokens[split:])
    assert decoder.echoed(tokens[split:], added) == whole
    if whole.startswith(before):
        assert before + added == whole
    else:  # what the completion has changed belongs to it
        assert whole.endswith(added)
        assert added[:1] != before[len(whole) - len(added) :][:1]


@settings(deadline=None, max_examples=1000)
@given(rows([*KINDS]), st.data())
def test_a_stable_prefix_remains_whatever_tokens_follow(row, data):
    tokenizer, tokens = row
    split = data.draw(st.integers(0, len(tokens)))
    here = data.draw(st.integers(split, len(tokens)))
    other = data.draw(st.lists(st.integers(0, tokenizer.size - 1), max_size=4))
    decoder = CompletionDecoder(tokenizer, tokens[:split])
    stable = decoder.stable_prefix(tokens[split:here])
    for following in (tokens[here:], other, [*tokens[here:], *other]):
        assert decoder.whole([*tokens[split:here], *following]).startswith(stable)
        assert decoder.stable_prefix([*tokens[split:here], *following]).startswith(stable)


@settings(deadline=None, max_examples=300)
@given(rows([*KINDS]), st.data())
def test_as_many_tokens_are_counted_as_add_the_text(row, data):
    tokenizer, tokens = row
    split = data.draw(st.integers(0, len(tokens)))
    decoder, tokens = CompletionDecoder(tokenizer, tokens[:split]), tokens[split:]
    whole = decoder.whole(tokens)
    text = whole[: data.draw(st.integers(0, len(whole)))]
    count = decoder.count(text, tokens)
    assert decoder.whole(tokens[:count]).startswith(text)


@pytest.mark.parametrize("name", ["bytes", "llama", "unigram", "words"])
def test_no_more_tokens_are_counted_than_it_takes(name):
    tokenizer = made(name)
    tokens = tokenizer.encode("the 삼겹 cat sat").tolist()
    decoder = CompletionDecoder(tokenizer, tokens[:1])
    whole = decoder.whole(tokens[1:])
    for end in range(len(whole) + 1):
        counts = (i for i in range(len(tokens)) if decoder.whole(tokens[1 : 1 + i]).startswith(whole[:end]))
        assert decoder.count(whole[:end], tokens[1:]) == next(counts)


@pytest.mark.parametrize("name", ["unigram", "llama", "gemma", "word-piece", "words", "clip"])
def test_a_completion_keeps_the_space_before_its_first_word(name):
    tokenizer = made(name)
    prompt, tokens = tokenizer.encode("the cat").tolist(), tokenizer.encode("the cat sat sat").tolist()
    assert tokens[: len(prompt)] == prompt
    assert CompletionDecoder(tokenizer, prompt).whole(tokens[len(prompt) :])[:4] in (" sat", " <un")


def pieces(tokenizer: Tokenizer, before: list[int], tokens: list[int]) -> list[str]:
    """What each token makes stable, and what its end does."""
    decoder = CompletionDecoder(tokenizer, before)
    texts = [decoder.stable_prefix(tokens[:count]) for count in range(len(tokens) + 1)] + [decoder.whole(tokens)]
    return [text[len(before) :] for before, text in zip(["", *texts], texts, strict=False)]


def test_letters_of_bytes_are_kept_back_while_another_byte_could_spoil_them():
    tokenizer = made("llama")
    tokens = tokenizer.encode("t삼🤗t").tolist()
    assert len(tokens) == 2 + 3 + 4 + 1 - 1  # ▁t is one token
    assert pieces(tokenizer, [], tokens) == ["", "t", "", "", "", "", "", "", "", "삼🤗t", ""]


def test_only_half_a_letter_is_kept_back_of_bytes_that_are_letters_each_by_itself():
    tokenizer = made("bytes")
    assert pieces(tokenizer, [], list("aé😀".encode())) == ["", "a", "", "é", "", "", "", "😀", ""]
    assert pieces(tokenizer, [], [0xFF, 0xFF, 65]) == ["", "", "\ufffd", "\ufffdA", ""]


def test_as_many_letters_are_kept_back_as_a_clean_up_may_change():
    tokenizer = made("bytes-then-stops")
    tokens = [tokenizer.encode(word).tolist()[0] for word in ("a", "Ġ", ".", "Ã", "©", "a")]
    assert pieces(tokenizer, [], tokens) == ["", "", "", "", "a", "", ".", "éa"]


def test_a_clean_up_that_lengthens_what_may_change_keeps_back_all_of_it():
    tokenizer = made("full-stops")
    ids = [tokenizer._rust.token_to_id(word) for word in ("a", " ", ".")]
    assert [tokenizer.decode(ids[:count]) for count in (2, 3)] == ["a---", "a."]
    assert "a.".startswith(tokenizer.stable_prefix(ids[:2]))


def test_a_prompt_that_ends_in_half_a_letter_leaves_the_letter_to_the_completion():
    tokenizer, (first, *rest) = made("bytes"), list("é!".encode())
    decoder = CompletionDecoder(tokenizer, [97, first])
    assert [decoder.stable_prefix(rest[:count]) for count in range(3)] == ["", "é", "é!"]
    assert decoder.echoed(rest, "é!") == "aé!"
    assert decoder.whole([]) == ""
    assert decoder.whole([33]) == "!"  # the half letter was U+FFFD in the prompt, too
    assert decoder.echoed([33], "!") == "a\ufffd!"
