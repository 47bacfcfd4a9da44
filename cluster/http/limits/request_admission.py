"""Request admission: submits a request to the engine, waits for the results, and cancels it when the client is gone."""

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
from cluster.http.metrics import instruments
from cluster.http.metrics.instruments import Metrics
from cluster.http.request_context import RequestContext
from cluster.http.served_model import or_refuse
from edlm.cooperative_work import Cooperative
from edlm.inference.engine import InferenceEngine
from edlm.inference.future import Future, TextFuture
from edlm.inference.request import BrokenRow, Cancelled, EngineFailed, Expired, Full, OutOfMemory, Request

Value = TypeVar("Value")
FAULTS: dict[type[Exception], tuple[int, str, str]] = {
    Expired: (
        504,
        "the deadline passed before the request finished; ask for less, or allow more time",
        "deadline_exceeded",
    ),
    BrokenRow: (500, "the model produced a value that is not a number", "numerical_error"),
    OutOfMemory: (503, "the device does not have enough memory for this request; try again later", "out_of_memory"),
    EngineFailed: (503, "the engine stopped before the request finished; try again", "engine_failed"),
    Cancelled: (503, "the server cancelled the request; try again", "cancelled"),
}


STOPPING = "stopping"
FULL = {
    "waiting": "the queue is full",
    "patience": "the request would wait too long",
    "deadline": "the request could not finish by its deadline",
    "draining": "the server is stopping",
}


