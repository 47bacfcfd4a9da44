"""Request fields that constrain a text: OpenAI's `response_format`, vLLM's structured outputs and `edlm.constraint`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from cluster.http.errors import APIError
from cluster.http.schemas.field_types import TEXT, Body, Text
from cluster.http.unsupported_fields import NO_GRAMMAR, ignored
from edlm.config import ConfigurationError, replaced
from edlm.constraints.regular_expression import MOST_LETTERS
from edlm.constraints.specification import MOST_CHOICES, JsonSchema, OneOf, Regex

OBJECT = "<object>"  # tag of a schema that is an object
JSON_OBJECT = JsonSchema.of({"type": "object"})


@dataclass(frozen=True)
class RequestedConstraint:
    """What a request's texts are to satisfy, and the field that says so."""

    field: str
    specification: Regex | OneOf | JsonSchema

    def conflict(self, field: str, reason: str, instead: str) -> APIError:
        """Return the refusal of another field, which does not combine with the constraint."""
        message = f"{self.field} constrains the text, and {field} {reason}; leave one of them out, or {instead}"
        return APIError(400, message, field, "invalid_value")

    @property
    def is_json(self) -> bool:
        """Whether it is JSON, which may have white space between its parts."""
        return isinstance(self.specification, JsonSchema)

    def with_whitespace(self, pattern: str | None) -> "RequestedConstraint":
        """Return the constraint with this white space between the parts of its JSON; None: what it was."""
        if pattern is None or not isinstance(self.specification, JsonSchema):
            return self
        return replace(self, specification=replaced(self.specification, self.field, whitespace=pattern))


def _form_of_schema(value: Any) -> str | None:
    return {str: TEXT, dict: OBJECT}.get(type(value))


Schema = Annotated[
    Annotated[str, Tag(TEXT)] | Annotated[dict[str, Any], Tag(OBJECT)],
    Discriminator(_form_of_schema, custom_error_type="form", custom_error_message="give a JSON schema, or its text"),
]
Expression = Annotated[str, Field(max_length=MOST_LETTERS)]
Choices = Annotated[list[Text], Field(max_length=MOST_CHOICES)]


class ConstraintSettings(Body):
    """One of a regular expression, choices and a JSON schema."""

    regex: Expression | None = None
    """Regular expression of Python that the whole text matches."""
    choice: Annotated[Choices, Field(min_length=1)] | None = None
    """Texts, one of which it is."""
    json_: Annotated[Schema | None, Field(alias="json")] = None
    """JSON schema, or its text: the text is JSON that satisfies it."""
    json_object: bool = False
    """The text is a JSON object."""
    whitespace_pattern: Expression | None = None
    """Regular expression of the white space between the parts of JSON. Default: one space or none."""

    def given(self, field: str) -> list[RequestedConstraint]:
        """Return the constraints in this object, which is in `field`."""
        found = []
        if self.regex is not None:
            found.append(RequestedConstraint(f"{field}.regex", Regex(pattern=self.regex)))
        if self.choice is not None:
            found.append(RequestedConstraint(f"{field}.choice", OneOf(texts=tuple(self.choice))))
        if self.json_ is not None:
            found.append(of_schema(f"{field}.json", self.json_))
        if self.json_object:
            found.append(RequestedConstraint(f"{field}.json_object", JSON_OBJECT))
        return [each.with_whitespace(self.whitespace_pattern) for each in found]

    @property
    def without_effect(self) -> list[str]:
        """Names of the fields that say what the white space of no JSON is."""
        return [] if self.json_ is not None or self.json_object else self.of_whitespace

    @property
    def of_whitespace(self) -> list[str]:
        """Names of the fields that say what white space is."""
        return [] if self.whitespace_pattern is None else ["whitespace_pattern"]


class StructuredOutputs(ConstraintSettings, extra="allow"):
    """vLLM's form of a constraint; other kinds of it are refused, and unknown fields are ignored."""

    disable_any_whitespace: bool = False
    """Compact JSON, without white space between its parts."""
    disable_additional_properties: bool = False
    """Has no effect: an object has the properties of its schema and no others."""
    disable_fallback: bool = False
    """Has no effect: there is no other implementation to fall back to."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"grammar": (False,), "structural_tag": (False,)}
    instead: ClassVar[Mapping[str, str]] = {
        "grammar": NO_GRAMMAR,
        "structural_tag": "tags within a text are not supported; give an expression of the whole text",
    }

    def given(self, field: str) -> list[RequestedConstraint]:
        """Return the constraints in this object; raise APIError for a field that is not supported."""
        for name, reason in self.instead.items():
            if (self.model_extra or {}).get(name, False) is not False:
                message = f"{field}.{name} is not supported: {reason}"
                raise APIError(400, message, f"{field}.{name}", "unsupported_parameter")
        if self.disable_any_whitespace and self.whitespace_pattern is not None:
            message = f"{field}.disable_any_whitespace and whitespace_pattern contradict each other; give one of them"
            raise APIError(400, message, f"{field}.whitespace_pattern", "invalid_value")
        space = "" if self.disable_any_whitespace else None
        return [each.with_whitespace(space) for each in super().given(field)]

    @property
    def of_whitespace(self) -> list[str]:
        return [*super().of_whitespace, *(["disable_any_whitespace"] if self.disable_any_whitespace else [])]


class NamedSchema(Body, extra="allow"):
    """The schema of `response_format`."""

    name: Annotated[str, Field(max_length=64)] = ""
    """Name, not used."""
    description: str = ""
    """Description, not used."""
    schema_: Annotated[Schema, Field(alias="schema")]
    """JSON schema of the text."""
    strict: bool = True
    """Accepted as OpenAI's clients send it: the schema is always enforced."""


