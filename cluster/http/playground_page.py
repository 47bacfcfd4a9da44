"""Playground page: one document, served from memory, which runs its own script and loads nothing from other hosts.

Its parts are in `cluster/http/playground`: the document, its style sheet, and its scripts, one per subject.
"""

import base64
import hashlib
import re
from pathlib import Path

from starlette.responses import Response

FOLDER = Path(__file__).parent / "playground"
_SHEET = re.compile(rb'<link rel="stylesheet" href="(\w+\.css)">')
_FILES = re.compile(rb'(?:<script src="\w+\.js"></script>\n)+')
_SCRIPT = re.compile(rb"<script\b[^>]*>(.*?)</script\s*>", re.DOTALL | re.IGNORECASE)
_STYLE = re.compile(rb"<style\b[^>]*>(.*?)</style\s*>", re.DOTALL | re.IGNORECASE)


def assembled() -> bytes:
    """Return the document with its style sheet and its scripts inside: one style and one script, in the given order."""

    def content(name: bytes) -> bytes:
        return (FOLDER / name.decode()).read_bytes()

    def script(tags: re.Match[bytes]) -> bytes:
        names = re.findall(rb'src="([^"]*)"', tags[0])
        return b"<script>\n" + b"".join(map(content, names)) + b"</script>\n"

    html = _SHEET.sub(lambda tag: b"<style>\n" + content(tag[1]) + b"</style>", content(b"index.html"))
    return _FILES.sub(script, html)


def page(html: bytes) -> Response:
    """Return the response to GET /; its policy permits only the scripts and styles that `html` contains now."""
    policy = {
        "default-src": "'none'",
        "script-src": _hashes(_SCRIPT, html),
        "style-src": _hashes(_STYLE, html),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
    }
    return Response(html, headers=headers, media_type="text/html")


def _hashes(element: re.Pattern[bytes], html: bytes) -> str:
    """Return the digests of the contents of these elements as Content-Security-Policy sources."""
    digests = [hashlib.sha256(content).digest() for content in element.findall(html)]
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests) or "'none'"
