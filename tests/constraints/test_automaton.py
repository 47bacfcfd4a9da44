"""Automata in their minimal form accept what their tables accept."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.constraints.automaton import DEAD, TokenAutomaton, minimal_form
from tests.constraints.automata import NO_TWO, SUM, TABLE, THREE_STATES, accepts, tables
from tests.worlds import cartesian

TEXTS = [text for length in range(5) for text in cartesian(3, length).tolist()]


@given(tables())
@settings(max_examples=60, deadline=None)
def test_the_minimal_form_accepts_the_texts_of_its_table_and_no_others(machine):
    automaton = minimal_form(np.arange(3), *machine)
    assert [automaton.accepts(text) for text in TEXTS] == [accepts(*machine, text) for text in TEXTS]


@given(tables())
@settings(max_examples=60, deadline=None)
def test_no_two_states_of_the_minimal_form_are_alike_and_each_is_on_the_way_to_a_text(machine):
    automaton = minimal_form(np.arange(3), *machine)
    states, longer = range(1, len(automaton.accepting)), [text for text in TEXTS if len(text) <= 4]

    def language(state: int) -> tuple[bool, ...]:
        return tuple(bool(automaton.accepting[automaton.after(text, state)]) for text in longer)

    languages = [language(state) for state in states]
    assert len(set(languages)) == len(languages)
    assert all(any(texts) for texts in languages)
    columns = {tuple(column) for column in automaton.transitions.T.tolist()}
    assert len(columns) == automaton.transitions.shape[1]


@given(tables())
@settings(max_examples=60, deadline=None)
def test_the_lengths_are_those_of_the_shortest_and_of_the_longest_text(machine):
    automaton = minimal_form(np.arange(3), *machine)
    possible = sorted({len(text) for text in TEXTS if automaton.accepts(text)})
    if automaton.lengths is None:
        assert possible == []
    else:
        shortest, longest = automaton.lengths
        assert possible[0] == shortest
        # Four states: a text of 4 to 7 tokens visits one twice, and if there is a longer one there is one of these.
        unlimited = any(automaton.accepting_after(count)[automaton.start] for count in range(4, 8))
        assert (longest is None) == unlimited
        assert longest in (None, possible[-1])


@given(tables(), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_states_from_which_many_tokens_are_accepted_are_those_found_token_by_token(machine, count):
    automaton = minimal_form(np.arange(3), *machine)
    states = automaton.accepting.numpy()
    for _ in range(count):
        states = states[automaton.transitions.numpy()].any(axis=1)
    assert automaton.accepting_after(count).tolist() == states.tolist()


def test_a_chain_of_many_states_keeps_them_and_no_other():
    """States of a chain are told apart one by one, which is given up where it takes too long."""
    length = 3000
    table = np.full((length + 2, 3), -1)
    table[np.arange(length), 0] = np.arange(1, length + 1)  # the last state is reached by nothing
    automaton = minimal_form(np.arange(3), table, 0, np.ones(length + 2, dtype=bool))
    assert len(automaton.accepting) == length + 2  # with the dead one
    assert automaton.lengths == (0, length)


@pytest.mark.parametrize("count", range(5))
def test_states_from_which_so_many_tokens_are_accepted(count):
    for state in range(1, len(THREE_STATES.accepting)):
        ends = [THREE_STATES.accepting[THREE_STATES.after(text, state)] for text in cartesian(3, count).tolist()]
        assert THREE_STATES.accepting_after(count)[state] == any(ends)


def test_the_digest_tells_languages_apart_and_equal_ones_not():
    again = minimal_form(np.arange(3), TABLE, 0, np.array([True, False, True]))
    shuffled = minimal_form(
        np.arange(3), np.array([[1, -1, 2], [2, 0, 1], [0, 1, 2]])[:, [0, 1, 2]], 2, np.array([True, True, False])
    )
    assert again.digest == THREE_STATES.digest
    assert len({THREE_STATES.digest, NO_TWO.digest, SUM.digest, shuffled.digest}) >= 3


def test_tokens_of_one_class_are_listed_with_it():
    classes = np.array([2, 0, 1, 1, 2])
    automaton = minimal_form(classes, np.array([[1, 0, -1], [1, 1, -1]]), 0, np.array([False, True]))
    index = automaton.by_class
    assert sorted(index.tokens.tolist()) == [1, 2, 3]  # those of the third class lead nowhere
    for token, token_class in zip(index.tokens, index.token_class, strict=True):
        assert automaton.classes[token] == token_class != DEAD
        assert index.first[token_class] <= index.tokens.tolist().index(token) < index.end[token_class]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_many_states_are_merged_as_few_are(seed):
    """A chain whose states are copies of three: what remains does not depend on the number of copies."""
    rng = np.random.default_rng(seed)
    copies = np.arange(60) % 3
    table = np.full((60, 3), -1)
    for state in range(60):
        for token in range(3):
            to = TABLE[copies[state], token]
            table[state, token] = -1 if to < 0 else rng.choice(np.nonzero(copies == to)[0])
    automaton = minimal_form(np.arange(3), table, 0, np.array([True, False, True])[copies])
    assert automaton.digest == THREE_STATES.digest or len(automaton.accepting) == len(THREE_STATES.accepting)
    assert [automaton.accepts(text) for text in TEXTS] == [THREE_STATES.accepts(text) for text in TEXTS]


@pytest.mark.parametrize(
    ("classes", "transitions", "start", "accepting"),
    [
        ([0, 2], [[0, 0], [0, 1]], 1, [False, True]),  # a class that is not there
        ([0, 1], [[0, 0], [0, 2]], 1, [False, True]),  # a state that is not there
        ([0, 1], [[0, 0], [0, 1]], 2, [False, True]),  # a start that is not there
        ([0, 1], [[0, 1], [0, 1]], 1, [False, True]),  # a way out of the dead state
        ([0, 1], [[0, 0], [0, 1]], 1, [True, True]),  # a dead state that accepts
        ([0, 1], [[0, 0], [0, 1]], 1, [False]),
    ],
)
def test_what_is_no_automaton_is_refused(classes, transitions, start, accepting):
    with pytest.raises(ValueError, match="token automaton"):
        TokenAutomaton(
            torch.tensor(classes, dtype=torch.int32), torch.tensor(transitions, dtype=torch.int32), start,
            torch.tensor(accepting),
        )  # fmt: skip
