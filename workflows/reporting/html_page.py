"""Rendering of a document as one HTML page with embedded figures, without scripts or external resources."""

import base64
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from workflows.reporting.document import ReportDocument, visible
from workflows.reporting.sampler_labels import PUBLISHED


def html_page(document: ReportDocument, images: Mapping[str, bytes]) -> str:
    """Return the page; `images`: PNG data of the pictures by name."""
    return _ENVIRONMENT.get_template("report.html").render(
        title=document.title,
        published=PUBLISHED,  # marks rows of the published sampler's numerics
        blocks=[(number, type(block).__name__.lower(), block) for number, block in enumerate(document.blocks, 1)],
        images={name: base64.b64encode(content).decode("ascii") for name, content in images.items()},
    )


def _visible(value: object) -> object:
    """Escape invisible characters of any text that a template inserts; the templates' own markup stays."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _lines(text: str) -> Markup:
    """Return the text with its line breaks, and every other invisible character escaped."""
    return Markup("\n").join(visible(line) for line in text.split("\n"))


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    finalize=_visible,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters["lines"] = _lines
