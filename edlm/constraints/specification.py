"""What a user may ask of a text: a regular expression, one of several texts, or JSON of a schema."""

import json
from abc import ABC, abstractmethod
from typing import Any, Literal

import pydantic

from edlm.config import ConfigurationError, config
from edlm.constraints.json_schema import patterns, require_enforced, white_space
from edlm.constraints.regular_expression import literal, translated

MOST_SCHEMA_LETTERS = 100_000
MOST_CHOICES = 10_000
MOST_QUOTED = 120  # characters of a constraint in a message


class AbstractSpecification(ABC):
    """A set of texts that a constraint allows."""

    @abstractmethod
    def source(self) -> dict[str, Any]:
        """Return what `outlines_process` compiles; raise ConfigurationError for what it would not enforce."""

    @property
    @abstractmethod
    def request_form(self) -> dict[str, Any]:
        """The object `edlm.constraint` of a request to the service."""

    @abstractmethod
    def __str__(self) -> str:
        """Return what it is in the words of the one who gave it, shortened."""


@config
class Regex(AbstractSpecification):
    """Texts that a regular expression matches as a whole, as with `re.fullmatch`."""

    kind: Literal["regex"] = "regex"
    pattern: str = pydantic.Field(kw_only=False)

    def source(self):
        return {"regex": translated(self.pattern)}

    @property
    def request_form(self) -> dict[str, Any]:
        return {"regex": self.pattern}

    def __str__(self) -> str:
        return f"the regular expression {_short(repr(self.pattern))}"


@config
class OneOf(AbstractSpecification):
    """One of several texts."""

    kind: Literal["choice"] = "choice"
    texts: tuple[str, ...] = pydantic.Field(kw_only=False, strict=False)  # a list will do

    def __post_init__(self) -> None:
        if not 1 <= len(self.texts) <= MOST_CHOICES:
            raise ValueError(f"a choice is between 1 and {MOST_CHOICES:,} texts; got {len(self.texts)}")

    def source(self):
        if sum(map(len, self.texts)) > MOST_SCHEMA_LETTERS:
            raise ConfigurationError(
                f"the texts of the choice have more than {MOST_SCHEMA_LETTERS:,} characters together"
            )
        return {"regex": "|".join(map(literal, self.texts))}

    @property
    def request_form(self) -> dict[str, Any]:
        return {"choice": list(self.texts)}

    def __str__(self) -> str:
        return f"the choices {_short(', '.join(map(repr, self.texts)))}"


@config
class JsonSchema(AbstractSpecification):
    """JSON that satisfies a schema: of an object the properties in the schema's order, and no others."""

    kind: Literal["json_schema"] = "json_schema"
    json_schema: str = pydantic.Field(kw_only=False)
    """The schema as JSON text; `of` takes a dictionary."""
    whitespace: str | None = None
    """Regular expression of what stands between the parts of objects and lists, of white space alone. None: one space
    or none; "": nothing."""

    @pydantic.field_validator("json_schema", mode="before")
    @classmethod
    def _is_text(cls, schema: object) -> object:
        if isinstance(schema, dict):
            raise ValueError("the schema is a dictionary, not JSON text; write JsonSchema.of(schema)")
        return schema

    @classmethod
    def of(cls, schema: dict[str, Any], whitespace: str | None = None) -> "JsonSchema":
        """Return the specification of a schema given as a dictionary."""
        try:
            return cls(json_schema=json.dumps(schema), whitespace=whitespace)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigurationError(f"the JSON schema is not JSON: {error}") from error

    def source(self):
        if len(self.json_schema) > MOST_SCHEMA_LETTERS:
            raise ConfigurationError(
                f"the JSON schema has {len(self.json_schema):,} characters; at most {MOST_SCHEMA_LETTERS:,} are read"
            )
        try:
            schema = json.loads(self.json_schema)
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"the JSON schema is not JSON: {error}") from error
        enforced = require_enforced(schema)
        request = {"schema": json.dumps(enforced), "patterns": patterns(enforced)}
        return request if self.whitespace is None else request | {"whitespace": white_space(self.whitespace)}

    @property
    def request_form(self) -> dict[str, Any]:
        form = {"json": self.json_schema}
        return form if self.whitespace is None else form | {"whitespace_pattern": self.whitespace}

    def __str__(self) -> str:
        return f"the JSON schema {_short(self.json_schema)}"


def _short(text: str) -> str:
    return text if len(text) <= MOST_QUOTED else text[: MOST_QUOTED - 3] + "..."
