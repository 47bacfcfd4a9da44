"""Warming: a model's first canvases are nobody's, so that no request pays for what only the first ones cost."""

from collections.abc import Iterator
from dataclasses import dataclass

from edlm.cooperative import Bites
from edlm.inference.generator import TextGenerator
from edlm.inference.sequence import require_course
from edlm.sampling.sampler import Sampler

PLAIN, WEIGHING = Sampler(steps=1), Sampler(steps=1, candidates=2)
Rows = tuple[int, ...]
ONE_ROW: Rows = (1,)
COMPILED_ROWS: Rows = (1, 2)  # one row is compiled for itself, more of them for any number


def warmed(generator: TextGenerator, rows: Rows = ONE_ROW) -> None:
    """Afterwards every network has filled canvases, so many together.

    Raises where one gave something that is not a number, and ValueError where the model's own sampler cannot be served.
    """
    for _ in _canvases(generator, rows):
        pass


@dataclass(frozen=True)
class Unsound:
    """What went wrong with a model when it was warmed."""

    error: Exception


def warming(generator: TextGenerator, device: str, rows: Rows = ONE_ROW) -> Bites[TextGenerator | Unsound]:
    """Bites for the engine, which end with the generator on `device`, warmed; or with what went wrong.

    That is not raised: the engine would die of it, and the texts of the good model with it.
    """
    try:
        there = moved(generator, device)
        yield
        yield from _canvases(there, rows)
    except Exception as error:
        return Unsound(error)
    return there


def moved(generator: TextGenerator, device: str) -> TextGenerator:
    """The generator with its networks on `device`."""
    generator.denoiser.network.to(device)
    for energy in generator.energies.values():
        energy.to(device)
    return TextGenerator(generator.bundle, generator.denoiser, generator.energies, generator.tokenizer)


def _canvases(generator: TextGenerator, rows: Rows) -> Iterator[None]:
    """One step fills so many canvases by plain diffusion, and one by each energy."""
    _require_servable(generator)
    for count in rows:
        for name, sampler in [(None, PLAIN), *((name, WEIGHING) for name in generator.energies)]:
            generator.write((), generator.length, range(count), sampler, name)
            yield


def _require_servable(generator: TextGenerator) -> None:
    """ValueError where every request that leaves the sampler to the model would be refused."""
    try:
        require_course(generator.bundle.sampler)
    except ValueError as error:
        message = f"{generator.bundle.name!r} cannot be served by its own sampler, whose {error}; register it anew"
        raise ValueError(f"{message} with `revealing: {{kind: at_random}}`") from None
