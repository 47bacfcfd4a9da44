"""The texts of an automaton in which no stop string occurs, so that a stop string never cuts a constrained text."""

from collections import deque
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from edlm.config import ConfigurationError
from edlm.constraints.byte_automaton import ByteAutomaton

_NONE = -1


def without_stop_strings(automaton: ByteAutomaton, stops: Sequence[str], most_states: int) -> ByteAutomaton:
    """Return the automaton of those texts of `automaton` in which none of `stops` occurs.

    It is the product with the automaton of Aho and Corasick (1975), of which the states in which a stop string has
    just been read are left out. Raise ConfigurationError if it has more than `most_states` states, or if a stop string
    occurs in every text.
    """
    if not stops:
        return automaton
    searching = _searching([stop.encode() for stop in stops])
    width = len(searching)
    start = automaton.start * width
    number = {start: 0}
    pairs, rows = [start], []
    at = 0
    while at < len(pairs):  # a block of states at a time, in the order in which they were found
        block = np.array(pairs[at:])
        at = len(pairs)
        left, right = automaton.table[block // width], searching[block % width]
        following = np.where((left < 0) | (right < 0), _NONE, left.astype(np.int64) * width + right)
        found, place = np.unique(following, return_inverse=True)
        for pair in found.tolist():
            if pair != _NONE and pair not in number:
                number[pair] = len(pairs)
                pairs.append(pair)
        if len(pairs) > most_states:
            raise ConfigurationError(
                f"the constraint without the stop strings has more than {most_states:,} states over bytes, which is "
                "the maximum: make it simpler, or give fewer or shorter stop strings"
            )
        named = np.array([number.get(pair, _NONE) for pair in found.tolist()], dtype=np.int32)
        rows.append(named[place].reshape(following.shape))
    accepting = automaton.accepting[np.array(pairs) // width]
    if not accepting.any():
        raise ConfigurationError(
            f"a stop string ({', '.join(map(repr, stops))[:200]}) occurs in every text of the constraint: "
            "leave out the stop strings, or change the constraint"
        )
    return ByteAutomaton(np.concatenate(rows), 0, accepting)


def _searching(stops: Sequence[bytes]) -> Int[np.ndarray, "s 256"]:
    """Return the transitions of Aho and Corasick's automaton from state 0; -1 where a stop string is complete."""
    table, complete, failure = [[_NONE] * 256], [False], [0]
    for stop in stops:
        state = 0
        for byte in stop:
            if table[state][byte] == _NONE:
                table[state][byte] = len(table)
                table.append([_NONE] * 256)
                complete.append(False)
                failure.append(0)
            state = table[state][byte]
        complete[state] = True
    waiting = deque([0])
    while waiting:  # breadth first: a failure leads to a shorter text, whose row is whole
        state = waiting.popleft()
        complete[state] |= complete[failure[state]]
        for byte in range(256):
            fallback = table[failure[state]][byte] if state else 0
            child = table[state][byte]
            if child == _NONE:
                table[state][byte] = fallback
            else:
                failure[child] = fallback
                waiting.append(child)
    result = np.array(table, dtype=np.int64)
    result[np.array(complete)[result]] = _NONE
    return result
