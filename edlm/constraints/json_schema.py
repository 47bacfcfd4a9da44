"""Which JSON schemas a constraint enforces: those whose every keyword `outlines-core` turns into its expression.

`outlines-core` ignores keywords that it does not know, and some combinations of those that it does. A text that it
allows could then violate the schema, so that such a schema is refused, by the path of the keyword.
"""

from collections.abc import Mapping
from typing import Any

from edlm.config import ConfigurationError
from edlm.constraints.regular_expression import translated

MOST_PARTS = 5_000  # schemas within a schema, those behind a reference each time
_NOTES = {"$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples"}
_NOTES |= {"deprecated", "readOnly", "writeOnly"}
_DATE = (
    "[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_FORMATS = {  # those of outlines-core allow digits of other scripts, and the 31st of every month
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
_TYPES = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": set(),
    "number": set(),
    "boolean": set(),
    "null": set(),
    "object": {"properties", "required", "additionalProperties", "minProperties", "maxProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
}
_COUNTS = {"minLength", "maxLength", "minProperties", "maxProperties", "minItems", "maxItems"}


def require_enforced(schema: Any) -> dict[str, Any]:
    """Return the schema, its patterns translated and its references followed, as `outlines-core` is to read it.

    Raise ConfigurationError, naming the path, for a keyword, a combination or a recursion that would not be enforced.
    """
    return _SchemaCheck(schema).checked(schema, "#", ())


class _SchemaCheck:
    """A schema with what its references lead to, and how many of its parts were read."""

    def __init__(self, whole: Any) -> None:
        self.whole, self.parts = whole, 0

    def checked(self, schema: Any, path: str, references: tuple[str, ...]) -> dict[str, Any]:
        self.parts += 1
        if self.parts > MOST_PARTS:
            raise ConfigurationError(
                f"the JSON schema has more than {MOST_PARTS:,} parts, references followed; shorten it"
            )
        self._require(isinstance(schema, dict), path, f"{schema!r} in the place of a schema, such as {{}} for any JSON")
        keys = {key for key in schema if key not in _NOTES}
        for key in sorted(keys & _COUNTS):
            count = schema[key]
            self._require(type(count) is int and count >= 0, path, f"{key} {count!r}, which is no number of parts")
        for alone in ("$ref", "anyOf"):
            self._require(alone not in keys or keys == {alone}, path, f"{sorted(keys - {alone})} beside {alone}")
        if "$ref" in keys:
            return self.checked(*self._followed(schema["$ref"], path, references))
        if "anyOf" in keys:
            return {"anyOf": self._each(schema["anyOf"], f"{path}/anyOf", references)}
        if keys & {"const", "enum"}:
            return self._enumeration(schema, keys, path)
        return self._typed(schema, keys, path, references)

    def _each(self, schemas: Any, path: str, references: tuple[str, ...]) -> list[dict[str, Any]]:
        self._require(isinstance(schemas, list) and len(schemas) > 0, path, f"{schemas!r}, which is no list of schemas")
        return [self.checked(each, f"{path}/{i}", references) for i, each in enumerate(schemas)]

    def _enumeration(self, schema: dict[str, Any], keys: set[str], path: str) -> dict[str, Any]:
        name = "const" if "const" in keys else "enum"
        self._require(keys <= {name, "type"}, path, f"{sorted(keys - {name, 'type'})} beside {name}")
        values = [schema["const"]] if name == "const" else schema["enum"]
        self._require(isinstance(values, list) and len(values) > 0, path, f"{name} that is no list of values")
        types = schema.get("type")
        types = types if isinstance(types, list) else [types]
        right = all(None in types or any(_is(value, each) for each in types) for value in values)
        self._require(right, path, f"values of {name} that are not of its type")
        return {"enum": values}

    def _typed(self, schema: dict[str, Any], keys: set[str], path: str, references: tuple[str, ...]) -> dict[str, Any]:
        if not keys:
            return {"anyOf": [{}]}  # outlines-core does not group the alternatives of an untyped value within others
        kind = schema.get("type", "object" if "properties" in keys else None)
        if isinstance(kind, list):
            alone = keys == {"type"} and all(isinstance(each, str) and each in _TYPES for each in kind)
            self._require(alone and len(kind) > 0, path, f"{sorted(keys)} with the types {kind}")
            return {"anyOf": [{"type": each} for each in kind]}
        unknown = sorted(keys - {"type"} - (_TYPES.get(kind, set()) if isinstance(kind, str) else set()))
        self._require(not unknown, path, f"{unknown}" + ("" if kind is None else f" for the type {kind}"))
        self._require(isinstance(kind, str) and kind in _TYPES, path, f"the type {kind!r}")
        check = {"string": self._string, "object": self._object, "array": self._array}.get(str(kind))
        return {"type": kind} if check is None else {"type": kind} | check(schema, keys - {"type"}, path, references)

    def _string(self, schema: dict[str, Any], keys: set[str], path: str, references) -> dict[str, Any]:
        lengths = keys & {"minLength", "maxLength"}
        self._require(len(keys - lengths) + bool(lengths) <= 1, path, f"{sorted(keys)} together")
        if "format" in keys:
            known = schema["format"] in _FORMATS
            self._require(known, path, f"the format {schema['format']!r} (enforced: {', '.join(_FORMATS)})")
            return {"pattern": f"^(?:{_FORMATS[schema['format']]})$"}
        if "pattern" not in keys:
            return {key: schema[key] for key in keys}
        self._require(isinstance(schema["pattern"], str), path, "a pattern that is no text")
        return {"pattern": f"^(?:{string_pattern(schema['pattern'])})$"}

    def _object(self, schema: dict[str, Any], keys: set[str], path: str, references) -> dict[str, Any]:
        extra, properties = schema.get("additionalProperties", True), schema.get("properties")
        required = schema.get("required", [])
        self._require(isinstance(required, list), path, "required that is no list of names")
        if properties is None:
            self._require(not required, path, "required without properties")
            # A key may come twice, and then counts once.
            self._require(schema.get("minProperties", 0) <= 1, path, "minProperties above 1")
            result = {key: schema[key] for key in keys & {"minProperties", "maxProperties"}}
            if extra is True:
                return result
            if extra is not False:
                return result | {
                    "additionalProperties": self.checked(extra, f"{path}/additionalProperties", references)
                }
            self._require(schema.get("minProperties", 0) == 0, path, "minProperties without any property")
            properties, keys = {}, set()
        self._require(isinstance(properties, dict), path, "properties that are no object")
        limits = keys & {"minProperties", "maxProperties"}
        self._require(not limits, path, f"{sorted(limits)} beside properties")
        missing = [name for name in required if name not in properties]
        self._require(not missing, path, f"required names {missing} that are not among its properties")
        for name in properties:
            plain = not any(letter in '"\\' or ord(letter) < 32 for letter in name)
            self._require(plain, path, f"the property name {name!r} with a quote, a backslash or a control character")
        inner = {name: self.checked(each, f"{path}/properties/{name}", references) for name, each in properties.items()}
        return {"properties": inner, "required": required}

    def _array(self, schema: dict[str, Any], keys: set[str], path: str, references) -> dict[str, Any]:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        self._require(most is None or least <= most, path, f"minItems {least} above maxItems {most}")
        if "prefixItems" in keys:
            items = self._each(schema["prefixItems"], f"{path}/prefixItems", references)
            self._require("items" not in keys, path, "items beside prefixItems")
            fits = least <= len(items) and (most is None or most >= len(items))
            self._require(fits, path, f"{len(items)} prefixItems, and minItems or maxItems that exclude them")
            return {"prefixItems": items}
        result = {key: schema[key] for key in keys & {"minItems", "maxItems"}}
        if "items" in keys:
            result["items"] = self.checked(schema["items"], f"{path}/items", references)
        return result

    def _followed(self, reference: Any, path: str, references: tuple[str, ...]) -> tuple[Any, str, tuple[str, ...]]:
        """Return the schema that a reference leads to, its path, and the references on the way to it."""
        inside = isinstance(reference, str) and reference.startswith("#")
        self._require(inside, path, f"the reference {reference!r} to another document")
        self._require(reference not in references, path, f"{reference}, which is recursive: no automaton has its texts")
        target = self.whole
        for part in reference.lstrip("#").split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            there = isinstance(target, Mapping) and name in target
            self._require(there, path, f"the reference {reference}, which leads nowhere")
            target = target[name]
        return target, path, (*references, reference)

    def _require(self, condition: bool, path: str, what: str) -> None:
        if not condition:
            raise ConfigurationError(
                f"the JSON schema has, at {path[:200]}, {what[:300]}; a constraint would not enforce it: leave it out, "
                "or write it in keywords that are enforced (the guide to constraints lists them)"
            )


def string_pattern(pattern: str) -> str:
    """Return the translation of a `pattern` of a schema, for the whole string: `^` and `$` at its ends are implied."""
    if pattern.endswith("$") and (len(pattern) - len(pattern[:-1].rstrip("\\"))) % 2:
        pattern = pattern[:-1]
    return translated(pattern)


def white_space(pattern: str) -> str:
    """Return the translation of an expression of white space, in which `\\s` is what is white space to JSON."""
    return translated(pattern).replace(r"\f\v", "")


def patterns(schema: Any) -> list[str]:
    """Return the patterns of strings in a schema that `require_enforced` returned, without `^` and `$`."""
    return sorted({each.removeprefix("^").removesuffix("$") for each in _patterns(schema)})


def _patterns(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [found for each in schema for found in _patterns(each)]
    if not isinstance(schema, dict):
        return []
    own = [schema["pattern"]] if schema.get("type") == "string" and "pattern" in schema else []
    return own + [found for key, each in schema.items() if key not in ("const", "enum") for found in _patterns(each)]


def _is(value: Any, kind: Any) -> bool:
    """Return whether a value is of a type of JSON Schema."""
    if isinstance(value, bool) or value is None:
        return kind == ("null" if value is None else "boolean")
    if isinstance(value, int | float):
        return kind == "number" or (kind == "integer" and (isinstance(value, int) or value.is_integer()))
    return kind == {str: "string", dict: "object", list: "array"}[type(value)]
