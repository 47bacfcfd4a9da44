"""Diagnosis of files that are not UTF-8 text, with advice on converting them."""

import codecs
import re

_MAGIC = {
    b"\x1f\x8b\x08": ("a gzip file", "let its name end with .gz"),
    b"\x28\xb5\x2f\xfd": ("a Zstandard file", "let its name end with .zst"),
    b"\xfd7zXZ\x00": ("an xz file", "let its name end with .xz"),
    **{b"BZh%d1AY&SY" % level: ("a bzip2 file", "let its name end with .bz2") for level in range(1, 10)},
    b"PK\x03\x04": ("a zip archive, or an office document", "unpack or export it"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it"),
    b"PAR1\x15": ("a parquet file", "set corpus.format: parquet"),
    b"ARROW1\x00": ("an Arrow file", "write it as parquet"),
    b"\x89PNG": ("a PNG image", "leave it out of corpus.paths"),
    b"\xff\xd8\xff": ("a JPEG image", "leave it out of corpus.paths"),
    b"GIF87a": ("a GIF image", "leave it out of corpus.paths"),
    b"GIF89a": ("a GIF image", "leave it out of corpus.paths"),
    b"%PDF-": ("a PDF document", "extract its text, for example: pdftotext FILE"),
    b"\x7fELF": ("a program", "leave it out of corpus.paths"),
    b"SQLite format 3\x00": ("an SQLite database", "export its text"),
}
_WIDE = {  # UTF-32 first: its little-endian mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_MARKS_AS_LATIN1 = tuple(mark.decode("latin1").encode() for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
_STRAY = 4  # NULs or other control characters accepted in any file
_MOST_NULS = 0.01  # share of all bytes: a crawl has a few stray ones, a wrong encoding many
_MOST_CONTROLS = 0.02  # share of all bytes: compressed data has 1/10, or 1/15 after a conversion from latin1
_NO_TEXT = "it is no text; leave it out of corpus.paths, or extract its text"
_CONTROLS = re.compile(rb"[\x00-\x06\x0e-\x1a\x1c-\x1f]")
_C1 = re.compile(rb"[\x80-\x9f]")
_UNDEFINED_1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")


def not_text(head: bytes) -> str | None:
    """Return why a file that begins with `head` is not UTF-8 text, with a remedy; None if it may be.

    Many NULs or other control characters are rejected although they are valid UTF-8: text does not contain them, but
    UTF-16 and other files converted as if they were latin1 do. A model would learn every second character as a NUL.
    """
    for magic, (kind, remedy) in _MAGIC.items():
        if head.startswith(magic):
            return f"is {kind}, not text; {remedy}"
    for mark, encoding in _WIDE.items():
        if head.startswith(mark):
            return f"is {encoding.upper()}, not UTF-8; {_convert(encoding)}"
    if head.count(0) <= max(_STRAY, _MOST_NULS * len(head)):
        controls = len(_CONTROLS.findall(head))
        if controls <= max(_STRAY, _MOST_CONTROLS * len(head)):
            return None
        return f"has {controls:,} control characters among its first {len(head):,} bytes: {_NO_TEXT}"
    nuls = f"has {head.count(0):,} NUL characters among its first {len(head):,} bytes"
    if head.startswith(_MARKS_AS_LATIN1):
        return (
            f"{nuls}: it is UTF-16 that was converted as if it were latin1; take the original, and {_convert('utf-16')}"
        )
    even, odd = head[::2].count(0), head[1::2].count(0)
    if min(even, odd) * 20 < max(even, odd):  # every second byte is the high byte of one alphabet
        return f"{nuls}, as UTF-16 has; {_convert('utf-16le' if odd > even else 'utf-16be')}"
    return f"{nuls}: {_NO_TEXT}"


def not_utf8(sample: bytes) -> str:
    """Return advice on a file, given `sample`, an excerpt of it that is not UTF-8."""
    if len(_CONTROLS.findall(sample)) > max(_STRAY, _MOST_CONTROLS * len(sample)):
        return _NO_TEXT
    text = sample.decode("utf-8", errors="replace")
    invalid = text.count("\ufffd")
    if sum(not character.isascii() for character in text) > 2 * invalid:
        return "the rest is UTF-8, so some bytes are damaged; drop them: iconv -c -f utf-8 -t utf-8 FILE > NEW"
    if 2 * sum(byte > 0x7F for byte in sample) > len(sample):
        return f"most bytes are not ASCII; find its encoding, for example with `uchardet`, and {_convert('ENCODING')}"
    latin1 = not _C1.search(sample) or _UNDEFINED_1252.search(sample)
    return f"if its language is of Western Europe, {_convert('latin1' if latin1 else 'windows-1252')}"


def _convert(encoding: str) -> str:
    return f"convert it: iconv -f {encoding} -t utf-8 FILE > NEW"
