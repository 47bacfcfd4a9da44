"""Playground page: one file, served from memory, which runs its own script and loads nothing from other hosts."""

import base64
import hashlib
import re
from pathlib import Path

from starlette.responses import Response

FILE = Path(__file__).parent / "playground" / "index.html"
_SCRIPT = re.compile(rb"<script\b[^>]*>(.*?)</script\s*>", re.DOTALL | re.IGNORECASE)
_STYLE = re.compile(rb"<style\b[^>]*>(.*?)</style\s*>", re.DOTALL | re.IGNORECASE)


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
