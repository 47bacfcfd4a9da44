"""Infills: a text with gaps, each gap filled so that it fits what stands on both its sides."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.http.generation_plan import GenerationPlan, seeds, usage
from cluster.http.limits import request_cost as cost
from cluster.http.limits.admission import Admission
from cluster.http.schemas.requests import InfillRequest
from cluster.http.schemas.responses import InfillChoice, InfillResponse, TokenUsage
from cluster.http.served_model import or_refuse
from cluster.http.streaming.generation import Written, write
from edlm.inference.canvas import canvas
from edlm.inference.request import Request
from edlm.inference.text import Progress, Text


@dataclass(frozen=True)
class Infills:
    """An order for one text with gaps, filled `n` times."""

    request: InfillRequest
    way: GenerationPlan
    tokens: tuple[int | None, ...]
    jobs: tuple[Request, ...]
    work: float

    kind = "infill"
    piece = "infill.chunk"

    @property
    def shown(self) -> Sequence[slice]:
        """The whole of each text."""
        return [slice(len(self.tokens))] * len(self.jobs)

    def beginnings(self) -> list["_Nothing"]:
        """A stream tells of its states, and shows a text once it is whole."""
        return [_Nothing()] * len(self.jobs)

    def written(self, index: int, text: Text, frame: Progress) -> Written:
        """What choice `index` shows of its finished text."""
        return Written(text.text, text.tokens, text.finish_reason, frame.revealed_at, text.tally)

    def choice(self, index: int, text: str, written: Written | None) -> dict[str, Any]:
        """The choice of the last piece of a stream."""
        assert written is not None
        return self._choice(index, written).model_dump(exclude_none=True)

    def ended(self, written: Sequence[Written]) -> dict[str, Any]:
        """The details and the usage of an answer."""
        used = self.usage(self.tokens.count(None) * len(written))
        details = self.way.details([one.tally for one in written], seeds=[job.seed for job in self.jobs])
        return {"edlm": details.model_dump(), "usage": used.model_dump()}

    def usage(self, written: int) -> TokenUsage:
        """What was read, and so many tokens that were written."""
        return usage(len(self.tokens) - self.tokens.count(None), written)

    async def answer(self, admission: Admission) -> InfillResponse:
        """The whole answer."""
        written = await write(self, admission)
        choices = [self._choice(i, one) for i, one in enumerate(written)]
        return InfillResponse(choices=choices, **self.way.heading(self.kind), **self.ended(written))

    def _choice(self, index: int, written: Written) -> InfillChoice:
        trajectory = "trajectory" in self.request.edlm.return_
        return InfillChoice(
            index=index,
            text=written.text,
            tokens=list(written.tokens),
            finish_reason=written.finish_reason,
            revealed_at=list(written.revealed_at) if trajectory else None,
        )


class _Nothing:
    """Tells nothing of a text before it is whole: its gaps are filled in any order."""

    def more(self, tokens: Sequence[int]) -> str:
        return ""

    def rest(self, text: str) -> str:
        return text


def order(request: InfillRequest, way: GenerationPlan) -> Infills:
    """The order of a request; Refused where this model cannot fill it."""
    generator = way.served.generator
    if request.parts is not None:
        field, tokens = "parts", or_refuse("parts", generator.places, request.parts)
    else:
        field, tokens = "tokens", tuple(request.tokens or ())
    or_refuse(field, canvas, tokens, generator.length, generator.mask)
    way.visit.prompt_tokens = len(tokens) - tokens.count(None)
    jobs = tuple(way.job(tokens, None, seed) for seed in seeds(way, 0, request.n))
    return Infills(request, way, tokens, jobs, len(jobs) * cost.of_job(jobs[0], generator))
