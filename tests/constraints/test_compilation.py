"""What is compiled accepts the texts that Python's `re` accepts, for every kind of tokenizer."""

import json
import random
import re

import numpy as np
import pytest
import torch

from edlm.config import ConfigurationError
from edlm.constraints.byte_automaton import CompilationLimits
from edlm.constraints.compilation import AutomatonCache, compile_constraint
from edlm.constraints.constraint import Constraint
from edlm.constraints.specification import AbstractSpecification, JsonSchema, OneOf, Regex
from edlm.data.tokenizer_kinds import Symbols
from tests.constraints.compiled import BYTES, CHARACTERS, WORDS, accepted, texts_of
from tests.constraints.random_constraints import random_expression

EXPRESSIONS = {
    r"a|ab": (["a", "ab"], ["", "b", "abb"]),
    r"^(?:cat|cats?|dog)$": (["cat", "cats", "dog"], ["ca", "dogs", " cat"]),
    r"\d{4}-\d\d-\d\d": (["2024-05-17"], ["2024-5-17", "x024-05-17"]),
    r"(?P<word>[a-z]+) [^a-z\n]{2}": (["cat 17", "a ))"], ["cat a1", "cat  \n"]),
    r"a*?b{,2}c+": (["c", "aabbc", "bcc"], ["abbb", "bbbc", ""]),
    r".é?[\w-]*": (["x", "é", "-é--", "日-9"], ["", "\n", "日é."]),
    r"(?i)yes|no": (["yes", "YeS", "NO"], ["y", "noo"]),
    r"[]\[&~^-]+": (["]", "[&&]", "~^-"], ["a", ""]),
    r"\(\d+\.\d+\)|\x41\u00e9": (["(0.25)", "Aé"], ["(0.)", "A"]),
    r"(a|b)*a(a|b){3}": (["abbb", "babab"], ["bbbb", "aaa"]),
    r"[^\W\d]+\D\S": (["ab-9", "x!!"], ["99", "a1 "]),
    r"a?{b}|(){2}": (["{b}", "a{b}", ""], ["b", "ab"]),
}


@pytest.mark.parametrize("pattern", EXPRESSIONS)
def test_an_expression_allows_what_it_matches_as_a_whole(pattern):
    yes, no = EXPRESSIONS[pattern]
    assert all(re.fullmatch(pattern, text) for text in yes)  # the examples themselves
    assert not any(re.fullmatch(pattern, text) for text in no)
    for tokenizer in (BYTES, WORDS):
        automaton = compile_constraint(Regex(pattern=pattern), tokenizer)
        ascii_words = [text for text in yes if "\\w" not in pattern or text.isascii()]  # \w is ASCII
        assert all(accepted(automaton, tokenizer, text) for text in ascii_words)
        assert not any(accepted(automaton, tokenizer, text) for text in no)
        drawn = [text for length in (1, 3, 8) for text in texts_of(automaton, tokenizer, length)]
        assert [text for text in drawn if re.fullmatch(pattern, text) is None] == []


@pytest.mark.parametrize("seed", range(12))
def test_texts_of_random_expressions_match_them(seed):
    pattern = random_expression(random.Random(seed))
    tokenizer = (BYTES, WORDS)[seed % 2]
    automaton = compile_constraint(Regex(pattern=pattern), tokenizer, ends=True)
    drawn = [text for length in (2, 5, 9) for text in texts_of(automaton, tokenizer, length, ends=True)]
    assert drawn
    assert [text for text in drawn if re.fullmatch(pattern, text) is None] == []


REFUSED = {
    "no regular expression of Python": "(a",
    "look-around": "(?=a)b",
    r"\\\\1": r"(a)\1",
    "never matches": "a^b",
    "possessive": "a++",
    "NUL": "a\x00",
    "characters; at most": "a" * 20_001,
    "nests 201 groups.*at most 200": "(" * 201 + "a" + ")" * 201,
    "nests 5,000 groups": "(" * 5000 + "a" + ")" * 5000,
}


@pytest.mark.parametrize("message", REFUSED)
def test_an_expression_that_has_no_automaton_is_refused_by_name(message):
    with pytest.raises(ConfigurationError, match=message):
        compile_constraint(Regex(pattern=REFUSED[message]), BYTES)


