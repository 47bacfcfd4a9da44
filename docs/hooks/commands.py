"""Flags of shell commands, marked so that a line of a narrow page does not end between their hyphens."""

import re

COMMANDS = re.compile(r'<div class="language-bash highlight">.*?</div>', re.DOTALL)
FLAG = re.compile(r"(?<=[\s>])--[\w.-]+")


def on_page_content(text: str, **_) -> str:
    """Return the page's HTML with every flag of a shell command in an element of its own."""
    return COMMANDS.sub(lambda block: FLAG.sub(r'<span class="flag">\g<0></span>', block[0]), text)
