"""Decoders whose texts may change anywhere are distinguished from those whose texts only grow at the end."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models

from edlm.data.stable_prefix import Growth
from edlm.data.tokenizer import Tokenizer
from tests.vocabularies import KINDS, UNSTREAMABLE, llama, made


@pytest.mark.parametrize("name", KINDS)
def test_texts_of_the_usual_decoders_grow_with_their_tokens(name):
    tokenizer = made(name)
    ids = tokenizer.encode("cat").tolist() * 10
    assert 0 < len(tokenizer.stable_prefix(ids)) <= len(tokenizer.decode(ids))


REFUSED = [  # name, reason, way out
    ("pattern", "the step Replace may change any part of the text", "put Replace before the step that joins them"),
    ("clean-up", "the step WordPiece may change any part of the text", "put WordPiece before the step that joins"),
    ("inner-suffix", "its suffix '</w>' is empty or stands within a token", "make BPEDecoder the only step"),
    ("bytes-changed", "the step Replace may change pieces before ByteFallback", "put ByteFallback first"),
]


@pytest.mark.parametrize(("name", "why", "way_out"), REFUSED)
def test_a_decoder_whose_texts_cannot_be_streamed_is_refused_with_the_way_out(name, why, way_out):
    with pytest.raises(ValueError, match=r"cannot be streamed: .*; change the decoder in tokenizer\.json") as refused:
        made(name)
    assert why in str(refused.value)
    assert way_out in str(refused.value)


def test_no_more_is_kept_back_than_may_change():
    assert Growth().stable_prefix("a\ufffd") == "a\ufffd"
    assert Growth(partial=True).stable_prefix("a\ufffd\ufffd") == "a\ufffd"
    assert Growth(partial=True).stable_prefix("ab") == "ab"
    assert [Growth(letters=2).stable_prefix(text) for text in ("", "a", "abc")] == ["", "", "a"]


def test_every_unstreamable_kind_is_looked_at():
    assert {name for name, _, _ in REFUSED} == set(UNSTREAMABLE)


def test_a_step_that_the_library_breaks_off_at_is_refused():
    with pytest.raises(ValueError, match=r"strips 1 letters from the end of pieces .* set its stop to 0"):
        llama(decoders.Strip(" ", 0, 1))


def test_a_nested_sequence_is_read_as_its_steps():
    rust = tokenizers.Tokenizer(models.BPE(vocab={"<0xC3>": 0, "<0xA9>": 1, "é": 2, " ": 3}, merges=[]))
    rust.decoder = decoders.Sequence([decoders.Sequence([decoders.ByteFallback()]), decoders.Fuse()])
    tokenizer = Tokenizer(json.dumps(json.loads(rust.to_str())))
    assert [tokenizer.stable_prefix(ids) for ids in ([0], [0, 1], [0, 1, 2])] == ["", "", "éé"]
