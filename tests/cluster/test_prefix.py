"""What a stream says of a text is a beginning of the whole, in whatever order its tokens come."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.http.pieces import Pieces
from cluster.http.prefix import CertainText
from cluster.http.refusal import Refused
from edlm.stop import cut
from edlm.tokenizer import Tokenizer
from edlm.tokenizer_kinds import BPE, Bytes

TEXTS = ["héllo wörld, ça va? 😀 日本語 naïve façade ", "the cat and the hat and the bat " * 3]
BYTES, PAIRS = Bytes().build([]), BPE(size=300).build(TEXTS * 4)
MASK = 10**6


def told(tokenizer: Tokenizer, tokens: list[int], order: list[int], stops: list[str]) -> tuple[list[str], str]:
    """What is said while the tokens come in this order, and the whole text."""
    tokens = tokens[: tokens.index(tokenizer.separator)] if tokenizer.separator in tokens else tokens
    whole = tokenizer.decode(tokens)
    end = cut(whole, stops)
    whole = whole if end is None else whole[:end]
    text, now = CertainText(tokenizer, MASK, stops), [MASK] * len(tokens)
    said = []
    for place in order:
        if place < len(tokens):
            now[place] = tokens[place]
            said.append(text.more(now))
    return [*said, text.rest(whole)], whole


@settings(deadline=None, max_examples=200)
@given(
    tokenizer=st.sampled_from([BYTES, PAIRS]),
    text=st.text(max_size=12) | st.sampled_from(TEXTS),
    noise=st.lists(st.integers(0, 256), max_size=4),
    stops=st.lists(st.text(min_size=1, max_size=3) | st.sampled_from(["é", "😀", "the", "ll"]), max_size=3),
    data=st.data(),
)
def test_the_pieces_are_the_whole_in_any_order(tokenizer, text, noise, stops, data):
    tokens = [*tokenizer.encode(text).tolist(), *noise]
    order = data.draw(st.permutations(range(len(tokens))))
    pieces, whole = told(tokenizer, tokens, order, stops)
    assert "".join(pieces) == whole


def test_half_a_character_is_kept_back():
    tokens = BYTES.encode("aé😀b").tolist()
    pieces, _ = told(BYTES, tokens, list(range(len(tokens))), [])
    assert pieces == ["a", "", "é", "", "", "", "😀", "b", ""]


def test_what_may_be_the_beginning_of_a_stop_is_kept_back():
    tokens = BYTES.encode("abcabd").tolist()
    pieces, _ = told(BYTES, tokens, list(range(6)), ["abd"])
    assert pieces == ["", "", "abc", "", "", "", ""]


def test_a_tokenizer_whose_text_changes_is_said_so():
    class Changing:
        separator = None

        def decode(self, tokens):
            return "ab" if len(tokens) == 1 else "a"

    text = CertainText(Changing(), MASK, [])  # type: ignore[arg-type]
    assert text.more([1, MASK]) == "ab"
    with pytest.raises(Refused, match="without stream"):
        text.more([1, 1])


def test_a_piece_is_the_text_of_its_token_alone():
    pieces = Pieces(BYTES)
    assert [pieces[token] for token in BYTES.encode("aé").tolist()] == ["a", "�", "�"]
