"""Text generator: a registered model with text as input and output, independent of any server."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from edlm.checkpoints.energies import open_energy
from edlm.checkpoints.networks import OpenDenoiser, open_denoiser
from edlm.config import config, dump, load
from edlm.cooperative_work import Cooperative, run_to_end
from edlm.data.tokenizer import Tokenizer, open_tokenizer
from edlm.inference.canvas import canvas, checked, context_tokens
from edlm.inference.completion_decoding import CompletionDecoder
from edlm.inference.scoring import TextScore, score_text
from edlm.inference.text import Tally, Text, document_end
from edlm.interfaces import AbstractEnergy, Model
from edlm.models.execution import AS_TRAINED, Execution
from edlm.sampling.sampler import EXACT, Sampler, fill
from edlm.sampling.state import StepResult
from edlm.storage import INTENT, MARKER, committed, fetch, write_text

CARD = "bundle.yaml"
DENOISER = "denoiser"
ENERGIES = "energies"

OnStep = Callable[[StepResult], None]


@config
class Bundle:
    """Name and default generation settings of a registered model."""

    name: str
    energy: str | None = None
    """Energy that scores candidates; None: plain diffusion."""
    sampler: Sampler


def save_bundle(folder: Path, bundle: Bundle, denoiser: Path, energies: Mapping[str, Path]) -> None:
    """Write the bundle's card and copies of the model folders to `folder`, which the caller publishes.

    Raise ValueError if the bundle cannot generate: an energy is missing, damaged or belongs to another denoiser.
    """
    for source, target in [(denoiser, DENOISER), *[(path, f"{ENERGIES}/{name}") for name, path in energies.items()]]:
        # Skip the markers of earlier publications: the bundle is published as one.
        shutil.copytree(source, folder / target, ignore=shutil.ignore_patterns(MARKER, INTENT))
    write_text(str(folder / CARD), dump(bundle))
    open_bundle(folder)


def open_bundle(folder: Path, device: str = "cpu", execution: Execution = AS_TRAINED) -> "TextGenerator":
    """Return the generator of a bundle folder, its networks on `device`.

    Raise ValueError, naming what is missing or damaged.
    """
    if not (folder / CARD).is_file():
        raise ValueError(f"{folder} is no bundle (no {CARD}); the register stage makes one")
    bundle = load(Bundle, folder / CARD)
    denoiser = open_denoiser(folder / DENOISER)
    execution.prepare(denoiser.network.to(device))
    paths = sorted((folder / ENERGIES).iterdir()) if (folder / ENERGIES).is_dir() else []
    energies = {path.name: open_energy(path, denoiser).to(device) for path in paths}
    for energy in energies.values():
        execution.prepare(energy)
    generator = TextGenerator(bundle, denoiser, energies, open_tokenizer(folder / DENOISER))
    generator.energy_for(bundle.sampler, bundle.energy)
    return generator


@dataclass
class _Row:
    """Text in progress: its seed, its final tokens and their cost."""

    seed: int
    tokens: list[int]
    tally: Tally = field(default_factory=Tally)
    stopped: bool = False


class TextGenerator:
    """Denoiser with the energies made for it and their tokenizer."""

    def __init__(
        self, bundle: Bundle, denoiser: OpenDenoiser, energies: Mapping[str, AbstractEnergy], tokenizer: Tokenizer
    ) -> None:
        self.bundle, self.denoiser, self.energies, self.tokenizer = bundle, denoiser, energies, tokenizer
        self.length, self.mask = denoiser.length, denoiser.network.mask
        self.device = next(denoiser.network.parameters()).device

    @classmethod
    def load(
        cls,
        uri: str,
        cache: Path,
        digest: str | None = None,
        device: str = "cpu",
        execution: Execution = AS_TRAINED,
    ) -> "TextGenerator":
        """Return the generator published at `uri`, every file verified; copy all but a local folder to `cache`.

        Raise ValueError if it is damaged or does not have `digest`.
        """
        folder = fetch(uri, cache)
        marker = committed(str(folder))
        assert marker is not None
        if digest is not None and marker.digest != digest:
            raise ValueError(f"{uri} has digest {marker.digest}, expected {digest}; register the model again")
        return open_bundle(folder, device, execution)

    def read(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        """Return the tokens of a prompt; `tokenizer.decode` of them shows how the tokenizer reads a text."""
        if isinstance(prompt, str):
            return tuple(self.tokenizer.encode(prompt).tolist())
        return tuple(checked(token, self.tokenizer.size) for token in prompt)

    def read_parts(self, parts: Sequence[str | int]) -> tuple[int | None, ...]:
        """Return the tokens of texts and of the gaps between them: a number n stands for n times None."""
        tokens: list[int | None] = []
        for part in parts:
            tokens += self.read(part) if isinstance(part, str) else [None] * part
        return tuple(tokens)

    def energy_for(self, sampler: Sampler, name: str | None) -> AbstractEnergy | None:
        """Return the energy that scores the candidates of `sampler`: `name`, or the bundle's default.

        None if the sampler has a single candidate. Raise ValueError if there is no such energy, or if it cannot do what
        the sampler asks.
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
        """Return, for each seed, the text after the prompt: `max_tokens` tokens, or fewer if the document ends.

        A text is a function of the prompt, the settings and its own seed. Beyond one canvas it continues block by
        block: generated tokens are kept, and half a canvas of them is the context of the next block (`context_tokens`).
        `on_step` receives every step, with the texts that still need it, and ends the work by raising.
        """
        scorer, separator = self.energy_for(sampler, energy), self.tokenizer.separator
        rows = [_Row(seed, list(prompt)) for seed in seeds]
        end, block, unfinished = len(prompt) + max_tokens, 0, rows
        while unfinished:
            known = len(unfinished[0].tokens)  # the same for all: an unfinished row has passed through every block
            context = context_tokens(known, end - known, self.length)
            canvases = [canvas(row.tokens[known - context :], self.length, self.mask) for row in unfinished]
            positions = slice(context, context + end - known)
            filled = self._fill(canvases, unfinished, positions, separator, block, sampler, scorer, on_step)
            for row, new in zip(unfinished, filled, strict=True):
                ended = document_end(new, self.mask, separator)
                row.tokens += new[:ended]
                row.stopped = ended is not None
            unfinished = [row for row in unfinished if not row.stopped and len(row.tokens) < end]
            block += 1
        added = CompletionDecoder(self.tokenizer, prompt)
        return [_text(row, row.tokens[len(prompt) :], added) for row in rows]

    def infill(
        self,
        tokens: Sequence[int | None],
        seeds: Sequence[int],
        sampler: Sampler,
        energy: str | None = None,
        on_step: OnStep | None = None,
    ) -> list[Text]:
        """Return, for each seed, the whole text with each None replaced by a token; given tokens never change.

        If `tokens` are fewer than the canvas holds, the model generates a continuation, which is cut off.
        """
        rows = [_Row(seed, []) for seed in seeds]
        canvases, positions = [canvas(tokens, self.length, self.mask)] * len(rows), slice(len(tokens))
        filled = self._fill(canvases, rows, positions, None, 0, sampler, self.energy_for(sampler, energy), on_step)
        return [_text(row, new, CompletionDecoder(self.tokenizer)) for row, new in zip(rows, filled, strict=True)]

    def score(
        self,
        tokens: Sequence[int],
        seed: int,
        draws: int,
        sampler: Sampler,
        energy: str | None = None,
    ) -> TextScore:
        """Return the likelihood of a text of 1 to `length` tokens, from `draws` independent noise samples.

        A text shorter than the canvas is scored as a canvas of its own length, because rows are never padded.
        Raise ValueError for a text of any other length.
        """
        return run_to_end(self.stepwise_score(tokens, seed, draws, sampler, energy))

    def stepwise_score(
        self,
        tokens: Sequence[int],
        seed: int,
        draws: int,
        sampler: Sampler,
        energy: str | None = None,
    ) -> Cooperative[TextScore]:
        """Return `score` as cooperative work; an invalid request raises immediately."""
        if not 1 <= len(tokens) <= self.length:
            raise ValueError(f"the text has {len(tokens)} tokens; a score needs 1 to {self.length}: cut it into pieces")
        x0 = canvas(tokens, len(tokens), self.mask).to(self.device).repeat(draws, 1)
        return score_text(x0, self.denoiser, self.energies, self.energy_for(sampler, energy), sampler, seed)

    @torch.no_grad()
    def _fill(
        self,
        canvases: Sequence[Int64[Tensor, " l"]],
        rows: Sequence[_Row],
        own: slice,
        separator: int | None,
        block: int,
        sampler: Sampler,
        energy: AbstractEnergy | None,
        on_step: OnStep | None,
    ) -> list[list[int]]:
        """Return the positions `own` of the canvases, filled as far as the texts need them.

        A row leaves the batch once its text needs nothing more. Each block has its own steps in the random streams of
        a row, hence its own step numbers.
        """
        model = Model(self.denoiser.network, energy, self.denoiser.schedule)
        xt = torch.stack(list(canvases)).to(self.device)
        seeds = torch.tensor([row.seed for row in rows], device=self.device)

        def unfinished(canvases: Int64[Tensor, "n l"]) -> Bool[Tensor, " n"]:
            texts = canvases[:, own].tolist()
            return torch.tensor([self._is_unfinished(tokens, separator) for tokens in texts], device=xt.device)

        for batch, result in fill([(sampler, model)] * sampler.steps, xt, seeds, block * sampler.steps, unfinished):
            if result.broken.any():
                broken = [rows[row].seed for row in batch[result.broken].tolist()]
                raise FloatingPointError(
                    f"logits or energies of the texts of seeds {broken} are not numbers; "
                    "the network or its input is broken"
                )
            for batch_row, row in enumerate(batch.tolist()):
                rows[row].tally = rows[row].tally.plus(result, batch_row)
            if on_step is not None:
                on_step(result)
        return xt[:, own].tolist()

    def _is_unfinished(self, tokens: Sequence[int], separator: int | None) -> bool:
        """Return whether the text contains a mask and its document has not certainly ended."""
        return self.mask in tokens and document_end(tokens, self.mask, separator) is None


def _text(row: _Row, tokens: Sequence[int], added: CompletionDecoder) -> Text:
    return Text(tuple(tokens), added.whole(tokens), row.seed, "stop" if row.stopped else "length", row.tally)


@dataclass(frozen=True)
class VersionedGenerator:
    """Generator with the name of its version."""

    generator: TextGenerator
    version: str
