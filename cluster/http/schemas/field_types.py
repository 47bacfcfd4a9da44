"""Value types of request fields; unions are resolved by JSON type first, so that errors name the right variant."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag, model_validator

from cluster.http.unsupported_fields import NAME

MAX_PROMPT = 2**16  # characters or tokens; only the end of a prompt longer than the canvas is used
MAX_TOKENS = 4096
MAX_INTEGER = 2**53 - 1  # every JSON parser represents integers up to here exactly

# In the document alone: an error of the value says more than one of its length.
NOT_EMPTY: dict[str, JsonValue] = {"minLength": 1}

Text = Annotated[str, Field(max_length=MAX_PROMPT)]
Token = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Tokens = Annotated[list[Token], Field(min_length=1, max_length=MAX_PROMPT)]
Gap = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
# Tags of union variants, in angle brackets so that errors can drop them from the field name.
TEXT, TEXTS, TOKENS, TOKEN_LISTS, GAP = "<text>", "<texts>", "<tokens>", "<token lists>", "<gap>"


def _form(value: Any) -> str | None:
    """Return the tag for the JSON type of a value, or of the first item of a list; None if no variant matches."""
    if not isinstance(value, list):
        return {str: TEXT, int: GAP}.get(type(value))
    return {str: TEXTS, int: TOKENS, list: TOKEN_LISTS}.get(type(value[0])) if value else None


def _form_of_stop(value: Any) -> str | None:
    return TEXTS if value == [] else _form(value)


Prompt = Annotated[
    Annotated[Text, Tag(TEXT)]
    | Annotated[list[Text], Tag(TEXTS)]
    | Annotated[Tokens, Tag(TOKENS)]
    | Annotated[list[Tokens], Tag(TOKEN_LISTS)],
    Discriminator(
        _form,
        custom_error_type="form",
        custom_error_message="give a text, a list of texts, a list of token ids, or a list of lists of token ids; no "
        "list may be empty",
    ),
]
OnePrompt = Annotated[
    Annotated[Text, Tag(TEXT)] | Annotated[Tokens, Tag(TOKENS)],
    Discriminator(_form, custom_error_type="form", custom_error_message="give a text, or a list of token ids"),
]
StopString = Annotated[str, Field(json_schema_extra=NOT_EMPTY)]
Stop = Annotated[
    Annotated[StopString, Tag(TEXT)] | Annotated[list[StopString], Tag(TEXTS)],
    Discriminator(_form_of_stop, custom_error_type="form", custom_error_message="give a text or a list of texts"),
]
Part = Annotated[
    Annotated[Text, Tag(TEXT)] | Annotated[Gap, Tag(GAP)],
    Discriminator(
        _form, custom_error_type="form", custom_error_message="give a text, or the number of tokens that fill the gap"
    ),
]


def _documented(schema: dict[str, Any], model: Any) -> None:
    """Add to the schema what its types do not say: null stands for a default, and which fields exclude one another."""
    if model.alternatives:
        schema["oneOf"] = [
            {"properties": {name: {"not": {"type": "null"}}}, "required": [name]} for name in model.alternatives
        ]
    if model.model_config["extra"] == "allow":
        schema["propertyNames"] = {"pattern": f"^{NAME.pattern}$"}
    for name, field in schema.get("properties", {}).items():
        variants = field.get("anyOf", [])
        if name in schema.get("required", ()) or {"type": "null"} in variants:
            continue
        annotations = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
        variants = variants or [dict(field)]
        field.clear()
        field.update(annotations, anyOf=[*variants, {"type": "null"}])


class Body(BaseModel):
    """JSON object of a request; null stands for the default of a field."""

    alternatives: ClassVar[tuple[str, ...]] = ()
    """Fields of which exactly one is given."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        json_schema_extra=_documented,
    )

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, tree: Any) -> Any:
        """Drop null fields, so that they take their defaults; not what cannot be a field's name, which is refused."""
        if not isinstance(tree, dict):
            return tree
        return {name: value for name, value in tree.items() if value is not None or not NAME.fullmatch(name)}

    @model_validator(mode="after")
    def _one_alternative(self) -> Self:
        given = [name for name in self.alternatives if getattr(self, name) is not None]
        if self.alternatives and len(given) != 1:
            raise ValueError(f"give exactly one of {' and '.join(self.alternatives)}")
        return self
