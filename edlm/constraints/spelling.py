"""What the tokens of a model cannot spell of a constraint, for the message of its refusal."""

from collections import deque
from collections.abc import Sequence

from edlm.config import ConfigurationError
from edlm.constraints.byte_automaton import ByteAutomaton
from edlm.constraints.specification import AbstractSpecification, OneOf


def require_spelt(choice: OneOf, first: Sequence[bytes | None], following: Sequence[bytes | None]) -> None:
    """Raise ConfigurationError, naming the text and the character, for a choice that no tokens spell."""
    at_start, later = {text for text in first if text}, {text for text in following if text}
    longest = max(map(len, at_start | later), default=0)
    for text in choice.texts:
        spelt, data = {0}, text.encode()
        for end in range(1, len(data) + 1):
            begins = range(max(0, end - longest), end)
            if any(begin in spelt and data[begin:end] in (later if begin else at_start) for begin in begins):
                spelt.add(end)
        if len(data) not in spelt:
            letter = data[max(spelt) :].decode(errors="ignore")[:1]
            raise ConfigurationError(
                f"the tokens of this model cannot spell the choice {text[:80]!r}: {letter!r} is missing; leave it out, "
                "or write it in characters that the tokenizer has"
            )


def unspeakable(
    specification: AbstractSpecification, automaton: ByteAutomaton, tokens: Sequence[bytes | None]
) -> ConfigurationError:
    """Return the refusal of a constraint of which no tokens spell a text, with a text that lacks least."""
    has = {byte for token in tokens if token for byte in token}
    text = _closest(automaton, has)
    missing = sorted({letter for letter in text if not set(letter.encode()) <= has})
    lacks = f"lacks {', '.join(map(repr, missing))}" if missing else "has no tokens that together are it"
    return ConfigurationError(
        f"no text of {specification} can be spelt with the tokens of this model: for {text[:80]!r}, which comes "
        f"closest, the tokenizer {lacks}"
    )


def _closest(automaton: ByteAutomaton, has: set[int]) -> str:
    """Return a text of the automaton with the fewest bytes beyond `has`, and a short one of these."""
    before: dict[int, tuple[int, int] | None] = {}
    queue = deque([(automaton.start, None)])
    while queue:  # bytes that it has first: a breadth-first search whose steps cost 0 or 1
        state, how = queue.popleft()
        if state in before:
            continue
        before[state] = how
        if automaton.accepting[state]:
            return _spelling(before, state)
        owned, foreign = [], []
        for byte, to in enumerate(automaton.table[state].tolist()):
            if to >= 0 and to not in before:
                (owned if byte in has else foreign).append((to, (state, byte)))
        queue.extendleft(reversed(owned))
        queue.extend(foreign)
    raise AssertionError("the automaton of a constraint accepts a text")


def _spelling(before: dict[int, tuple[int, int] | None], state: int) -> str:
    text = bytearray()
    while (how := before[state]) is not None:
        state, byte = how
        text.append(byte)
    return text[::-1].decode()
