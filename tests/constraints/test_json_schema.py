"""Texts of a schema are JSON that satisfies it, with finite numbers and the white space that is asked for."""

import functools
import json
import math
import random

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.config import ConfigurationError
from edlm.constraints.automaton import DEAD, TokenAutomaton
from edlm.constraints.compilation import compile_constraint
from edlm.constraints.specification import JsonSchema
from tests.constraints.compiled import BYTES, accepted, texts_of
from tests.constraints.random_constraints import random_schema

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


@pytest.mark.parametrize("seed", range(20))
def test_texts_of_random_schemas_within_schemas_satisfy_them(seed):
    schema = random_schema(random.Random(seed))
    automaton = compile_constraint(JsonSchema.of(schema), BYTES, ends=True)
    assert automaton.lengths is not None
    lengths = [automaton.lengths[0], automaton.lengths[0] + 4, automaton.lengths[0] + 25]
    drawn = [text for length in lengths for text in texts_of(automaton, BYTES, length, ends=True)]
    assert drawn
    for text in drawn:
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("schema", [{"type": "number"}, {"type": "array", "items": {}}], ids=["number", "any"])
def test_numbers_are_finite_to_a_parser(schema):
    automaton = compile_constraint(JsonSchema.of(schema), BYTES)
    inside = ("%s", "[%s]")[schema["type"] == "array"]
    for text in ("1e400", "-1.5E+999", "9" * 309 + ".5", "1" * 400 + "e+1", "0.5e-4000"):
        assert not accepted(automaton, BYTES, inside % text), text
    for text in ("0", "-1.5", "12.25E+10", "1e-99", "123456789012345.75e+99", "0." + "3" * 60):
        assert accepted(automaton, BYTES, inside % text.replace("e9", "e+9")), text


@settings(max_examples=60, deadline=None)
@given(choices=st.lists(st.sampled_from("0123456789999.eE+-"), min_size=200, max_size=600))
def test_no_number_that_a_schema_allows_is_read_as_infinite(choices):
    """A walk through the automaton, by the letters that it allows of those that are drawn."""
    automaton = compile_number()
    state, text, best = automaton.start, "", ""
    for letter in choices:
        to = automaton.after(BYTES.encode(letter).tolist(), state)
        if to != DEAD:
            state, text = to, text + letter
            best = text if automaton.accepting[state] else best
    assert not best or math.isfinite(json.loads(best))


@functools.cache
def compile_number() -> TokenAutomaton:
    return compile_constraint(JsonSchema.of({"type": "number"}), BYTES)


@pytest.mark.parametrize(
    ("whitespace", "yes", "no"),
    [
        ("", ['{"a":1,"b":[null]}'], ['{ "a":1,"b":[null]}', '{"a": 1,"b":[null]}', '{"a":1,"b":[ null]}']),
        (None, ['{"a": 1, "b":[ null ] }'], ['{"a":  1,"b":[null]}', '{"a":\n1,"b":[null]}']),
        (r" |\n", ['{ "a" : 1 , "b" : [ null ] }', '{\n"a" :\n1\n,\n"b" :\n[\nnull\n]\n}'], ['{"a":1,"b":[null]}']),
        (r"\s*", ['{"a":1,\r\n\t"b":[null]}'], ['{"a":1,\f"b":[null]}', '{"a":1,\v"b":[null]}']),
    ],
)
def test_white_space_between_the_parts_of_json_is_what_is_asked_for(whitespace, yes, no):
    parts = {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "null"}}}
    schema = {"type": "object", "properties": parts, "required": ["a", "b"]}
    automaton = compile_constraint(JsonSchema.of(schema, whitespace), BYTES)
    assert [text for text in yes if not accepted(automaton, BYTES, text)] == []
    assert [text for text in no if accepted(automaton, BYTES, text)] == []


@pytest.mark.parametrize("whitespace", ["x", "[ x]*", r"\s*,?", r"\f", r"\S"])
def test_white_space_that_is_none_to_json_is_refused(whitespace):
    with pytest.raises(ConfigurationError, match="other characters than space"):
        compile_constraint(JsonSchema.of({"type": "object"}, whitespace), BYTES)


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
