"""OpenAI-compatible chat completions: the assistant's next message, for models with a chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.http import completions
from cluster.http.completions import Completions
from cluster.http.generation import ChoicePart, FinishedChoice
from cluster.http.generation_plan import GenerationPlan
from cluster.http.logprobs import of_chat
from cluster.http.schemas.chat import ChatRequest
from cluster.http.schemas.responses import AssistantMessage, ChatChoice, ChatLogprobs, ChatResponse
from edlm.inference.token_logprobs import TokenLogprob


@dataclass(frozen=True)
class ChatCompletions(Completions):
    """Completions of a conversation, in the form of messages."""

    kind = "chatcmpl"
    chunk_object = "chat.completion.chunk"
    response = ChatResponse

    def choice(self, index: int, part: ChoicePart) -> dict[str, Any]:
        """Return choice `index` of a stream chunk, with this part of the message; the role is in the first one."""
        role = {"role": "assistant"} if part.first else {}
        new = None if part.logprobs is None else part.logprobs[part.sent :]
        logprobs = self._message_logprobs(new or None)
        shown = {} if part.finished is None else self._returned(part.finished)
        return {
            "index": index,
            "delta": {**role, "content": part.text},
            "finish_reason": None if part.finished is None else part.finished.finish_reason,
            "logprobs": None if logprobs is None else logprobs.model_dump(),
            **{name: value for name, value in shown.items() if value is not None},
        }

    def final_choice(self, index: int, written: FinishedChoice) -> ChatChoice:
        """Return choice `index` of the response."""
        message, reason = AssistantMessage(content=written.text), written.finish_reason
        logprobs = self._message_logprobs(written.logprobs)
        return ChatChoice(
            index=index, message=message, finish_reason=reason, logprobs=logprobs, **self._returned(written)
        )

    def _message_logprobs(self, logprobs: Sequence[TokenLogprob] | None) -> ChatLogprobs | None:
        return None if logprobs is None else of_chat(logprobs, self.plan.served.pieces)


def prepare(request: ChatRequest, plan: GenerationPlan) -> Completions:
    """Return the messages that a request asks for; raise APIError if this model cannot generate them."""
    prompt = plan.served.conversation([message.turn for message in request.messages])
    return completions.prepare(request.completion(prompt, plan.served.generator.length), plan, ChatCompletions)
