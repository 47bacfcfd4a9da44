"""A turn: the upcoming steps of many texts, whatever their times, k and windows, in one pass of the denoiser.

After the pass rows part: those that weigh nothing go on together, and those that weigh by energy, k and temperature. A
row whose weighing alone would outlast a turn goes on by itself, a bite at a time, so that nobody waits for it.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from edlm.cooperative import Bites
from edlm.inference.cost_model import PASS, Pace, Work
from edlm.inference.request import BrokenRow, OutOfMemory
from edlm.inference.sequence import RunningSequence, state_of
from edlm.interfaces import AbstractEnergy, read
from edlm.sampling.sampler import EXACT, Sampler
from edlm.sampling.state import StepResult

PLAIN = Sampler(steps=1)
REGROWTH = 1000  # batches in a row that fitted, after which they may be twice as large again

Took = tuple[RunningSequence, StepResult | OutOfMemory | BrokenRow, int]
"""A draft with the result of which one row is its own, and that row; or why it has none."""


class Batcher:
    """What computes: it knows how fast this machine is, and how many rows fit its memory."""

    def __init__(self, rows: int, turn_seconds: float) -> None:
        self.pace, self.turn_seconds = Pace(), turn_seconds
        self._most = self._bucket = rows
        self._fitted = 0
        self.passes = {PASS: 0}
        """Of canvases, by network."""
        self._begun: dict[RunningSequence, Bites[StepResult]] = {}
        self._cramped: set[RunningSequence] = set()  # those that did not fit: they begin again, one candidate a bite

    def seconds(self, draft: RunningSequence, rows: int) -> float:
        """What the draft's next step or bite will take, in a batch of so many rows."""
        return self.turn_seconds if self.is_heavy(draft) else self.of(draft, draft.upcoming().work, rows)

    def of(self, draft: RunningSequence, work: Work, rows: int) -> float:
        """The seconds of a draft's work, in batches of so many rows."""
        return self.pace.seconds(work, draft.kind, draft.energy is not None and draft.energy.whole_sequence, rows)

    def is_heavy(self, draft: RunningSequence) -> bool:
        """Whether the draft's step goes in bites: its weighing alone would outlast a turn, or has begun.

        Exact draws go place by place; before any was measured there is no telling how long one of them takes.
        """
        move = draft.upcoming()
        if draft in self._begun or draft in self._cramped:
            return True
        if not move.weighed:
            return False
        if draft.weigher.candidates == EXACT and not self.pace.knows(draft.kind):
            return True
        return self._divisible(draft, move.work) > self.turn_seconds

    def step(self, drafts: Sequence[RunningSequence]) -> list[Took]:
        """One step of each draft; of those that do not fit the memory, even in half a batch, an error."""
        took: list[Took] = []
        for batch in _by_generator(drafts):
            for some in _split(batch, self._bucket):
                took += self._step(some)
        return took

    def bite(self, draft: RunningSequence) -> Took | None:
        """One bite of a heavy draft's step; None while the step is not over."""
        if draft not in self._begun:
            self._begun[draft] = self._weighing(draft)
        try:
            next(self._begun[draft])
        except StopIteration as end:
            self.forget(draft)
            return draft, end.value, 0
        except FloatingPointError as error:
            self.forget(draft)
            return draft, BrokenRow(str(error)), 0
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            return None
        lost = draft in self._cramped
        self.forget(draft)
        _release()
        if lost:
            return draft, OutOfMemory("a step of this text does not fit the memory"), 0
        self._cramped.add(draft)
        return None

    def forget(self, draft: RunningSequence) -> None:
        """Afterwards nothing is kept of a draft whose step is over, or that ends in the middle of it."""
        self._begun.pop(draft, None)
        self._cramped.discard(draft)

    def _divisible(self, draft: RunningSequence, work: Work) -> float:
        return self.pace.divisible(work, draft.kind, draft.energy is not None and draft.energy.whole_sequence)

    def _step(self, drafts: Sequence[RunningSequence]) -> list[Took]:
        took = self._attempt(drafts)
        if took is not None:
            self._grow()
            return took
        self._shrink(len(drafts))
        halves: list[Took] = []
        for half in _split(drafts, self._bucket):
            again = self._attempt(half)
            lost = OutOfMemory(f"a step of {len(half)} texts does not fit the memory")
            halves += [(draft, lost, 0) for draft in half] if again is None else again
        return halves

    def _attempt(self, drafts: Sequence[RunningSequence]) -> list[Took] | None:
        """None: it did not fit the memory. Nothing has changed then, so it can be tried again."""
        try:
            return self._computed(drafts)
        except FloatingPointError as error:  # of one of them: whose it is shows when each is alone
            if len(drafts) == 1:
                return [(drafts[0], BrokenRow(str(error)), 0)]
            return [took for draft in drafts for took in self._step([draft])]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        _release()  # not within `except`: there the error still holds what was computed
        return None

    def _shrink(self, rows: int) -> None:
        """Afterwards batches are at most half of `rows`."""
        self._bucket, self._fitted = max(1, min(self._bucket, rows // 2)), 0

    def _grow(self) -> None:
        """Afterwards one batch more has fitted: what was lacking may have been somebody else's for a while."""
        self._fitted += 1
        if self._fitted >= REGROWTH:
            self._bucket, self._fitted = min(self._most, 2 * self._bucket), 0

    @torch.no_grad()
    def _computed(self, drafts: Sequence[RunningSequence]) -> list[Took]:
        generator = drafts[0].generator
        network, started = generator.denoiser.network, time.monotonic()
        now, groups = state_of(drafts, generator.device), list(_alike(drafts))
        where = now.revealed.clone()
        for rows in groups:
            sampler, energy = _how(drafts[rows[0]])
            at = torch.tensor(rows, device=generator.device)
            where[at] = sampler.reads(now.at(at), network, energy)
        context = read(network, now.xt, now.t, where)
        _synchronise(generator.device)
        plain_seconds, took = time.monotonic() - started, []
        for rows in groups:
            first, began = drafts[rows[0]], time.monotonic()
            weighed, (sampler, energy) = first.upcoming().weighed, _how(first)
            at = torch.tensor(rows, device=generator.device)
            result = _on_cpu(sampler.advance(now.at(at), context[at], network, energy))
            took += [(drafts[row], result, place) for place, row in enumerate(rows)]
            if weighed:
                candidates = sum(drafts[row].upcoming().work.candidates for row in rows)
                self.pace.measured(first.kind, candidates, time.monotonic() - began)
                self._count(first.energy_name, result.energy_calls)
            else:
                plain_seconds += time.monotonic() - began
            self._count(PASS, result.denoiser_calls)
        self.pace.measured(PASS, len(drafts), plain_seconds)
        return took

    @torch.no_grad()
    def _weighing(self, draft: RunningSequence) -> Bites[StepResult]:
        """The draft's step alone, no bite of it longer than a turn as far as one candidate is not."""
        generator, began = draft.generator, time.monotonic()
        network, work = generator.denoiser.network, draft.upcoming().work
        now = state_of([draft], generator.device)
        context = read(network, now.xt, now.t, draft.weigher.reads(now, network, draft.energy))
        _synchronise(generator.device)
        self.pace.measured(PASS, 1, time.monotonic() - began)
        exact = draft.weigher.candidates == EXACT
        one = self._divisible(draft, work) / max(draft.weigher.candidates, 1)
        candidates = 1 if draft in self._cramped else max(1, int(self.turn_seconds / one))
        bites = draft.weigher.advancing(now, context, network, draft.energy, candidates * generator.length)
        seconds, calls = 0.0, 1
        began = time.monotonic()
        while True:
            try:
                next(bites)
            except StopIteration as end:
                result = _on_cpu(end.value)
                seconds += time.monotonic() - began
                self.pace.measured(draft.kind, work.candidates / calls, seconds / calls)
                self._count(PASS, result.denoiser_calls)
                self._count(draft.energy_name, result.energy_calls)
                return result
            _synchronise(generator.device)
            if exact and time.monotonic() - began < self.turn_seconds:
                continue  # a bite is one place: as many as a turn has time for
            seconds, calls = seconds + time.monotonic() - began, 1 if exact else calls + 1
            yield
            began = time.monotonic()

    def _count(self, network: str, calls: Tensor) -> None:
        self.passes[network] = self.passes.get(network, 0) + int(calls.sum())


def _by_generator(drafts: Sequence[RunningSequence]) -> Iterator[Sequence[RunningSequence]]:
    generators = dict.fromkeys(draft.generator for draft in drafts)
    for generator in generators:
        yield [draft for draft in drafts if draft.generator is generator]


def _split(drafts: Sequence[RunningSequence], size: int) -> Iterator[Sequence[RunningSequence]]:
    for start in range(0, len(drafts), size):
        yield drafts[start : start + size]


def _alike(drafts: Sequence[RunningSequence]) -> Iterator[list[int]]:
    """The rows that advance together: those that weigh nothing, and those that weigh in the same way."""
    groups: dict[object, list[int]] = {}
    for row, draft in enumerate(drafts):
        groups.setdefault(_how(draft), []).append(row)
    yield from groups.values()


def _how(draft: RunningSequence) -> tuple[Sampler, AbstractEnergy | None]:
    """By what sampler and energy its upcoming step is taken."""
    return (draft.weigher, draft.energy) if draft.upcoming().weighed else (PLAIN, None)


def _on_cpu(result: StepResult) -> StepResult:
    values = {field.name: getattr(result, field.name) for field in fields(StepResult)}
    return replace(result, **{name: value.cpu() for name, value in values.items() if value is not None})


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _release() -> None:
    """Afterwards what the device's allocator kept for later is free for whoever needs it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocator gave up, the device's or the machine's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and ("out of memory" in str(error) or "can't allocate memory" in str(error))
