"""Conversations: rows of messages, of which the last, the assistant's, is learnt."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edlm.config import ConfigurationError
from edlm.data.document import Document
from edlm.data.text_key import text_key

MESSAGES_FIELD = "corpus.messages_field"
ASSISTANT = "assistant"
Turn = tuple[str, str]
"""Role and content of a message."""


def turns_of(messages: Any) -> tuple[Turn, ...]:
    """Return the messages of a conversation: objects with the texts `role` and `content`.

    Raise ConfigurationError for anything else; other fields of a message may be empty only.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ConfigurationError(f"no list of messages but {_short(messages)}; a message has a `role` and a `content`")
    return tuple(_turn(message) for message in messages)


def _turn(message: Any) -> Turn:
    if not isinstance(message, Mapping):
        raise ConfigurationError(f"a message is {_short(message)}, not an object with `role` and `content`")
    for name in ("role", "content"):
        text = message.get(name)
        if not isinstance(text, str):
            raise ConfigurationError(f"a message has the {name} {_short(text)}, not a text")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can encode half of a surrogate pair, which is no character
            raise ConfigurationError(f"the {name} of a message is not Unicode text ({error}); mend it") from error
    if more := [name for name, value in message.items() if name not in ("role", "content") and value]:
        raise ConfigurationError(
            f"a message has {more[0]!r} besides `role` and `content`, which would be lost; remove the field"
        )
    return message["role"], message["content"]


def conversation(messages: Any, name: str, longest: int) -> Iterator[Document]:
    """Yield the conversation as one document, unless it is blank; its key is that of all messages but the last.

    Raise ConfigurationError if it is no conversation, does not end with the assistant, or has more than `longest`
    characters.
    """
    try:
        turns = turns_of(messages)
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error}") from error
    if turns[-1][0] != ASSISTANT or len(turns) == 1:
        raise ConfigurationError(
            f"{name}: the roles are {', '.join(role for role, _ in turns)}; the last message, which is learnt, is the "
            f"{ASSISTANT}'s, and others are before it"
        )
    before = "".join(f"{text}\n" for _, text in turns[:-1])
    text = before + turns[-1][1]
    if len(text) > longest:
        raise ConfigurationError(
            f"{name}: a conversation of {len(text):,} characters, and conversations are not cut; raise corpus.longest, "
            f"which is {longest:,}, or remove the row"
        )
    if text.strip():
        yield Document(text, name, text_key(before), given=len(before), turns=turns)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
