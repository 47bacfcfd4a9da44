"""Execution of batched steps: the next steps of many texts, with any times, k and windows, in one pass of the denoiser.

After the pass, rows without candidates to score advance together; the others are grouped by energy, k and temperature,
and rows with a constraint apart from those without. A row whose candidates alone would outlast an engine step advances
by itself, with pauses, so that no request waits for it.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from edlm.cooperative_work import Cooperative, run_to_end
from edlm.device_copies import fetched, sent
from edlm.inference.cost_model import PASS, READING, LatencyModel, NetworkPasses
from edlm.inference.request import NonFiniteText, OutOfMemory
from edlm.inference.sequence import RunningSequence, state_of
from edlm.interfaces import Model, read
from edlm.sampling.sampler import EXACT, Sampler
from edlm.sampling.state import StepResult

PLAIN = Sampler(steps=1)
REGROWTH = 1000  # consecutive batches that fit, after which the batch size may double again

SequenceResult = tuple[RunningSequence, StepResult | OutOfMemory | NonFiniteText, int]
"""Sequence, the result of its step and its row in that result; or the sequence and the error in place of a result."""


class BatchExecutor:
    """Executor of steps that tracks the speed of this machine and how many rows fit its memory."""

    def __init__(self, rows: int, step_seconds: float) -> None:
        self.latency, self.step_seconds = LatencyModel(), step_seconds
        self._max_rows = self._rows = rows
        self._fitted = 0
        self.passes = {PASS: 0}
        """Canvas passes, by network."""
        self._paused: dict[RunningSequence, Cooperative[StepResult]] = {}
        self._one_at_a_time: set[RunningSequence] = set()  # did not fit: restarted with one candidate per pause

    def seconds(self, sequence: RunningSequence, rows: int) -> float:
        """Return the seconds of the next step of `sequence`, or until its next pause, in a batch of `rows` rows."""
        if self.is_long(sequence):
            return self.step_seconds
        return self.work_seconds(sequence, sequence.next_step().work, rows)

    def work_seconds(self, sequence: RunningSequence, work: NetworkPasses, rows: int) -> float:
        """Return the seconds of `work` of `sequence`, in batches of `rows` rows."""
        return self.latency.seconds(
            work, sequence.kind, sequence.energy is not None and sequence.energy.whole_sequence, rows
        )

    def remaining_seconds(self, sequence: RunningSequence, rows: int) -> float:
        """Return the seconds of the rest of `sequence`, in batches of `rows` rows."""
        return self.work_seconds(sequence, sequence.remaining_work, rows)

    def is_long(self, sequence: RunningSequence) -> bool:
        """Return whether the step runs with pauses: its candidates alone would outlast an engine step, or has begun.

        Exact draws proceed position by position; their duration is unknown before the first measurement.
        """
        step = sequence.next_step()
        if sequence in self._paused or sequence in self._one_at_a_time:
            return True
        if step.work.candidates == 0:
            return False
        if sequence.scoring_sampler.candidates == EXACT and not self.latency.knows(sequence.kind):
            return True
        return self._divisible(sequence, step.work) > self.step_seconds

    def step(self, sequences: Sequence[RunningSequence]) -> list[SequenceResult]:
        """Take one step of each sequence; those that do not fit the memory even in half a batch get an error."""
        results: list[SequenceResult] = []
        for batch in _by_model(sequences):
            for part in _split(batch, self._rows):
                results += self._step(part)
        return results

    def resume(self, sequence: RunningSequence) -> SequenceResult | None:
        """Run a long step up to its next pause; return its result, or None while it is unfinished."""
        if sequence not in self._paused:
            self._paused[sequence] = self._long_step(sequence)
        try:
            next(self._paused[sequence])
        except StopIteration as end:
            self.forget(sequence)
            return sequence, end.value, 0
        except FloatingPointError as error:
            self.forget(sequence)
            return sequence, _broken(sequence, error), 0
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            return None
        lost = sequence in self._one_at_a_time
        self.forget(sequence)
        _release()
        if lost:
            return sequence, OutOfMemory("a step of this text does not fit the memory"), 0
        self._one_at_a_time.add(sequence)
        return None

    def forget(self, sequence: RunningSequence) -> None:
        """Drop the state of a sequence whose step is over, or that ends in the middle of one."""
        self._paused.pop(sequence, None)
        self._one_at_a_time.discard(sequence)

    def _divisible(self, sequence: RunningSequence, work: NetworkPasses) -> float:
        if sequence.request.constraint is not None:
            work = replace(work, candidates=max(0.0, work.candidates - READING))
        return self.latency.divisible(
            work, sequence.kind, sequence.energy is not None and sequence.energy.whole_sequence
        )

    def _step(self, sequences: Sequence[RunningSequence]) -> list[SequenceResult]:
        results = self._attempt(sequences)
        if results is not None:
            self._grow()
            return results
        self._shrink(len(sequences))
        halves: list[SequenceResult] = []
        for half in _split(sequences, self._rows):
            retried = self._attempt(half)
            lost = OutOfMemory(f"a step of {len(half)} texts does not fit the memory")
            halves += [(sequence, lost, 0) for sequence in half] if retried is None else retried
        return halves

    def _attempt(self, sequences: Sequence[RunningSequence]) -> list[SequenceResult] | None:
        """Compute one step; None if it does not fit the memory: nothing has changed then, so it can be retried."""
        try:
            return self._computed(sequences)
        except FloatingPointError as error:  # of one sequence: stepping each alone shows which
            if len(sequences) == 1:
                return [(sequences[0], _broken(sequences[0], error), 0)]
            return [result for sequence in sequences for result in self._step([sequence])]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        _release()  # not within `except`, where the error still references the computed tensors
        return None

    def _shrink(self, rows: int) -> None:
        """Limit batches to half of `rows`."""
        self._rows, self._fitted = max(1, min(self._rows, rows // 2)), 0

    def _grow(self) -> None:
        """Count a batch that fits; after `REGROWTH` of them, double the batch size, up to the initial one.

        Another process may have held the missing memory for a while.
        """
        self._fitted += 1
        if self._fitted >= REGROWTH:
            self._rows, self._fitted = min(self._max_rows, 2 * self._rows), 0

    @torch.no_grad()
    def _computed(self, sequences: Sequence[RunningSequence]) -> list[SequenceResult]:
        components = sequences[0].components
        network, started = components.denoiser.network, time.monotonic()
        state, groups = state_of(sequences, components.device), list(_groups(sequences))
        needed = state.on_host.unmasked.clone()
        for rows in groups:
            sampler, model = _sampler_and_model(sequences[rows[0]])
            needed[rows] = sampler.needed(state.on_host.at(torch.tensor(rows)), model)
        context = read(network, state.xt, state.t, needed)
        _synchronise(components.device)
        plain_seconds, results = time.monotonic() - started, []
        for rows in groups:
            first, began = sequences[rows[0]], time.monotonic()
            scores, (sampler, model) = first.next_step().scores, _sampler_and_model(first)
            index = torch.tensor(rows)
            of_group = context[sent([index], context.device)[0]]
            result = run_to_end(sampler.advance(state.at(index), of_group, model))
            result = _on_cpu(result, [sequences[row] for row in rows])
            for i, row in enumerate(rows):
                sequences[row].record(context[row], result, i)
                results.append((sequences[row], result, i))
            if (candidates := sum(sequences[row].next_step().work.candidates for row in rows)) > 0:
                self.latency.measured(first.kind, candidates, time.monotonic() - began)
            else:
                plain_seconds += time.monotonic() - began
            if scores:
                self._count(first.energy_name, result.energy_calls)
            self._count(PASS, result.denoiser_calls)
        self.latency.measured(PASS, len(sequences), plain_seconds)
        return results

    @torch.no_grad()
    def _long_step(self, sequence: RunningSequence) -> Cooperative[StepResult]:
        """Return the step of one sequence as cooperative work.

        Pauses are at most an engine step apart, unless a single candidate takes longer.
        """
        components, began = sequence.components, time.monotonic()
        network, work = components.denoiser.network, sequence.next_step().work
        state, (sampler, model) = state_of([sequence], components.device), _sampler_and_model(sequence)
        context = read(network, state.xt, state.t, sampler.needed(state, model))
        _synchronise(components.device)
        self.latency.measured(PASS, 1, time.monotonic() - began)
        exact, scores = sampler.candidates == EXACT, sequence.next_step().scores
        candidate_seconds = self._divisible(sequence, work) / max(sampler.candidates, 1)
        candidates = (
            1 if sequence in self._one_at_a_time else max(1, int(self.step_seconds / max(candidate_seconds, 1e-9)))
        )
        remaining = sampler.advance(state, context, model, candidates * components.length)
        seconds, calls = 0.0, 1
        began = time.monotonic()
        while True:
            try:
                next(remaining)
            except StopIteration as end:
                result = _on_cpu(end.value, [sequence])
                sequence.record(context[0], result, 0)
                seconds += time.monotonic() - began
                self.latency.measured(sequence.kind, work.candidates / calls, seconds / calls)
                self._count(PASS, result.denoiser_calls)
                if scores:
                    self._count(sequence.energy_name, result.energy_calls)
                return result
            _synchronise(components.device)
            if exact and time.monotonic() - began < self.step_seconds:
                continue  # exact draws pause at every position: do as many as an engine step has time for
            seconds, calls = seconds + time.monotonic() - began, 1 if exact else calls + 1
            yield
            began = time.monotonic()

    def _count(self, network: str, calls: Tensor) -> None:
        self.passes[network] = self.passes.get(network, 0) + int(calls.sum())


def _by_model(sequences: Sequence[RunningSequence]) -> Iterator[Sequence[RunningSequence]]:
    models = dict.fromkeys(sequence.components for sequence in sequences)
    for components in models:
        yield [sequence for sequence in sequences if sequence.components is components]


def _split(sequences: Sequence[RunningSequence], size: int) -> Iterator[Sequence[RunningSequence]]:
    for start in range(0, len(sequences), size):
        yield sequences[start : start + size]


def _groups(sequences: Sequence[RunningSequence]) -> Iterator[list[int]]:
    """Yield the rows that advance together: those with the same scoring, or without; with a constraint, or without."""
    groups: dict[object, list[int]] = {}
    for row, sequence in enumerate(sequences):
        kind = None if sequence.request.constraint is None else sequence.kind
        groups.setdefault((_sampler_and_model(sequence), kind), []).append(row)
    yield from groups.values()


def _sampler_and_model(sequence: RunningSequence) -> tuple[Sampler, Model]:
    """Return the sampler and the model of the next step."""
    return (
        (sequence.scoring_sampler, sequence.model)
        if sequence.next_step().scores
        else (PLAIN, replace(sequence.model, energy=None))
    )


def _broken(sequence: RunningSequence, error: FloatingPointError) -> NonFiniteText:
    return NonFiniteText(f"the text of seed {sequence.request.seed}: {error}")


def _on_cpu(result: StepResult, sequences: Sequence[RunningSequence]) -> StepResult:
    """Return the result on the CPU, with the tokens of its candidates if a request asks for them."""
    if not any(sequence.request.candidate_tokens for sequence in sequences):
        result = replace(result, candidates=None)
    names = [field.name for field in fields(StepResult) if getattr(result, field.name) is not None]
    values = fetched([getattr(result, name) for name in names])
    return replace(result, **dict(zip(names, values, strict=True)))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _release() -> None:
    """Free the memory that the device's allocator caches."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an allocator failed, for memory of the device or of the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and ("out of memory" in str(error) or "can't allocate memory" in str(error))
