"""Compilation of constraints in threads of their own, a few at once, before their requests are admitted."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from cluster.http.admission import FAULTS, Admission
from cluster.http.completions import Completions
from cluster.http.errors import APIError
from cluster.http.generation_plan import GenerationPlan
from cluster.http.infill import Infills
from cluster.http.limits.request_cost import of_constraint
from cluster.http.metrics import instruments
from cluster.http.served_model import or_api_error
from edlm.constraints.compilation import DEFAULT_LIMITS
from edlm.inference.generator import TextGenerator
from edlm.inference.request import Expired, Request
from edlm.inference.request_automaton import is_compiled

THREADS = 2  # compilations at once, each of which takes as much processor time and memory as its limits allow
WAITING_PER_KEY = 8  # requests of an API key whose constraints are being compiled, or wait for it


class ConstraintCompiler:
    """Compiles the constraints of requests, so that the engine finds them in the cache of the model.

    A request whose constraint was compiled before waits for no other. A client that disconnects gives up its place; a
    compilation that has begun goes on, within its limits, and is cached.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="constraints")
        self._waiting = Counter[str]()

    async def priced(self, prepared: Completions | Infills) -> Completions | Infills:
        """Return the request with what its constraint costs added to its work.

        Raise APIError, naming the field, for a constraint that cannot be compiled, or that no text of the request
        satisfies; and if its key has too many of them in compilation, or the deadline passes.
        """
        plan = prepared.plan
        if plan.constraint is None:
            return prepared
        generator = plan.served.generator
        counts = Counter(replace(request, seed=0) for request in prepared.engine_requests)
        arguments = plan.constraint.field, _work, counts, generator
        if all(is_compiled(request, generator) for request in counts):
            work = await asyncio.to_thread(or_api_error, *arguments)
        else:
            work = await self._compiled(plan, lambda: or_api_error(*arguments))
        return replace(prepared, work=prepared.work + work)

    async def _compiled(self, plan: GenerationPlan, work: Callable[[], float]) -> float:
        key = plan.context.key
        self._admission.require_allowance(plan.context)
        if self._waiting[key] >= WAITING_PER_KEY:
            self._admission.metrics.add(instruments.REJECTED, 1, "constraints")
            message = f"{WAITING_PER_KEY} constraints of this API key are being compiled; try again"
            raise APIError(
                429, message, plan.constraint and plan.constraint.field, "queue_full", DEFAULT_LIMITS.seconds
            )
        self._waiting[key] += 1
        try:
            async with asyncio.timeout(max(0.0, plan.deadline - time.monotonic())):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except TimeoutError:
            status, message, code = FAULTS[Expired]
            raise APIError(status, message, None, code) from None
        finally:
            self._waiting[key] -= 1


def _work(counts: Counter[Request], generator: TextGenerator) -> float:
    return sum(count * of_constraint(request, generator) for request, count in counts.items())
