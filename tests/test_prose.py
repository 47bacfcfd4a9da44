"""Prose and names: what a reader from the field must never meet here again."""

import ast
import functools
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.paths import PROJECT

FILES = sorted(
    path for package in ("edlm", "cluster", "workflows", "docs") for path in (PROJECT / package).rglob("*.py")
)
TESTS = sorted((PROJECT / "tests").rglob("*.py"))
FOREIGN_NAMES = (Path(__file__), PROJECT / "tests/likelihood/test_oracle.py")  # these words, and those of the oracle
OWN = [path for path in FILES + TESTS if path not in FOREIGN_NAMES]
LONGEST = 350  # lines of a file

# What a user reads besides the code: settings, commands, the page and the report.
SUFFIXES = {".yaml", ".yml", ".toml", ".html", ".css", ".js", ".ipynb", ".svg"}
OTHERS = [
    *(path for path in PROJECT.iterdir() if path.suffix in SUFFIXES or path.name == "Makefile"),
    *(path for folder in (".ci", "docs", "cluster", "workflows", "tests") for path in (PROJECT / folder).rglob("*")),
]
OTHERS = sorted(
    path
    for path in OTHERS
    if path.suffix in SUFFIXES or path.name in ("Makefile", "Dockerfile", "run", "audit", "gpu-check")
)

# Persons for processes, effects told as a state, validators told as an absence, things that are under way, and "a" in
# the place of "per".
QUAINT = re.compile(
    r"\b(?:whoever|whomever|nobody|somebody|afterwards|nothing,? where|on (?:its|their) way|"
    r"(?:nats|bits|seconds|ms) an? (?:token|byte|character|word|step|stage|text|request|pass|canvas))\b",
    re.IGNORECASE,
)

# Words that once named things here, with the field's own: distribution, published sampler, unmask, score, position.
IDENTIFIER = re.compile(
    r"(?:^|_)(laws?|legacy|reveal(?:s|ed|ing)?|weighings?|warmth|whoever|nobody|somebody|bites?|mates)(?:_|$)",
    re.IGNORECASE,
)
# A whole name that says nothing of what it holds.
VAGUE = {"places", "wanted", "said", "told"}
OLD = re.compile(r"\b(weigh(?:s|ing)?|reveal(?:s|ed|ing)?|written anew|laws?)\b", re.IGNORECASE)
PLAYGROUND = sorted((PROJECT / "cluster" / "http" / "playground").iterdir())
CODE = FILES + TESTS + PLAYGROUND


@functools.cache
def source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@functools.cache
def strings_and_classes(path: Path) -> tuple[list[tuple[int, str]], list[str]]:
    """Return (line, text) of every string, docstrings among them, and the name of every class."""
    nodes = list(ast.walk(ast.parse(source(path))))
    constants = (node for node in nodes if isinstance(node, ast.Constant))
    strings = [(node.lineno, node.value) for node in constants if isinstance(node.value, str)]
    return strings, [node.name for node in nodes if isinstance(node, ast.ClassDef)]


def tokens(path: Path, kind: int) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every token of one kind. Python's tokenizer is slow: ask only if there is one to find."""
    for token in tokenize.generate_tokens(io.StringIO(source(path)).readline):
        if token.type == kind:
            yield token.start[0], token.string


def is_old(name: str) -> bool:
    return bool(IDENTIFIER.search(name)) or name in VAGUE


def old_names(path: Path) -> list[str]:
    """Return line and name of every name in the code that is not the field's."""
    if not any(map(is_old, set(re.findall(r"\w+", source(path))))):
        return []
    return [f"{line}: {name}" for line, name in tokens(path, tokenize.NAME) if is_old(name)]


def prose(path: Path) -> list[tuple[int, str]]:
    """Return (line, text) of every string, and of the comments if the file has a word of `QUAINT` anywhere."""
    strings, _ = strings_and_classes(path)
    return [*strings, *(tokens(path, tokenize.COMMENT) if QUAINT.search(source(path)) else ())]


def lines(path: Path) -> Iterator[tuple[int, str]]:
    return enumerate(source(path).splitlines(), 1)


def matches(words: re.Pattern[str], texts: Iterable[tuple[int, str]]) -> list[str]:
    return [f"{line}: {match[0]}" for line, text in texts for match in words.finditer(text)]


def by_file(paths: Iterable[Path], find: Callable[[Path], list[str]]) -> dict[str, list[str]]:
    """Return what `find` returns for every file, without the files in which it finds nothing."""
    return {path.relative_to(PROJECT).as_posix(): found for path in paths if (found := find(path))}


def test_strings_and_comments_are_written_as_the_field_writes():
    assert by_file(OWN, lambda path: matches(QUAINT, prose(path))) == {}


def test_settings_commands_and_pages_are_written_as_the_field_writes():
    assert by_file(OTHERS, lambda path: matches(QUAINT, lines(path))) == {}


def test_no_file_is_longer_than_a_reader_can_hold():
    assert [path for path in CODE if len(source(path).splitlines()) > LONGEST] == []


def test_one_class_name_is_one_class():
    places = defaultdict(list)
    for path in FILES + TESTS:
        for name in strings_and_classes(path)[1]:
            places[name].append(path.relative_to(PROJECT).as_posix())
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_names_are_the_fields_words():
    assert by_file(OWN, old_names) == {}


def test_the_playground_has_the_fields_words():
    assert by_file(PLAYGROUND, lambda path: matches(OLD, lines(path))) == {}
