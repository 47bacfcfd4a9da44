"""The text generator: a registered model as a person uses it, text in and text out; it knows no server."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from edlm.abstract_energy import AbstractEnergy
from edlm.bites import Bites, finished
from edlm.canvas import canvas, checked, context_tokens
from edlm.config import config, dump, load
from edlm.execution import AS_TRAINED, Execution
from edlm.models import OpenDenoiser, open_denoiser, open_energy
from edlm.sampler import EXACT, Sampler
from edlm.scoring import Score, scoring
from edlm.step import BrokenRows, StepResult
from edlm.storage import INTENT, MARKER, committed, fetch, write_text
from edlm.text import Tally, Text
from edlm.tokenizer import Tokenizer, open_tokenizer

CARD = "bundle.yaml"
DENOISER = "denoiser"
ENERGIES = "energies"

OnStep = Callable[[StepResult], None]


@config
class Bundle:
    """What a registered model is called, and how it generates unless it is told otherwise."""

    name: str
    energy: str | None = None
    """The energy that weighs candidates; None: plain diffusion."""
    sampler: Sampler


def save_bundle(folder: Path, bundle: Bundle, denoiser: Path, energies: Mapping[str, Path]) -> None:
    """Afterwards `folder` holds copies of the model folders, beside its card; the caller publishes it.

    Raises ValueError where the bundle could not generate: an energy is missing, damaged or another denoiser's.
    """
    for source, target in [(denoiser, DENOISER), *[(path, f"{ENERGIES}/{name}") for name, path in energies.items()]]:
        # Without the marks of an earlier publication: the bundle is published as one.
        shutil.copytree(source, folder / target, ignore=shutil.ignore_patterns(MARKER, INTENT))
    write_text(str(folder / CARD), dump(bundle))
    open_bundle(folder)


def open_bundle(folder: Path, device: str = "cpu", execution: Execution = AS_TRAINED) -> "TextGenerator":
    """The generator in a bundle's folder, its networks on `device`. ValueError names what is missing or damaged."""
    if not (folder / CARD).is_file():
        raise ValueError(f"{folder} is no bundle (no {CARD}); the register stage makes one")
    bundle = load(Bundle, folder / CARD)
    denoiser = open_denoiser(folder / DENOISER)
    execution.prepare(denoiser.network.to(device))
    places = sorted((folder / ENERGIES).iterdir()) if (folder / ENERGIES).is_dir() else []
    energies = {place.name: open_energy(place, denoiser).to(device) for place in places}
    for energy in energies.values():
        execution.prepare(energy)
    generator = TextGenerator(bundle, denoiser, energies, open_tokenizer(folder / DENOISER))
    generator.energy_for(bundle.sampler, bundle.energy)
    return generator


@dataclass
class _Draft:
    """A row on its way: its seed, the tokens that stand, and what they took."""

    seed: int
    tokens: list[int]
    tally: Tally = field(default_factory=Tally)
    stopped: bool = False

    def stop_after(self, known: int, separator: int | None) -> None:
        """Afterwards a document that ended past the `known` tokens ends the text; its separator is not a part of it."""
        if separator is not None and separator in self.tokens[known:]:
            del self.tokens[self.tokens.index(separator, known) :]
            self.stopped = True


