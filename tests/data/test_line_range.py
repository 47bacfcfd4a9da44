"""Ranges of a file that follow one another have each of its lines once, where it begins."""

import io
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edlm.data import line_range
from edlm.data.line_range import LineRange


def ranges(text: bytes, cuts: list[int], size: int) -> list[bytes]:
    """The ranges between the cuts, read `size` bytes at a time."""
    found = []
    for start, stop in pairwise(cuts):
        file = LineRange(io.BufferedReader(io.BytesIO(text)), start, stop)
        found.append(b"".join(iter(lambda file=file: file.read(size), b"")))
    return found


@given(
    st.lists(st.sampled_from([b"\n", b"a\n", b"bc\n", b"\r\n", b"long line " * 9 + b"\n"])),
    st.sampled_from([b"", b"the last"]),
    st.data(),
    st.integers(1, 40),
)
def test_every_line_is_in_the_range_in_which_it_begins(lines, last, draw, size):
    text = b"".join([*lines, last])
    cuts = sorted({0, len(text), *draw.draw(st.lists(st.integers(0, len(text))))})
    found = ranges(text, cuts, size)
    assert b"".join(found) == text
    begins = [at for at in range(len(text)) if at == 0 or text[at - 1 : at] == b"\n"]
    for content, (start, stop) in zip(found, pairwise(cuts), strict=True):
        inside = [at for at in begins if start <= at < stop]
        end = next((at for at in begins if at >= stop), len(text))
        assert content == (text[inside[0] : end] if inside else b"")


def test_the_first_line_is_found_beyond_a_line_that_is_longer_than_a_read(monkeypatch):
    monkeypatch.setattr(line_range, "SEARCHED", 3)
    text = b"0123456789\nnext\n"
    file = LineRange(io.BufferedReader(io.BytesIO(text)), 2, len(text))
    assert (file.first, file.read()) == (11, b"next\n")
    assert LineRange(io.BufferedReader(io.BytesIO(text)), 12, len(text)).read() == b""
