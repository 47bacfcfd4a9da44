"""Render LaTeX as MathML at build time, so that formulas need neither scripts nor the network."""

import html
import re

from latex2mathml.converter import convert

# What pymdownx.arithmatex with `generic: true` makes of $...$ and $$...$$.
FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)

# A named function that is applied without brackets; as the base of an index it has none.
_APPLIED = re.compile(r"(?<!<msub>)(?<!<msup>)<mi>(?:log|exp|argmax)</mi>(?!<mo[^>]*>\()")


def on_page_content(text: str, **_) -> str:
    """Return the page's HTML with every formula as MathML."""
    return FORMULA.sub(_mathml, text)


def _mathml(formula: re.Match[str]) -> str:
    display = "block" if formula["open"] == "[" else "inline"
    mathml = _APPLIED.sub(
        r'\g<0><mspace width="0.17em" />', convert(html.unescape(formula["latex"]).strip(), display=display)
    )
    return f'<{formula["tag"]} class="formula">{mathml}</{formula["tag"]}>'
