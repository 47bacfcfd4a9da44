"""Detokenisers: a benchmark's text as it ran before the benchmark's makers took it apart.

A model of running text has never seen " n't" or " @-@ ", so the published zero-shot tables undo them. Each variant
follows the definition of its own format. It removes the spaces and marks that the format added, and no letter or digit;
where it puts another text for a placeholder, its docstring says so. What a format leaves ambiguous stays as it is, but
for single quotes, which are paired as well as can be told. Each is meant to be applied once.
"""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edlm.config import config


@config
class Unchanged:
    """The text as the corpus gives it."""

    kind: Literal["none"] = "none"

    def detokenize(self, text: str) -> str:
        """The same text."""
        return text


@config
class WikiText:
    """WikiText (Merity 2016): Moses' spaces between words and marks, ` @-@ ` inside words, headings as `= = Life = =`.

    `<unk>` stays: the raw sets have none.
    """

    kind: Literal["wikitext"] = "wikitext"

    def detokenize(self, text: str) -> str:
        """The text line by line, headings with their marks together (`== Life ==`)."""
        return _by_line(text, lambda words: _closed_up(_heading(words), _WIKITEXT))


@config
class PennTreebank:
    """The Penn Treebank as language models know it (Mikolov 2010): small letters, hardly a mark, placeholders.

    `<unk>` becomes `?`, which that text has not, and every number, `N`, becomes `1`, as in the published tables.
    """

    kind: Literal["ptb"] = "ptb"

    def detokenize(self, text: str) -> str:
        """The text with its contractions, prices and escapes (`\\/`) as they were."""
        closed = _by_line(text, lambda words: _closed_up([_treebank_word(word) for word in words], _TREEBANK))
        return closed.replace("<unk>", "?")


@config
class LM1B:
    """The One Billion Word Benchmark (Chelba 2013): news, one sentence a document, Moses' spaces, slashes apart."""

    kind: Literal["lm1b"] = "lm1b"

    def detokenize(self, text: str) -> str:
        """The sentence with its marks, contractions and addresses (`http : / / ...`) closed up."""
        return _by_line(text, lambda words: _closed_up(words, _NEWS))


@config
class Papers:
    """Scientific Papers, arXiv and PubMed (Cohan 2018): small letters, marks apart; `@xmath0` and `@xcite` stay.

    So do hyphens and dashes: `well - known` and `a - b` look alike.
    """

    kind: Literal["papers"] = "papers"

    def detokenize(self, text: str) -> str:
        """The article line by line, marks closed up as in news."""
        return _by_line(text, lambda words: _closed_up(words, _NEWS))


@config
class Lambada:
    """LAMBADA as OpenAI published it for GPT-2 (Radford 2019): running text with typographic quotes."""

    kind: Literal["lambada"] = "lambada"

    def detokenize(self, text: str) -> str:
        """The passage with plain double quotes, on a line of its own: the published tables score it after a newline."""
        return "\n" + text.replace("“", '"').replace("”", '"').strip()


@config
class AGNews:
    """AG News (Zhang 2015): running text in which `&` of an HTML code became a space, and a line's end a backslash.

    The published tables score it as it is: `kind: none`.
    """

    kind: Literal["ag-news"] = "ag-news"

    def detokenize(self, text: str) -> str:
        """The text with its characters for their codes (`Web #39;s`: `Web's`) and spaces for backslashes."""
        return _CODE.sub(lambda code: html.unescape(f"&{code[1]};"), text).replace("\\", " ")


DetokenizerConfig = Unchanged | WikiText | PennTreebank | LM1B | Papers | Lambada | AGNews


@dataclass(frozen=True)
class _Marks:
    """Words that stood close to a neighbour in running text; what `inside` holds joined two words, so spelt."""

    after: frozenset[str] = frozenset()
    """Close to the word before."""
    before: frozenset[str] = frozenset()
    """Close to the word after."""
    inside: Mapping[str, str] = field(default_factory=dict)
    suffix: re.Pattern[str] = re.compile(r"'[^\W\d_].*")
    """Close to the word before, as "it 's", "don 't" and "O 'Neil" are in Moses' way."""


_AFTER, _BEFORE = frozenset(".,;:!?)]}%°"), frozenset("([{$£€#")
_WIKITEXT = _Marks(_AFTER, _BEFORE, {"@-@": "-", "@,@": ",", "@.@": "."})
_NEWS = _Marks(_AFTER, _BEFORE, {"/": "/"})
_TREEBANK = _Marks(
    before=frozenset({"#", "$", "us$", "c$", "a$", "hk$", "nz$"}),
    suffix=re.compile(r"n't|'[^\W\d_].*"),
)

_PLURAL = re.compile(r"(?!(as|has|his|is|its|this|us|was)$).*s|<unk>", re.IGNORECASE)  # as far as an ending tells
_NUMBER = re.compile(r"(?<![A-Za-z])N(?![A-Za-z])")  # all letters of the Treebank are small: a capital N is a number
_ESCAPE = re.compile(r"\\([/*])")
_CODE = re.compile(r"(?:^|[ &])(#\d{1,6}|quot|amp|lt|gt|nbsp);")


def _by_line(text: str, restore: Callable[[list[str]], str]) -> str:
    """The text with `restore` of the words of each line; words are parted by spaces alone."""
    return "\n".join(restore([word for word in line.split(" ") if word]) for line in text.split("\n"))


def _closed_up(words: Sequence[str], marks: _Marks) -> str:
    """The words with one space between two of them, but none where `marks`, a quote or a suffix stood close."""
    opening, closing = _quotes(words)
    pieces, close = [], True
    for i, word in enumerate(words):
        inside = word in marks.inside
        if not (close or inside or i in closing or word in marks.after or marks.suffix.fullmatch(word)):
            pieces.append(" ")
        pieces.append(marks.inside.get(word, word))
        close = inside or i in opening or word in marks.before
    return "".join(pieces)


def _quotes(words: Sequence[str]) -> tuple[set[int], set[int]]:
    """Which words are opening and which are closing quotes: they alternate, and a last one alone is neither.

    An apostrophe behind a plural, as in "the players ' union", closes where no single quote is open.
    """
    opening, closing = set(), set()
    opened: dict[str, int] = {}
    for i, word in enumerate(words):
        if word not in ('"', "'"):
            continue
        if word in opened:
            opening.add(opened.pop(word))
            closing.add(i)
        elif word == "'" and i > 0 and _PLURAL.fullmatch(words[i - 1]):
            closing.add(i)
        else:
            opened[word] = i
    return opening, closing


def _heading(words: list[str]) -> list[str]:
    """The words of a line, the single marks of a heading (`= = Life = =`) together at each end."""
    level = 0
    while 2 * level + 2 < len(words) and words[level] == words[-1 - level] == "=":
        level += 1
    return ["=" * level, *words[level : len(words) - level], "=" * level] if level else words


def _treebank_word(word: str) -> str:
    return _ESCAPE.sub(r"\1", _NUMBER.sub("1", word))
