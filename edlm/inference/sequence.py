"""Running sequences: texts generated canvas by canvas, taking only the steps that unmask something.

Which step unmasks a position depends on no network (`Sampler.choose_positions`), so the steps of a canvas are known
before it begins: those that would unmask nothing are skipped, and the cost of a text is known on arrival.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from edlm.constraints.constraint import Constraint, RowConstraints
from edlm.inference.candidate_tokens import CandidateTokens, reported
from edlm.inference.canvas import canvas, checked, context_tokens
from edlm.inference.completion_decoding import CompletionDecoder
from edlm.inference.components import ModelComponents
from edlm.inference.cost_model import NetworkPasses, kind_of, of_canvas, of_constraint, of_step
from edlm.inference.progress import NOT_YET, GenerationCost, Progress, Text, document_end
from edlm.inference.request import NonFiniteText, Request
from edlm.inference.request_automaton import automaton_of
from edlm.inference.stop_strings import cut
from edlm.inference.token_logprobs import TokenLogprob, token_logprobs
from edlm.interfaces import Model
from edlm.models.readout import chunks
from edlm.sampling.constrained import has_constrained_choice
from edlm.sampling.sampler import Sampler
from edlm.sampling.state import StepResult, StepState
from edlm.sampling.unmasking import AtRandom


@dataclass(frozen=True)
class CanvasBlock:
    """One canvas of a text: positions `start` to `stop` of the text, after the `context` tokens that precede them."""

    start: int
    stop: int
    context: int


@dataclass(frozen=True)
class PlannedStep:
    """One step of a canvas that unmasks something: from its i-th time to the previous one."""

    i: int
    scores: bool
    work: NetworkPasses


class RunningSequence:
    """One text in progress: `next_step` is what to compute, `apply` adds the result, `text` is the finished text."""

    def __init__(self, request: Request, components: ModelComponents) -> None:
        """Raise ValueError if the model cannot do what the request asks."""
        require_at_random(request.sampler)
        self.request, self.components = request, components
        self.energy = components.energy_for(request.sampler, request.energy)
        self.model = Model(components.denoiser.network, self.energy, components.denoiser.schedule)
        self.energy_name = (request.energy or components.bundle.energy or "") if self.energy is not None else ""
        self.kind = kind_of(self.energy_name, request.sampler, request.constraint is not None)
        # Steps that score are grouped by this: samplers that differ in steps, grid or window score alike.
        self.scoring_sampler = replace(request.sampler, steps=1, grid=None, window=(0.0, 1.0))
        self._times = request.sampler.times()
        mask = components.mask
        if request.max_tokens is None:
            canvas(request.known, components.length, mask)  # raises where it does not fit
            self._prompt, self._tokens = [], [mask if token is None else token for token in request.known]
        else:
            self._prompt = [checked(token, mask) for token in request.known if token is not None]
            self._tokens = [mask] * request.max_tokens
        self._automaton = automaton_of(request, components)
        self._constraint: Constraint | None = None  # of this canvas
        self._constraint_work = of_constraint(self._automaton, components.length, request.sampler, self.energy)
        self._decoder = CompletionDecoder(components.tokenizer, self._prompt)
        self._unmasked_at = [NOT_YET if token == mask else 0 for token in self._tokens]
        self._logprobs: list[TokenLogprob | None] = [None] * len(self._tokens)
        self._blocks, self._block = list(self._canvases()), 0
        self._later_work = [NetworkPasses()]  # suffix sums of expected work, last canvas first
        expected: dict[int, NetworkPasses] = {}  # by number of masks, as most canvases of a long text begin alike
        for masked in map(self._masked, reversed(self._blocks)):
            if masked not in expected:
                expected[masked] = of_canvas(
                    masked, components.length, request.sampler, self.model, self._constraint_work
                )
            self._later_work.append(self._later_work[-1] + expected[masked])
        self._remaining_steps: list[PlannedStep] = []  # of this canvas, the next one last
        self._committed, self._end, self._stopped, self._cost = 0, len(self._tokens), False, GenerationCost()
        self._cut: str | None = None
        self._commit()
        self.remaining_work = NetworkPasses() if self.finished else self._later_work[-1]
        """Remaining work: exact for the current canvas, expected for later ones."""
        steps = max(1, len(self._blocks)) * request.sampler.steps
        self.progress = Progress(
            "queued", tuple(self._tokens), tuple(self._unmasked_at), 0, steps, 1.0, 0, self._tokens.count(mask),
            self._committed, self._cost, logprobs=self._recorded(),
        )  # fmt: skip

    @property
    def finished(self) -> bool:
        """Return whether nothing that the text needs is left to unmask."""
        return self._stopped or self._committed == len(self._tokens)

    def next_step(self) -> PlannedStep:
        """Return the next step, which exists until the sequence is finished."""
        assert not self.finished
        if not self._remaining_steps:
            self._open()
        return self._remaining_steps[-1]

    @torch.no_grad()
    def record(self, context: Tensor, result: StepResult, row: int) -> None:
        """Record the log-probabilities of the tokens in `row` of the next step's result, if the request asks for them.

        `context` is the denoiser's read of this row. They are those of p_theta itself, whatever drew the tokens.
        """
        count, block = self.request.logprobs, self._blocks[self._block]
        if count is None:
            return
        network, tokens = self.components.model.denoiser.network, result.xs[row : row + 1]
        for chunk in chunks(result.unmasked[row : row + 1], network.vocabulary):
            log_p = network.log_p(context[None], chunk.to(context.device))
            found = token_logprobs(log_p, tokens[chunk].to(context.device), count)
            for index, logprob in zip(torch.nonzero(chunk[0])[:, 0].tolist(), found, strict=True):
                if (position := block.start + index - block.context) < block.stop:
                    self._logprobs[position] = logprob

    def apply(self, result: StepResult, row: int) -> None:
        """Complete the next step with `row` of its result.

        Raise NonFiniteText, naming the seed, if its values are not numbers, or no candidate is possible.
        """
        step = self._remaining_steps.pop()
        if bool(result.broken[row]) or _impossible(result, row):
            raise NonFiniteText(
                f"logits or energies of the text of seed {self.request.seed} are not numbers, or leave no candidate"
            )
        self._canvas = result.xs[row]
        block, number = self._blocks[self._block], self._number(step.i)
        unmasked = torch.nonzero(self._unmask_step == step.i)[:, 0]
        for index, token in zip(unmasked.tolist(), self._canvas[unmasked].tolist(), strict=True):
            position = block.start + index - block.context
            if position < block.stop:
                self._tokens[position], self._unmasked_at[position] = token, number
        self._cost = self._cost.plus(result, row)
        self._commit()
        self.progress = self._updated_progress(result, row, number, step.i)
        self.remaining_work = NetworkPasses() if self.finished else self.remaining_work - step.work
        if not self._remaining_steps:
            self._block += 1

    def text(self) -> Text:
        """Return the finished text."""
        assert self.finished
        tokens = tuple(self._tokens[: self._end])
        text = self._decoder.whole(tokens) if self._cut is None else self._cut
        # A completion that satisfies its constraint is complete, however many tokens it has.
        complete = self._stopped or (self._automaton is not None and self.request.max_tokens is not None)
        logprobs = None if self.request.logprobs is None else tuple(self._logprobs[: self._end])
        return Text(tokens, text, self.request.seed, "stop" if complete else "length", self._cost, logprobs)

    def _recorded(self) -> tuple[TokenLogprob | None, ...] | None:
        return None if self.request.logprobs is None else tuple(self._logprobs)

    def _constraint_of(self, block: CanvasBlock) -> Constraint | None:
        """Return the constraint of a canvas: it continues from the text before, and what follows can complete it."""
        if self._automaton is None:
            return None
        return Constraint(
            self._automaton,
            first=block.context,
            stop=block.context + block.stop - block.start,
            state=self._automaton.after(self._tokens[: block.start]),
            later=len(self._tokens) - block.stop,
        )

    def _canvases(self) -> Iterator[CanvasBlock]:
        end, start = len(self._tokens), 0
        if self.request.max_tokens is None:
            yield CanvasBlock(0, end, 0)
            return
        while start < end:
            known, length = len(self._prompt) + start, self.components.length
            context = context_tokens(known, end - start, length)
            stop = min(end, start + length - context)
            yield CanvasBlock(start, stop, context)
            start = stop

    def _masked(self, block: CanvasBlock) -> int:
        """Return the number of masks of a canvas before its first step."""
        given = sum(token != self.components.mask for token in self._tokens[block.start : block.stop])
        return self.components.length - block.context - given

    def _open(self) -> None:
        """Prepare the next canvas, and its steps up to the last one that the text needs."""
        components, block, sampler = self.components, self._blocks[self._block], self.request.sampler
        before = [*self._prompt, *self._tokens[: block.start]]
        tokens = self._tokens[block.start : block.stop]
        known = [
            *before[len(before) - block.context :],
            *(None if token == components.mask else token for token in tokens),
        ]
        self._canvas = canvas(known, components.length, components.mask)
        self._constraint = self._constraint_of(block)
        self._unmask_step = self._unmask_steps()
        needed = self._unmask_step[block.context : len(known)]
        last = int(needed[needed > 0].min())  # the canvas may extend beyond the end of the text
        may_score = sampler.may_score(self._times, self.energy).tolist()
        for i, count in enumerate(torch.bincount(self._unmask_step).tolist()):
            if i >= last and count:
                scores = may_score[i] and self._has_choice(self._unmask_step == i)
                work = of_step(count / components.length, scores, sampler, self.energy, self._constraint_work)
                self._remaining_steps.append(PlannedStep(i, scores, work))
        self.remaining_work = sum(
            (step.work for step in self._remaining_steps), self._later_work[len(self._blocks) - self._block - 1]
        )

    def _has_choice(self, unmasked: Bool[Tensor, " l"]) -> bool:
        """Return whether the energy has anything to decide in a step that unmasks these positions."""
        if self._constraint is not None:
            return bool(has_constrained_choice(unmasked[None]))
        return bool(self.request.sampler.has_choice(unmasked[None], self.energy))

    def _unmask_steps(self) -> Int64[Tensor, " l"]:
        """Return the step i that unmasks each position of the canvas; 0 for a known position."""
        sampler = self.request.sampler
        i = torch.arange(1, sampler.steps + 1)
        rows = self._canvas.expand(sampler.steps, -1)
        index, seeds = self._block * sampler.steps + i, torch.full_like(i, self.request.seed)
        state = sampler.choose_positions(rows, self._times[1:], self._times[:-1], index, seeds, self.model)
        return (state.unmasked * i[:, None]).amax(dim=0)

    def _number(self, i: int) -> int:
        """Return the number of step i, counted from 1 over all canvases."""
        return self._block * self.request.sampler.steps + self.request.sampler.steps - i + 1

    def _commit(self) -> None:
        """Update how many leading positions of the text are final, and whether the text ends there."""
        before, mask, separator = self._committed, self.components.mask, self.components.tokenizer.separator
        while self._committed < len(self._tokens) and self._tokens[self._committed] != mask:
            self._committed += 1
        if self._committed == before or self.request.max_tokens is None:
            return
        ended = document_end(self._tokens[before : self._committed], mask, separator)
        if ended is not None:
            self._end, self._stopped = before + ended, True
        if self.request.stop:
            self._look_for_stops(min(self._committed, self._end))

    def _look_for_stops(self, committed: int) -> None:
        tokens = self._tokens[:committed]
        text = self._decoder.whole(tokens) if self.finished else self._decoder.stable_prefix(tokens)
        length = cut(text, self.request.stop)
        if length is not None:
            self._cut, self._stopped = text[:length], True
            self._end = self._decoder.count(self._cut, tokens)

    def _updated_progress(self, result: StepResult, row: int, number: int, i: int) -> Progress:
        progress = replace(
            self.progress,
            status="running",
            tokens=tuple(self._tokens),
            unmasked_at=tuple(self._unmasked_at),
            step=number,
            t=self._times[i - 1].item(),
            block=self._block,
            masked=self._tokens.count(self.components.mask),
            committed=self._committed,
            cost=self._cost,
            logprobs=self._recorded(),
        )
        if result.energies is None or bool(result.energies[row].isnan().all()):
            return progress
        energies = tuple(
            tuple(energy if math.isfinite(energy) else None for energy in group)
            for group in result.energies[row].T.tolist()
        )
        picked = tuple(result.picked[row].tolist())
        return replace(
            progress,
            scored_step=number,
            ess=float(result.ess[row]),
            energies=energies,
            picked=picked,
            candidate_tokens=self._candidate_tokens(result, row, i),
        )

    def _candidate_tokens(self, result: StepResult, row: int, i: int) -> CandidateTokens | None:
        """Return the tokens of the candidates of step i, if the request asks for them."""
        if not self.request.candidate_tokens or result.candidates is None:
            return None
        block, unmasked = self._blocks[self._block], self._unmask_step == i
        whole = self.energy is not None and self.energy.whole_sequence
        filled = (self._unmask_step > 0) & (self._unmask_step <= i) if whole else unmasked.clone()
        filled[block.context + block.stop - block.start :] = False  # beyond the end of the text
        first = block.start - block.context
        return reported(result.candidates[row], filled, unmasked, self.model.block, first)


def require_at_random(sampler: Sampler) -> None:
    """Raise ValueError unless the sampler selects positions at random, so that the steps of a text are known."""
    if sampler.unmasking != AtRandom():
        raise ValueError(
            f"unmasking is {sampler.unmasking.kind}: texts unmask at_random, so that their steps are known before they "
            "begin and what is read of them never changes; `Sampler.sample` fills canvases by any rule"
        )


def state_of(sequences: Sequence[RunningSequence], device: torch.device) -> StepState:
    """Return the state before the next step of each sequence, one row each."""
    steps = [(sequence, sequence.next_step().i) for sequence in sequences]
    index = [sequence._block * sequence.request.sampler.steps + i for sequence, i in steps]
    t, s = (torch.stack([sequence._times[i - back] for sequence, i in steps]) for back in (0, 1))
    canvases = torch.stack([sequence._canvas for sequence in sequences])
    state = StepState(
        canvases,
        t,
        s,
        torch.tensor(index),
        torch.tensor([sequence.request.seed for sequence in sequences]),
        torch.stack([sequence._unmask_step == i for sequence, i in steps]),
        unselected_tokens=canvases,
        constraints=RowConstraints([sequence._constraint for sequence in sequences]),
    )
    return state.on_device(device)


def _impossible(result: StepResult, row: int) -> bool:
    """Return whether some group of positions has no possible candidate: E = inf for all of them."""
    return result.energies is not None and bool((result.energies[row] == torch.inf).all(dim=0).any())
