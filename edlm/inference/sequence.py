"""Drafts: a text on its way, one canvas after another, and of each only the steps that reveal something.

Which step reveals a position depends on no network (`Sampler.reveal`), so a canvas's course is known before it begins:
steps that would reveal nothing are passed over, and what a text will cost is known when it comes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64
from torch import Tensor

from edlm.inference.canvas import canvas, checked, context_tokens
from edlm.inference.continuation import Continuation
from edlm.inference.cost_model import Work, kind_of, of_canvas, of_step
from edlm.inference.generator import TextGenerator
from edlm.inference.request import BrokenRow, Request
from edlm.inference.stop_strings import cut
from edlm.inference.text import NOT_YET, Progress, Tally, Text, document_end
from edlm.sampling.sampler import Sampler
from edlm.sampling.state import StepResult, StepState
from edlm.sampling.unmasking import AtRandom


@dataclass(frozen=True)
class Block:
    """One canvas of a text: the text's positions `start` to `stop`, behind `context` tokens that stand before them."""

    start: int
    stop: int
    context: int


@dataclass(frozen=True)
class Move:
    """A step of a canvas that reveals something: from its i-th time to the one before."""

    i: int
    weighed: bool
    work: Work


class RunningSequence:
    """One text on its way: `upcoming` is its next step, `take` is told what that did, `text` is the end of it."""

    def __init__(self, job: Request, generator: TextGenerator) -> None:
        """ValueError where the model cannot do what the job asks."""
        require_course(job.sampler)
        self.job, self.generator = job, generator
        self.energy = generator.energy_for(job.sampler, job.energy)
        self.energy_name = (job.energy or generator.bundle.energy or "") if self.energy is not None else ""
        self.kind = kind_of(self.energy_name, job.sampler)
        # What a step that weighs is grouped by: samplers that differ in steps, grid or window weigh alike.
        self.weigher = replace(job.sampler, steps=1, grid=None, window=(0.0, 1.0))
        self._times = job.sampler.times()
        mask = generator.mask
        if job.max_tokens is None:
            canvas(job.known, generator.length, mask)  # raises where it does not fit
            self._prompt, self._tokens = [], [mask if token is None else token for token in job.known]
        else:
            self._prompt = [checked(token, mask) for token in job.known if token is not None]
            self._tokens = [mask] * job.max_tokens
        self._continuation = Continuation(generator.tokenizer, self._prompt)
        self._revealed_at = [NOT_YET if token == mask else 0 for token in self._tokens]
        self._blocks, self._block = list(self._canvases()), 0
        self._later = [Work()]  # what the canvases from each on will cost, the last canvas first
        expected: dict[int, Work] = {}  # by what is masked, for most canvases of a long text begin alike
        for masked in map(self._masked, reversed(self._blocks)):
            if masked not in expected:
                schedule = generator.denoiser.schedule
                expected[masked] = of_canvas(masked, generator.length, job.sampler, self.energy, schedule)
            self._later.append(self._later[-1] + expected[masked])
        self._course: list[Move] = []  # of this canvas, the next step last
        self._committed, self._end, self._stopped, self._tally = 0, len(self._tokens), False, Tally()
        self._cut: str | None = None
        self._commit()
        self.left = Work() if self.finished else self._later[-1]
        """What it will still cost: of the canvas that it is on exactly, of those to come in expectation."""
        steps = max(1, len(self._blocks)) * job.sampler.steps
        self.frame = Progress(
            "queued", tuple(self._tokens), tuple(self._revealed_at), 0, steps, 1.0, 0, self._tokens.count(mask),
            self._committed, self._tally,
        )  # fmt: skip

    @property
    def finished(self) -> bool:
        """Whether nothing is left to reveal that its text needs."""
        return self._stopped or self._committed == len(self._tokens)

    def upcoming(self) -> Move:
        """The next step; there is one until it is finished."""
        assert not self.finished
        if not self._course:
            self._open()
        return self._course[-1]

    def take(self, step: StepResult, row: int) -> None:
        """Afterwards the upcoming step is done: it did to this text what it did to `row`.

        Raises BrokenRow where its numbers are none, or no candidate is possible.
        """
        move = self._course.pop()
        if bool(step.broken[row]) or _impossible(step, row):
            raise BrokenRow("logits or energies of this text are not numbers, or leave nothing to choose")
        self._canvas = step.xs[row]
        block, number = self._blocks[self._block], self._number(move.i)
        places = torch.nonzero(self._reveal == move.i)[:, 0]
        for place, token in zip(places.tolist(), self._canvas[places].tolist(), strict=True):
            position = block.start + place - block.context
            if position < block.stop:
                self._tokens[position], self._revealed_at[position] = token, number
        self._tally = self._tally.plus(step, row)
        self._commit()
        self.frame = self._framed(step, row, number, self._times[move.i - 1].item())
        self.left = Work() if self.finished else self.left - move.work
        if not self._course:
            self._block += 1

    def text(self) -> Text:
        """The finished text."""
        assert self.finished
        tokens = tuple(self._tokens[: self._end])
        text = self._continuation.whole(tokens) if self._cut is None else self._cut
        return Text(tokens, text, self.job.seed, "stop" if self._stopped else "length", self._tally)

    def _canvases(self) -> Iterator[Block]:
        end, start = len(self._tokens), 0
        if self.job.max_tokens is None:
            yield Block(0, end, 0)
            return
        while start < end:
            known, length = len(self._prompt) + start, self.generator.length
            context = context_tokens(known, end - start, length)
            stop = min(end, start + length - context)
            yield Block(start, stop, context)
            start = stop

    def _masked(self, block: Block) -> int:
        """The masks of a canvas before it is begun."""
        given = sum(token != self.generator.mask for token in self._tokens[block.start : block.stop])
        return self.generator.length - block.context - given

    def _open(self) -> None:
        """Afterwards the next canvas lies ready, and its course up to the last step that the text needs."""
        generator, block, sampler = self.generator, self._blocks[self._block], self.job.sampler
        before = [*self._prompt, *self._tokens[: block.start]]
        here = self._tokens[block.start : block.stop]
        known = [*before[len(before) - block.context :], *(None if one == generator.mask else one for one in here)]
        self._canvas = canvas(known, generator.length, generator.mask)
        self._reveal = self._reveal_steps()
        own = self._reveal[block.context : len(known)]
        last = int(own[own > 0].min())  # the canvas may be longer than what is still wanted of the text
        weighs = sampler.weighs(self._times, self.energy).tolist()
        for i, count in enumerate(torch.bincount(self._reveal).tolist()):
            if i >= last and count:
                weighed = weighs[i] and bool(sampler.chooses((self._reveal == i)[None], self.energy))
                work = of_step(count / generator.length, weighed, sampler, self.energy)
                self._course.append(Move(i, weighed, work))
        self.left = sum((move.work for move in self._course), self._later[len(self._blocks) - self._block - 1])

    def _reveal_steps(self) -> Int64[Tensor, " l"]:
        """For each place of the canvas the step i that reveals it; 0 where it is known."""
        sampler, network = self.job.sampler, self.generator.denoiser.network
        i = torch.arange(1, sampler.steps + 1)
        rows = self._canvas.expand(sampler.steps, -1)
        index, seeds = self._block * sampler.steps + i, torch.full_like(i, self.job.seed)
        schedule = self.generator.denoiser.schedule
        now = sampler.reveal(rows, self._times[1:], self._times[:-1], index, network, schedule, seeds)
        return (now.revealed * i[:, None]).amax(dim=0)

    def _number(self, i: int) -> int:
        """The step, counted from 1 over all canvases."""
        return self._block * self.job.sampler.steps + self.job.sampler.steps - i + 1

    def _commit(self) -> None:
        """Afterwards it is known how far the text stands for good, and whether it ends there."""
        before, mask, separator = self._committed, self.generator.mask, self.generator.tokenizer.separator
        while self._committed < len(self._tokens) and self._tokens[self._committed] != mask:
            self._committed += 1
        if self._committed == before or self.job.max_tokens is None:
            return
        ended = document_end(self._tokens[before : self._committed], mask, separator)
        if ended is not None:
            self._end, self._stopped = before + ended, True
        if self.job.stop:
            self._look_for_stops(min(self._committed, self._end))

    def _look_for_stops(self, committed: int) -> None:
        tokens = self._tokens[:committed]
        text = self._continuation.whole(tokens) if self.finished else self._continuation.certain(tokens)
        letters = cut(text, self.job.stop)
        if letters is not None:
            self._cut, self._stopped = text[:letters], True
            self._end = self._continuation.count(self._cut, tokens)

    def _framed(self, step: StepResult, row: int, number: int, t: float) -> Progress:
        frame = replace(
            self.frame,
            status="running",
            tokens=tuple(self._tokens),
            revealed_at=tuple(self._revealed_at),
            step=number,
            t=t,
            block=self._block,
            masked=self._tokens.count(self.generator.mask),
            committed=self._committed,
            tally=self._tally,
        )
        if step.energies is None or bool(step.energies[row].isnan().all()):
            return frame
        energies = tuple(
            tuple(energy if math.isfinite(energy) else None for energy in group)
            for group in step.energies[row].T.tolist()
        )
        picked = tuple(step.picked[row].tolist())
        return replace(frame, weighed_step=number, ess=float(step.ess[row]), energies=energies, picked=picked)


