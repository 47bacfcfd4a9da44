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
from cluster.http.limits.rate_limit import RateLimit
from cluster.http.limits.settings import RequestLimits
from cluster.http.metrics import instruments
from cluster.http.metrics.instruments import Metrics
from cluster.http.request_context import RequestContext
from cluster.http.served_model import or_api_error
from edlm.cooperative_work import Cooperative
from edlm.inference.engine import InferenceEngine
from edlm.inference.future import Future, TextFuture
from edlm.inference.request import Cancelled, EngineFailed, Expired, Full, NonFiniteText, OutOfMemory, Request

Value = TypeVar("Value")
FAULTS: dict[type[Exception], tuple[int, str, str]] = {
    Expired: (
        504,
        "the deadline passed before the request finished; ask for less, or allow more time",
        "deadline_exceeded",
    ),
    NonFiniteText: (500, "the model produced a value that is not a number", "numerical_error"),
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

    def __init__(self, engine: InferenceEngine, request_limits: RequestLimits, metrics: Metrics) -> None:
        self.engine, self.request_limits, self.metrics = engine, request_limits, metrics
        per_second = request_limits.work_per_second
        self._rate_limit = (
            None if per_second is None else RateLimit(per_second, per_second * request_limits.burst_seconds)
        )

    def deadline(self, context: RequestContext, requested_seconds: float | None) -> float:
        """Return the deadline of the request, on the clock of `time.monotonic()`.

        Raise APIError if the requested timeout exceeds `RequestLimits.max_seconds`.
        """
        most = self.request_limits.max_seconds
        if requested_seconds is not None and requested_seconds > most:
            message = f"edlm.timeout_seconds is {requested_seconds:g}; this server allows at most {most:g} s"
            raise APIError(400, message, "edlm.timeout_seconds", "invalid_value")
        return context.arrived + (requested_seconds or most)

    def require_room(self, texts: int, param: str) -> None:
        """Raise APIError if `texts` exceeds the slots and the queue of the engine together.

        `param`: the request field that contributes most texts, named in the error.
        """
        limits = self.engine.limits
        if texts > (most := limits.slots + limits.waiting):
            message = f"{texts} texts in one request; this server runs and queues at most {most}; ask for fewer"
            raise APIError(400, message, param, "invalid_value")

    def charge(self, context: RequestContext, work: float) -> None:
        """Charge the work of the request to the rate limit of its key, with a refund if the engine rejects the request.

        Raise APIError if the request exceeds the work limit per request, or the key its rate limit.
        """
        if work > self.request_limits.max_work:
            raise APIError(
                400,
                f"the request costs up to {math.ceil(work)} forward passes, and the limit is "
                f"{self.request_limits.max_work:g}; ask for fewer steps, candidates, tokens or choices",
                code="work_limit_exceeded",
            )
        self.require_allowance(context)
        if self._rate_limit is not None:
            self._rate_limit.use(context.key, work)

    def require_allowance(self, context: RequestContext) -> None:
        """Raise APIError if the key of the request has reached its rate limit."""
        if self._rate_limit is not None and (wait := self._rate_limit.wait_seconds(context.key)):
            self.metrics.add(instruments.REJECTED, 1, "rate_limit")
            raise APIError(429, "this API key has reached its rate limit", None, "rate_limit_exceeded", wait)

    @asynccontextmanager
    async def texts(
        self, engine_requests: Sequence[Request], charged: float, plan: GenerationPlan
    ) -> AsyncIterator[list[TextFuture]]:
        """Submit `engine_requests` and yield their futures; on exit, cancel those that are not done."""
        with self._entering(plan.context, charged):
            futures = await self._submitted(engine_requests, charged, plan)
        try:
            yield futures
        finally:
            self._leave(futures)

    async def _submitted(
        self, engine_requests: Sequence[Request], charged: float, plan: GenerationPlan
    ) -> list[TextFuture]:
        """Submit in a thread, because preparing long sequences takes a while, and return the futures."""
        started = asyncio.ensure_future(
            asyncio.to_thread(or_api_error, None, self.engine.submit, engine_requests, plan.served.model)
        )
        try:
            return await asyncio.shield(started)
        except asyncio.CancelledError:  # the client disconnected; the thread cannot be stopped
            started.add_done_callback(lambda done: self._abandon(done, charged, plan.context))
            raise

    def _abandon(self, submission: "asyncio.Future[list[TextFuture]]", charged: float, context: RequestContext) -> None:
        """Cancel the futures of a client that disconnected; refund the charge if the engine rejected the request."""
        if (error := submission.exception()) is None:
            for future in submission.result():
                future.cancel()
        elif isinstance(error, Exception):
            self._refund(context, charged)

    async def run(
        self, work: float, task: Cooperative[Value], charged: float, plan: GenerationPlan, follows: bool = False
    ) -> Value:
        """Run cooperative work in the engine and return its result; cancel it when this coroutine is cancelled.

        Work that `follows` texts of the same request was admitted with them.
        """
        with self._entering(plan.context, charged):
            future = self.engine.run(work, task, plan.context.key, plan.deadline, follows)
        try:
            async for _ in FutureWatch([future], steps=False).changes():
                pass
            return outcome(future)
        finally:
            self._leave([future])

    @contextmanager
    def _entering(self, context: RequestContext, charged: float) -> Iterator[None]:
        """Translate rejections by the engine to APIError and refund their charge, around a submission to the engine."""
        try:
            with self._refunding(context, charged):
                yield
        except Full as full:
            self.metrics.add(instruments.REJECTED, 1, full.reason)
            wait = _back_seconds(full, self.engine.limits.patience_seconds)
            status, code = (503, STOPPING) if full.reason == "draining" else (429, "queue_full")
            raise APIError(status, f"{FULL[full.reason]}; try again in {wait} s", None, code, wait) from None
        except EngineFailed as error:
            raise _api_error(error) from error

    @contextmanager
    def _refunding(self, context: RequestContext, charged: float) -> Iterator[None]:
        """Refund the charge to the key if the body raises an error."""
        try:
            yield
        except Exception:  # CancelledError is no Exception: an admitted request that is cancelled stays charged
            self._refund(context, charged)
            raise

    def _refund(self, context: RequestContext, charged: float) -> None:
        if self._rate_limit is not None:
            self._rate_limit.use(context.key, -charged)

    def _leave(self, futures: Sequence[Future[Any]]) -> None:
        """Cancel the futures that are not done, and record the queueing time of those that started."""
        for future in futures:
            if not future.done:
                future.cancel()
            if future.started is not None:
                self.metrics.observe(instruments.QUEUE_SECONDS, future.started - future.submitted)


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


def outcome(future: Future[Value]) -> Value:
    """Return the result of a future that is done; raise APIError if it failed."""
    try:
        return future.result(0)
    except tuple(FAULTS) as error:
        raise _api_error(error) from error


def _api_error(error: Exception) -> APIError:
    status, message, code = FAULTS[type(error)]
    return APIError(status, message, None, code)
