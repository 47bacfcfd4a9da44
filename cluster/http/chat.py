"""OpenAI-compatible chat completions: the assistant's next message, for models with a chat template."""

from dataclasses import dataclass
from typing import Any

from cluster.http import completions
from cluster.http.completions import Completions
from cluster.http.generation import FinishedChoice
from cluster.http.generation_plan import GenerationPlan
from cluster.http.logprobs import of_chat
from cluster.http.schemas.chat import ChatRequest
from cluster.http.schemas.responses import AssistantMessage, ChatChoice, ChatLogprobs, ChatResponse


@dataclass(frozen=True)
class ChatCompletions(Completions):
    """Completions of a conversation, in the form of messages."""

    kind = "chatcmpl"
    chunk_object = "chat.completion.chunk"
    response = ChatResponse

    def choice(self, index: int, text: str, written: FinishedChoice | None, first: bool) -> dict[str, Any]:
        """Return choice `index` of a stream chunk, with a part of the message; the role is in the `first` one."""
        role, logprobs = (
            {"role": "assistant"} if first else {},
            None if written is None else self._message_logprobs(written),
        )
        shown = {} if written is None else self._returned(written)
        return {
            "index": index,
            "delta": {**role, "content": text},
            "finish_reason": None if written is None else written.finish_reason,
            "logprobs": None if logprobs is None else logprobs.model_dump(),
            **{name: value for name, value in shown.items() if value is not None},
        }

    def final_choice(self, index: int, written: FinishedChoice) -> ChatChoice:
        """Return choice `index` of the response."""
        message, reason = AssistantMessage(content=written.text), written.finish_reason
        logprobs = self._message_logprobs(written)
        return ChatChoice(
            index=index, message=message, finish_reason=reason, logprobs=logprobs, **self._returned(written)
        )

    def _message_logprobs(self, written: FinishedChoice) -> ChatLogprobs | None:
        return None if written.logprobs is None else of_chat(written.logprobs, self.plan.served.pieces)


def prepare(request: ChatRequest, plan: GenerationPlan) -> Completions:
    """Return the messages that a request asks for; raise APIError if this model cannot generate them."""
    prompt = plan.served.conversation([message.turn for message in request.messages])
    return completions.prepare(request.completion(prompt, plan.served.generator.length), plan, ChatCompletions)
