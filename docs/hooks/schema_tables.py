"""Markdown tables of JSON schemas: one row per field, with its type, default and description."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

Schema = Mapping[str, Any]
REF = ("#/$defs/", "#/components/schemas/")
NAMES = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false", "null": "null"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def table(schema: Schema, definitions: Mapping[str, Schema], link: Callable[[str], str]) -> str:
    """Return the fields of an object; `link` is the Markdown that names another definition."""
    if not schema.get("properties"):
        return "No settings.\n"
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name, field in schema["properties"].items():
        required = name in schema.get("required", ())
        default = "required" if required else _default(field, definitions)
        variant = "Selects this variant." if name == "kind" and "const" in field else ""
        meaning = " ".join(field.get("description", variant).split())
        rows.append(" | ".join((f"| `{name}`", _cell(kind(field, link)), _cell(default), _cell(meaning) + " |")))
    return '<div class="settings" markdown="1">\n\n' + "\n".join(rows) + "\n\n</div>\n"


def references(schema: Any) -> list[str]:
    """Return the names of the definitions that a schema refers to directly, in order, each once."""
    if isinstance(schema, Mapping):
        found = [_name(schema["$ref"])] if "$ref" in schema else []
        found += [name for key, value in schema.items() if key != "discriminator" for name in references(value)]
    elif isinstance(schema, list):
        found = [name for value in schema for name in references(value)]
    else:
        found = []
    return list(dict.fromkeys(found))


def kind(schema: Schema, link: Callable[[str], str]) -> str:
    """Return the type of a value in words, with its bounds."""
    if "$ref" in schema:
        return link(_name(schema["$ref"]))
    if alternatives := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        return " or ".join(dict.fromkeys(kind(part, link) for part in alternatives))
    if "const" in schema or "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        if parts := schema.get("prefixItems"):
            return f"[{', '.join(kind(part, link) for part in parts)}]"
        return f"list of {kind(schema.get('items', {}), link)}"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return f"mapping from text to {kind(values, link)}" if isinstance(values, Mapping) else "mapping"
    bounds = [f"{sign} {_number(schema[key])}" for key, sign in BOUNDS.items() if key in schema]
    bounds += [f"matches `{schema['pattern']}`"] if "pattern" in schema else []
    return " ".join([NAMES.get(schema.get("type", ""), "any value"), ", ".join(bounds)]).strip()


def _default(field: Schema, definitions: Mapping[str, Schema]) -> str:
    """Return the default; that of a nested object is not repeated if each of its settings has its own default."""
    if "default" not in field:
        return "–"
    value = field["default"]
    if "$ref" in field and value == {
        name: inner.get("default") for name, inner in definitions[_name(field["$ref"])]["properties"].items()
    }:
        return "its defaults"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _name(reference: str) -> str:
    return reference.removeprefix(REF[0]).removeprefix(REF[1])


def _number(value: float) -> str:
    """Return the number; large ones, which are limits of an encoding, as the nearest power of two."""
    if abs(value) < 1e6:
        return f"{value:g}"
    return f"{'-' if value < 0 else ''}2^{round(math.log2(abs(value)))}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
