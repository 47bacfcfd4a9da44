"""Chat templates: the tokens of a conversation, in the form that a tokenizer's authors chose.

The template's special tokens become their ids, and what the messages say never does: a message that spells a special
token is read as text, wherever the template puts it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pydantic
from jaxtyping import Int32

from edlm.config import ConfigurationError, config
from edlm.data.conversations import ASSISTANT, Turn
from edlm.data.tokenizer import Tokenizer

TEMPLATE_FILE, CONFIG_FILE = "chat_template.jinja", "tokenizer_config.json"
STAND_IN = 0xF0000  # private characters, which no message may hold: one for each special token that a message spells
PROBES = 0x100000  # other ones, which stand for whole messages when a template is examined
STAND_INS = re.compile(f"([{chr(STAND_IN)}-{chr(PROBES - 1)}])")
PROBE_ROLES = ("user", ASSISTANT)
ROLES = ("system", *PROBE_ROLES, "tool")  # a template may write a role between the halves of a special token


@config
class ChatTemplate:
    """Template of conversations, with the texts of the special tokens that it names."""

    template: str
    """Jinja, as transformers renders it: in a sandbox. A date that it asks for is the day's."""
    special_tokens: dict[str, str] = pydantic.Field(default_factory=dict)
    """For example `bos_token`."""

    def prompt(self, tokenizer: Tokenizer, turns: Sequence[Turn]) -> Int32[np.ndarray, " l"]:
        """Return the tokens of a conversation up to where the assistant's next message begins.

        Raise ConfigurationError if the template refuses it, or a message has a role that is not in ROLES.
        """
        return _tokens(tokenizer, self._rendered(tokenizer, turns, answering=True))

    def pair(
        self, tokenizer: Tokenizer, turns: Sequence[Turn]
    ) -> tuple[Int32[np.ndarray, " l"], Int32[np.ndarray, " n"]]:
        """Return the tokens of the prompt, and of the assistant's message that follows it, the last of the turns.

        These end with the separator: the one that the template writes after the message, or one that is added.
        Raise ConfigurationError if the template refuses the conversation, or writes it otherwise than its prompt, or a
        message has a role that is not in ROLES.
        """
        before, whole = self._rendered(tokenizer, turns[:-1], answering=True), self._rendered(tokenizer, turns)
        if not whole.startswith(before):
            raise ConfigurationError(
                "the chat template writes a conversation with its last message otherwise than without it, so that no "
                "prompt asks for that message; take a template that only appends, or corpus.prompts"
            )
        assert tokenizer.separator is not None  # every tokenizer that comes with a template has one (kind: huggingface)
        answer = _tokens(tokenizer, whole[len(before) :])
        ends = np.flatnonzero(answer == tokenizer.separator)
        answer = answer[: ends[0]] if len(ends) else answer
        return _tokens(tokenizer, before), np.append(answer, np.int32(tokenizer.separator))

    def examine(self, tokenizer: Tokenizer) -> None:
        """Raise ConfigurationError for a template that cannot ask for an answer, or whose tokens messages can forge."""
        turns = [(role, chr(PROBES + i)) for i, role in enumerate(PROBE_ROLES)]
        self.pair(tokenizer, turns)
        before, whole = self._rendered(tokenizer, turns[:-1], answering=True), self._rendered(tokenizer, turns)
        if missing := [role for role, text in turns if text not in whole]:
            raise ConfigurationError(f"the chat template leaves out messages of the {missing[0]}")
        start = whole[len(before) : whole.index(turns[-1][1])]
        used = [token for token in tokenizer.special_tokens if token in whole]
        if found := [token for token in used if token in start]:
            raise ConfigurationError(
                f"the chat template has no prompt for an answer: {found[0]!r} comes between the two, and "
                "add_generation_prompt does not write it"
            )
        for token in used:
            if (reason := tokenizer.spelt(tokenizer.ids()[token])) is not None:
                raise ConfigurationError(f"messages can spell the special token {token!r} of the template: {reason}")
        if found := tokenizer.special_tokens_sought_after_normalizing:
            raise ConfigurationError(
                f"messages can spell the special token {found[0]!r} in other letters: it is looked for after the "
                "normalizer has changed the text; set `normalized` of this token in tokenizer.json to false"
            )
        for _, text in turns:
            left, right = whole.split(text)[:2]
            for token in tokenizer.special_tokens:
                parts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
                if any(left.endswith(first) or right.startswith(last) for first, last in parts):
                    raise ConfigurationError(
                        f"a message could complete the special token {token!r} with the letters that the chat template "
                        "puts beside it; take a template that puts spaces or whole special tokens there"
                    )

    def _rendered(self, tokenizer: Tokenizer, turns: Sequence[Turn], answering: bool = False) -> str:
        """Return the text of a conversation, with a stand-in for every special token that a message spells."""
        if other := [role for role, _ in turns if role not in ROLES]:
            raise ConfigurationError(
                f"a message has the role {other[0]!r}, which could complete a special token of the chat template; "
                f"rename it to one of: {', '.join(ROLES)}"
            )
        special, render = tokenizer.special_tokens, _renderer()
        chat = [{"role": role, "content": _guarded(text, special)} for role, text in turns]
        try:
            (text,), _ = render(
                [chat], chat_template=self.template, add_generation_prompt=answering, **self.special_tokens
            )
        except Exception as error:  # templates are programs, which raise exceptions of any class
            raise ConfigurationError(f"the chat template refuses the conversation: {error}") from error
        return text


