"""Infills: a text with gaps, each filled conditionally on the text on both sides."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.http.admission import Admission
from cluster.http.generation import ChoicePart, FinishedChoice, generate
from cluster.http.generation_plan import GenerationPlan, seeds, usage
from cluster.http.limits import request_cost as cost
from cluster.http.schemas.requests import InfillRequest
from cluster.http.schemas.responses import InfillChoice, InfillResponse, TokenUsage
from cluster.http.served_model import or_api_error
from edlm.inference.canvas import canvas
from edlm.inference.progress import Progress, Text
from edlm.inference.request import Request


@dataclass(frozen=True)
class Infills:
    """One text with gaps, to be filled `n` times."""

    request: InfillRequest
    plan: GenerationPlan
    tokens: tuple[int | None, ...]
    engine_requests: tuple[Request, ...]
    work: float

    kind = "infill"
    chunk_object = "infill.chunk"

    @property
    def shown(self) -> Sequence[slice]:
        """Return, per request, the slice of its tokens to show: all of them."""
        return [slice(len(self.tokens))] * len(self.engine_requests)

    def choice_texts(self) -> list["_WithheldText"]:
        """Return placeholders: a stream sends states, and the text only once it is complete."""
        return [_WithheldText()] * len(self.engine_requests)

    async def scored(self, admission: Admission) -> "Infills":
        """Return this request: nothing is computed of the given text alone."""
        return self

    def finished_choice(self, index: int, text: Text, progress: Progress) -> FinishedChoice:
        """Return the finished text of choice `index`."""
        return FinishedChoice(text.text, text.tokens, text.finish_reason, progress.unmasked_at, text.cost)

    def logprobs_so_far(self, index: int, progress: Progress, count: int) -> None:
        """Return None: infills have no log-probabilities."""

    def choice(self, index: int, part: ChoicePart) -> dict[str, Any]:
        """Return choice `index` of the last stream chunk."""
        assert part.finished is not None
        return self._choice(index, part.finished).model_dump(exclude_none=True)

    def details_and_usage(self, written: Sequence[FinishedChoice]) -> dict[str, Any]:
        """Return the details and the usage of the response."""
        token_usage = self.usage(self.tokens.count(None) * len(written))
        details = self.plan.details([text.cost for text in written], seeds=[text.seed for text in self.engine_requests])
        return {"edlm": details.model_dump(), "usage": token_usage.model_dump()}

    def usage(self, written: int) -> TokenUsage:
        """Return the usage: given tokens, and `written` completion tokens."""
        return usage(len(self.tokens) - self.tokens.count(None), written)

    async def answer(self, admission: Admission) -> InfillResponse:
        """Generate all texts and return the response."""
        written = await generate(self, admission)
        choices = [self._choice(i, text) for i, text in enumerate(written)]
        return InfillResponse(choices=choices, **self.plan.heading(self.kind), **self.details_and_usage(written))

    def _choice(self, index: int, written: FinishedChoice) -> InfillChoice:
        trajectory = "trajectory" in self.request.edlm.return_
        return InfillChoice(
            index=index,
            text=written.text,
            tokens=list(written.tokens),
            finish_reason=written.finish_reason,
            unmasked_at=list(written.unmasked_at) if trajectory else None,
        )


class _WithheldText:
    """Incremental text that stays empty until the text is complete, because gaps are filled in any order."""

    def more(self, tokens: Sequence[int]) -> str:
        return ""

    def rest(self, text: str) -> str:
        return text

    def count(self, tokens: Sequence[int]) -> int:
        return 0


def prepare(request: InfillRequest, plan: GenerationPlan) -> Infills:
    """Return the infills that a request asks for; raise APIError if this model cannot fill it."""
    generator = plan.served.generator
    if request.parts is not None:
        field, tokens = "parts", or_api_error("parts", generator.read_parts, request.parts)
    else:
        field, tokens = "tokens", tuple(request.tokens or ())
    or_api_error(field, canvas, tokens, generator.length, generator.mask)
    plan.context.prompt_tokens = len(tokens) - tokens.count(None)
    engine_requests = tuple(plan.engine_request(tokens, None, seed) for seed in seeds(plan, 0, request.n))
    return Infills(
        request, plan, tokens, engine_requests, len(engine_requests) * cost.of_request(engine_requests[0], generator)
    )