class TextGenerator:
    """A denoiser, the energies made for it, and their tokenizer."""

    def __init__(
        self, bundle: Bundle, denoiser: OpenDenoiser, energies: Mapping[str, AbstractEnergy], tokenizer: Tokenizer
    ) -> None:
        self.bundle, self.denoiser, self.energies, self.tokenizer = bundle, denoiser, energies, tokenizer
        self.length, self.mask = denoiser.length, denoiser.network.mask
        self.device = next(denoiser.network.parameters()).device

    @classmethod
    def load(cls, uri: str, cache: Path, digest: str | None = None, device: str = "cpu") -> "TextGenerator":
        """The generator published at `uri`, every file verified; anything but a local folder is copied to `cache`.

        Raises ValueError where it is damaged, or is not the one of `digest`.
        """
        folder = fetch(uri, cache)
        marker = committed(str(folder))
        assert marker is not None
        if digest is not None and marker.digest != digest:
            raise ValueError(f"{uri} has digest {marker.digest}, expected {digest}; register the model again")
        return open_bundle(folder, device)

    def read(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        """The tokens of a prompt. What the tokenizer makes of a text, `tokenizer.decode` of them shows."""
        if isinstance(prompt, str):
            return tuple(self.tokenizer.encode(prompt).tolist())
        return tuple(checked(token, self.tokenizer.size) for token in prompt)

    def places(self, parts: Sequence[str | int]) -> tuple[int | None, ...]:
        """The tokens of pieces of text and of gaps between them: a number n is n holes, each None."""
        places: list[int | None] = []
        for part in parts:
            places += self.read(part) if isinstance(part, str) else [None] * part
        return tuple(places)

    def energy_for(self, sampler: Sampler, name: str | None) -> AbstractEnergy | None:
        """The energy that `sampler` weighs its candidates with: `name`, or the bundle's own. None: it has but one.

        Raises ValueError where there is no such energy, or where it cannot do what the sampler asks.
        """
        name = name or self.bundle.energy
        if name is not None and name not in self.energies:
            raise ValueError(f"energy {name!r} is not in this model; it has: {', '.join(self.energies) or 'none'}")
        if sampler.candidates == 1:
            return None
        if name is None:
            raise ValueError(f"candidates is {sampler.candidates}, and this model has no energy to choose with; give 1")
        if sampler.candidates == EXACT and not self.energies[name].normalised:
            raise ValueError(f"candidates is 0 (exact), and energy {name!r} is not normalised; give 1 or more")
        return self.energies[name]

    def write(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        seeds: Sequence[int],
        sampler: Sampler,
        energy: str | None = None,
        on_step: OnStep | None = None,
    ) -> list[Text]:
        """For each seed the text that follows the prompt: `max_tokens` tokens, or fewer where the document ends.

        A text is a function of the prompt, the settings and its own seed. Past the canvas it goes on block by block:
        what is written is kept, and half a canvas of it is the context of the next (`edlm.canvas.context_tokens`).
        `on_step` sees every step, and ends the work by raising.
        """
        weigh = self.energy_for(sampler, energy)
        drafts = [_Draft(seed, list(prompt)) for seed in seeds]
        end, block, unfinished = len(prompt) + max_tokens, 0, drafts
        while unfinished:
            known = len(unfinished[0].tokens)  # the same for all: what is unfinished has had every block
            context = context_tokens(known, end - known, self.length)
            canvases = [canvas(draft.tokens[known - context :], self.length, self.mask) for draft in unfinished]
            filled = self._fill(canvases, unfinished, block, sampler, weigh, on_step)
            for draft, row in zip(unfinished, filled, strict=True):
                draft.tokens += row[context : context + end - known]
                draft.stop_after(known, self.tokenizer.separator)
            unfinished = [draft for draft in unfinished if not draft.stopped and len(draft.tokens) < end]
            block += 1
        return [self._text(draft, draft.tokens[len(prompt) :]) for draft in drafts]

    def infill(
        self,
        tokens: Sequence[int | None],
        seeds: Sequence[int],
        sampler: Sampler,
        energy: str | None = None,
        on_step: OnStep | None = None,
    ) -> list[Text]:
        """For each seed the whole text, each None replaced by a token; what is given never changes.

        Where `tokens` are fewer than the canvas holds, the model imagines how they go on, and that is cut off.
        """
        drafts = [_Draft(seed, []) for seed in seeds]
        canvases = [canvas(tokens, self.length, self.mask)] * len(drafts)
        filled = self._fill(canvases, drafts, 0, sampler, self.energy_for(sampler, energy), on_step)
        return [self._text(draft, row[: len(tokens)]) for draft, row in zip(drafts, filled, strict=True)]

    def score(
        self,
        tokens: Sequence[int],
        seed: int,
        draws: int,
        sampler: Sampler,
        energy: str | None = None,
    ) -> Score:
        """How likely a text of 1 to `length` tokens is, from `draws` independent noise samples.

        A text shorter than the canvas is scored as a canvas of its own length, for rows are never padded.
        Raises ValueError for a text of another length.
        """
        return finished(self.scoring(tokens, seed, draws, sampler, energy))

    def scoring(
        self,
        tokens: Sequence[int],
        seed: int,
        draws: int,
        sampler: Sampler,
        energy: str | None = None,
    ) -> Bites[Score]:
        """As `score`, in bites; what is wrong with the request is raised at once."""
        if not 1 <= len(tokens) <= self.length:
            raise ValueError(f"the text has {len(tokens)} tokens; a score needs 1 to {self.length}: cut it into pieces")
        x0 = canvas(tokens, len(tokens), self.mask).to(self.device).repeat(draws, 1)
        return scoring(x0, self.denoiser, self.energies, self.energy_for(sampler, energy), sampler, seed)

    @torch.no_grad()
    def _fill(
        self,
        canvases: Sequence[Int64[Tensor, " l"]],
        drafts: Sequence[_Draft],
        block: int,
        sampler: Sampler,
        energy: AbstractEnergy | None,
        on_step: OnStep | None,
    ) -> list[list[int]]:
        """The canvases filled. Each block has its own steps in a row's random streams, hence its own numbers."""
        xt = torch.stack(list(canvases)).to(self.device)
        seeds = torch.tensor([draft.seed for draft in drafts], device=self.device)
        network, schedule = self.denoiser.network, self.denoiser.schedule
        times, given = sampler.times().to(self.device), xt != self.mask
        for i in range(sampler.steps, 0, -1):
            t, s = times[i].expand(seeds.shape), times[i - 1].expand(seeds.shape)
            index = torch.full_like(seeds, block * sampler.steps + i)
            result = sampler.step(xt, t, s, index, network, energy, schedule, seeds, given)
            xt = result.xs
            if result.broken.any():
                raise BrokenRows(torch.nonzero(result.broken)[:, 0].tolist(), xt)
            for row, draft in enumerate(drafts):
                draft.tally = draft.tally.plus(result, row)
            if on_step is not None:
                on_step(result)
        return xt.tolist()

    def _text(self, draft: _Draft, tokens: Sequence[int]) -> Text:
        reason = "stop" if draft.stopped else "length"
        return Text(tuple(tokens), self.tokenizer.decode(tokens), draft.seed, reason, draft.tally)
