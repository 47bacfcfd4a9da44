"""A document before it is a page: headings, paragraphs, findings, tables, pictures, texts as they are."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

_NUMBER = re.compile(r"[(+\-−]*\d[\d.]*( |$)")  # and a date, or a digest that begins with digits, is none


@dataclass(frozen=True)
class Heading:
    """The start of a section, or of a part of one (level 3)."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Bullet:
    """A point, and in bold before it whom or what it is about."""

    lead: str
    text: str


@dataclass(frozen=True)
class Bullets:
    """Points, each its own."""

    items: Sequence[Bullet]


@dataclass(frozen=True)
class Table:
    """Cells as text; a folded one is shown when asked for, where the medium can do that."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(f"table {self.caption!r} has {len(self.columns)} columns, but a row {list(wrong[0])}")

    def numeric(self, column: int) -> bool:
        """Whether a column holds numbers, which stand at the right."""
        cells = [row[column] for row in self.rows if row[column] not in ("", "–")]
        return bool(cells) and all(_NUMBER.match(cell) for cell in cells)


@dataclass(frozen=True)
class Picture:
    """A figure under the name of its file (without suffix), with what it shows in a sentence."""

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Verbatim:
    """Text whose every character counts: settings, or what a model wrote."""

    caption: str
    text: str
    folded: bool = False


DocumentBlock = Heading | Paragraph | Bullets | Table | Picture | Verbatim


@dataclass(frozen=True)
class ReportDocument:
    """A title and what follows it."""

    title: str
    blocks: Sequence[DocumentBlock]

    @property
    def pictures(self) -> list[Picture]:
        """All figures, in their order."""
        return [block for block in self.blocks if isinstance(block, Picture)]


def visible(text: str) -> str:
    """The text with every character that shows nothing, or turns the reading direction, written as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