def test_what_takes_too_long_or_too_much_is_refused_by_the_limit():
    tiny = CompilationLimits(seconds=1, memory=2**28, byte_states=3000, states=100, transitions=2000, entries=2**16)
    for pattern, message in [
        ("(a|b)*a(a|b){40}", "bytes to compile|seconds to compile|was not compiled in"),
        ("(a|b)*a(a|b){11}", "4,0.. states over bytes; at most 3,000"),
        ("[a-z]{150}", "15. states over the tokens of this model; at most 100"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            compile_constraint(Regex(pattern=pattern), CHARACTERS, limits=tiny)
    with pytest.raises(ConfigurationError, match=r"10,000,0.. characters; at most 100,000"):
        compile_constraint(JsonSchema(json_schema='{"description": "' + "x" * 10_000_000 + '"}'), BYTES)
    with pytest.raises(ConfigurationError, match="more than 100,000 characters"):
        compile_constraint(OneOf(texts=("x" * 100_001,)), BYTES)


def test_a_choice_allows_its_texts_and_names_the_one_that_the_tokenizer_cannot_spell():
    choice = OneOf(texts=("the cat", "a (dog).", "日本", ""))
    automaton = compile_constraint(choice, WORDS)
    assert all(accepted(automaton, WORDS, text) for text in choice.texts)
    assert not any(accepted(automaton, WORDS, text) for text in ("the ca", "the cat ", "日", "a  dog."))
    with pytest.raises(
        ConfigurationError,
        match="cannot spell the choice 'a (dog).': '\\(' is missing".replace("(d", r"\(d").replace("g).", r"g\)\."),
    ):
        compile_constraint(OneOf(texts=("the cat", "a (dog).")), CHARACTERS)


@pytest.mark.parametrize(
    ("specification", "named", "closest", "missing"),
    [
        (Regex(r"\d+"), r"the regular expression '\\d+'", "0", "'0'"),
        (Regex("[a-z]+ É?日x"), "the regular expression '[a-z]+ É?日x'", "a 日x", "'日'"),
        (JsonSchema.of({"type": "object"}), 'the JSON schema {"type": "object"}', "{}", "'{', '}'"),
        (Regex("(ab)?[XY]{2}"), "the regular expression '(ab)?[XY]{2}'", "XX", "'X'"),
    ],
)
def test_what_no_tokens_spell_is_refused_by_the_characters_that_are_missing(specification, named, closest, missing):
    with pytest.raises(ConfigurationError) as refused:
        compile_constraint(specification, CHARACTERS)
    assert str(refused.value) == (
        f"no text of {named} can be spelt with the tokens of this model: for '{closest}', which comes closest, the "
        f"tokenizer lacks {missing}"
    )


def test_groups_within_one_another_are_counted_without_parentheses_that_are_letters():
    letters = r"\(" * 300 + "[()]" * 300 + "(a)(b)" * 300
    assert accepted(compile_constraint(Regex("(" * 200 + "a" + ")" * 200), BYTES), BYTES, "a")
    assert compile_constraint(Regex(letters), BYTES).lengths == (1200, 1200)


def test_a_length_between_those_of_the_texts_is_refused_with_the_nearest_that_there_are():
    choice = compile_constraint(OneOf(("a", "abcde", "abcdefghijk")), BYTES)
    with pytest.raises(ConfigurationError, match="1 to 11 tokens, but none has 4: the nearest have 1 and 5"):
        Constraint(choice).require_possible(torch.full((4,), BYTES.size), BYTES.size)
    pairs = compile_constraint(Regex("(ab)+"), BYTES)
    with pytest.raises(ConfigurationError, match="2 tokens or more, but none has 7: the nearest have 6 and 8"):
        Constraint(pairs).require_possible(torch.full((7,), BYTES.size), BYTES.size)


def test_every_spelling_of_a_text_is_allowed_and_no_special_token_is():
    automaton = compile_constraint(Regex(pattern="the cat"), WORDS)
    spelt = WORDS.encode("the cat").tolist()
    letters = [index for letter in b"the cat" for index in BYTES.encode(chr(letter)).tolist()]
    assert len(spelt) < len(letters)
    assert automaton.accepts(spelt)
    assert automaton.accepts([WORDS.encode(letter)[0] for letter in "the"] + WORDS.encode(" cat").tolist())
    assert not automaton.accepts([*spelt, WORDS.separator])


def test_a_text_may_end_early_where_end_of_text_is_allowed_and_then_nothing_follows():
    automaton = compile_constraint(Regex(pattern="ab|abcd"), BYTES, ends=True)
    a, b, c, d, end = (*BYTES.encode("abcd").tolist(), BYTES.separator)
    for tokens in ([a, b], [a, b, end], [a, b, end, end], [a, b, c, d], [a, b, c, d, end]):
        assert automaton.accepts(tokens)
    for tokens in ([a, end], [end], [a, b, end, a], [a, b, c, end], [a, b, end, c, d]):
        assert not automaton.accepts(tokens)
    assert automaton.lengths == (2, None)
    assert compile_constraint(Regex(pattern="ab|abcd"), BYTES).lengths == (2, 4)
    assert compile_constraint(Regex(pattern="ab|abcd"), CHARACTERS, ends=True).lengths == (2, 4)  # it has no separator


def test_symbols_and_characters_are_their_own_tokens():
    assert texts_of(
        compile_constraint(Regex(pattern="[ab]c*"), Symbols(size=3).build([])), Symbols(size=3).build([]), 3
    )
    drawn = texts_of(compile_constraint(Regex(pattern="[^x]+"), CHARACTERS), CHARACTERS, 6)
    assert all(re.fullmatch("[a-wyz ]+", text) for text in drawn)


class Counted(Regex):
    """Counts how often it is compiled."""

    compiled = 0

    def source(self):
        type(self).compiled += 1
        return super().source()


def test_the_cache_compiles_once_and_drops_the_least_recently_used():
    cache = AutomatonCache(CHARACTERS, entries=40)
    first: AbstractSpecification = Counted(pattern="[ab]{4}")
    automaton = cache.compiled(first, begins=True, ends=True)
    assert cache.compiled(Counted(pattern="[ab]{4}"), begins=True, ends=True) is automaton
    assert Counted.compiled == 1
    assert cache.compiled(first, begins=False, ends=True) is not automaton
    for pattern in ("[ab]{5}", "[ab]{6}"):
        cache.compiled(Counted(pattern=pattern), begins=True, ends=True)
    assert cache.compiled(first, begins=True, ends=True) is not automaton
    assert np.array_equal(cache.compiled(first, begins=True, ends=True).transitions, automaton.transitions)


def test_a_specification_takes_its_value_by_name_or_position():
    assert Regex("a+") == Regex(pattern="a+")
    assert OneOf(["a", "b"]) == OneOf(texts=("a", "b"))
    schema = {"type": "string"}
    assert JsonSchema(json.dumps(schema)) == JsonSchema.of(schema)
    with pytest.raises(ValueError, match=r"is a dictionary, not JSON text; write JsonSchema\.of\(schema\)"):
        JsonSchema(schema)
