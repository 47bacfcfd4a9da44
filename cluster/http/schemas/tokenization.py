"""Request schemas of the conversion of text to tokens, and back; vLLM's clients send the same."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from cluster.http.schemas.chat import Messages
from cluster.http.schemas.field_types import MAX_PROMPT, Body, Text, Token
from cluster.http.unsupported_fields import ignored


class _TokenizerRequest(Body, extra="allow"):
    model: Annotated[str, Field(max_length=256)] | None = None
    """Name of the registered model; no other is served."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @property
    def ignored(self) -> tuple[str, ...]:
        """Names of the unknown fields, which are ignored. Raise APIError if a field would change the tokens."""
        return ignored(self.model_extra or {}, self.neutral)


class TokenizeRequest(_TokenizerRequest):
    """POST /v1/tokenize, and /tokenize as vLLM has it."""

    text: Text | None = None
    """Text to tokenize; give it, `prompt` or `messages`."""
    prompt: Text | None = None
    """The same, by vLLM's name."""
    messages: Messages | None = None
    """Conversation, as in /v1/chat/completions: its tokens up to the assistant's next message."""
    add_special_tokens: bool = True
    """Accepted as vLLM's clients send it; prompts are read without special tokens here."""
    return_token_strs: bool = False
    """Return `token_strs`, the text of each token."""

    alternatives: ClassVar[tuple[str, ...]] = ("text", "prompt", "messages")
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "add_generation_prompt": (True,),
        "chat_template": (),
        "chat_template_kwargs": ({},),
        "continue_final_message": (False,),
        "tools": ([],),
    }


class DetokenizeRequest(_TokenizerRequest):
    """POST /v1/detokenize, and /detokenize as vLLM has it."""

    tokens: Annotated[list[Token], Field(max_length=MAX_PROMPT)]
    """Token ids."""
