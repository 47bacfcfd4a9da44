"""Unsupported request fields of OpenAI, vLLM and SGLang clients.

A neutral value of such a field is accepted. A value that would change the text is rejected with the field's name. Any
other unknown field is ignored, and listed in the response and in the log.
"""

import re
from collections.abc import Mapping
from typing import Any

from cluster.http.errors import APIError

NO_GRAMMAR = "a grammar has no finite automaton; give a regular expression, choices or a JSON schema"

MAX_IGNORED = 64
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")  # an API key never matches: it contains a hyphen

# Fields that would change the text or the reported data, with their neutral values.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    # OpenAI
    "frequency_penalty": (0,),
    "functions": ([],),
    "logit_bias": ({},),
    "messages": (),
    "presence_penalty": (0,),
    "tools": ([],),
    # vLLM
    "allowed_token_ids": (),
    "bad_words": ([],),
    "guided_grammar": (),
    "guided_json_object": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "min_p": (0,),
    "min_tokens": (0,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "repetition_penalty": (1,),
    "skip_special_tokens": (True,),
    "stop_token_ids": ([],),
    "truncate_prompt_tokens": (-1,),
    "use_beam_search": (False,),
    # SGLang
    "custom_logit_processor": (),
    "ebnf": (),
    "json_schema": (),
    "lora_path": (),
    "no_stop_trim": (False,),
    "regex": (),
    "stop_regex": (),
    "typical_p": (1,),
}

# Fields that constrain the text of completions and chats; what else asks for texts refuses them.
OF_COMPLETIONS: Mapping[str, tuple[Any, ...]] = {
    "guided_choice": ([],),
    "guided_json": (),
    "guided_regex": (),
    "guided_whitespace_pattern": (),
    "response_format": ({"type": "text"},),
    "structured_outputs": ({},),
}

# What to give in place of a field.
INSTEAD: Mapping[str, str] = {
    "ebnf": NO_GRAMMAR,
    "guided_grammar": NO_GRAMMAR,
    "guided_json_object": 'give response_format: {"type": "json_object"}',
    "json_schema": "give edlm.constraint.json",
    "regex": "give edlm.constraint.regex",
} | dict.fromkeys(OF_COMPLETIONS, "give edlm.constraint")


def ignored(fields: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]] = NEUTRAL) -> tuple[str, ...]:
    """Return the names of unknown fields, which are ignored; fields with neutral values are not listed.

    Raise APIError if a field would change the text, if more than MAX_IGNORED are unknown, or if a name is malformed.
    """
    for name, value in fields.items():
        if name in neutral and not any(_same(value, accepted) for accepted in neutral[name]):
            raise APIError(400, _unsupported(name, neutral[name]), name, "unsupported_parameter")
    names = tuple(sorted(set(fields) - set(neutral)))
    for name in names:
        if not NAME.fullmatch(name):
            message = f"{name[:64]!a} is not a field of this request, nor a valid name of one"
            raise APIError(400, message, None, "unknown_parameter")
    if len(names) > MAX_IGNORED:
        message = f"{len(names)} fields are unknown, {names[0]} among them; at most {MAX_IGNORED} are ignored"
        raise APIError(400, message, names[0], "unknown_parameter")
    return names


def _unsupported(name: str, neutral: tuple[Any, ...]) -> str:
    instead = INSTEAD.get(name, "leave it out")
    if not neutral:
        return f"{name} is not supported; {instead}"
    return f"{name} is supported only as {' or '.join(map(repr, neutral))}, which has no effect; {instead}"


def _same(value: Any, neutral: Any) -> bool:
    """Return whether two values are equal in JSON, where true differs from 1."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
