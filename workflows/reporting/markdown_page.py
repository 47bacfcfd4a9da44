"""Markdown rendering of a document, with figures as separate PNG files and aligned table columns."""

import re
import unicodedata
from collections.abc import Sequence

from workflows.reporting.document import (
    Bullets,
    DocumentBlock,
    Heading,
    Paragraph,
    Picture,
    ReportDocument,
    Table,
    Verbatim,
    visible,
)

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&$])")


def markdown_page(document: ReportDocument) -> str:
    """Return the Markdown text; pictures refer to `NAME.png` in the same folder."""
    return "\n\n".join([f"# {_text(document.title)}", *(_block(block) for block in document.blocks)]) + "\n"


def _block(block: DocumentBlock) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_text(text)}"
        case Paragraph(text):
            return _text(text)
        case Bullets(items):
            return "\n".join(f"- **{_text(item.lead)}:** {_text(item.text)}" for item in items)
        case Table():
            return f"*{_text(block.caption)}*\n\n{_table(block)}"
        case Picture(name, _, caption):
            return f"![{_text(caption)}]({name}.png)\n\n*{_text(caption)}*"
        case Verbatim(caption, text, _):
            return f"**{_text(caption)}**\n\n{_fenced(text)}"


def _table(table: Table) -> str:
    cells = [[_text(cell) for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(3, *(_width(row[i]) for row in cells)) for i in range(len(table.columns))]
    rule = "|" + "|".join("-" * (w + 1) + (":" if n else "-") for w, n in zip(widths, table.numeric, strict=True)) + "|"
    lines = [_line(row, widths, table.numeric) for row in cells]
    return "\n".join([lines[0], rule, *lines[1:]])


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = []
    for cell, width, right in zip(cells, widths, numeric, strict=True):
        space = " " * (width - _width(cell))
        padded.append(space + cell if right else cell + space)
    return "| " + " | ".join(padded) + " |"


def _width(text: str) -> int:
    """Return the width in terminal columns: wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _fenced(text: str) -> str:
    """Return a code block with a fence longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    lines = "\n".join(visible(line) for line in text.split("\n"))
    return f"{fence}text\n{lines}\n{fence}"


def _text(text: str) -> str:
    """Escape all characters with a meaning in Markdown or in HTML within it."""
    return _SPECIAL.sub(r"\\\1", visible(text))