class Admission:
    """Admission control in front of one engine."""

    def __init__(self, batch: InferenceEngine, rules: Rules, metrics: Metrics) -> None:
        self.batch, self.rules, self.metrics = batch, rules, metrics
        per_second = rules.work_per_second
        self._allowance = None if per_second is None else RateLimit(per_second, per_second * rules.burst_seconds)

    def deadline(self, visit: RequestContext, wanted_seconds: float | None) -> float:
        """Return the deadline of the request, on the clock of `time.monotonic()`.

        Raise APIError if the requested timeout exceeds `Rules.max_seconds`.
        """
        most = self.rules.max_seconds
        if wanted_seconds is not None and wanted_seconds > most:
            message = f"edlm.timeout_seconds is {wanted_seconds:g}; this server allows at most {most:g} s"
            raise APIError(400, message, "edlm.timeout_seconds", "invalid_value")
        return visit.arrived + (wanted_seconds or most)

    def require_places(self, texts: int, param: str) -> None:
        """Raise APIError if `texts` exceeds the slots and the queue of the engine together.

        `param`: the request field that contributes most texts, named in the error.
        """
        limits = self.batch.limits
        if texts > (most := limits.slots + limits.waiting):
            message = f"{texts} texts in one request; this server runs and queues at most {most}; ask for fewer"
            raise APIError(400, message, param, "invalid_value")

    def charge(self, visit: RequestContext, work: float) -> None:
        """Charge the work of the request to the rate limit of its key, with a refund if the engine rejects the request.

        Raise APIError if the request exceeds the work limit per request, or the key its rate limit.
        """
        if work > self.rules.max_work:
            raise APIError(
                400,
                f"the request costs up to {math.ceil(work)} forward passes, and the limit is "
                f"{self.rules.max_work:g}; ask for fewer steps, candidates, tokens or choices",
                code="work_limit_exceeded",
            )
        if self._allowance is None:
            return
        if wait := self._allowance.wait_seconds(visit.key):
            self.metrics.add(instruments.REJECTED, 1, "allowance")
            raise APIError(429, "this API key has reached its rate limit", None, "rate_limit_exceeded", wait)
        self._allowance.use(visit.key, work)

    @asynccontextmanager
    async def texts(
        self, jobs: Sequence[Request], charged: float, way: GenerationPlan
    ) -> AsyncIterator[list[TextFuture]]:
        """Submit `jobs` and yield their futures; on exit, cancel those that are not done."""
        with self._entering(way.visit, charged):
            futures = await self._submitted(jobs, charged, way)
        try:
            yield futures
        finally:
            self._leave(futures)

    async def _submitted(self, jobs: Sequence[Request], charged: float, way: GenerationPlan) -> list[TextFuture]:
        """Submit in a thread, because preparing long sequences takes a while, and return the futures."""
        started = asyncio.ensure_future(asyncio.to_thread(or_refuse, None, self.batch.submit, jobs, way.served.model))
        try:
            return await asyncio.shield(started)
        except asyncio.CancelledError:  # the client disconnected; the thread cannot be stopped
            started.add_done_callback(lambda done: self._abandon(done, charged, way.visit))
            raise

    def _abandon(self, submission: "asyncio.Future[list[TextFuture]]", charged: float, visit: RequestContext) -> None:
        """Cancel the futures of a client that disconnected; refund the charge if the engine rejected the request."""
        if (error := submission.exception()) is None:
            for future in submission.result():
                future.cancel()
        elif isinstance(error, Exception):
            self._refund(visit, charged)

    async def measured(
        self, work: float, bites: Cooperative[Value], charged: float, way: GenerationPlan, follows: bool = False
    ) -> Value:
        """Run cooperative work in the engine and return its result; cancel it when this coroutine is cancelled.

        Work that `follows` texts of the same request was admitted with them.
        """
        with self._entering(way.visit, charged):
            future = self.batch.run(work, bites, way.visit.key, way.deadline, follows)
        try:
            async for _ in FutureWatch([future], steps=False).changes():
                pass
            return outcome(future)
        finally:
            self._leave([future])

    @contextmanager
    def _entering(self, visit: RequestContext, charged: float) -> Iterator[None]:
        """Translate rejections by the engine to APIError and refund their charge, around a submission to the engine."""
        try:
            with self._refunding(visit, charged):
                yield
        except Full as full:
            self.metrics.add(instruments.REJECTED, 1, full.reason)
            wait = _back_seconds(full, self.batch.limits.patience_seconds)
            status, code = (503, STOPPING) if full.reason == "draining" else (429, "queue_full")
            raise APIError(status, f"{FULL[full.reason]}; try again in {wait} s", None, code, wait) from None
        except EngineFailed as error:
            raise _told(error) from error

    @contextmanager
    def _refunding(self, visit: RequestContext, charged: float) -> Iterator[None]:
        """Refund the charge to the key if the body raises an error."""
        try:
            yield
        except Exception:  # CancelledError is no Exception: an admitted request that is cancelled stays charged
            self._refund(visit, charged)
            raise

    def _refund(self, visit: RequestContext, charged: float) -> None:
        if self._allowance is not None:
            self._allowance.use(visit.key, -charged)

    def _leave(self, tickets: Sequence[Future[Any]]) -> None:
        """Cancel the futures that are not done, and record the queueing time of those that started."""
        for ticket in tickets:
            if not ticket.done:
                ticket.cancel()
            if ticket.started is not None:
                self.metrics.observe(instruments.QUEUE_SECONDS, ticket.started - ticket.submitted)


def _back_seconds(full: Full, patience_seconds: float) -> int:
    """Return the whole seconds for Retry-After: a random time within the wait for the requests ahead.

    The jitter keeps clients that are rejected together from retrying together for one slot.
    """
    earliest, latest = full.retry_after_seconds, full.retry_after_seconds + patience_seconds
    if full.reason == "waiting":  # room appears when one text ends, at the latest when the last queued one starts
        earliest, latest = 1.0, full.retry_after_seconds
    elif full.reason == "draining":
        latest = earliest
    return max(1, math.ceil(random.uniform(earliest, latest)))


def outcome(ticket: Future[Value]) -> Value:
    """Return the result of a future that is done; raise APIError if it failed."""
    try:
        return ticket.result(0)
    except tuple(FAULTS) as error:
        raise _told(error) from error


def _told(error: Exception) -> APIError:
    status, message, code = FAULTS[type(error)]
    return APIError(status, message, None, code)
