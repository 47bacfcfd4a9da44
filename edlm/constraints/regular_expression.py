"""Regular expressions as Python writes them, translated to Rust's syntax with a meaning that both agree on.

`outlines-core` reads the syntax of Rust's `regex` crate; texts are checked with Python's `re`, or as ECMAScript does
for JSON schemas. Where these differ, the translation matches what all of them match: `\\d`, `\\w` and `\\s` are ASCII,
and their complements exclude what is a digit, a word character or a space to any of them. What only one of them knows,
and what no finite automaton can do (look-around, backreferences), is refused by name.
"""

import itertools
import re
import warnings

from edlm.config import ConfigurationError

MOST_LETTERS = 20_000  # of an expression
MOST_NESTED = 200  # groups within one another: the parsers of Python and Rust are recursive
_ASCII = {"d": "0-9", "w": "0-9A-Za-z_", "s": r" \t\n\r\f\v"}
_ANY = {"d": r"\d", "w": r"\w\p{N}", "s": r"\s\x1c-\x1f"}  # what is one in Python or in Rust
_SAME_ESCAPES = "nrtfv"
_HEXADECIMAL = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})")
_REPEAT = re.compile(r"[*+?]|\{\d*,?\d*\}")
_GROUP = re.compile(r"\((?:\?:|\?P<\w+>|\?i:)?(?!\?)")
_NO_GROUP = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL
)  # escapes and sets, in which parentheses are letters
_SPECIAL = frozenset(r"\.+*?()|[]{}^$#&-~")
NUL_REFUSED = "the character NUL cannot stand in a text with a constraint; leave it out"


def literal(text: str) -> str:
    """Return the expression, in Rust's syntax, that matches this text alone."""
    if "\0" in text:
        raise ConfigurationError(NUL_REFUSED)
    return "".join(f"\\{letter}" if letter in _SPECIAL else letter for letter in text)


def translated(pattern: str) -> str:
    """Return a Python regular expression in Rust's syntax; raise ConfigurationError for what is not in both.

    No text that the result matches has the character NUL: `outlines-core` gets it as a sign of the beginning.
    """
    if len(pattern) > MOST_LETTERS:
        raise ConfigurationError(
            f"the regular expression has {len(pattern):,} characters; at most {MOST_LETTERS:,} are read"
        )
    if (depth := _nesting(pattern)) > MOST_NESTED:
        raise ConfigurationError(
            f"the regular expression nests {depth:,} groups within one another; at most {MOST_NESTED} are read: "
            "write it with fewer parentheses"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # sets within sets, which are escaped below
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigurationError(f"{_short(pattern)} is no regular expression of Python: {error}") from error
    return _Translation(pattern).result


class _Translation:
    """One pass over an expression that Python has compiled."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at, self.parts = pattern, 0, list[str]()
        begins, groups, flags = True, list[bool](), ""
        if pattern.startswith("(?i)"):
            self.at, flags = 4, "(?i)"
        while self.at < len(pattern):
            letter = pattern[self.at]
            group, repeat = _GROUP.match(pattern, self.at), _REPEAT.match(pattern, self.at)
            if letter == "^" or pattern.startswith("\\A", self.at):
                if not begins:
                    raise self._refused(f"{letter} after the beginning, where it never matches")
                self.at += 1 if letter == "^" else 2
                continue
            if letter == "(":
                if group is None:
                    raise self._refused(
                        "a group that is neither (...), (?:...), (?i:...) nor (?P<name>...): look-around, "
                        "backreferences, comments, conditions and other flags have no automaton here"
                    )
                self._take(group[0])
                groups.append(begins)
            elif letter == ")":
                groups.pop()
                self._take(letter)
                begins = False
            elif letter == "|":
                self._take(letter)
                begins = groups[-1] if groups else True
            elif repeat is not None and repeat[0] != "{}":
                self._repeat(repeat[0])
            else:
                begins = False
                self._atom(letter)
        self.result = flags + "".join(self.parts)

    def _atom(self, letter: str) -> None:
        if letter == "[":
            self._set()
        elif letter == "\\":
            self._escape()
        elif letter == ".":
            self._take(letter, r"[^\n\x00]")
        elif letter == "$":
            self._take(letter, r"\z")
        else:
            self._take(letter, literal(letter))

    def _repeat(self, repeat: str) -> None:
        if self.pattern.startswith("+", self.at + len(repeat)):
            raise self._refused(f"the possessive repetition {repeat}+, which Rust reads in another way")
        self._take(repeat, repeat.replace("{,", "{0,"))

    def _escape(self) -> None:
        following = self.pattern[self.at + 1]
        if following.lower() in _ASCII:
            self._take("\\" + following, self._class(following))
        elif following == "Z":
            self._take("\\Z", r"\z")
        else:
            self.parts.append(self._escaped_letter())

    def _class(self, name: str) -> str:
        """Return the set of a class such as \\d or \\W."""
        return f"[{_ASCII[name]}]" if name.islower() else rf"[^{_ANY[name.lower()]}\x00]"

    def _escaped_letter(self) -> str:
        number, following = _HEXADECIMAL.match(self.pattern, self.at), self.pattern[self.at + 1]
        if number is not None:
            value = int(number[0][2:], 16)
            if value == 0:
                raise ConfigurationError(NUL_REFUSED)
            self.at += len(number[0])
            return rf"\x{{{value:x}}}"
        if following in _SAME_ESCAPES or not following.isalnum():
            self.at += 2
            return "\\" + following if following in _SAME_ESCAPES else literal(following)
        raise self._refused(f"\\{following}, which has no meaning that Python and Rust share")

    def _set(self) -> None:
        """Translate a set in brackets; `[`, `&` and `~` are letters in it, as to Python."""
        negated = self.pattern.startswith("[^", self.at)
        self._take("[^" if negated else "[", r"[^\x00" if negated else "[")
        first = True
        while first or self.pattern[self.at] != "]":
            first, letter = False, self.pattern[self.at]
            following = self.pattern[self.at + 1]
            if letter == "\\" and following.lower() in _ASCII:
                # In a complement, as much as any dialect means; elsewhere no more than all of them mean.
                inside = _ANY.get(following, f"[^{_ASCII[following.lower()]}]") if negated else self._class(following)
                self._take("\\" + following, inside)
            elif letter == "\\":
                self.parts.append(self._escaped_letter())
            elif letter == "-" and following != "]" and self.parts[-1] not in ("[", r"[^\x00"):
                if following == "-":
                    raise self._refused("-- in a set, which Rust reads as a difference; escape the letter -")
                self._take(letter)
            else:
                self._take(letter, literal(letter))
        self._take("]")

    def _take(self, read: str, written: str | None = None) -> None:
        self.at += len(read)
        self.parts.append(read if written is None else written)

    def _refused(self, what: str) -> ConfigurationError:
        return ConfigurationError(f"the regular expression {_short(self.pattern)} has, at {self.at}, {what}")


def _nesting(pattern: str) -> int:
    """Return how many groups stand within one another."""
    groups = (1 if letter == "(" else -1 for letter in _NO_GROUP.sub("", pattern) if letter in "()")
    return max(itertools.accumulate(groups), default=0)


def _short(pattern: str) -> str:
    return repr(pattern) if len(pattern) <= 80 else repr(pattern[:77]) + "..."
