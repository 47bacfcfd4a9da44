"""The forms of a request's values: each is told by its JSON type first, so that what is wrong with it is told of it."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

MAX_PROMPT = 2**16  # characters or tokens; of a longer one than the canvas the end is read
MAX_TOKENS = 4096
MAX_INTEGER = 2**53 - 1  # what every reader of JSON keeps exactly

Text = Annotated[str, Field(max_length=MAX_PROMPT)]
Token = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Tokens = Annotated[list[Token], Field(min_length=1, max_length=MAX_PROMPT)]
Gap = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
# Tags of a union's variants: in angle brackets, so that an error leaves them out of the field's name.
TEXT, TEXTS, TOKENS, TOKEN_LISTS, GAP = "<text>", "<texts>", "<tokens>", "<token lists>", "<gap>"


def _form(value: Any) -> str | None:
    """The tag of a value by its JSON type, and of a list by its first item's; None where it has no form."""
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
Stop = Annotated[
    Annotated[str, Tag(TEXT)] | Annotated[list[str], Tag(TEXTS)],
    Discriminator(_form_of_stop, custom_error_type="form", custom_error_message="give a text or a list of texts"),
]
Part = Annotated[
    Annotated[Text, Tag(TEXT)] | Annotated[Gap, Tag(GAP)],
    Discriminator(
        _form, custom_error_type="form", custom_error_message="give a text, or how many tokens fill the gap here"
    ),
]


def _with_nulls(schema: dict[str, Any]) -> None:
    """Afterwards the schema says that null stands for a field's default."""
    for name, field in schema.get("properties", {}).items():
        variants = field.get("anyOf", [])
        if name in schema.get("required", ()) or {"type": "null"} in variants:
            continue
        told = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
        variants = variants or [dict(field)]
        field.clear()
        field.update(told, anyOf=[*variants, {"type": "null"}])


class Body(BaseModel):
    """An object of a request, in which null stands for a default."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        json_schema_extra=_with_nulls,
    )

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, tree: Any) -> Any:
        """A field that is null has its default, as if it was left out."""
        return {name: value for name, value in tree.items() if value is not None} if isinstance(tree, dict) else tree
