"""An automaton without stop strings accepts what both `re` and a search for the strings say."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edlm.config import ConfigurationError
from edlm.constraints.byte_automaton import ByteAutomaton, CompilationLimits, compile_bytes
from edlm.constraints.compilation import AutomatonCache, compile_constraint
from edlm.constraints.specification import Regex
from edlm.constraints.stop_strings import without_stop_strings
from edlm.data.tokenizer_kinds import Bytes, Characters

LETTERS = "abé"
PATTERNS = ("[abé]*", "(ab|é)+a?", "a{2,4}[bé]*", "(?:aé|éa|b)*b")
TEXTS = ["".join(letters) for length in range(6) for letters in itertools.product(LETTERS, repeat=length)]
AUTOMATA = {pattern: compile_bytes(Regex(pattern), CompilationLimits()) for pattern in PATTERNS}


def accepts(automaton: ByteAutomaton, text: str) -> bool:
    state = automaton.start
    for byte in text.encode():
        if (state := int(automaton.table[state, byte])) < 0:
            return False
    return bool(automaton.accepting[state])


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(PATTERNS),
    st.lists(st.text(LETTERS, min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_the_texts_are_those_in_which_no_stop_string_occurs(pattern, stops):
    expected = [text for text in TEXTS if re.fullmatch(pattern, text) and not any(stop in text for stop in stops)]
    assume(expected)
    automaton = without_stop_strings(AUTOMATA[pattern], stops, 20_000)
    assert [text for text in TEXTS if accepts(automaton, text)] == expected


def test_a_stop_string_that_every_text_has_is_refused():
    with pytest.raises(ConfigurationError, match=r"a stop string \('é', 'b'\) occurs in every text"):
        without_stop_strings(AUTOMATA["(ab|é)+a?"], ["é", "b"], 20_000)


def test_without_stop_strings_the_automaton_is_the_same_object():
    automaton = AUTOMATA["[abé]*"]
    assert without_stop_strings(automaton, (), 1) is automaton


def test_more_states_than_are_taken_are_refused():
    with pytest.raises(ConfigurationError, match="without the stop strings has more than 5 states"):
        without_stop_strings(AUTOMATA["[abé]*"], ["abababab"], 5)


def test_the_cache_holds_an_automaton_for_each_set_of_stop_strings():
    cache = AutomatonCache(Characters().build([]))
    pattern = Regex("[ab ]{4}")
    plain = cache.compiled(pattern, begins=True, ends=False)
    one = cache.compiled(pattern, begins=True, ends=False, stops=("b ", "aa"))
    assert cache.has(pattern, begins=True, ends=False, stops=("aa", "b "))
    assert not cache.has(pattern, begins=True, ends=False, stops=("b ",))
    assert cache.compiled(pattern, begins=True, ends=False, stops=("aa", "b ")) is one
    assert not np.array_equal(one.transitions, plain.transitions)


def test_a_stop_string_between_two_tokens_is_excluded_and_one_after_the_end_of_the_text_is_none():
    tokenizer = Bytes().build([])
    automaton = compile_constraint(Regex("[ab]+"), tokenizer, ends=True, stops=("ba",))
    a, b, end = (*tokenizer.encode("ab").tolist(), tokenizer.separator)
    assert automaton.accepts([a, a, b, b, end, end])
    assert not automaton.accepts([a, b, a, end])