def require_course(sampler: Sampler) -> None:
    """ValueError where the course of the sampler's texts is not known before they begin."""
    if sampler.revealing != AtRandom():
        raise ValueError(
            f"revealing is {sampler.revealing.kind}: texts that share steps reveal at_random, so that their course is "
            "known before and what is read of them never changes"
        )


def state_of(drafts: Sequence[RunningSequence], device: torch.device) -> StepState:
    """The drafts' upcoming steps, one row each."""
    moves = [draft.upcoming() for draft in drafts]
    steps = [draft._block * draft.job.sampler.steps + move.i for draft, move in zip(drafts, moves, strict=True)]
    t, s = (
        torch.stack([draft._times[move.i - back] for draft, move in zip(drafts, moves, strict=True)]) for back in (0, 1)
    )
    canvases = torch.stack([draft._canvas for draft in drafts]).to(device)
    return StepState(
        canvases,
        t.to(device),
        s.to(device),
        torch.tensor(steps, device=device),
        torch.tensor([draft.job.seed for draft in drafts], device=device),
        torch.stack([draft._reveal == move.i for draft, move in zip(drafts, moves, strict=True)]).to(device),
        rest=canvases,
    )


def _impossible(step: StepResult, row: int) -> bool:
    """Whether some group of positions has no possible candidate: E = inf for all of them."""
    return step.energies is not None and bool((step.energies[row] == torch.inf).all(dim=0).any())
