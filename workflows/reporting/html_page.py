"""Rendering of a document as one HTML page with embedded figures, without scripts or external resources."""

import base64
from collections.abc import Mapping, Sequence
from html import escape

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

# Permits only embedded content.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --ink: #22262b; --pale: #5d666f; --paper: #ffffff; --line: #d5dae0; --shade: #f4f6f8; --accent: #1f5fa8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --pale: #a3acb5; --paper: #15181c; --line: #3a4149; --shade: #1e2329; --accent: #8ab8f0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 1rem 0 .5rem; }
h2 { font-size: 1.3rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .4rem; }
p, li { max-width: 50rem; }
ul { padding-left: 1.2rem; }
li { margin: .3rem 0; }
a { color: var(--accent); }
nav ul { columns: 14rem; list-style: none; padding: 0; }
nav li { margin: 0; padding: .15rem 0; }
figure { margin: 1.2rem 0; }
figure img { display: block; width: 100%; min-width: 46rem; max-width: 62.5rem; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 4px; }
figcaption, .caption { color: var(--pale); font-size: .9rem; margin: 0; padding: .4rem 0; }
.scroll { overflow-x: auto; }
.scroll table { margin-bottom: 1rem; }
.scroll:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .55rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; white-space: nowrap; }
th { border-bottom: 2px solid var(--line); vertical-align: bottom; white-space: normal; }
td.n, th.n { text-align: right; }
td.w { white-space: normal; min-width: 14rem; }
tr.legacy td { font-style: italic; background: var(--shade); }
tbody tr:hover td { background: var(--shade); }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--accent); padding: .3rem 0; }
pre { background: var(--shade); padding: .8rem; overflow-x: auto; font-size: .8rem; border-radius: 4px; }
"""  # noqa: E501
LONG_CELL = 40  # characters beyond which a cell may wrap


def html_page(document: ReportDocument, images: Mapping[str, bytes]) -> str:
    """Return the page; `images`: PNG data of the pictures by name."""
    headings = [block for block in document.blocks if isinstance(block, Heading)]
    anchors = {id(heading): f"part-{number}" for number, heading in enumerate(headings, 1)}
    body = "\n".join(_block(block, anchors, images) for block in document.blocks)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(document.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{_text(document.title)}</h1></header>
{_contents(headings, anchors)}
<main>
{body}
</main>
</body>
</html>
"""


def _contents(headings: Sequence[Heading], anchors: Mapping[int, str]) -> str:
    links = "".join(f'<li><a href="#{anchors[id(h)]}">{_text(h.text)}</a></li>' for h in headings if h.level == 2)
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def _block(block: DocumentBlock, anchors: Mapping[int, str], images: Mapping[str, bytes]) -> str:
    match block:
        case Heading(text, level):
            return f'<h{level} id="{anchors[id(block)]}">{_text(text)}</h{level}>'
        case Paragraph(text):
            return f"<p>{_text(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li><b>{_text(i.lead)}:</b> {_text(i.text)}</li>" for i in items) + "</ul>"
        case Table():
            return _folded(block.caption, _table(block)) if block.folded else _table(block)
        case Picture(name, _, caption):
            data = base64.b64encode(images[name]).decode("ascii")
            image = f'<img alt="{_text(caption)}" src="data:image/png;base64,{data}">'
            return f"<figure>{_scrolling(caption, image)}<figcaption>{_text(caption)}</figcaption></figure>"
        case Verbatim(caption, text, folded):
            content = f"<pre>{_lines(text)}</pre>"
            return _folded(caption, content) if folded else f"<h3>{_text(caption)}</h3>{content}"


def _folded(caption: str, content: str) -> str:
    return f"<details><summary>{_text(caption)}</summary>{content}</details>"


def _table(table: Table) -> str:
    numeric = [table.numeric(i) for i in range(len(table.columns))]
    head = "".join(
        f'<th scope="col"{_class("n" if n else "")}>{_text(c)}</th>'
        for c, n in zip(table.columns, numeric, strict=True)
    )
    lines = []
    for row in table.rows:
        cells = "".join(
            f"<td{_class('n' if n else 'w' if len(cell) > LONG_CELL else '')}>{_text(cell)}</td>"
            for cell, n in zip(row, numeric, strict=True)
        )
        lines.append(f"<tr{_class('legacy' if any('legacy' in cell for cell in row) else '')}>{cells}</tr>")
    caption = "" if table.folded else f'<p class="caption">{_text(table.caption)}</p>'
    content = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return caption + _scrolling(table.caption, content)


def _scrolling(name: str, content: str) -> str:
    """Wrap the content in a horizontally scrolling region that is reachable by keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{_text(name)}">{content}</div>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _text(text: str) -> str:
    return escape(visible(text), quote=True)


def _lines(text: str) -> str:
    return "\n".join(_text(line) for line in text.split("\n"))
