"""Pages made of the files at the project's root: CONTRIBUTING.md and CHANGELOG.md."""

import re
from pathlib import Path

from mkdocs.structure.files import File

PROJECT = Path(__file__).parents[2]
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"\]\((?P<target>[^()\s:#]+)(?P<anchor>#[^()\s]*)?\)")


def on_files(files, config, **_):
    """Add the pages; their links are relative to the root, a page's to docs/."""
    for source, page in PAGES.items():
        text = (PROJECT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=LINK.sub(_from_docs, text)))
    return files


def _from_docs(link: re.Match[str]) -> str:
    target, anchor = link["target"], link["anchor"] or ""
    inside = PAGES.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}")
    return f"]({inside}{anchor})"
