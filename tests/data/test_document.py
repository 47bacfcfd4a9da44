import itertools

from hypothesis import given
from hypothesis import strategies as st

from edlm.data.document import Document, pieces


def texts(parts, longest):
    return [piece.text for piece in pieces(parts, "a", longest)]


def test_a_short_text_is_one_document():
    assert list(pieces(["one ", "text"], "a", 8)) == [Document("one text", "a")]
    assert list(pieces([], "a", 8)) == []


def test_a_long_text_is_cut_after_the_last_white_space_or_exactly_where_there_is_none_near():
    assert texts(["one two three four five"], 20) == ["one two three four ", "five"]
    assert texts(["one twothreefourfive six"], 20) == ["one twothreefourfive", " six"]
    assert texts(["abcdefgh"], 3) == ["abc", "def", "gh"]
    assert texts(["a" * 19 + " " + "b" * 19], 20) == ["a" * 19 + " ", "b" * 19]


def test_a_piece_is_named_by_the_place_of_its_first_character():
    assert [piece.name for piece in pieces(["abc", "de", "fgh"], "a", 3)] == ["a[0]", "a[3]", "a[6]"]


def test_blank_pieces_are_left_out():
    assert [piece.name for piece in pieces(["abc   def"], "a", 3)] == ["a[0]", "a[6]"]
    assert texts(["  ", "\n"], 3) == []


@given(st.lists(st.text("ab \n", max_size=30)), st.integers(1, 25))
def test_pieces_keep_every_character_however_the_text_comes_in_parts(parts, longest):
    actual = list(pieces(parts, "a", longest))
    whole = "".join(parts)
    assert actual == list(pieces([whole], "a", longest))
    assert all(len(piece.text) <= longest for piece in actual)
    at = 0
    for piece in actual:
        start = int(piece.name[2:-1]) if "[" in piece.name else 0
        assert not whole[at:start].strip()  # only blank pieces are left out
        assert whole[start : start + len(piece.text)] == piece.text
        at = start + len(piece.text)
    assert not whole[at:].strip()


def test_the_text_is_read_no_further_than_the_piece_needs():
    endless = itertools.repeat("abc ")
    assert next(pieces(endless, "a", 1000)).text == "abc " * 250
