"""Detokenisers: a benchmark's text as running text, before the benchmark's tokenisation.

A model of running text has never seen " n't" or " @-@ ", so the published zero-shot tables undo them. Each variant
follows the definition of its own format. It removes the spaces and marks that the format added, and no letter or digit;
replacements of placeholders are stated in its docstring. What a format leaves ambiguous stays as it is, except single
quotes, which are paired on a best-effort basis. Each is meant to be applied once.
"""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edlm.config import config


@config
class Unchanged:
    """Text as the corpus gives it."""

    kind: Literal["none"] = "none"

    def detokenize(self, text: str) -> str:
        """Return the text unchanged."""
        return text


@config
class WikiText:
    """WikiText (Merity 2016): Moses spacing of words and marks, ` @-@ ` inside words, headings as `= = Life = =`.

    `<unk>` stays: the raw sets have none.
    """

    kind: Literal["wikitext"] = "wikitext"

    def detokenize(self, text: str) -> str:
        """Return the text detokenised line by line, with the marks of headings joined (`== Life ==`)."""
        return _by_line(text, lambda words: _closed_up(_heading(words), _WIKITEXT))


@config
class PennTreebank:
    """The Penn Treebank of language modelling (Mikolov 2010): lower case, hardly any punctuation, placeholders.

    `<unk>` becomes `?`, which does not occur in that text, and every number, `N`, becomes `1`, as in the published
    tables.
    """

    kind: Literal["ptb"] = "ptb"

    def detokenize(self, text: str) -> str:
        """Return the text with its contractions, prices and escapes (`\\/`) restored."""
        closed = _by_line(text, lambda words: _closed_up([_treebank_word(word) for word in words], _TREEBANK))
        return closed.replace("<unk>", "?")


@config
class LM1B:
    """The One Billion Word Benchmark (Chelba 2013): news, one sentence per document, Moses spacing, slashes apart."""

    kind: Literal["lm1b"] = "lm1b"

    def detokenize(self, text: str) -> str:
        """Return the sentence with its marks, contractions and addresses (`http : / / ...`) closed up."""
        return _by_line(text, lambda words: _closed_up(words, _NEWS))


@config
class Papers:
    """Scientific Papers, arXiv and PubMed (Cohan 2018): lower case, marks apart; `@xmath0` and `@xcite` stay.

    Hyphens and dashes stay too: `well - known` and `a - b` look alike.
    """

    kind: Literal["papers"] = "papers"

    def detokenize(self, text: str) -> str:
        """Return the article detokenised line by line, with marks closed up as in news."""
        return _by_line(text, lambda words: _closed_up(words, _NEWS))


@config
class Lambada:
    """LAMBADA as OpenAI published it for GPT-2 (Radford 2019): running text with typographic quotes."""

    kind: Literal["lambada"] = "lambada"

    def detokenize(self, text: str) -> str:
        """Return the passage with plain double quotes, after a newline, as the published tables score it."""
        return "\n" + text.replace("“", '"').replace("”", '"').strip()


@config
class AGNews:
    """AG News (Zhang 2015): running text in which `&` of an HTML entity became a space, and a line end a backslash.

    The published tables score it as it is: `kind: none`.
    """

    kind: Literal["ag-news"] = "ag-news"

    def detokenize(self, text: str) -> str:
        """Return the text with HTML entities decoded (`Web #39;s`: `Web's`) and backslashes replaced by spaces."""
        return _CODE.sub(lambda code: html.unescape(f"&{code[1]};"), text).replace("\\", " ")


DetokenizerConfig = Unchanged | WikiText | PennTreebank | LM1B | Papers | Lambada | AGNews


@dataclass(frozen=True)
class _Marks:
    """Words attached to a neighbour in running text; `inside` maps words that joined two others to their spelling."""

    after: frozenset[str] = frozenset()
    """Attached to the previous word."""
    before: frozenset[str] = frozenset()
    """Attached to the next word."""
    inside: Mapping[str, str] = field(default_factory=dict)
    suffix: re.Pattern[str] = re.compile(r"'[^\W\d_].*")
    """Attached to the previous word, as are "it 's", "don 't" and "O 'Neil" in Moses tokenisation."""


_AFTER, _BEFORE = frozenset(".,;:!?)]}%°"), frozenset("([{$£€#")
_WIKITEXT = _Marks(_AFTER, _BEFORE, {"@-@": "-", "@,@": ",", "@.@": "."})
_NEWS = _Marks(_AFTER, _BEFORE, {"/": "/"})
_TREEBANK = _Marks(
    before=frozenset({"#", "$", "us$", "c$", "a$", "hk$", "nz$"}),
    suffix=re.compile(r"n't|'[^\W\d_].*"),
)

_PLURAL = re.compile(r"(?!(as|has|his|is|its|this|us|was)$).*s|<unk>", re.IGNORECASE)  # a guess from the ending
_NUMBER = re.compile(r"(?<![A-Za-z])N(?![A-Za-z])")  # the Treebank is lower case: a capital N is a number
_ESCAPE = re.compile(r"\\([/*])")
_CODE = re.compile(r"(?:^|[ &])(#\d{1,6}|quot|amp|lt|gt|nbsp);")


def _by_line(text: str, restore: Callable[[list[str]], str]) -> str:
    """Return the text with `restore` applied to the words of each line; only spaces separate words."""
    return "\n".join(restore([word for word in line.split(" ") if word]) for line in text.split("\n"))


def _closed_up(words: Sequence[str], marks: _Marks) -> str:
    """Join the words with one space, but none where `marks`, a quote or a suffix is attached."""
    opening, closing = _quotes(words)
    pieces, attached = [], True
    for i, word in enumerate(words):
        inside = word in marks.inside
        if not (attached or inside or i in closing or word in marks.after or marks.suffix.fullmatch(word)):
            pieces.append(" ")
        pieces.append(marks.inside.get(word, word))
        attached = inside or i in opening or word in marks.before
    return "".join(pieces)


def _quotes(words: Sequence[str]) -> tuple[set[int], set[int]]:
    """Return the indices of opening and of closing quotes; they alternate, and an unpaired last one is neither.

    An apostrophe after a plural, as in "the players ' union", closes if no single quote is open.
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
    """Return the words of a line, with the single marks of a heading (`= = Life = =`) joined at each end."""
    level = 0
    while 2 * level + 2 < len(words) and words[level] == words[-1 - level] == "=":
        level += 1
    return ["=" * level, *words[level : len(words) - level], "=" * level] if level else words


def _treebank_word(word: str) -> str:
    return _ESCAPE.sub(r"\1", _NUMBER.sub("1", word))
