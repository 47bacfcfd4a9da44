"""Warm-up of a model: canvases filled before the first request, so that no request pays one-time costs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from edlm.cooperative_work import Cooperative
from edlm.inference.generator import TextGenerator
from edlm.inference.sequence import require_at_random
from edlm.models.gather import unit_sizes
from edlm.models.row_buckets import row_buckets
from edlm.sampling.sampler import Sampler

PLAIN, SCORING = Sampler(steps=1), Sampler(steps=1, candidates=2)
Rows = tuple[int, ...]
ONE_ROW: Rows = (1,)
COMPILED_ROWS: Rows = (1, 2)  # one version is compiled for a single row, another for any larger number


def warmed(generator: TextGenerator, rows: Rows = ONE_ROW) -> None:
    """Fill canvases with every network, in batches of each size in `rows`; record graphs for all smaller batches.

    Raise an error if a network returns a value that is not a number, and ValueError if the model's own sampler cannot
    be served.
    """
    for _ in _canvases(generator, rows):
        pass


@dataclass(frozen=True)
class WarmupFailure:
    """The error of a failed warm-up."""

    error: Exception


def warming(generator: TextGenerator, device: str, rows: Rows = ONE_ROW) -> Cooperative[TextGenerator | WarmupFailure]:
    """Move the generator to `device` and warm it as cooperative work (each `yield` is a pause).

    Return the generator, or `WarmupFailure` with the error. It is not raised: it would stop the engine and fail the
    requests of the model that is being served.
    """
    try:
        on_device = moved(generator, device)
        yield
        yield from _canvases(on_device, rows)
    except Exception as error:
        return WarmupFailure(error)
    return on_device


def moved(generator: TextGenerator, device: str) -> TextGenerator:
    """Move the networks to `device` and return a new generator over them."""
    generator.denoiser.network.to(device)
    for energy in generator.energies.values():
        energy.to(device)
    return TextGenerator(generator.bundle, generator.denoiser, generator.energies, generator.tokenizer)


def _canvases(generator: TextGenerator, rows: Rows) -> Iterator[None]:
    """Per batch size, fill canvases in one step by plain diffusion, then by each energy."""
    _require_servable(generator)
    for count in rows:
        for name, sampler in [(None, PLAIN), *((name, SCORING) for name in generator.energies)]:
            generator.write((), generator.length, range(count), sampler, name)
            yield
    yield from _graphs(generator, max(rows))


def _graphs(generator: TextGenerator, rows: int) -> Iterator[None]:
    """Let compiled networks on a GPU record a graph for each size of batches of up to `rows` texts; others do nothing.

    An energy's head reads the new positions of a text, or of a block of it, in units of few sizes: canvases get few
    gaps and many. How many units there are depends on the texts, so every smaller number is recorded as well.
    """
    networks = (generator.denoiser.network, *generator.energies.values())
    blocks = [block for network in networks for block in row_buckets(network)]
    if not any(block.recordings for block in blocks):
        return
    sampler = replace(SCORING, candidates=max(SCORING.candidates, generator.bundle.sampler.candidates))
    for name in generator.energies:
        for gaps in unit_sizes(generator.length):
            generator.infill(_with_gaps(generator.length, gaps), range(rows), sampler, name)
            yield
    for block in blocks:
        yield from block.record_smaller()


def _with_gaps(length: int, gaps: int) -> tuple[int | None, ...]:
    """Return a text of the token 0 with `gaps` gaps, spread evenly."""
    at = {i * length // gaps for i in range(gaps)}
    return tuple(None if position in at else 0 for position in range(length))


def _require_servable(generator: TextGenerator) -> None:
    """Raise ValueError if every request that keeps the default sampler of the model would be rejected."""
    try:
        require_at_random(generator.bundle.sampler)
    except ValueError as error:
        message = f"{generator.bundle.name!r} cannot be served with its default sampler: {error}; register it again"
        raise ValueError(f"{message} with `unmasking: {{kind: at_random}}`") from None
