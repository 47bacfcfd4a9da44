"""Served texts satisfy the constraint of their request, in every form that clients send it, or are refused by name."""

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import jsonschema
import openai
import pytest
from pydantic import BaseModel

from cluster.http import constraint_compiler
from cluster.http.limits.settings import RequestLimits
from cluster.http.local import Service, serving
from edlm.constraints import compilation
from edlm.data.tokenizer_kinds import Bytes
from edlm.inference.generator import open_bundle
from tests.bundles import make_bundle
from tests.chats import make_chat_bundle
from tests.cluster.asking import COMPLETIONS, INFILL, SCORE, ask, error, eventually, stream, texts
from tests.cluster.conftest import PATIENT
from tests.cluster.http.test_departures import connected

CHAT = "/v1/chat/completions"
FRAME = "the [a-m]+ of [n-z ]+"
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"enum": [1, 22]}}, "required": ["a"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
SLOW = "(a|b)*a(a|b){40}"  # has more states than any memory holds


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Iterator[str]:
    """A service whose model has a separator, so that texts may end early."""
    generator = open_bundle(make_bundle(tmp_path_factory.mktemp("bytes"), tokenizer=Bytes(), length=24))
    with serving(generator, "1/0", limits=PATIENT) as service:
        yield service.url


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Iterator[str]:
    generator = open_bundle(make_chat_bundle(tmp_path_factory.mktemp("chat")))
    with serving(generator, "1/0", limits=PATIENT) as service:
        yield service.url


def written(url: str, path: str, body: dict) -> list[str]:
    answer = ask(url, path, body)
    assert answer.status_code == 200, answer.text
    return [choice["text"] for choice in answer.json()["choices"]]


EXPRESSIONS = [
    FRAME,
    r"[a-z]{3}(?: [a-z]{3})*",
    r"(?:ab|ba)+c?",
    r"\w+@\w+\.(?:com|org)",
    r"\d{4}-\d\d-\d\d(?:T\d\d:\d\d)?",
    r"(?i)yes|no|(?:per|may)haps",
]
SCHEMAS = [
    SCHEMA,
    {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
    {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[a-c]{2,5}$"}]},
    {"type": "object", "properties": {"at": {"type": "string", "format": "date"}}, "required": ["at"]},
]


@pytest.mark.parametrize("candidates", [1, 3])
def test_every_text_satisfies_its_constraint(letters, candidates):
    settings = {"max_tokens": 40, "n": 3, "edlm": {"steps": 3, "candidates": candidates}}
    for seed, pattern in enumerate(EXPRESSIONS):
        body = {**settings, "seed": seed, "structured_outputs": {"regex": pattern}}
        found = written(letters, COMPLETIONS, body)
        assert [text for text in found if re.fullmatch(pattern, text) is None] == []
    for seed, schema in enumerate(SCHEMAS):
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        for text in written(letters, COMPLETIONS, {**settings, "seed": seed, "response_format": form}):
            jsonschema.validate(json.loads(text), schema)


def test_the_answer_says_what_held_and_that_the_text_is_complete(letters):
    body = {"max_tokens": 30, "seed": 3, "response_format": FORMAT}
    answer = ask(letters, COMPLETIONS, body).json()
    assert answer["edlm"]["constraint"] == {"field": "response_format.json_schema.schema", "kind": "json_schema"}
    assert answer["choices"][0]["finish_reason"] == "stop"
    whole = {"max_tokens": 4, "seed": 3, "guided_regex": "[ab]{4}"}  # of which no token is left for an end
    assert ask(letters, COMPLETIONS, whole).json()["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("prompt", ["", "a prompt ", ["ab", ""]])
def test_a_stream_is_the_whole_text_and_texts_run_over_several_canvases(url, prompt):
    body = {"prompt": prompt, "max_tokens": 30, "n": 2, "seed": 3, "guided_regex": FRAME}  # a canvas has 12 tokens
    whole = written(url, COMPLETIONS, body)
    assert all(re.fullmatch(FRAME, text) for text in whole)
    assert texts(stream(url, COMPLETIONS, body)) == dict(enumerate(whole))


def test_a_text_is_the_same_alone_and_in_company(url):
    frame = {"prompt": "ab", "max_tokens": 20, "guided_regex": FRAME}
    bodies = [
        frame,
        {"prompt": "ab", "max_tokens": 20},
        {**frame, "edlm": {"steps": 2, "candidates": 4}},
        {"prompt": "c", "max_tokens": 9, "guided_regex": "[ab]+"},
        {**frame, "edlm": {"candidates": 2, "energy": "conditional"}},
        {**frame, "temperature": 0.5},
    ]
    bodies = [{**body, "seed": seed} for seed, body in enumerate(bodies * 2)]
    alone = [written(url, COMPLETIONS, body) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as threads:
        assert list(threads.map(lambda body: written(url, COMPLETIONS, body), bodies)) == alone
    assert alone[0] != alone[6]


@pytest.mark.parametrize("fields", [{"temperature": 0.3}, {"temperature": 2}, {"temperature": 0}, {"logprobs": 2},
                                    {"echo": True}, {"best_of": 3}, {"edlm": {"window": [0, 0.5]}}])  # fmt: skip
def test_what_combines_with_a_constraint_keeps_it(url, fields):
    body = {"prompt": "ab", "max_tokens": 10, "seed": 3, "guided_regex": FRAME, **fields}
    (text,) = written(url, COMPLETIONS, body)
    assert re.fullmatch(FRAME, text.removeprefix("ab") if "echo" in fields else text)


def test_at_temperature_0_the_seed_does_not_matter(url):
    body = {"prompt": "ab", "max_tokens": 12, "guided_regex": FRAME, "temperature": 0, "edlm": {"steps": 1}}
    answers = [ask(url, COMPLETIONS, {**body, "seed": seed}).json() for seed in range(3)]
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    assert answers[0]["edlm"]["temperature"] == 0
    assert answers[0]["edlm"]["distribution"] == "another distribution"


def test_the_gaps_of_an_infill_are_filled_so_that_the_whole_matches(url):
    pattern = "x[ab]+a(?:cd|dc)[cd]"
    body = {"parts": ["x", 4, "a", 3], "n": 4, "seed": 2, "edlm": {"constraint": {"regex": pattern}}}
    whole = written(url, INFILL, body)
    assert all(re.fullmatch("x[ab]{4}a(?:cd|dc)[cd]", text) for text in whole)
    assert len(set(whole)) > 1
    streamed = [choice["text"] for piece in stream(url, INFILL, body) for choice in piece["choices"]]
    assert sorted(streamed) == sorted(whole)


class NamedCount(BaseModel):
    name: str
    count: int | None


def test_openais_client_parses_what_it_asked_for(chats):
    asked: Any = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 60, "seed": 1}
    schema = {
        "type": "object", "properties": {"name": {"type": "string", "maxLength": 9}, "ok": {"type": "boolean"}},
        "required": ["name", "ok"], "additionalProperties": False,
    }  # fmt: skip
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}
    with openai.OpenAI(base_url=f"{chats}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(**asked, response_format=form)
        jsonschema.validate(json.loads(answer.choices[0].message.content or ""), schema)
        parsed = client.chat.completions.parse(**asked, response_format=NamedCount).choices[0].message.parsed
        assert isinstance(parsed, NamedCount)
        streamed = client.chat.completions.create(**asked, response_format=form, stream=True)
        pieces = "".join(piece.choices[0].delta.content or "" for piece in streamed)
        assert pieces == answer.choices[0].message.content
        answer = client.chat.completions.create(**asked, response_format={"type": "json_object"})
        assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


CONSTRAINT = {"guided_regex": "[a-z]+"}
REFUSED = [
    (COMPLETIONS, {"guided_regex": "(a"}, "guided_regex", "no regular expression of Python"),
    (COMPLETIONS, {"guided_regex": "(?=a)b"}, "guided_regex", "look-around"),
    (COMPLETIONS, {"guided_regex": "\ud800"}, "guided_regex", "valid string"),
    (COMPLETIONS, {"guided_regex": r"\d{4}"}, "guided_regex", "no text of the regular expression .* lacks '0'"),
    (COMPLETIONS, {"guided_regex": "a" * 30_000}, "guided_regex", "at most 20000 characters"),
    (COMPLETIONS, {"guided_regex": "(" * 300 + "a" + ")" * 300}, "guided_regex", "nests 300 groups .* at most 200"),
    (COMPLETIONS, {"guided_choice": ["a", "bcdef", "x" * 11], "max_tokens": 4}, "guided_choice",
     "none has 4: the nearest have 1 and 5"),
    (COMPLETIONS, {"guided_choice": ["a cat", "42"]}, "guided_choice", "'4' is missing"),
    (COMPLETIONS, {"guided_choice": ["a"] * 10_001}, "guided_choice", "at most 10000"),
    (COMPLETIONS, {"guided_regex": "[ab]{4,6}", "max_tokens": 9}, "guided_regex", "its texts have 4 to 6 tokens"),
    (COMPLETIONS, {"guided_regex": "[ab]{40}", "max_tokens": 9}, "guided_regex", "its texts have 40 tokens"),
    (COMPLETIONS, {"guided_json": {"type": "integer", "minimum": 3}}, "guided_json", "minimum"),
    (COMPLETIONS, {"guided_json": '{"type": '}, "guided_json", "not JSON"),
    (COMPLETIONS, {"guided_json": 3}, "guided_json", "give a JSON schema, or its text"),
    (COMPLETIONS, {"guided_json": "x" * 100_001}, "guided_json", "at most 100,000"),
    (COMPLETIONS, {"guided_json": {"properties": {"n": {"$ref": "#"}}}}, "guided_json", "recursive"),
    (COMPLETIONS, {"guided_grammar": "root ::= x"}, "guided_grammar", "no finite automaton"),
    (COMPLETIONS, {"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar", "no finite automaton"),
    (COMPLETIONS, {"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "not support"),
    (COMPLETIONS, {"structured_outputs": {"json": {}, "disable_any_whitespace": True, "whitespace_pattern": " "}},
     "structured_outputs.whitespace_pattern", "contradict each other"),
    (COMPLETIONS, {"guided_json": {}, "guided_whitespace_pattern": "[ x]"}, "guided_json", "other characters than spa"),
    (COMPLETIONS, {"guided_regex": "a", "guided_whitespace_pattern": 3}, "guided_whitespace_pattern", "valid string"),
    (INFILL, {"parts": ["b", 3], "guided_whitespace_pattern": " "}, "guided_whitespace_pattern", "give edlm.constr"),
    (COMPLETIONS, {"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least 1"),
    (COMPLETIONS, {"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice",
     "structured_outputs.regex and structured_outputs.choice both"),
    (COMPLETIONS, {**CONSTRAINT, "response_format": {"type": "json_object"}}, "guided_regex", "response_format and"),
    (COMPLETIONS, {**CONSTRAINT, "edlm": {"constraint": {"regex": "a"}}}, "guided_regex", "edlm.constraint.regex and"),
    (COMPLETIONS, {"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is missing, which"),
    (COMPLETIONS, {"response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
     "response_format.json_schema", "belongs to the type json_schema, and the type is json_object"),
    (COMPLETIONS, {"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
    (COMPLETIONS, {"edlm": {"constraint": {"regx": "a"}}}, "edlm.constraint.regx", "unknown field"),
    (COMPLETIONS, {"guided_regex": "[a-z]+ [a-z]+", "stop": ["the", " "]}, "guided_regex",
     "a stop string .* occurs in every text"),
    (COMPLETIONS, {**CONSTRAINT, "suffix": "x"}, "suffix", "/v1/infill"),
    (COMPLETIONS, {**CONSTRAINT, "max_tokens": 0}, "max_tokens", "generates no text"),
    (COMPLETIONS, {**CONSTRAINT, "top_p": 0.9}, "top_p", "use temperature"),
    (COMPLETIONS, {**CONSTRAINT, "top_k": 9}, "top_k", "use temperature"),
    (COMPLETIONS, {**CONSTRAINT, "edlm": {"candidates": 0, "energy": "conditional"}}, "edlm.candidates", ">= 1"),
    (INFILL, {"parts": ["b", 3], "edlm": {"constraint": {"regex": "a[a-z]+"}}}, "edlm.constraint.regex",
     "known token .* at position 0 contradicts"),
    (INFILL, {"parts": ["b", 3], **CONSTRAINT}, "guided_regex", "give edlm.constraint"),
    (SCORE, {"text": "ab", "edlm": {"constraint": {"regex": "ab"}}}, "edlm.constraint", "sampler_bound"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_refused_by_name_before_anything_is_generated(service, path, body, param, message):
    before = service.endpoint.engine.statistics().submitted
    for streamed in ({}, {"stream": True}) if path != SCORE else ({},):
        refused = error(
            ask(service.url, path, {"prompt": "ab"} | body | streamed if path == COMPLETIONS else body), 400
        )
        assert refused["param"] == param
        assert re.search(message, refused["message"])
    assert service.endpoint.engine.statistics().submitted == before


def test_an_expression_of_few_letters_and_too_many_states_is_refused_by_the_limit_it_exceeds(url):
    refused = error(ask(url, COMPLETIONS, {"guided_regex": SLOW}), 400)
    assert refused["param"] == "guided_regex"
    assert re.search("bytes to compile|seconds to compile|was not compiled", refused["message"])


def test_a_schema_of_ten_megabytes_is_too_large_a_body(url):
    body = {"guided_json": {"description": "x" * 10_000_000}}
    assert error(ask(url, COMPLETIONS, body), 413)["code"] == "body_too_large"


class Compilations:
    """Counts the compilations of a service, which wait until the test lets them go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.going, self.most, self.open = 0, 0, 0, True
        real = compilation.compile_constraint

        def counted(*arguments, **options):
            self.begun, self.going = self.begun + 1, self.going + 1
            self.most = max(self.most, self.going)
            try:
                while not self.open:
                    time.sleep(0.01)
                return real(*arguments, **options)
            finally:
                self.going -= 1

        monkeypatch.setattr(compilation, "compile_constraint", counted)


@pytest.fixture
def compilations(monkeypatch) -> Compilations:
    return Compilations(monkeypatch)


@pytest.fixture
def fresh(generator) -> Iterator[Service]:
    with serving(generator, "7/0", request_limits=RequestLimits(max_seconds=3600), limits=PATIENT) as service:
        yield service


def test_a_constraint_is_compiled_once_for_all_requests_temperatures_and_texts(fresh, compilations):
    body = {"prompt": "ab", "max_tokens": 5, "guided_regex": "[ab]+"}
    for more in ({"n": 4}, {"prompt": ["a", "b"]}, {"temperature": 0.5}, {"stream": True}):
        assert ask(fresh.url, COMPLETIONS, {**body, **more}).status_code == 200
    assert compilations.begun == 1


def test_few_constraints_are_compiled_at_once_and_others_wait_for_none(fresh, compilations):
    cached = {"max_tokens": 5, "guided_regex": "[ab]+"}
    assert ask(fresh.url, COMPLETIONS, cached).status_code == 200
    compilations.open = False
    most = constraint_compiler.WAITING_PER_KEY
    bodies = [{"max_tokens": 5, "guided_regex": f"[ab]{{1,{5 + i}}}"} for i in range(most)]
    with ThreadPoolExecutor(most) as threads:
        waiting = [threads.submit(ask, fresh.url, COMPLETIONS, body) for body in bodies]
        eventually(lambda: compilations.going == constraint_compiler.THREADS)
        for body in (cached, {"max_tokens": 5}):
            assert ask(fresh.url, COMPLETIONS, body).status_code == 200  # while the others wait
        eventually(lambda: sum(fresh.endpoint.constraints._waiting.values()) == most)
        refused = ask(fresh.url, COMPLETIONS, {"max_tokens": 5, "guided_regex": "[ab]{5}"})
        assert error(refused, 429)["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        compilations.open = True
        assert {future.result().status_code for future in waiting} == {200}
    assert compilations.most == constraint_compiler.THREADS


def test_a_client_that_leaves_gives_up_its_place_and_keeps_nothing_from_others(fresh, compilations):
    compilations.open = False
    bodies = [{"max_tokens": 5, "guided_regex": f"[ab]{{1,{5 + i}}}"} for i in range(4)]
    sockets = [connected(fresh, COMPLETIONS, body) for body in bodies]
    eventually(lambda: sum(fresh.endpoint.constraints._waiting.values()) == len(bodies))
    for each in sockets:
        with closing(each):
            pass
    eventually(lambda: sum(fresh.endpoint.constraints._waiting.values()) == 0)
    compilations.open = True
    assert ask(fresh.url, COMPLETIONS, {"max_tokens": 5, "guided_regex": "b+"}).status_code == 200
    assert compilations.begun == constraint_compiler.THREADS + 1  # those that waited never began


def test_a_deadline_ends_the_wait_for_a_compilation(fresh, compilations):
    compilations.open = False
    late = {"max_tokens": 5, "guided_regex": "[ab]+", "edlm": {"timeout_seconds": 0.2}}
    assert error(ask(fresh.url, COMPLETIONS, late), 504)["code"] == "deadline_exceeded"
    compilations.open = True
