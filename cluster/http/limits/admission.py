"""Admission: what lets work in to the engine, waits for it, and calls it off when nobody waits any more."""

import asyncio
import math
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from cluster.http.errors import APIError
from cluster.http.future_watch import FutureWatch
from cluster.http.generation_plan import GenerationPlan
from cluster.http.limits.limits import Rules
from cluster.http.limits.rate_limit import RateLimit
from cluster.http.metrics import instruments as meters
from cluster.http.metrics.instruments import Meters
from cluster.http.request_context import RequestContext
from cluster.http.served_model import or_refuse
from edlm.cooperative import Bites
from edlm.inference.engine import InferenceEngine
from edlm.inference.future import Future, TextFuture
from edlm.inference.request import BrokenRow, Cancelled, EngineFailed, Expired, Full, OutOfMemory, Request

Value = TypeVar("Value")
FAULTS: dict[type[Exception], tuple[int, str, str]] = {
    Expired: (504, "not done in time; ask for less, or for more time", "deadline_exceeded"),
    BrokenRow: (500, "the model gave something that is not a number", "numerical_error"),
    OutOfMemory: (503, "the device has not enough memory for this; try again later", "out_of_memory"),
    EngineFailed: (503, "the engine stopped before this was done; try again", "engine_failed"),
    Cancelled: (503, "this was called off by the server; try again", "cancelled"),
}


STOPPING = "stopping"
FULL = {
    "waiting": "as many texts are waiting as may",
    "patience": "it would wait too long",
    "deadline": "it could not be done by its deadline",
    "draining": "the server is stopping",
}


class Admission:
    """The way in to one engine."""

    def __init__(self, batch: InferenceEngine, rules: Rules, meters: Meters) -> None:
        self.batch, self.rules, self.meters = batch, rules, meters
        per_second = rules.work_per_second
        self._allowance = None if per_second is None else RateLimit(per_second, per_second * rules.burst_seconds)

    def deadline(self, visit: RequestContext, wanted_seconds: float | None) -> float:
        """When the request ends, in the time of time.monotonic(). Refused where it asks for more than it may have."""
        most = self.rules.max_seconds
        if wanted_seconds is not None and wanted_seconds > most:
            message = f"edlm.timeout_seconds is {wanted_seconds:g}, and this server waits at most {most:g} s"
            raise APIError(400, message, "edlm.timeout_seconds", "invalid_value")
        return visit.arrived + (wanted_seconds or most)

    def require_places(self, texts: int, param: str) -> None:
        """Refused where the engine never has places for so many texts at once; `param` asks for most of them."""
        limits = self.batch.limits
        if texts > (most := limits.slots + limits.waiting):
            message = f"{texts} texts in one request, and at most {most} are on their way or wait here; ask for fewer"
            raise APIError(400, message, param, "invalid_value")

    def charge(self, visit: RequestContext, work: float) -> None:
        """Afterwards the request's work is taken from its key's allowance; what the engine does not let in comes back.

        Refused where the request costs more than any may, or where the allowance is used up.
        """
        if work > self.rules.max_work:
            raise APIError(
                400,
                f"the request costs up to {math.ceil(work)} passes of the network, and the limit is "
                f"{self.rules.max_work:g}; ask for fewer steps, candidates, tokens or choices",
                code="work_limit_exceeded",
            )
        if self._allowance is None:
            return
        if wait := self._allowance.wait_seconds(visit.key):
            self.meters.add(meters.REJECTED, 1, "allowance")
            raise APIError(429, "this API key has used up its work for now", None, "rate_limit_exceeded", wait)
        self._allowance.use(visit.key, work)

    @asynccontextmanager
    async def texts(
        self, jobs: Sequence[Request], charged: float, way: GenerationPlan
    ) -> AsyncIterator[list[TextFuture]]:
        """The tickets of these jobs; afterwards none of them is worked on any more."""
        with self._entering(way.visit, charged):
            tickets = await self._submitted(jobs, way)
        try:
            yield tickets
        finally:
            self._leave(tickets)

    async def _submitted(self, jobs: Sequence[Request], way: GenerationPlan) -> list[TextFuture]:
        """The tickets; in a thread, for drafts of long texts take a while to prepare."""
        coming = asyncio.ensure_future(asyncio.to_thread(or_refuse, None, self.batch.submit, jobs, way.served.model))
        try:
            return await asyncio.shield(coming)
        except asyncio.CancelledError:  # the client went away meanwhile; the thread cannot be stopped
            coming.add_done_callback(_call_off)
            raise

    async def measured(
        self, work: float, bites: Bites[Value], charged: float, way: GenerationPlan, follows: bool = False
    ) -> Value:
        """What the bites return, once they are taken; they are called off when nobody waits.

        What `follows` texts of the same request was let in with them.
        """
        with self._entering(way.visit, charged):
            ticket = self.batch.run(work, bites, way.visit.key, way.deadline, follows)
        try:
            async for _ in FutureWatch([ticket], steps=False).changes():
                pass
            return outcome(ticket)
        finally:
            self._leave([ticket])

    @contextmanager
    def _entering(self, visit: RequestContext, charged: float) -> Iterator[None]:
        """Within, work may be given to the engine; what it does not let in is Refused, and costs nothing."""
        try:
            with self._refunding(visit, charged):
                yield
        except Full as full:
            self.meters.add(meters.REJECTED, 1, full.reason)
            wait = _back_seconds(full, self.batch.limits.patience_seconds)
            status, code = (503, STOPPING) if full.reason == "draining" else (429, "queue_full")
            raise APIError(status, f"{FULL[full.reason]}; try again in {wait} s", None, code, wait) from None
        except EngineFailed as error:
            raise _told(error) from error

    @contextmanager
    def _refunding(self, visit: RequestContext, charged: float) -> Iterator[None]:
        """Whatever error ends this, the key has back what it was charged."""
        try:
            yield
        except Exception:  # not what calls off a request that was let in: that is no Exception
            if self._allowance is not None:
                self._allowance.use(visit.key, -charged)
            raise

    def _leave(self, tickets: Sequence[Future[Any]]) -> None:
        """Afterwards nobody waits for the tickets, and how long they waited is counted."""
        for ticket in tickets:
            if not ticket.done:
                ticket.cancel()
            if ticket.started is not None:
                self.meters.observe(meters.QUEUE_SECONDS, ticket.started - ticket.submitted)


def _back_seconds(full: Full, patience_seconds: float) -> int:
    """Whole seconds until a refused client may ask again: drawn from the time in which those before it have their turn.

    Clients that are refused together so do not come back together, for one place.
    """
    earliest, latest = full.retry_after_seconds, full.retry_after_seconds + patience_seconds
    if full.reason == "waiting":  # a place is free as soon as one text ends; the last that waits begins then
        earliest, latest = 1.0, full.retry_after_seconds
    elif full.reason == "draining":
        latest = earliest
    return max(1, math.ceil(random.uniform(earliest, latest)))


def _call_off(coming: "asyncio.Future[list[TextFuture]]") -> None:
    """Afterwards nobody works for tickets that nobody took."""
    if coming.exception() is None:
        for ticket in coming.result():
            ticket.cancel()


def outcome(ticket: Future[Value]) -> Value:
    """What a ticket that is done was for; Refused where nothing came of it."""
    try:
        return ticket.result(0)
    except tuple(FAULTS) as error:
        raise _told(error) from error


def _told(error: Exception) -> APIError:
    status, message, code = FAULTS[type(error)]
    return APIError(status, message, None, code)
