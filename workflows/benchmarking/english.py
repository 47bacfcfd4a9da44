"""English prose: assemble the corpus of the English benchmarks from its public sources.

python -m workflows.benchmarking.english SOURCES TARGET

SOURCES is a folder with the eight files of docs/benchmarks/english.md, which says where each is to be had. TARGET
receives train.jsonl, valid.jsonl and test.jsonl with the bytes that were measured, or nothing: documents are selected
by the SHA-256 of their text, and the three files are compared with theirs before anything is written.
"""

import argparse
import hashlib
import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile

from edlm.config import ConfigurationError

MANIFEST = Path(__file__).with_name("english_documents.txt")
"""Every document of every source, in the source's order: the first DIGITS of the SHA-256 of its text."""
DIGITS = 12

FILES = {
    "train.jsonl": "14b7f20ac4774dd0f0024e743369169b9175362eac56dee24483fa07d688056e",
    "valid.jsonl": "9f78e971375de3b83baa2d4a2ee1f61645c813798615c72a63904e3cae22d1f2",
    "test.jsonl": "4a5dab8c460730640bce347409b8bb2845e9a0c432762dbe4a69138293cbc660",
}
"""The three files and the SHA-256 of each."""


class EnglishSource(NamedTuple):
    """One public file: the name of its documents' source, where it is to be had, and how it becomes documents."""

    name: str
    suffix: str
    address: str
    documents: Callable[[Path], Iterator[str]]

    @property
    def file(self) -> str:
        return self.name + self.suffix


def reviews(path: Path) -> Iterator[str]:
    """Yield the texts of the archive with every run of white space as one space."""
    for text in _archived(path):
        yield " ".join(text.split())


def addresses(path: Path) -> Iterator[str]:
    """Yield the texts of the archive without white space at their ends."""
    for text in _archived(path):
        yield text.strip()


def chapters(path: Path) -> Iterator[str]:
    """Yield the parts of a book between three or more blank lines, the lines of a paragraph joined by spaces."""
    for part in re.split(r"\n{4,}", path.read_text(encoding="utf-8-sig")):
        yield re.sub(r"(?<!\n)\n(?!\n)", " ", part.strip())


def _archived(path: Path) -> Iterator[str]:
    """Yield the .txt files of an archive in the order of their names.

    They are decoded as Latin-1, which no byte can fail: some addresses hold bytes of other encodings.
    """
    with ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".txt"):
                yield archive.read(name).decode("latin-1").replace("\r\n", "\n")


NLTK = "https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/corpora"
GUTENBERG = "https://www.gutenberg.org/files"
SOURCES = (
    EnglishSource("movie_reviews", ".zip", f"{NLTK}/movie_reviews.zip", reviews),
    EnglishSource("state_union", ".zip", f"{NLTK}/state_union.zip", addresses),
    EnglishSource("inaugural", ".zip", f"{NLTK}/inaugural.zip", addresses),
    EnglishSource("moby-dick--or-the-whale", ".txt", f"{GUTENBERG}/2701/2701-0.txt", chapters),
    EnglishSource("pride-and-prejudice", ".txt", f"{GUTENBERG}/1342/1342-0.txt", chapters),
    EnglishSource("war-and-peace", ".txt", f"{GUTENBERG}/2600/2600-0.txt", chapters),
    EnglishSource("les-mis-rables", ".txt", f"{GUTENBERG}/135/135-0.txt", chapters),
    EnglishSource("sherlock-holmes", ".txt", f"{GUTENBERG}/1661/1661.txt", chapters),
)
"""In the order in which their documents are shuffled."""


def digest(text: str) -> str:
    """Return the first DIGITS hexadecimal digits of the text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:DIGITS]


def read_manifest(path: Path = MANIFEST) -> dict[str, list[str]]:
    """Return the digests of the documents by source: lines of digests, each source's below its name in brackets."""
    digests: dict[str, list[str]] = {}
    name = ""
    for line in path.read_text(encoding="ascii").split():
        if line.startswith("["):
            name = line.strip("[]")
            digests[name] = []
        else:
            digests[name].append(line)
    return digests


def assemble(folder: Path, manifest: Mapping[str, Sequence[str]]) -> dict[str, bytes]:
    """Return the bytes of the three files: the sources' documents, shuffled with seed 0, 90 : 5 : 5 by document.

    Raises ConfigurationError naming every absent file, or the first one that lacks documents, and its address.
    """
    sources = [source for source in SOURCES if source.name in manifest]
    if absent := [source for source in sources if not (folder / source.file).is_file()]:
        raise ConfigurationError(
            "\n    ".join([f"{folder} lacks:", *(f"{source.file} (from {source.address})" for source in absent)])
        )
    documents = [(source, text) for source in sources for text in _selected(source, folder, manifest[source.name])]
    random.Random(0).shuffle(documents)
    lines = [
        json.dumps({"source": source.name, "text": text}, ensure_ascii=False).encode("utf-8") + b"\n"
        for source, text in documents
    ]
    ends = [0, len(lines) * 90 // 100, len(lines) * 95 // 100, len(lines)]
    return {name: b"".join(lines[ends[i] : ends[i + 1]]) for i, name in enumerate(FILES)}


def _selected(source: EnglishSource, folder: Path, digests: Sequence[str]) -> list[str]:
    """Return the documents with these digests from the source's file, which may hold others."""
    path = folder / source.file
    try:
        documents = {digest(text): text for text in source.documents(path)}
    except (OSError, BadZipFile, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is damaged ({error}); get it from {source.address}") from error
    missing = [number for number, expected in enumerate(digests, 1) if expected not in documents]
    if missing:
        raise ConfigurationError(
            f"{path}: {len(missing):,} of its {len(digests):,} documents are not in it, first document {missing[0]}, "
            f"whose SHA-256 begins with {digests[missing[0] - 1]}; it is another edition, or damaged: see "
            f"docs/benchmarks/english.md for the edition, and {source.address}"
        )
    return [documents[expected] for expected in digests]


def check(files: Mapping[str, bytes]) -> None:
    """Raise ConfigurationError naming a file whose SHA-256 is not the one in FILES."""
    for name, content in files.items():
        if (found := hashlib.sha256(content).hexdigest()) != FILES[name]:
            raise ConfigurationError(
                f"{name} would have SHA-256 {found}, not {FILES[name]}, although its documents are right: this Python "
                f"({sys.version.split()[0]}) shuffles otherwise than Python 3.11; nothing was written"
            )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m workflows.benchmarking.english",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", type=Path, metavar="SOURCES")
    parser.add_argument("target", type=Path, metavar="TARGET")
    paths = parser.parse_args(arguments)
    try:
        files = assemble(paths.sources, read_manifest())
        check(files)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    paths.target.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (paths.target / name).write_bytes(content)
        print(f"{paths.target / name}: {len(content):,} bytes, SHA-256 as measured")


if __name__ == "__main__":
    main(sys.argv[1:])
