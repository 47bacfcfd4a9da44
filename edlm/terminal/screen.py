"""Frames on standard output: animated on a terminal, and as plain lines elsewhere."""

import itertools
import os
import time
import unicodedata
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self, TextIO

from edlm.terminal.frames import MASK, Frame

SECONDS_PER_FRAME, SECONDS_IN_ALL = 0.08, 4.0
"""A frame is shown at least so long, but the animation lasts no longer than this through it."""

BOLD, DIM, FRESH, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[33m", "\x1b[0m"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"

Cell = tuple[str, str]  # a character and its style


class Lines:
    """One line per frame, without control sequences; the last one is the text."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, frame: Frame) -> None:
        if frame.step == 0 and frame.facts is None:
            return  # nothing but masks
        text = frame.prompt + frame.canvas
        if frame.facts is None:
            text = f"step {frame.step}/{frame.steps}: {text}".replace("\n", " ")
        print(text, file=self._out, flush=True)


class Screen:
    """The canvas in place, redrawn with every frame; the text, as it is, remains.

    The prompt is bold and masks are dim. Characters in place of masks of the frame before are coloured, where the
    canvas has kept its length, as it does if every token is one character.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._before = ""
        self._drawn = 0  # lines above the cursor
        self._shown_at = -SECONDS_PER_FRAME

    def __enter__(self) -> Self:
        self._out.write(HIDE_CURSOR)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._out.write(PLAIN + SHOW_CURSOR + ("" if kind is None else "\n"))
        self._out.flush()

    def show(self, frame: Frame) -> None:
        """Draw the frame, once the one before has been seen."""
        pace = min(SECONDS_PER_FRAME, SECONDS_IN_ALL / max(frame.steps, 1))
        time.sleep(max(0.0, self._shown_at + pace - time.monotonic()))
        self._shown_at = time.monotonic()
        columns, rows = self._size()
        if frame.facts is None:
            cells = [*_cells(frame.prompt, BOLD), *self._canvas(frame.canvas)]
            lines = [_styled(line) for line in wrapped(cells, columns - 1)][-max(1, rows - 2) :]
            status = f"step {frame.step}/{frame.steps or '?'}, {frame.masked} masked"
            lines.append(DIM + status[: columns - 1] + PLAIN)
            end = ""
        else:  # as it is, for the terminal to wrap, so that it can be copied
            whole = [*_cells(frame.prompt, BOLD), *_cells(frame.canvas, PLAIN)]
            lines, end = [_styled(whole), *([f"{DIM}{frame.facts}{PLAIN}"] if frame.facts else [])], "\n"
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        self._out.write(f"\r{up}\x1b[J" + "\n".join(lines) + end)
        self._out.flush()
        self._drawn = len(lines) - 1

    def _canvas(self, canvas: str) -> list[Cell]:
        before = self._before if len(self._before) == len(canvas) else canvas
        self._before = canvas
        return [
            (_printable(now), DIM if now == MASK else FRESH if then == MASK else PLAIN)
            for then, now in zip(before, canvas, strict=True)
        ]

    def _size(self) -> tuple[int, int]:
        try:
            columns, rows = os.get_terminal_size(self._out.fileno())
        except OSError:
            columns, rows = 0, 0
        return (columns, rows) if columns > 1 and rows > 1 else (80, 24)


def is_animated(out: TextIO) -> bool:
    """Return whether `out` is a terminal that understands control sequences."""
    return out.isatty() and os.environ.get("TERM") != "dumb"


def wrapped(cells: Sequence[Cell], columns: int) -> Iterator[list[Cell]]:
    """Yield lines of at most `columns` columns, wherever words end: a canvas that changes stays in its place."""
    line: list[Cell] = []
    width = 0
    for character, style in cells:
        wide = column_count(character)
        if character == "\n" or width + wide > columns:
            yield line
            line, width = [], 0
        if character != "\n":
            line.append((character, style))
            width += wide
    yield line


def column_count(character: str) -> int:
    """Return how many columns of a terminal a character takes."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _cells(text: str, style: str) -> list[Cell]:
    return [(_printable(character), style) for character in text]


def _printable(character: str) -> str:
    """Return the character; of control characters, which would command the terminal, only the end of a line."""
    return character if character == "\n" or unicodedata.category(character) not in ("Cc", "Cs") else "\ufffd"


def _styled(cells: Sequence[Cell]) -> str:
    runs = itertools.groupby(cells, lambda cell: cell[1])
    return "".join(style + "".join(character for character, _ in run) + PLAIN for style, run in runs)
