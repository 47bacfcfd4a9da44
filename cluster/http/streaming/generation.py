"""Writing: texts of one order, whole or piece by piece, as the engine makes them."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.http.future_watch import FutureWatch
from cluster.http.generation_plan import GenerationPlan
from cluster.http.limits.admission import Admission, outcome
from cluster.http.metrics import instruments as meters
from cluster.http.metrics.instruments import Meters
from cluster.http.request_context import RequestContext
from cluster.http.schemas.requests import StreamOptions
from cluster.http.schemas.responses import FinishReason, TokenUsage
from cluster.http.streaming.denoising_events import DenoisingEvents
from cluster.http.streaming.events import DONE, event
from edlm.inference.future import TextFuture
from edlm.inference.request import Request
from edlm.inference.text import Progress, Tally, Text


@dataclass(frozen=True)
class Written:
    """A finished text as its choice shows it."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    revealed_at: tuple[int, ...]
    """The step that revealed each token."""
    tally: Tally


class Order(Protocol):
    """What is to be written, and how its answer looks; one choice for each job."""

    @property
    def way(self) -> GenerationPlan: ...

    @property
    def jobs(self) -> Sequence[Request]: ...

    @property
    def work(self) -> float: ...

    @property
    def kind(self) -> str:
        """What its id begins with."""
        ...

    @property
    def piece(self) -> str:
        """The object of a piece of a stream."""
        ...

    @property
    def shown(self) -> Sequence[slice]:
        """Of each job the places that its choice shows."""
        ...

    def written(self, index: int, text: Text, frame: Progress) -> Written:
        """What choice `index` shows of its finished text."""
        ...

    def beginnings(self) -> "Sequence[Beginning]":
        """For each choice what tells a stream of its text."""
        ...

    def choice(self, index: int, text: str, written: Written | None) -> dict[str, Any]:
        """The choice of a piece of a stream; `written` None: it goes on."""
        ...

    def usage(self, written: int) -> TokenUsage:
        """What was read, and so many tokens that were written."""
        ...

    def ended(self, written: Sequence[Written]) -> dict[str, Any]:
        """The details and the usage of an answer."""
        ...


class Beginning(Protocol):
    """Tells a stream of one text."""

    def more(self, tokens: Sequence[int]) -> str: ...

    def rest(self, text: str) -> str: ...


async def write(order: Order, admission: Admission) -> list[Written]:
    """Every choice, once all are written."""
    texts: list[Text] = []
    async with admission.texts(order.jobs, order.work, order.way) as tickets:
        async for _ in FutureWatch(tickets, steps=False).changes():
            # One that failed fails the request; the others need not be finished.
            texts = [outcome(ticket) for ticket in tickets if ticket.done]
    written = [order.written(i, text, tickets[i].frame()) for i, text in enumerate(texts)]
    _note(order.way.visit, written, admission.meters)
    return written


async def stream(order: Order, admission: Admission, options: StreamOptions, states: bool) -> AsyncGenerator[bytes]:
    """The pieces of the answer; the first is empty, and comes when the first text has its turn."""
    async with admission.texts(order.jobs, order.work, order.way) as tickets:
        run = _Run(order, tickets, options, states)
        begun = shown = False
        async for _ in FutureWatch(tickets, steps=True).changes():
            new = run.pieces()
            if not begun and (new or any(ticket.started is not None for ticket in tickets)):
                begun = True
                yield b""
            if new and not shown:
                shown = True
                admission.meters.observe(meters.FIRST_FRAME_SECONDS, order.way.visit.seconds)
            for piece in new:
                yield piece
    _note(order.way.visit, run.finished, admission.meters)
    yield DONE


def _note(visit: RequestContext, written: Sequence[Written], own: Meters) -> None:
    """Afterwards the visit knows how its texts ended, and how much there was to choose from is counted."""
    for one in written:
        if one.tally.mean_ess is not None:
            own.observe(meters.ESS, one.tally.mean_ess)
    reasons = {one.finish_reason for one in written}
    visit.finish_reason = reasons.pop() if len(reasons) == 1 else "mixed"
    visit.completion_tokens = sum(len(one.tokens) for one in written)


class _Run:
    """A stream on its way: what was told of each choice."""

    def __init__(self, order: Order, tickets: Sequence[TextFuture], options: StreamOptions, states: bool) -> None:
        self._order, self._tickets, self._options = order, tickets, options
        self._heading = order.way.heading(order.kind) | {"object": order.piece}
        self._texts = order.beginnings()
        self._frames: list[Progress | None] = [None] * len(order.jobs)
        self._written: dict[int, Written] = {}
        way, shown = order.way, order.shown if states else ()
        self._tellings = [
            DenoisingEvents(i, way.served.pieces, way.sampler, way.block, of) for i, of in enumerate(shown)
        ]

    @property
    def finished(self) -> list[Written]:
        return [self._written[i] for i in range(len(self._frames))]

    def pieces(self) -> list[bytes]:
        """What is new."""
        return [piece for i in range(len(self._frames)) if i not in self._written for piece in self._of(i)]

    def _of(self, i: int) -> list[bytes]:
        ticket = self._tickets[i]
        done = ticket.done  # before the frame is read, so that the frame of what is done is the last
        text = outcome(ticket) if done else None
        frame, pieces = ticket.frame(), []
        if frame.status == "queued" or (frame is self._frames[i] and not done):
            return []
        if self._tellings and (state := self._tellings[i].state(frame)) is not None:
            pieces.append(self._piece([], edlm={"state": state}))
        self._frames[i] = frame
        if text is None:
            if new := self._texts[i].more(frame.tokens[self._order.shown[i]]):
                pieces.append(self._piece([self._order.choice(i, new, None)]))
            return pieces
        written = self._written[i] = self._order.written(i, text, frame)
        choice = self._order.choice(i, self._texts[i].rest(written.text), written)
        return [*pieces, *self._last(choice)]

    def _last(self, choice: dict[str, Any]) -> list[bytes]:
        """The end of a choice; of the last of them, the end of the answer."""
        if len(self._written) < len(self._frames):
            return [self._piece([choice])]
        ended = self._order.ended(self.finished)
        details = {"details": ended["edlm"]}
        if not self._options.include_usage:
            # With the last choice: a client that did not ask for it meets no piece without a choice.
            return [self._piece([choice], edlm=details)]
        return [self._piece([choice]), self._piece([], usage=ended["usage"], edlm=details)]

    def _piece(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        usage = {"usage": self._usage()} if self._options.include_usage else {}
        return event({**self._heading, "choices": choices, **usage, **more})

    def _usage(self) -> dict[str, Any] | None:
        """The tokens that are revealed up to now, where every piece is to tell them."""
        if not self._options.continuous_usage_stats:
            return None
        frames = zip(self._frames, self._order.shown, strict=True)
        revealed = [at > 0 for frame, shown in frames if frame is not None for at in frame.revealed_at[shown]]
        return self._order.usage(sum(revealed)).model_dump()
