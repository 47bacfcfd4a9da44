"""Fields that this server has no use for: what OpenAI's, vLLM's and SGLang's clients send beside those of `api`.

A value that asks for nothing is accepted. One that would change the text is refused by its name. Every other field is
passed over, and named in the answer and in the log.
"""

import re
from collections.abc import Mapping
from typing import Any

from cluster.http.errors import APIError

MAX_IGNORED = 64
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")  # an API key is none: it holds a hyphen

# Fields that would change the text, or what is told of it, with the values that ask for nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    # OpenAI
    "frequency_penalty": (0,),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (),
    "messages": (),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "top_p": (1,),
    # vLLM
    "allowed_token_ids": (),
    "bad_words": ([],),
    "guided_choice": ([],),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
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
    "structured_outputs": ({},),
    "top_k": (-1, 0),
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


def ignored(fields: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]] = NEUTRAL) -> tuple[str, ...]:
    """The names of the fields that change nothing here, those apart whose value asks for nothing.

    Refused where one would change the text, where there are more than MAX_IGNORED, or where a name is none.
    """
    for name, value in fields.items():
        if name in neutral and not any(_same(value, one) for one in neutral[name]):
            raise APIError(400, _unsupported(name, neutral[name]), name, "unsupported_parameter")
    names = tuple(sorted(set(fields) - set(neutral)))
    for name in names:
        if not _NAME.fullmatch(name):
            message = f"{name[:64]!a} is no field of this request, and no name that a field may have"
            raise APIError(400, message, None, "unknown_parameter")
    if len(names) > MAX_IGNORED:
        message = f"{len(names)} fields are unknown, {names[0]} among them; at most {MAX_IGNORED} are passed over"
        raise APIError(400, message, names[0], "unknown_parameter")
    return names


def _unsupported(name: str, neutral: tuple[Any, ...]) -> str:
    if not neutral:
        return f"{name} is not supported; leave it out"
    return f"{name} is supported only as {' or '.join(map(repr, neutral))}, which asks for nothing; leave it out"


def _same(value: Any, neutral: Any) -> bool:
    """Whether two values are the same in JSON, where true is not 1."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
