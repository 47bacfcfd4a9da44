"""A constraint has several forms, OpenAI's and vLLM's; what else they hold is as in vLLM, or named in the answer."""

import json
from collections.abc import Iterator

import pytest

import edlm
from cluster.http.local import serving
from edlm.client import Choice
from edlm.data.tokenizer_kinds import Bytes
from edlm.inference.generator import open_bundle
from tests.bundles import make_bundle
from tests.cluster.asking import COMPLETIONS, ask
from tests.cluster.conftest import PATIENT
from tests.cluster.http.test_constraints import FORMAT, SCHEMA, written


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Iterator[str]:
    generator = open_bundle(make_bundle(tmp_path_factory.mktemp("bytes"), tokenizer=Bytes(), length=24))
    with serving(generator, "1/0", limits=PATIENT) as service:
        yield service.url


FORMS = [
    ({"structured_outputs": {"regex": "a[bc]{3}", "disable_fallback": False}}, {"guided_regex": "a[bc]{3}"}),
    ({"structured_outputs": {"choice": ["no", "yes"]}}, {"guided_choice": ["no", "yes"]}),
    ({"structured_outputs": {"json": SCHEMA}}, {"guided_json": json.dumps(SCHEMA)}),
    ({"structured_outputs": {"json": SCHEMA, "disable_additional_properties": True}}, {"guided_json": SCHEMA}),
    (
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
        {"guided_json": SCHEMA, "guided_whitespace_pattern": ""},
    ),
    ({"response_format": FORMAT}, {"edlm": {"constraint": {"json": SCHEMA}}}),
    ({"edlm": {"constraint": {"choice": ["no", "yes"]}}}, {"structured_outputs": {"choice": ["no", "yes"]}}),
]


@pytest.mark.parametrize(("form", "other"), FORMS)
def test_a_constraint_has_several_forms_that_mean_the_same(letters, form, other):
    body = {"max_tokens": 30, "n": 2, "seed": 3}
    assert written(letters, COMPLETIONS, {**body, **form}) == written(letters, COMPLETIONS, {**body, **other})


@pytest.mark.parametrize(("pattern", "space"), [("", ""), (r"\n[ ]{2}", "\n  ")])
def test_json_has_the_white_space_that_is_asked_for(letters, pattern, space):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    body = {"max_tokens": 24, "n": 8, "seed": 1}
    allowed = {f'{{{space}"a"{space}:{space}{value}{space}}}' for value in ("true", "false")}
    for form in (
        {"structured_outputs": {"json": schema, "whitespace_pattern": pattern}},
        {"guided_json": schema, "guided_whitespace_pattern": pattern},
        {"guided_whitespace_pattern": pattern,
         "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}},
    ):  # fmt: skip
        assert set(written(letters, COMPLETIONS, {**body, **form})) <= allowed


@pytest.mark.parametrize(
    "constraint",
    [edlm.Regex("[a-c]+ [x-z]+"), edlm.OneOf(("a cat", "dogs ")), edlm.JsonSchema.of({"type": "array"}, whitespace="")],
)
def test_a_constraint_of_python_is_one_of_the_client(letters, tmp_path, constraint):
    bundle = make_bundle(tmp_path, tokenizer=Bytes(), length=24)
    asked = {"max_tokens": 5, "n": 3, "seed": 1, "constraint": constraint}
    with edlm.Client(letters) as client:
        done = client.complete("ab", **asked)
        assert [choice.text for choice in done.choices] == [
            text.text for text in edlm.load(bundle).generate("ab", **asked)
        ]
        assert done.details.ignored == ()
        pieces = [event.text for event in client.stream("ab", **asked | {"n": 1}) if isinstance(event, Choice)]
        assert "".join(pieces) == done.choices[0].text


def test_unknown_fields_of_the_forms_are_ignored_and_named(letters):
    form = {"type": "json_schema", "new": 1, "json_schema": {"name": "a", "schema": SCHEMA, "newer": []}}
    for fields, names in (
        ({"response_format": form}, ["response_format.new", "response_format.json_schema.newer"]),
        ({"structured_outputs": {"regex": "a+", "_backend": "x"}}, ["structured_outputs._backend"]),
        ({"structured_outputs": {"regex": "a+", "whitespace_pattern": " "}}, ["structured_outputs.whitespace_pattern"]),
        ({"guided_regex": "a+", "guided_whitespace_pattern": " "}, ["guided_whitespace_pattern"]),
        ({"guided_json": SCHEMA, "guided_whitespace_pattern": " "}, []),
        ({"edlm": {"constraint": {"regex": "a+", "whitespace_pattern": " "}}}, ["edlm.constraint.whitespace_pattern"]),
    ):
        answer = ask(letters, COMPLETIONS, {"max_tokens": 30, **fields}).json()
        assert answer["edlm"]["ignored"] == names


@pytest.mark.parametrize(
    "form",
    [
        {"response_format": {"type": "text"}},
        {"response_format": None, "guided_regex": None, "guided_choice": []},
        {"structured_outputs": {}},
        {"structured_outputs": {"regex": None, "json_object": False, "grammar": None}},
        {"edlm": {"constraint": None}},
    ],
)
def test_what_constrains_nothing_changes_nothing(letters, form):
    body = {"max_tokens": 8, "seed": 3}
    answer = ask(letters, COMPLETIONS, {**body, **form}).json()
    assert answer["choices"] == ask(letters, COMPLETIONS, body).json()["choices"]
    assert (answer["edlm"]["constraint"], answer["edlm"]["ignored"]) == (None, [])
