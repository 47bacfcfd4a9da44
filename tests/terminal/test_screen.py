"""Frames on a terminal and in a pipe: what is drawn, and that no text commands the terminal."""

import io
import os
import re
from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from edlm.inference import results
from edlm.terminal import screen
from edlm.terminal.frames import MASK, Frame
from edlm.terminal.screen import Lines, Screen, column_count, is_animated, wrapped

CONTROL = re.compile(r"\x1b\[[?\d;]*[A-Za-z]")


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(screen, "SECONDS_PER_FRAME", 0.0)


def drawn(frames: list[Frame], columns: int, rows: int) -> tuple[list[str], str]:
    """The lines of a terminal of this size after the frames, and everything that was written."""
    out = io.StringIO()
    with Screen(out) as display:
        display._size = lambda: (columns, rows)
        for frame in frames:
            display.show(frame)
    return shown(out.getvalue(), columns), out.getvalue()


def shown(written: str, columns: int) -> list[str]:
    """The lines on a terminal that knows `\\r`, `\\n`, "up" and "clear below", and wraps at its right edge."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|.", written, re.DOTALL):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
        elif part.startswith("\x1b["):
            if part.endswith("A"):
                row -= int(part[2:-1])
            elif part == "\x1b[J":
                lines = [*lines[:row], lines[row][:column]]
        else:
            if column == columns:
                row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + 1 :]
            column += 1
        lines += [""] * (row + 1 - len(lines))
    return lines


def states(words: str = "abcdefghijklmnop", prompt: str = "the ") -> Iterator[Frame]:
    for known in range(len(words) + 1):
        canvas = words[:known] + MASK * (len(words) - known)
        yield Frame(prompt, canvas, known, len(words), len(words) - known)
    yield Frame(prompt, words, len(words), len(words), 0, "steps=16")


@pytest.mark.parametrize("columns", [8, 11, 24, 80])
def test_every_frame_replaces_the_one_before_and_the_text_remains_whole(columns):
    frames = list(states())
    for end in range(1, len(frames)):
        lines, _ = drawn(frames[:end], columns, 24)
        now = frames[end - 1]
        assert "".join(lines[:-1]) == now.prompt + now.canvas
        assert lines[-1] == f"step {now.step}/16, {now.masked} masked"[: columns - 1]
    lines, written = drawn(frames, columns, 24)
    assert "".join(lines).startswith("the abcdefghijklmnopsteps=16")
    assert "the abcdefghijklmnop\n" in CONTROL.sub("", written)  # one line, for the terminal to wrap


def test_a_canvas_that_is_higher_than_the_terminal_shows_its_end():
    lines, _ = drawn([Frame("", "x" * 40 + "y" * 40, 1, 2, 0)], 9, 6)
    assert lines == ["yyyyyyyy"] * 4 + ["step 1/2"]


def test_new_characters_are_coloured_and_masks_are_dim():
    _, written = drawn(list(states("ab"))[:2], 80, 24)
    last = written.rpartition("\x1b[J")[2]
    assert f"{screen.BOLD}the {screen.PLAIN}{screen.FRESH}a{screen.PLAIN}{screen.DIM}{MASK}{screen.PLAIN}" in last
    _, written = drawn([Frame("", MASK * 2, 0, 2, 2), Frame("", "word" + MASK, 1, 2, 1)], 80, 24)
    assert screen.FRESH not in written  # tokens of several characters: which are new is not known


@pytest.mark.parametrize("failed", [False, True])
def test_the_cursor_comes_back(failed):
    out = io.StringIO()
    try:
        with Screen(out) as display:
            display.show(Frame("", "a", 1, 1, 0))
            if failed:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert out.getvalue().startswith(screen.HIDE_CURSOR)
    assert out.getvalue().endswith(screen.SHOW_CURSOR + "\n" * failed)


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=60), prompt=st.text(max_size=9), columns=st.integers(2, 30))
def test_no_text_commands_the_terminal_and_no_line_is_too_long(text, prompt, columns):
    for facts in (None, "facts"):
        _, written = drawn([Frame(prompt, text, 1, 1, 0, facts)], columns, 50)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", CONTROL.sub("", written).replace("\r", "", 1))
        commands = {command[-1] for command in CONTROL.findall(written)}
        assert commands <= set("hlJAm")
    lines = wrapped([(character, "") for character in text], columns)
    assert all(sum(column_count(character) for character, _ in line) <= columns for line in lines)


def test_wide_letters_take_two_columns_and_accents_none():
    assert [column_count(character) for character in ("a", "語", "\u0301", MASK)] == [1, 2, 0, 1]


def test_elsewhere_each_state_is_a_line_and_the_last_one_is_the_text():
    out = io.StringIO()
    with Lines(out) as display:
        for frame in states("a\nb"):
            display.show(frame)
    assert out.getvalue() == f"step 1/3: the a{MASK * 2}\nstep 2/3: the a {MASK}\nstep 3/3: the a b\nthe a\nb\n"


def test_a_pipe_and_a_dumb_terminal_are_not_animated(monkeypatch):
    assert not is_animated(io.StringIO())
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setenv("TERM", "xterm")
        assert is_animated(terminal)
        monkeypatch.setenv("TERM", "dumb")
        assert not is_animated(terminal)
    os.close(ours)


def test_the_mask_is_that_of_a_language_model():
    assert results.MASK == MASK
