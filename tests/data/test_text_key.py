"""Keys of texts: line ends, trailing white space and Unicode form make no other text."""

import hashlib
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edlm.data import text_key as module
from edlm.data.text_key import text_key
from tests.data.copies import marred

marrings = st.tuples(
    st.sampled_from(["NFC", "NFD"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["", " ", "\t "]),
    st.sampled_from(["", "\n", "\r\n", " \n\n"]),
)


@settings(max_examples=50, deadline=None)
@example("né\nb", ("NFD", "\r\n", "", "\n"))
@given(st.text(st.characters(exclude_characters="\r", codec="utf-8"), min_size=1, max_size=30), marrings)
def test_copies_have_one_key(text, choices):
    assert text_key(marred(text, choices)) == text_key(text)


@settings(max_examples=100, deadline=None)
@given(st.text("ab \nA", min_size=1, max_size=6), st.text("ab \nA", min_size=1, max_size=6))
def test_texts_that_differ_in_more_have_other_keys(first, other):
    def lines(text):
        return "\n".join(line.rstrip() for line in text.split("\n")).rstrip()

    assert (text_key(first) == text_key(other)) == (lines(first) == lines(other))


def at_once(text):
    """The definition, of the whole text."""
    lines = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    plain = "\n".join(line.rstrip() for line in lines).rstrip()
    return int.from_bytes(hashlib.blake2b(plain.encode("utf-8"), digest_size=8, person=b"edlm splits").digest())


@pytest.fixture(scope="module")
def small_parts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART", 3)
        yield


@pytest.mark.usefixtures("small_parts")
@settings(max_examples=300, deadline=None)
@given(
    st.text("aé~!\u0301\u0323\r\n \u2001\u2028か\u3099中\u1100\u1161\u11a8가", max_size=40)
    | st.text(st.characters(codec="utf-8"), max_size=40)
)
def test_the_key_of_a_text_in_parts_is_that_of_the_whole(text):
    assert text_key(text) == at_once(text)