class ResponseFormat(Body, extra="allow"):
    """OpenAI's form of a constraint."""

    type: Literal["text", "json_object", "json_schema"]
    """`text`: no constraint. `json_object`: any JSON object. `json_schema`: JSON that satisfies `json_schema`."""
    json_schema: NamedSchema | None = None
    """The schema, for the type `json_schema`."""

    def given(self, field: str) -> list[RequestedConstraint]:
        """Return the constraint in this object; raise APIError if its parts do not belong together."""
        if self.type == "json_schema" and self.json_schema is None:
            message = (
                f'{field}.json_schema is missing, which the type json_schema needs: {{"name": ..., "schema": ...}}'
            )
            raise APIError(400, message, f"{field}.json_schema", "invalid_value")
        if self.type != "json_schema" and self.json_schema is not None:
            message = f"{field}.json_schema belongs to the type json_schema, and the type is {self.type}"
            raise APIError(400, message, f"{field}.json_schema", "invalid_value")
        if self.json_schema is not None:
            return [of_schema(f"{field}.json_schema.schema", self.json_schema.schema_)]
        return [RequestedConstraint(field, JSON_OBJECT)] if self.type == "json_object" else []


class ConstraintFields(Body, extra="allow"):
    """Fields of completions and chats that constrain the text."""

    response_format: ResponseFormat | None = None
    """What the text is to satisfy, in OpenAI's form."""
    structured_outputs: StructuredOutputs | None = None
    """What the text is to satisfy, in vLLM's form."""
    guided_regex: Expression | None = None
    """vLLM's older name for `structured_outputs.regex`."""
    guided_choice: Choices | None = None
    """vLLM's older name for `structured_outputs.choice`."""
    guided_json: Schema | None = None
    """vLLM's older name for `structured_outputs.json`."""
    guided_whitespace_pattern: Expression | None = None
    """vLLM's older name for `structured_outputs.whitespace_pattern`; also for the JSON of `response_format`."""

    def constraints_in_fields(self) -> list[RequestedConstraint]:
        """Return the constraints in these fields; raise APIError for one that is not supported."""
        found = [] if self.response_format is None else self.response_format.given("response_format")
        if self.structured_outputs is not None:
            found += self.structured_outputs.given("structured_outputs")
        if self.guided_regex is not None:
            found.append(RequestedConstraint("guided_regex", Regex(pattern=self.guided_regex)))
        if self.guided_choice:
            found.append(RequestedConstraint("guided_choice", OneOf(texts=tuple(self.guided_choice))))
        if self.guided_json is not None:
            found.append(of_schema("guided_json", self.guided_json))
        return [each.with_whitespace(self.guided_whitespace_pattern) for each in found]

    @property
    def ignored_in_constraints(self) -> tuple[str, ...]:
        """Names of the unknown fields of these objects, and of those that say what the white space of no JSON is."""
        form, outputs = self.response_format, self.structured_outputs
        schema = None if form is None else form.json_schema
        objects = {"response_format": form, "response_format.json_schema": schema, "structured_outputs": outputs}
        found = [
            f"{field}.{name}"
            for field, each in objects.items()
            if each is not None
            for name in ignored(each.model_extra or {}, StructuredOutputs.refused if each is outputs else {})
        ]
        if outputs is not None:
            found += [f"structured_outputs.{name}" for name in outputs.without_effect]
        given = self.constraints_in_fields()
        if self.guided_whitespace_pattern is not None and not any(each.is_json for each in given):
            found.append("guided_whitespace_pattern")
        return tuple(found)


def of_schema(field: str, schema: str | dict[str, Any]) -> RequestedConstraint:
    """Return the constraint of a JSON schema in `field`, given as an object or as its text."""
    if isinstance(schema, str):
        return RequestedConstraint(field, JsonSchema(json_schema=schema))
    try:
        return RequestedConstraint(field, JsonSchema.of(schema))
    except ConfigurationError as error:
        raise APIError(400, str(error), field, "invalid_value") from None


def single(given: Sequence[RequestedConstraint]) -> RequestedConstraint | None:
    """Return the only constraint, None if there is none; raise APIError that names two if there are several."""
    if len(given) > 1:
        message = f"{given[0].field} and {given[1].field} both constrain the text; give one of them"
        raise APIError(400, message, given[1].field, "invalid_value")
    return given[0] if given else None
