"""Random regular expressions and JSON schemas."""

import random
from typing import Any


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


def random_schema(rng: random.Random, depth: int = 2, untyped: bool = True) -> dict[str, Any]:
    """A schema with properties, arrays, alternatives, formats, patterns, bounds of lengths; `untyped`: and {}."""
    leaves = [
        *([{}, {"type": "object"}, {"type": "array"}] if untyped else []),
        {"type": "integer"}, {"type": "boolean"}, {"type": "null"}, {"type": "number"},
        {"enum": [rng.randint(0, 99), "é", None]}, {"const": rng.choice(["a", 1.5, [True]])},
        {"type": "string", "maxLength": rng.randint(0, 5)}, {"type": "string", "minLength": 1, "maxLength": 3},
        {"type": "string", "pattern": rng.choice(["^[a-c]+$", "x|yz", r"\d{2}-\d"])},
        {"type": "string", "format": rng.choice(["date", "time"])}, {"type": ["boolean", "null"]},
    ]  # fmt: skip
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(leaves)
    inner = [random_schema(rng, depth - 1, untyped) for _ in range(rng.randint(1, 2))]
    kind = rng.randrange(6)
    if kind == 0:
        return {"anyOf": inner}
    if kind == 1:
        return {"type": "array", "items": inner[0], "minItems": rng.randint(0, 1), "maxItems": 2}
    if kind == 2:
        return {"type": "array", "prefixItems": inner}
    if kind == 3:
        return {"type": "object", "additionalProperties": inner[0], "minProperties": 1}
    names = [f"p{index}" for index in range(len(inner))]
    required = [name for name in names if rng.random() < 0.7]
    return {"type": "object", "properties": dict(zip(names, inner, strict=True)), "required": required}
