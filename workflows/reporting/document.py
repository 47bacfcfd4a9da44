"""Format-independent document: headings, paragraphs, findings, tables, pictures and verbatim text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from matplotlib.figure import Figure

_NUMBER = re.compile(r"[(+\-−]*\d[\d.]*( |$)")  # does not match a date or a digest that begins with digits


@dataclass(frozen=True)
class Heading:
    """Heading of a section, or of a subsection (level 3)."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Bullet:
    """List item: the subject `lead`, in bold, and the text."""

    lead: str
    text: str


@dataclass(frozen=True)
class Bullets:
    """Bulleted list."""

    items: Sequence[Bullet]


@dataclass(frozen=True)
class Table:
    """Table of text cells; a folded table is collapsed until opened, if the output format supports it."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(f"table {self.caption!r} has {len(self.columns)} columns, but a row {list(wrong[0])}")

    @cached_property
    def numeric(self) -> Sequence[bool]:
        """Whether each column holds numbers, which are right-aligned."""
        return [self._is_numeric(column) for column in range(len(self.columns))]

    def _is_numeric(self, column: int) -> bool:
        cells = [row[column] for row in self.rows if row[column] not in ("", "–")]
        return bool(cells) and all(_NUMBER.match(cell) for cell in cells)


@dataclass(frozen=True)
class Picture:
    """Figure with its file name (without suffix) and a caption of one sentence."""

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Verbatim:
    """Text shown character by character: settings or generated text."""

    caption: str
    text: str
    folded: bool = False


DocumentBlock = Heading | Paragraph | Bullets | Table | Picture | Verbatim


@dataclass(frozen=True)
class ReportDocument:
    """Title and blocks of a document."""

    title: str
    blocks: Sequence[DocumentBlock]

    @property
    def pictures(self) -> list[Picture]:
        """All pictures, in order."""
        return [block for block in self.blocks if isinstance(block, Picture)]


def visible(text: str) -> str:
    """Return the text with invisible characters and changes of the reading direction escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
