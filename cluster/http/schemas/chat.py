"""Request schema of chat completions: a conversation, whose next message is generated."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from cluster.http.errors import APIError
from cluster.http.schemas.field_types import MAX_TOKENS, TEXT, TEXTS, Body, Text
from cluster.http.schemas.requests import CompletionRequest, ContinuationRequest, Logprobs
from cluster.http.unsupported_fields import NEUTRAL

MAX_MESSAGES = 2**10
PARTS = TEXTS  # tag of a list of parts

Limit = Annotated[int, Field(ge=1, le=MAX_TOKENS)]


class TextPart(Body):
    """Part of a message; OpenAI's other kinds of parts, such as images, are not supported."""

    type: Literal["text"]
    """Always `text`."""
    text: Text
    """The text of the part."""


def _form_of_content(value: Any) -> str | None:
    return {str: TEXT, list: PARTS}.get(type(value))


Content = Annotated[
    Annotated[Text, Tag(TEXT)] | Annotated[list[TextPart], Tag(PARTS)],
    Discriminator(_form_of_content, custom_error_type="form", custom_error_message="give a text or a list of parts"),
]


class ChatMessage(Body, extra="allow"):
    """Message of a conversation; a field besides `role` and `content` is refused, unless it is empty."""

    role: Annotated[str, Field(max_length=64)]
    """`system`, `user`, `assistant` or `tool`."""
    content: Content
    """What the message says; special tokens in it are read as text."""

    @property
    def turn(self) -> dict[str, Any]:
        """The message with its parts joined to one text."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {**(self.model_extra or {}), "role": self.role, "content": text}


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]


class ChatRequest(ContinuationRequest):
    """POST /v1/chat/completions, for models that were trained on conversations."""

    messages: Messages
    """The conversation so far; the assistant's next message is generated."""
    max_tokens: Limit | None = None
    """Maximum number of tokens of the message. Default: what the conversation leaves of the canvas, at least half of
    it."""
    max_completion_tokens: Limit | None = None
    """OpenAI's newer name for `max_tokens`."""
    logprobs: bool = False
    """Return log p of every token of the message."""
    top_logprobs: Logprobs = 0
    """With `logprobs`: number of likeliest tokens to list in the place of each."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **{name: values for name, values in NEUTRAL.items() if name != "messages"},
        "add_generation_prompt": (True,),
        "audio": (),
        "best_of": (1,),
        "chat_template": (),
        "chat_template_kwargs": ({},),
        "continue_final_message": (False,),
        "documents": ([],),
        "echo": (False,),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "prediction": (),
        "prompt": (),
        "suffix": (),
        "tool_choice": ("none", "auto"),
    }

    def require_consistent(self) -> None:
        """Raise APIError if a stop string is invalid, or fields are inconsistent with one another."""
        super().require_consistent()
        if None not in (limits := (self.max_tokens, self.max_completion_tokens)) and len({*limits}) > 1:
            message = f"max_completion_tokens is {limits[1]}, and max_tokens, another name for it, {limits[0]}"
            raise APIError(400, f"{message}; give one", "max_completion_tokens", "invalid_value")
        if self.top_logprobs and not self.logprobs:
            raise APIError(400, "top_logprobs requires logprobs: true", "top_logprobs", "invalid_value")

    def completion(self, prompt: Sequence[int], length: int) -> CompletionRequest:
        """Return the request to continue the conversation's tokens `prompt`, on canvases of `length` tokens."""
        most = self.max_tokens or self.max_completion_tokens or max(length - len(prompt), length // 2)
        shared = {name: getattr(self, name) for name in ContinuationRequest.model_fields}
        # Without validation: these values are valid, and `prompt` may be longer than a client's.
        logprobs = self.top_logprobs if self.logprobs else None
        return CompletionRequest.model_construct(**shared, prompt=[list(prompt)], max_tokens=most, logprobs=logprobs)
