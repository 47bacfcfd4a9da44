"""The bytes of tokens, one after another, are the text that the tokenizer decodes."""

import random

import pytest

from tests.vocabularies import KINDS, made

REFUSED = {
    "clip": "BPEDecoder",
    "words": "without a decoder",
    "ctc": "CTC",
    "full-stops": "across tokens",
    "bytes-then-stops": "across tokens",
}


@pytest.mark.parametrize("name", [name for name in KINDS if name not in REFUSED])
def test_the_bytes_of_tokens_are_their_text(name):
    tokenizer, rng = made(name), random.Random(0)
    spelt = tokenizer.bytes_of_tokens
    ordinary = [index for index, text in enumerate(spelt.following) if text is not None]
    assert len(spelt.first) == len(spelt.following) == tokenizer.size
    assert tokenizer.separator not in ordinary
    assert not {tokenizer.ids()[piece] for piece in tokenizer.special_tokens} & {*ordinary}
    for _ in range(300):
        ids = rng.choices(ordinary, k=rng.randint(1, 6))
        data = (spelt.first[ids[0]] or b"") + b"".join(spelt.following[index] or b"" for index in ids[1:])
        try:
            text = data.decode()
        except UnicodeDecodeError:  # a part of a character, which no constraint allows
            continue
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_whose_tokens_change_each_others_text_is_refused(name):
    with pytest.raises(ValueError, match=REFUSED[name]):
        _ = made(name).bytes_of_tokens


def test_a_decoder_that_drops_the_first_space_says_so():
    spelt, tokenizer = made("llama").bytes_of_tokens, made("llama")
    the = tokenizer.ids()["▁the"]
    assert (spelt.first[the], spelt.following[the]) == (b"the", b" the")
    assert spelt.following[tokenizer.ids()["<0xE2>"]] == b"\xe2"
