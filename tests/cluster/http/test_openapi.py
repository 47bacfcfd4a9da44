"""The OpenAPI document is the committed one, and nothing that it allows makes the endpoint fail."""

import itertools
import json

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tests.cluster.asking import ask
from tests.cluster.openapi import FILE, written

EXAMPLES = 60  # of each route
PATIENCE_SECONDS = 120  # as long as the endpoint takes at most, so that a busy machine is no failure
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


ROUTES = [
    (path, method) for path, route in json.loads(FILE.read_text(encoding="utf-8"))["paths"].items() for method in route
]


@pytest.fixture(scope="session")
def document(url):
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


def test_the_document_is_the_committed_one(url):
    actual = written(ask(url, "/openapi.json", method="GET").json())
    assert actual == FILE.read_text(encoding="utf-8"), (
        "the endpoint's interface has changed: if that is meant, run `python -m tests.cluster.openapi` and commit it"
    )


def test_every_refusal_is_documented(url):
    paths = ask(url, "/openapi.json", method="GET").json()["paths"]
    worked = {"400", "401", "403", "404", "413", "415", "429", "500", "503", "504"}
    for path in ("/v1/completions", "/v1/infill", "/v1/score"):
        reported = set(paths[path]["post"]["responses"])
        assert worked <= reported
        assert "422" not in reported


@pytest.mark.parametrize(("path", "method"), ROUTES)
def test_nothing_that_the_document_allows_or_forbids_makes_the_endpoint_fail(document, path, method):
    cases = document[path][method].as_strategy()
    forbidden = document[path][method].as_strategy(generation_mode=GenerationMode.NEGATIVE)

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=cases | forbidden)
    def hold(case):
        response = case.call(timeout=PATIENCE_SECONDS)
        checks = list(CHECKS)
        # A request that gives itself no time is not done in time, as it is told.
        if response.status_code == 504 and response.json()["error"]["code"] == "deadline_exceeded":
            checks.remove(not_a_server_error)
        # schemathesis knows no 413 as a rejection.
        if response.status_code == 413:
            checks.remove(negative_data_rejection)
        case.validate_response(response, checks=checks)

    hold()


def test_every_field_of_the_api_has_a_description():
    schemas = json.loads(FILE.read_text(encoding="utf-8"))["components"]["schemas"]
    fields = {f"{name}.{key}": field for name, schema in schemas.items() for key, field in schema["properties"].items()}
    assert {name for name, field in fields.items() if "description" not in field and "const" not in field} == set()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("InfillRequest", {"tokens": [1, None], "parts": ["a", 1]}),
        ("ScoreRequest", {"text": "a", "tokens": [1]}),
        ("TokenizeRequest", {"text": "a", "prompt": "a", "messages": [{"role": "user", "content": "a"}]}),
    ],
)
def test_the_document_allows_exactly_one_of_the_fields_that_exclude_one_another(name, fields):
    document = json.loads(FILE.read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator({**document, "$ref": f"#/components/schemas/{name}"})
    for count in range(len(fields) + 1):
        for chosen in map(dict, itertools.combinations(fields.items(), count)):
            assert validator.is_valid(chosen) == (count == 1)
            assert validator.is_valid(dict.fromkeys(fields) | chosen) == (count == 1)


@pytest.mark.parametrize("value", [None, 1])
def test_a_name_that_no_field_can_have_is_refused_whatever_its_value(url, value):
    assert ask(url, "/v1/completions", {"prompt": "a", "1": value}).status_code == 400
