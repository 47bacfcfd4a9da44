"""What a stream says of a text is a beginning of the whole, in whatever order its tokens come."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.http.served_model import TokenText
from edlm.data.tokenizer import Tokenizer
from edlm.inference.completion_decoding import CompletionDecoder
from edlm.inference.incremental_text import IncrementalText
from edlm.inference.stop_strings import cut
from tests.vocabularies import KINDS, TEXTS, made

MASK = 10**6
STOPS = st.lists(st.text(min_size=1, max_size=3) | st.sampled_from(["é", "살", "🤗", "the", " sa"]), max_size=3)


@dataclass
class Told:
    """A completion of `tokens` after `before`, and what is said of it as they come in an order."""

    tokenizer: Tokenizer
    tokens: list[int]
    order: list[int]
    before: list[int] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    echo: bool = False

    def __post_init__(self) -> None:
        separator, self.text = self.tokenizer.separator, CompletionDecoder(self.tokenizer, self.before)
        kept = self.tokens[: self.tokens.index(separator)] if separator in self.tokens else self.tokens
        whole = self.text.whole(kept)
        end = cut(whole, self.stops)
        whole = whole if end is None else whole[:end]
        # As an answer that is not streamed shows it.
        self.whole = self.text.echoed(kept[: self.text.count(whole, kept)], whole) if self.echo else whole
        output, now = IncrementalText(self.text, (MASK, separator), self.stops, self.echo), [MASK] * len(self.tokens)
        self.pieces, self.counts = [output.more(now)], [output.count(now)]
        for place in self.order:
            now[place] = self.tokens[place]
            self.pieces.append(output.more(now))
            self.counts.append(output.count(now))
        self.counts.append(self.text.count(whole, kept))
        self.pieces.append(output.rest(self.whole))


@settings(deadline=None, max_examples=1000)
@given(
    name=st.sampled_from(list(KINDS)),
    text=st.text(max_size=12) | st.sampled_from(TEXTS),
    stops=STOPS,
    echo=st.booleans(),
    data=st.data(),
)
def test_the_pieces_are_the_whole_in_any_order(name, text, stops, echo, data):
    tokenizer = made(name)
    noise = data.draw(st.lists(st.integers(0, tokenizer.size - 1), max_size=4))
    tokens = [*(tokenizer.encode(text).tolist() if name != "symbols" else []), *noise]
    split = data.draw(st.integers(0, len(tokens)))
    before, tokens = tokens[:split], tokens[split:]
    order = data.draw(st.permutations(range(len(tokens))))
    reported = Told(tokenizer, tokens, order, before, stops, echo)
    assert "".join(reported.pieces) == reported.whole
    assert reported.counts == sorted(reported.counts), "tokens that were counted stay so"


def test_a_text_that_a_token_shortens_keeps_what_was_streamed():
    tokenizer = made("full-stops")
    unknown, space, stop = 0, 3, 4  # " ." is decoded as ".", so that the full stop takes a letter away
    reported = Told(tokenizer, [space, stop], [0, 1], before=[unknown] * 3, echo=True)
    assert "".join(reported.pieces) == reported.whole


def test_half_a_character_is_kept_back():
    tokenizer = made("bytes")
    tokens = tokenizer.encode("aé😀b").tolist()
    reported = Told(tokenizer, tokens, list(range(len(tokens))))
    assert reported.pieces == ["", "a", "", "é", "", "", "", "😀", "b", ""]
    assert reported.counts == [0, 1, 1, 3, 3, 3, 3, 7, 8, 8]


def test_what_may_be_the_beginning_of_a_stop_is_kept_back():
    tokenizer = made("bytes")
    reported = Told(tokenizer, tokenizer.encode("abcabd").tolist(), list(range(6)), stops=["abd"])
    assert reported.pieces == ["", "", "", "abc", "", "", "", ""]


def test_an_echo_sends_its_prompt_at_once_but_for_half_a_letter():
    tokenizer, (first, *rest) = made("bytes"), list("é!".encode())
    assert Told(tokenizer, rest, [1, 0], [97, first], echo=True).pieces == ["a", "", "é!", ""]
    assert Told(tokenizer, [33], [0], [97, first], ["!"], echo=True).pieces == ["a", "\ufffd", ""]
    assert Told(tokenizer, rest, [0, 1], [97, first], ["é"], echo=True).pieces == ["a", "", "", "\ufffd"]


def test_letters_of_byte_tokens_come_whole_and_without_an_error():
    tokenizer = made("llama")
    tokens = tokenizer.encode("the 삼겹 cat").tolist()
    pieces = [piece for piece in Told(tokenizer, tokens[1:], list(range(len(tokens) - 1)), tokens[:1]).pieces if piece]
    assert pieces == [" ", "삼겹 cat"]


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("bytes", "aé", ["a", "\ufffd", "\ufffd"]),
        ("word-piece", "the cat sat", [" the", " cat", " sat"]),
        ("llama", "é", [" ", "é"]),
    ],
)
def test_a_piece_is_what_its_token_adds_to_a_text(name, text, pieces):
    tokenizer = made(name)
    known = TokenText(tokenizer)
    assert [known[token] for token in tokenizer.encode(text).tolist()] == pieces
