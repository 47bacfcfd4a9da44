"""Likelihood of a text given its context: canvas by canvas as texts are generated, bounded or exact."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from edlm.cooperative_work import run_to_end
from edlm.data.tokenizer import Tokenizer
from edlm.inference.canvas import canvas, context_tokens
from edlm.inference.generator import TextGenerator
from edlm.inference.scoring import ROWS_AT_ONCE, joined
from edlm.inference.settings import ResolvedSettings
from edlm.interfaces import Model
from edlm.likelihood.bounds import nelbo, stepwise_sampler_bound
from edlm.likelihood.estimate import Estimate
from edlm.likelihood.exact_order import FIXED_ORDER, ExactOrder, require_exact, stepwise_exact_order
from edlm.lm_eval.arguments import Bound

Tokens = tuple[int, ...]
LABELS: dict[Bound, str] = {
    "sampler": "lower bound on log p: minus the T-step bound of the sampler, given the context",
    "nelbo": "lower bound on log p: minus the NELBO of plain diffusion in continuous time, given the context",
    "exact_order": f"log p, exact, of another distribution: {FIXED_ORDER.name}, given the context",
}


@dataclass(frozen=True)
class Pair:
    """A text and the context before it."""

    context: Tokens
    text: Tokens


@dataclass(frozen=True)
class PairScore:
    """Likelihood of a text given its context."""

    nll: Estimate
    """-log p in nats, or a bound on it: one value per noise sample, a single one if it is exact."""
    greedy: bool
    """Whether each token is the denoiser's likeliest at its position when the most certain are unmasked first."""
    cut: bool
    """Whether only the end of the context fitted the canvas, or the first one of several."""
    canvases: int

    @property
    def standard_error(self) -> float:
        """Standard error of the nats over the noise samples; 0 if they are exact."""
        return self.nll.standard_error if len(self.nll.values) > 1 else 0.0


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> Pair:
    """Return the tokens of both, encoded together and cut where the context's own tokens end.

    Spaces at the end of the context belong to the continuation, as in the harness's other models.
    """
    bare = context.rstrip()
    whole = tuple(tokenizer.encode(context + continuation).tolist())
    count = len(tokenizer.encode(bare)) if bare else 0
    return Pair(whole[:count], whole[count:])


def canvases(pair: Pair, length: int) -> Iterator[Pair]:
    """Yield what each canvas scores, and the context on it: the canvases on which the text would be generated.

    A context that leaves no room is cut from the left; a text of more than half a canvas whose context does not fit
    continues on the next canvas, after half a canvas of context.
    """
    start, whole = 0, (*pair.context, *pair.text)
    while start < len(pair.text):
        known = len(pair.context) + start
        context = context_tokens(known, len(pair.text) - start, length)
        stop = min(len(pair.text), start + length - context)
        yield Pair(whole[known - context : known], pair.text[start:stop])
        start = stop


class PairScorer:
    """Scorer of texts given their contexts, with one bound, its settings and its seed."""

    def __init__(
        self, generator: TextGenerator, settings: ResolvedSettings, bound: Bound, draws: int, seed: int, rows: int
    ) -> None:
        """Raise ConfigurationError if an exact likelihood is asked of a sampler that has none.

        `rows`: texts per pass where they are replayed in their exact order.
        """
        self.generator, self.bound, self.draws, self.seed, self.rows = generator, bound, draws, seed, rows
        energy, denoiser = generator.energy_for(settings.sampler, settings.energy), generator.denoiser
        self.model = Model(denoiser.network, energy, denoiser.schedule)
        self.sampler = settings.sampler
        self._fixed = replace(settings.sampler, unmasking=FIXED_ORDER)
        if bound == "exact_order":
            require_exact(self._fixed, energy)
        else:  # the order tells what is greedy, and that is asked of the denoiser alone
            self._fixed = replace(self._fixed, candidates=1, speculative=False)

    def score(self, pairs: Sequence[Pair], progress: Callable[[int], object] = lambda _: None) -> list[PairScore]:
        """Return the scores in order; `progress` is told after every call how many canvases are finished.

        Raise FloatingPointError if a network's values are not finite.
        """
        parts = [list(canvases(pair, self.generator.length)) for pair in pairs]
        flat = [part for one in parts for part in one]
        replayed = self._replay(flat, progress)
        scores, first = [], 0
        for pair, one in zip(pairs, parts, strict=True):
            mine = replayed[first : first + len(one)]
            first += len(one)
            bounds = [replay.nll for replay in mine] if self.bound == "exact_order" else map(self._bounded, one)
            values = torch.stack([bound.values for bound in bounds]).sum(dim=0)  # of every noise sample, over canvases
            scores.append(
                PairScore(
                    joined([Estimate(values, draws=1)]),
                    greedy=all(bool(replay.greedy) for replay in mine),
                    cut=len(one[0].context) < len(pair.context),
                    canvases=len(one),
                )
            )
            if self.bound != "exact_order":
                progress(len(one))
        return scores

    def _replay(self, parts: Sequence[Pair], progress: Callable[[int], object]) -> list[ExactOrder]:
        """Return the exact order of every part; parts of one length share passes."""
        results: dict[int, ExactOrder] = {}
        by_length = sorted(range(len(parts)), key=lambda i: len(parts[i].context) + len(parts[i].text))
        for _, group in groupby(by_length, key=lambda i: len(parts[i].context) + len(parts[i].text)):
            members = list(group)
            for begin in range(0, len(members), self.rows):
                batch = members[begin : begin + self.rows]
                x0, known = (torch.stack(rows) for rows in zip(*(self._rows(parts[i]) for i in batch), strict=True))
                together = run_to_end(stepwise_exact_order(x0, self.model, self._fixed, known))
                for row, i in enumerate(batch):
                    nll = Estimate(together.nll.values[row : row + 1], draws=1)
                    results[i] = ExactOrder(nll, together.greedy[row : row + 1])
                if self.bound == "exact_order":
                    progress(len(batch))
        return [results[i] for i in range(len(parts))]

    def _bounded(self, part: Pair) -> Estimate:
        """Return the bound of one part, each noise sample of its own row, as in `edlm.inference.scoring`."""
        x0, known = (row.expand(self.draws, -1) for row in self._rows(part))
        at_once = ROWS_AT_ONCE if self.model.energy is None else max(1, ROWS_AT_ONCE // (1 + self.sampler.candidates))
        estimates = []
        for first in range(0, self.draws, at_once):
            rows, given = x0[first : first + at_once], known[first : first + at_once]
            if self.bound == "nelbo":
                estimates.append(nelbo(rows, self.model.denoiser, self.model.schedule, self.seed, 1, first, given))
            else:
                work = stepwise_sampler_bound(
                    rows, self.model, self.sampler, self.seed, draws=1, first_row=first, known=given
                )
                estimates.append(run_to_end(work))
        return joined(estimates)

    def _rows(self, part: Pair) -> tuple[Int64[Tensor, " l"], Bool[Tensor, " l"]]:
        whole = (*part.context, *part.text)
        x0 = canvas(whole, len(whole), self.generator.mask).to(self.generator.device)
        return x0, torch.arange(len(whole), device=x0.device) < len(part.context)
