"""Prose and names: what a reader from the field must never meet here again."""

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import PROJECT

FILES = sorted(
    path for package in ("edlm", "cluster", "workflows", "docs") for path in (PROJECT / package).rglob("*.py")
)
TESTS = sorted((PROJECT / "tests").rglob("*.py"))
FOREIGN_NAMES = (Path(__file__), PROJECT / "tests/likelihood/test_oracle.py")  # these words, and those of the oracle
LONGEST = 350  # lines of a file

# What a user reads besides the code: settings, commands, the page and the report.
SUFFIXES = {".yaml", ".yml", ".toml", ".html", ".css", ".js", ".ipynb", ".svg"}
OTHERS = [
    *(path for path in PROJECT.iterdir() if path.suffix in SUFFIXES or path.name == "Makefile"),
    *(path for folder in (".ci", "docs", "cluster", "workflows", "tests") for path in (PROJECT / folder).rglob("*")),
]
OTHERS = sorted(
    path for path in OTHERS if path.suffix in SUFFIXES or path.name in ("Makefile", "Dockerfile", "run", "gpu-check")
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


def identifiers(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of every name in the code."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every string, docstrings among them, and of every comment."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@pytest.mark.parametrize(
    "path",
    [path for path in FILES + TESTS if path not in FOREIGN_NAMES],
    ids=lambda path: path.relative_to(PROJECT).as_posix(),
)
def test_strings_and_comments_are_written_as_the_field_writes(path):
    assert [f"{line}: {match[0]}" for line, text in prose(path) for match in QUAINT.finditer(text)] == []


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_settings_commands_and_pages_are_written_as_the_field_writes(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [f"{number}: {match[0]}" for number, line in enumerate(lines, 1) for match in QUAINT.finditer(line)] == []


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_no_file_is_longer_than_a_reader_can_hold(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_one_class_name_is_one_class():
    places = defaultdict(list)
    for path in FILES + TESTS:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(path.relative_to(PROJECT).as_posix())
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize(
    "path",
    [path for path in FILES + TESTS if path not in FOREIGN_NAMES],
    ids=lambda path: path.relative_to(PROJECT).as_posix(),
)
def test_names_are_the_fields_words(path):
    assert [f"{line}: {name}" for line, name in identifiers(path) if IDENTIFIER.search(name) or name in VAGUE] == []


@pytest.mark.parametrize("path", PLAYGROUND, ids=lambda path: path.name)
def test_the_playground_has_the_fields_words(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [f"{number}: {match[0]}" for number, line in enumerate(lines, 1) for match in OLD.finditer(line)] == []
