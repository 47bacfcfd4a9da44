"""Automata for tests: of an enumerable world, and random ones."""

import numpy as np
import torch
from hypothesis import strategies as st

from edlm.constraints.automaton import TokenAutomaton, minimal_form

# Three states over three tokens, one transition missing: 34 of the 81 texts of four tokens.
TABLE = np.array([[0, 1, 2], [1, 2, 0], [2, -1, 1]])
THREE_STATES = minimal_form(np.arange(3), TABLE, 0, np.array([True, False, True]))
# Token 2 twice in a row never occurs: 60 of 81.
NO_TWO = minimal_form(np.arange(3), np.array([[0, 0, 1], [0, 0, -1]]), 0, np.array([True, True]))
# The sum of the tokens is a multiple of three: 27 of 81.
SUM = minimal_form(np.arange(3), np.array([[0, 1, 2], [1, 2, 0], [2, 0, 1]]), 0, np.array([True, False, False]))


def inside(automaton: TokenAutomaton, texts: torch.Tensor) -> torch.Tensor:
    """Which of the texts [n l] the automaton accepts."""
    states = torch.full((len(texts),), automaton.start)
    for tokens in texts.T:
        states = automaton.transitions[states.long(), automaton.classes[tokens].long()]
    return automaton.accepting[states.long()]


@st.composite
def tables(draw, tokens: int = 3, most_states: int = 4):
    """A transition table with missing transitions, its start and its accepting states."""
    states = draw(st.integers(1, most_states))
    rows = st.lists(st.integers(-1, states - 1), min_size=tokens, max_size=tokens)
    table = np.array(draw(st.lists(rows, min_size=states, max_size=states)))
    accepting = np.array(draw(st.lists(st.booleans(), min_size=states, max_size=states)))
    return table, draw(st.integers(0, states - 1)), accepting


def accepts(table: np.ndarray, start: int, accepting: np.ndarray, text: list[int]) -> bool:
    """Whether the table accepts the text, read step by step."""
    state = start
    for token in text:
        state = table[state, token] if state >= 0 else -1
    return state >= 0 and bool(accepting[state])
