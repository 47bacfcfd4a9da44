"""Text generator: a registered model with text as input and output, independent of any server."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from edlm.checkpoints.energies import open_energy
from edlm.checkpoints.networks import open_denoiser
from edlm.config import ConfigurationError, dump, load
from edlm.cooperative_work import Cooperative, run_to_end
from edlm.data.tokenizer import open_tokenizer
from edlm.inference.canvas import canvas, checked
from edlm.inference.components import Bundle, ModelComponents
from edlm.inference.offline_generation import run_sequences
from edlm.inference.progress import Text
from edlm.inference.request import Request
from edlm.inference.scoring import TextScore, score_text
from edlm.inference.sequence import RunningSequence
from edlm.interfaces import AbstractEnergy
from edlm.likelihood.exact_order import FIXED_ORDER, require_exact
from edlm.local_cache import LocalCache
from edlm.local_copies import borrowed_copy
from edlm.models.execution import AS_TRAINED, Execution
from edlm.sampling.sampler import Sampler
from edlm.storage import INTENT, MARKER, committed, write_text

CARD = "bundle.yaml"
DENOISER = "denoiser"
ENERGIES = "energies"


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


class TextGenerator(ModelComponents):
    """Generator of texts, with the same loop as the service but in the calling thread."""

    @classmethod
    def load(
        cls,
        uri: str,
        cache: LocalCache | None = None,
        digest: str | None = None,
        device: str = "cpu",
        execution: Execution = AS_TRAINED,
    ) -> "TextGenerator":
        """Return the generator published at `uri`, every file verified; copy all but a local folder to `cache`.

        `cache` None is `default_cache`. Raise ValueError if it is damaged or does not have `digest`, and
        ConfigurationError if layers cannot be compiled on this machine for `device`.
        """
        execution.require(device)
        with borrowed_copy(uri, cache) as folder:
            marker = committed(str(folder))
            assert marker is not None
            if digest is not None and marker.digest != digest:
                raise ValueError(f"{uri} has digest {marker.digest}, expected {digest}; register the model again")
            return open_bundle(folder, device, execution)

    def with_energy(self, name: str, energy: AbstractEnergy) -> "TextGenerator":
        """Return this generator with one more energy, on its device. Raise ConfigurationError if the name is taken."""
        if name in self.energies:
            raise ConfigurationError(f"the model has an energy {name!r} already; give the new one another name")
        energies = {**self.energies, name: energy.eval().to(self.device)}
        return TextGenerator(self.bundle, self.denoiser, energies, self.tokenizer)

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

    def write(
        self, prompt: Sequence[int], max_tokens: int, seeds: Sequence[int], sampler: Sampler, energy: str | None = None
    ) -> list[Text]:
        """Return, for each seed, the text after the prompt: `max_tokens` tokens, or fewer if the document ends.

        A text is a function of the prompt, the settings and its own seed. Beyond one canvas it continues block by
        block: generated tokens are kept, and half a canvas of them is the context of the next block (`context_tokens`).
        Raise ValueError if the model cannot do what is asked, and NonFiniteText, naming the seed, if logits or energies
        of a text are not numbers.
        """
        return self._texts([Request(tuple(prompt), max_tokens, seed, sampler, energy) for seed in seeds])

    def infill(
        self, tokens: Sequence[int | None], seeds: Sequence[int], sampler: Sampler, energy: str | None = None
    ) -> list[Text]:
        """Return, for each seed, the whole text with each None replaced by a token; given tokens never change.

        If `tokens` are fewer than the canvas holds, the model generates a continuation, which is cut off. Raise the
        errors of `write`.
        """
        return self._texts([Request(tuple(tokens), None, seed, sampler, energy) for seed in seeds])

    def score(
        self,
        tokens: Sequence[int],
        seed: int,
        draws: int,
        sampler: Sampler,
        energy: str | None = None,
        prompt: Sequence[int] = (),
        exact_order: bool = False,
    ) -> TextScore:
        """Return the likelihood of a text given a prompt, from `draws` independent noise samples.

        Prompt and text share a canvas, which holds the prompt from the start. If they are shorter than the canvas they
        are scored as a canvas of their own length, because rows are never padded. With `exact_order`, also the exact
        likelihood of the sampler that unmasks the most certain first in fixed counts. Raise ValueError for an empty
        text, for one that does not fit `length` tokens with its prompt, and if the sampler has no exact likelihood.
        """
        return run_to_end(self.stepwise_score(tokens, seed, draws, sampler, energy, prompt, exact_order))

    def stepwise_score(
        self,
        tokens: Sequence[int],
        seed: int,
        draws: int,
        sampler: Sampler,
        energy: str | None = None,
        prompt: Sequence[int] = (),
        exact_order: bool = False,
    ) -> Cooperative[TextScore]:
        """Return `score` as cooperative work; an invalid request raises immediately."""
        if not tokens or len(prompt) + len(tokens) > self.length:
            after = f" after a prompt of {len(prompt)}" if prompt else ""
            raise ValueError(
                f"the text has {len(tokens)} tokens{after}; a score needs 1 to {self.length}, with the prompt: cut it "
                "into pieces"
            )
        scorer, whole = self.energy_for(sampler, energy), (*prompt, *tokens)
        if exact_order:
            require_exact(replace(sampler, unmasking=FIXED_ORDER), scorer)
        x0 = canvas(whole, len(whole), self.mask).to(self.device).repeat(draws, 1)
        known = torch.arange(len(whole), device=self.device) < len(prompt) if prompt else None
        return score_text(x0, self.denoiser, self.energies, scorer, sampler, seed, known, exact_order)

    def _texts(self, requests: Sequence[Request]) -> list[Text]:
        """Generate all texts in one batch, from which each leaves when it is finished."""
        sequences = [RunningSequence(request, self) for request in requests]
        for _ in run_sequences(sequences, rows=len(sequences)):
            pass
        return [sequence.text() for sequence in sequences]


@dataclass(frozen=True)
class VersionedGenerator:
    """Generator with the name of its version."""

    generator: TextGenerator
    version: str
