"""2,000 served texts under 40 random expressions and 20 random JSON schemas: all satisfy them, seeds repeat."""

import json
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema

from cluster.http.limits.settings import RequestLimits
from cluster.http.local import serving
from edlm.data.tokenizer_kinds import BPE
from edlm.inference.generator import open_bundle
from tests.bundles import make_bundle
from tests.cluster.asking import COMPLETIONS, ask
from tests.cluster.conftest import PATIENT
from tests.constraints.random_constraints import random_expression, random_schema
from tests.vocabularies import TEXTS

EXPRESSIONS, SCHEMAS, REQUESTS_EACH, TEXTS_PER_REQUEST, CLIENTS = 40, 20, 5, 7, 6
MAX_TOKENS = 64


def satisfies(text: str, constraint: dict[str, Any]) -> bool:
    """Whether a text satisfies the constraint, as others than the service see it."""
    if "regex" in constraint:
        return re.fullmatch(constraint["regex"], text) is not None
    jsonschema.validate(json.loads(text), constraint["json"])
    return True


def test_every_served_text_satisfies_its_constraint(tmp_path):
    rng = random.Random(1)
    constraints: list[dict[str, Any]] = [{"regex": random_expression(rng)} for _ in range(EXPRESSIONS)]
    constraints += [{"json": random_schema(rng, untyped=False)} for _ in range(SCHEMAS - 1)]
    constraints.append({"json": {"type": "object", "properties": {"a": {}}, "required": ["a"]}})
    bodies = [
        {
            "prompt": rng.choice(["", "the cat ", "日本"]), "max_tokens": MAX_TOKENS, "n": TEXTS_PER_REQUEST,
            "seed": 1000 * number + 100 * repeat, "structured_outputs": constraint,
            "edlm": {"steps": rng.choice([1, 2, 4]), "candidates": rng.choice([1, 1, 3]),
                     "energy": rng.choice(["step", "conditional"])},
        }
        for number, constraint in enumerate(constraints) for repeat in range(REQUESTS_EACH)
    ]  # fmt: skip
    rng.shuffle(bodies)
    generator = open_bundle(make_bundle(tmp_path, tokenizer=BPE(size=280), length=32, texts=TEXTS))
    counts = Counter[str]()
    slow = RequestLimits(max_seconds=3600)  # the machine of the tests may be slow
    with serving(generator, "1/0", 0, slow, PATIENT) as service, ThreadPoolExecutor(CLIENTS) as threads:
        answers = list(threads.map(lambda body: ask(service.url, COMPLETIONS, body, timeout=3600), bodies))
        for body, answer in zip(bodies, answers, strict=True):
            counts[f"status {answer.status_code}"] += 1
            assert answer.status_code == 200, (body, answer.text)
            texts = [choice["text"] for choice in answer.json()["choices"]]
            assert all(satisfies(text, body["structured_outputs"]) for text in texts), (body, texts)
            counts["texts"] += len(texts)
            counts["texts that differ"] += len(set(texts))
        for body, answer in list(zip(bodies, answers, strict=True))[::10]:
            again = ask(service.url, COMPLETIONS, body, timeout=3600).json()  # alone
            assert again["choices"] == answer.json()["choices"]
            counts["requests repeated alone"] += 1
    assert counts["texts"] >= 2000
