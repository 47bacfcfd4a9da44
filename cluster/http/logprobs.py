"""Log-probabilities of tokens: those of prompts, and OpenAI's forms for completions and chat completions."""

from collections.abc import Sequence

from cluster.http.schemas.responses import ChatLogprobs, CompletionLogprobs, RankedToken, TokenWithLogprob
from cluster.http.served_model import TokenText
from edlm.cooperative_work import Cooperative
from edlm.inference.generator import TextGenerator
from edlm.inference.token_logprobs import TokenLogprob, left_to_right

LEAST = -9999.0  # in place of log 0, which JSON does not have; vLLM's clients know it


def logprobs_of_prompts(
    prompts: Sequence[Sequence[int]], generator: TextGenerator, count: int
) -> Cooperative[tuple[tuple[TokenLogprob, ...], ...]]:
    """Return the log-probabilities of the tokens of each prompt, from left to right, with `count` alternatives."""
    found = []
    for prompt in prompts:
        found.append(tuple((yield from left_to_right(prompt, generator.model, count))))
    return tuple(found)


def scoring_work(prompts: Sequence[Sequence[int]]) -> float:
    """Return the denoiser passes to score the prompts: one per token."""
    return float(sum(map(len, prompts)))


def of_completion(logprobs: Sequence[TokenLogprob], pieces: TokenText, sent: int = 0) -> CompletionLogprobs:
    """Return the log-probabilities in the form of a completion's choice, without the first `sent` of them.

    The token itself is among its alternatives, as vLLM has it. Of tokens with the same text, such as parts of
    characters, the likeliest is listed.
    """
    texts = [pieces[one.token] for one in logprobs]
    starts = [0]
    for text in texts[:-1]:
        starts.append(starts[-1] + len(text))
    alternatives = []
    for one, text in zip(logprobs[sent:], texts[sent:], strict=True):
        listed: dict[str, float] = {}
        for token, value in one.likeliest:
            listed.setdefault(pieces[token], _number(value))
        listed.setdefault(text, _number(one.log_p))
        alternatives.append(listed)
    return CompletionLogprobs(
        tokens=texts[sent:],
        token_logprobs=[_number(one.log_p) for one in logprobs[sent:]],
        top_logprobs=alternatives,
        text_offset=starts[sent : len(texts)],
    )


def of_chat(logprobs: Sequence[TokenLogprob], pieces: TokenText) -> ChatLogprobs:
    """Return the log-probabilities in the form of a chat completion's choice."""

    def ranked(token: int, value: float) -> RankedToken:
        return RankedToken(token=pieces[token], logprob=_number(value), bytes=list(pieces[token].encode()))

    return ChatLogprobs(
        content=[
            TokenWithLogprob(
                **ranked(one.token, one.log_p).model_dump(),
                top_logprobs=[ranked(token, value) for token, value in one.likeliest],
            )
            for one in logprobs
        ]
    )


def _number(log_p: float) -> float:
    return max(log_p, LEAST)
