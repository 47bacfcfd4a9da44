"""What is compiled accepts the texts that Python's `re` and `jsonschema` accept, for every kind of tokenizer."""

import json
import random
import re

import jsonschema
import numpy as np
import pytest
import torch

from edlm.config import ConfigurationError
from edlm.constraints.automaton import TokenAutomaton
from edlm.constraints.byte_automaton import CompilationLimits
from edlm.constraints.compilation import AutomatonCache, compile_constraint
from edlm.constraints.constraint import Constraint, RowConstraints
from edlm.constraints.specification import AbstractSpecification, JsonSchema, OneOf, Regex
from edlm.cooperative_work import run_to_end
from edlm.data.tokenizer import Tokenizer
from edlm.data.tokenizer_kinds import BPE, Bytes, Characters, Symbols
from edlm.sampling.constrained import constrained_posterior

BYTES, CHARACTERS = Bytes().build([]), Characters().build([])
WORDS = BPE(size=290).build(["the cat sat on the mat, 2024-05-17 and a naïve café: 日本 (0.25) " * 4])


class NearlyUniform:
    """A denoiser for which every token is as likely as any other, but for a few that it knows by their number."""

    def __init__(self, vocabulary: int) -> None:
        self.mask, self.vocabulary = vocabulary, vocabulary

    def log_p(self, context, where):
        return torch.log_softmax(torch.arange(self.vocabulary).remainder(7).double() / 7, -1).expand(
            int(where.sum()), -1
        )


def texts_of(
    automaton: TokenAutomaton, tokenizer: Tokenizer, length: int, count: int = 12, ends: bool = False
) -> list[str]:
    """Texts of so many tokens that are drawn given the constraint; none if there are none of this length."""
    if not automaton.accepting_after(length)[automaton.start]:
        return []
    u = torch.rand(2, 1, count, length, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    xt, denoiser = torch.full((1, length), tokenizer.size), NearlyUniform(tokenizer.size)
    chosen = RowConstraints([Constraint(automaton)])
    posterior = run_to_end(constrained_posterior(denoiser, torch.zeros(1), xt, chosen, u[0]))
    drawn = posterior.draw(u[1])[0][0].tolist()
    if ends:
        drawn = [
            tokens[: tokens.index(tokenizer.separator)] if tokenizer.separator in tokens else tokens for tokens in drawn
        ]
    return [tokenizer.decode(tokens) for tokens in drawn]


def accepted(automaton: TokenAutomaton, tokenizer: Tokenizer, text: str) -> bool:
    return automaton.accepts(tokenizer.encode(text).tolist())


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


def random_expression(rng: random.Random, depth: int = 2) -> str:
    """An expression with letters, sets, repetitions, alternatives and groups."""
    if depth == 0:
        return rng.choice(["a", "b", "0", r"\d", r"\w", r"\s", "[a-c]", "[^ab]", ".", r"\W", r"[^\d\s]", r"\.", "é"])
    parts = [random_expression(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    kind = rng.randrange(4)
    if kind == 0:
        return "(?:" + "|".join(parts) + ")"
    repeat = rng.choice(["*", "+", "?", "{2}", "{1,3}", "*?", ""])
    return "(" + "".join(parts) + ")" + repeat if kind == 1 else "".join(parts)


@pytest.mark.parametrize("seed", range(12))
def test_texts_of_random_expressions_match_them(seed):
    pattern = random_expression(random.Random(seed))
    tokenizer = (BYTES, WORDS)[seed % 2]
    automaton = compile_constraint(Regex(pattern=pattern), tokenizer, ends=True)
    drawn = [text for length in (2, 5, 9) for text in texts_of(automaton, tokenizer, length, ends=True)]
    assert drawn
    assert [text for text in drawn if re.fullmatch(pattern, text) is None] == []


SCHEMAS = [
    {"type": "integer"},
    {"type": ["number", "null"]},
    {"enum": ["a", 1, None, {"k": [True]}]},
    {"const": 'a "quoted" \\ text'},
    {"type": "string", "minLength": 1, "maxLength": 3},
    {"type": "string", "pattern": "^[a-c]+x|y$"},
    {"type": "string", "format": "date"},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
    {"type": "array", "prefixItems": [{"type": "null"}, {"type": "integer"}]},
    {"type": "object", "properties": {"a.b": {"type": "integer"}, "c": {"type": "null"}}, "required": ["a.b"]},
    {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 2},
    {"anyOf": [{"type": "boolean"}, {"$ref": "#/$defs/x"}], "$defs": {"x": {"const": 7}}},
    {"type": "object", "properties": {}, "additionalProperties": False},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_texts_of_a_schema_are_json_that_satisfies_it(schema):
    automaton = compile_constraint(JsonSchema.of(schema), BYTES, ends=True)
    assert automaton.lengths is not None
    lengths = [automaton.lengths[0], automaton.lengths[0] + 6, 30]
    drawn = [text for length in lengths for text in texts_of(automaton, BYTES, length, ends=True)]
    assert drawn
    for text in drawn:
        jsonschema.validate(json.loads(text), schema)


NOT_ENFORCED = {
    "minimum": {"type": "integer", "minimum": 3},
    "oneOf": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "allOf": {"allOf": [{"type": "integer"}]},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "minProperties": {"type": "object", "minProperties": 2},
    "'b'": {"type": "object", "properties": {"a": {}}, "required": ["b"]},
    "recursive": {"$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"},
    "leads nowhere": {"$ref": "#/$defs/n"},
    "pattern.*together|together": {"type": "string", "pattern": "a", "minLength": 3},
    "quotes": {"type": "string", "pattern": ".*"},
    "not of its type": {"type": "integer", "enum": [1, "a"]},
    "hostname": {"type": "string", "format": "hostname"},
    "above maxItems": {"type": "array", "minItems": 3, "maxItems": 1},
    "at #/properties/a": {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 2}}},
}


@pytest.mark.parametrize("message", NOT_ENFORCED)
def test_a_schema_that_would_not_be_enforced_is_refused_by_name(message):
    with pytest.raises(ConfigurationError, match=message):
        compile_constraint(JsonSchema.of(NOT_ENFORCED[message]), BYTES)


REFUSED = {
    "no regular expression of Python": "(a",
    "look-around": "(?=a)b",
    r"\\\\1": r"(a)\1",
    "never matches": "a^b",
    "possessive": "a++",
    "NUL": "a\x00",
    "characters; at most": "a" * 20_001,
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
    with pytest.raises(ConfigurationError, match="no text of the constraint can be spelt"):
        compile_constraint(Regex(pattern=r"\d+"), CHARACTERS)


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
