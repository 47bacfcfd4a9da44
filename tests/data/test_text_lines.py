import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edlm.config import ConfigurationError
from edlm.data import text_lines
from edlm.data.text_lines import Line, blocks, lines, whole_lines


def opened(data):
    return io.BufferedReader(io.BytesIO(data), 1 << 16)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(text_lines, "BLOCK", 3)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_text_is_the_same_wherever_a_block_ends(start):
    text = "a\r\n\rgrün\r\r\n삼겹 🤗\u2028e\r"
    assert "".join(blocks(opened(start + text.encode()), "a")) == text.replace("\r\n", "\n")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("grün\nab".encode() + b"\xf6n", "byte 8, in line 2, is 0xf6"),
        (b"\xef\xbb\xbf" + "grün\nab".encode() + b"\xf6n", "byte 11, in line 2, is 0xf6"),
        ("ab\n\n삼".encode()[:-1], "byte 4, in line 3, is 0xec"),
        (b"abc\n\nab\xec\x82", "byte 7, in line 3, is 0xec"),
    ],
)
def test_the_byte_and_the_line_that_are_not_utf8_are_named(data, message):
    with pytest.raises(ConfigurationError, match=f"a.txt is not UTF-8: {message}"):
        list(blocks(opened(data), "a.txt"))


def test_lines_are_numbered_and_keep_their_ends():
    actual = list(lines(opened(b"a\r\n \nb\x0bc\n\nd"), "a"))
    assert actual == [
        Line(1, "a\n", False),
        Line(2, " \n", True),
        Line(3, "b\x0bc\n", False),
        Line(4, "\n", True),
        Line(5, "d", False),
    ]


@pytest.mark.usefixtures("small_blocks")
def test_a_long_line_comes_in_parts_of_one_number():
    actual = list(lines(opened(b"abcdefgh  \n  ij\nk"), "a", most=4))
    assert [(line.number, line.text) for line in actual] == [
        (1, "abcdef"), (1, "gh  \n"), (2, "  ij\n"), (3, "k")
    ]  # fmt: skip
    assert not any(line.blank for line in actual)
    actual = list(lines(opened(b"         ab\n"), "a", most=4))
    assert [line.blank for line in actual] == [True, False]


@given(st.text("a\n ", max_size=60), st.integers(1, 9))
def test_lines_are_the_text(text, most):
    actual = list(lines(opened(text.encode()), "a", most))
    assert "".join(line.text for line in actual) == text
    assert all(line.number == 1 + text[: text.index(line.text)].count("\n") for line in actual[:1])


def test_a_line_that_is_needed_whole_has_a_bound(monkeypatch):
    monkeypatch.setattr(text_lines, "MOST", 1000)
    fits = "a" * 999 + "\n"
    assert [line.text for line in whole_lines(opened((fits + fits).encode()), "a")] == [fits, fits]
    for long in ("a" * 1000 + "\n", "a" * 1001, "a" * 2_000_000):
        with pytest.raises(ConfigurationError, match="a:2: a line of more than 1,000 bytes; cut it"):
            list(whole_lines(opened((fits + long).encode()), "a"))
