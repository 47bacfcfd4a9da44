"""Links of a page that lead out of docs/, to source files, become plain text: the site holds no source files.

Where a repository is browsed, the same links open the files.
"""

import posixpath
import re
from pathlib import Path

PROJECT = Path(__file__).parents[2]
LINK = re.compile(r"(?<!!)\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)\)")


def on_page_markdown(markdown: str, page, **_) -> str:
    """Return the page without the links to source files. Raise ValueError for a link to a file that does not exist."""
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def unlinked(link: re.Match[str]) -> str:
        target = link["target"].partition("#")[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if not target or ":" in target or path.startswith("docs/"):
            return link[0]
        if not (PROJECT / path).exists():
            raise ValueError(f"docs/{page.file.src_uri} links to {path}, which does not exist")
        return link["text"]

    return LINK.sub(unlinked, markdown)
