"""Drawings and figures of a page.

SVG drawings are put into the page itself, so that their lines and letters take the colour of its theme. A figure is a
link to itself, because it may be shown smaller than it is.
"""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1]
DRAWING = re.compile(r'<p><img alt="[^"]*" src="[./]*(?P<name>[\w-]+\.svg)" ?/?></p>')
FIGURE = re.compile(r'<p>(?P<image><img alt="[^"]*" src="(?P<source>[^":]+\.png)" ?/?>)</p>')


def on_page_content(text: str, **_) -> str:
    """Return the page's HTML with the drawings of docs/ in place of links to them, and links around its figures."""
    text = FIGURE.sub(r'<p><a href="\g<source>">\g<image></a></p>', text)
    return DRAWING.sub(lambda image: f'<div class="drawing">{(DOCS / image["name"]).read_text("utf-8")}</div>', text)
