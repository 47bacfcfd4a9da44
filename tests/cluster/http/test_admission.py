"""What a key is charged for a request whose client disconnects while the engine takes it in."""

import asyncio
from types import SimpleNamespace

import pytest

from cluster.http.admission import Admission
from cluster.http.limits.settings import RequestLimits
from cluster.http.metrics.instruments import PrometheusMetrics
from cluster.http.request_context import RequestContext
from tests.cluster.asking import eventually
from tests.engines import echo, gated, new_request

WORK = 1000.0  # far above the burst: its key must wait as long as it is charged


@pytest.mark.parametrize("rejected", [True, False])
def test_a_request_that_is_rejected_after_its_client_left_is_refunded_and_an_admitted_one_is_not(rejected):
    context = RequestContext("id", key="anna")
    with gated(echo()) as (engine, gate):  # an admitted text cannot end before it is cancelled
        admission = Admission(engine, RequestLimits(work_per_second=1.0), PrometheusMetrics())

        async def ask() -> None:
            plan = SimpleNamespace(context=context, served=SimpleNamespace(model=engine.model))
            async with admission.texts([new_request()], WORK, plan):  # type: ignore[arg-type]
                pass

        async def leave() -> None:
            with engine._changed:  # nothing is submitted until the client is gone
                request = asyncio.create_task(ask())
                await asyncio.sleep(0.05)
                request.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await request
                engine._closed = rejected
            while pending := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(pending)

        def waits() -> bool:
            assert admission._rate_limit is not None
            return admission._rate_limit.wait_seconds(context.key) > 0

        admission.charge(context, WORK)
        assert waits()
        asyncio.run(leave())  # which ends with the submitting thread
        gate.let(1_000_000)
        if rejected:
            eventually(lambda: not waits())
        else:
            eventually(lambda: engine.statistics().finished == {"cancelled": 1})
            assert waits()
