"""Text keys: hashes that are equal for copies of a text."""

import hashlib
import re
import unicodedata
from collections.abc import Iterator

PART = 250_000  # characters normalised at a time: each of their lines takes some 50 bytes
# Before these the text can be cut: none is white space, and in form NFC none merges with what precedes it. They are
# printable ASCII, and the letters of scripts that have no spaces or ASCII punctuation.
_APART = re.compile("[!-~\u3041-\u3096\u30a1-\u30fa\u3400-\u9fff\uac00-\ud7a3]")


def text_key(text: str) -> int:
    """Return 64 bits of a hash of `text`, equal for copies of it.

    Texts are copies if they are equal in Unicode form NFC, with line ends LF and without white space at the end of
    lines and of the text.
    """
    # `person` makes the hash independent of plain BLAKE2b, by which the texts of a corpus may have been selected.
    digest = hashlib.blake2b(digest_size=8, person=b"edlm splits")
    for part in _normalised(text):
        digest.update(part.encode("utf-8"))
    return int.from_bytes(digest.digest())


def _normalised(text: str) -> Iterator[str]:
    """Yield the text without what may differ between copies, in parts of PART characters or somewhat more."""
    start = 0
    while start < len(text):
        apart = _APART.search(text, start + PART)
        end = len(text) if apart is None else apart.start()
        form = unicodedata.normalize("NFC", text[start:end])
        if "\r" in form:  # found in a fifth of the time of a replacement
            form = form.replace("\r\n", "\n").replace("\r", "\n")
        *lines, last = form.split("\n")
        # The last line goes on in the next part, whose first character is no white space.
        part = "\n".join([*(line.rstrip() for line in lines), last])
        yield part.rstrip() if apart is None else part
        start = end