def _renderer() -> Any:  # its annotation names one text, and it returns a list of texts and one of indices
    try:
        # Deferred: takes seconds.
        from transformers.utils.chat_template_utils import render_jinja_template  # type: ignore[import-not-found]
    except ImportError as error:
        raise ConfigurationError(
            "chat templates are rendered by the transformers library: pip install '.[hf]' in a checkout of edlm"
        ) from error
    return render_jinja_template


def _guarded(text: str, special: Sequence[str]) -> str:
    if (found := STAND_INS.search(text)) is not None:
        raise ConfigurationError(
            f"a message holds U+{ord(found[0]):X}, a private character of plane 15, and edlm puts these in place of "
            "the special tokens that messages spell; remove it, or put another character in its place"
        )
    numbers = {token: chr(STAND_IN + i) for i, token in enumerate(special)}
    longest_first = sorted(map(re.escape, special), key=len, reverse=True)
    return re.sub("|".join(longest_first), lambda found: numbers[found[0]], text) if special else text


def _tokens(tokenizer: Tokenizer, text: str) -> Int32[np.ndarray, " l"]:
    """Return the ids of a rendered text: its special tokens, and as text those that stand-ins stand for."""
    special = tokenizer.special_tokens
    parts = [
        tokenizer.encode(special[ord(part) - STAND_IN]) if i % 2 else tokenizer.encode_spelt(part)
        for i, part in enumerate(STAND_INS.split(text))
        if part
    ]
    return np.concatenate([np.zeros(0, dtype=np.int32), *parts])


def read_chat_template(template: str | None, settings: str | None, source: str) -> ChatTemplate:
    """Return the template in a tokenizer's files: the texts of chat_template.jinja and of tokenizer_config.json.

    None: there is no such file. Raise ConfigurationError if neither holds a template.
    """
    try:
        known: Any = json.loads(settings or "{}")
    except ValueError as error:
        raise ConfigurationError(f"tokenizer.uri {source}: damaged {CONFIG_FILE} ({error})") from error
    known = known if isinstance(known, dict) else {}
    chosen = template if template is not None else known.get("chat_template")
    if isinstance(chosen, list):  # several by name
        named = {one.get("name"): one.get("template") for one in chosen if isinstance(one, dict)}
        chosen = named.get("default")
    if not isinstance(chosen, str):
        raise ConfigurationError(
            f"tokenizer.uri {source} has no chat template (no {TEMPLATE_FILE}, and no chat_template in {CONFIG_FILE}); "
            "name a tokenizer that has one, or give pairs of plain texts by corpus.prompts"
        )
    tokens = {name: _text(token) for name, token in known.items() if name.endswith("_token")}
    return ChatTemplate(
        template=chosen, special_tokens={name: text for name, text in tokens.items() if text is not None}
    )


def _text(token: Any) -> str | None:
    """Return the text of a special token, which is given alone or with its properties; None for other settings."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None
