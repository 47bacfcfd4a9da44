"""Frames of a text that is denoised, of a model in this process or of a service: the same for both."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edlm.client import Choice, Client, Details, Ended, Settings, State

MASK = "░"  # that of `edlm.inference.results`, which a client need not import: it needs torch


@dataclass(frozen=True)
class Frame:
    """State of the text; the last one has `facts`."""

    prompt: str
    canvas: str
    """The new text as far as it is known, with `MASK` at each masked position."""
    step: int
    steps: int
    masked: int
    facts: str | None = None
    """Settings that reproduce the text, and its seconds."""


@dataclass(frozen=True)
class TextRequest:
    """Text to generate; None: as registered with the model."""

    prompt: str
    max_tokens: int
    steps: int | None = None
    candidates: int | None = None
    energy: str | None = None
    seed: int | None = None


def model_frames(model: str, asked: TextRequest) -> Iterator[Frame]:
    """Yield the frames of a text of the model that `edlm.load` opens. Raise its errors, and those of `stream`."""
    import edlm  # deferred, as torch is with it: a client needs neither

    opened = edlm.load(model)
    prompt = opened.generator.tokenizer.decode(opened.generator.read(asked.prompt))
    states = opened.stream(
        asked.prompt, max_tokens=asked.max_tokens, steps=asked.steps, candidates=asked.candidates, energy=asked.energy,
        seed=asked.seed,
    )  # fmt: skip
    for state in states:
        facts = None
        if (made := state.generation) is not None:
            sampler = made.settings.sampler
            facts = _facts(sampler.steps, sampler.candidates, made.settings.energy, made.seed, made.seconds)
        yield Frame(prompt, state.canvas, state.step, state.steps, state.masked, facts)


def service_frames(url: str, key: str | None, asked: TextRequest) -> Iterator[Frame]:
    """Yield the frames of a text of the service. Raise the errors of `edlm.client`.

    Closing the iterator cancels the work on the server.
    """
    settings = Settings(steps=asked.steps, candidates=asked.candidates, energy=asked.energy)
    with (
        Client(url, key) as client,
        client.stream(
            asked.prompt, max_tokens=asked.max_tokens, seed=asked.seed, settings=settings, denoising=True
        ) as events,
    ):
        cells, text, frame = [], "", Frame(asked.prompt, "", 0, 0, 0)
        for event in events:
            match event:
                case State():
                    cells += [MASK] * (event.positions - len(cells))
                    for new in event.unmasked:
                        cells[new.position] = new.text
                    frame = Frame(asked.prompt, "".join(cells), event.step, event.steps, event.masked)
                    yield frame
                case Choice():
                    text += event.text
                case Ended(details=details):
                    prompt = asked.prompt if details is None or not details.prompt else details.prompt[0]
                    yield Frame(prompt, text, frame.step, frame.steps, 0, "" if details is None else _of(details))


def _of(its: Details) -> str:
    return _facts(its.steps, its.candidates, its.energy, its.seed, its.seconds)


def _facts(steps: int, candidates: int, energy: Any, seed: int, seconds: float) -> str:
    return f"steps={steps}, candidates={candidates}, energy={energy!r}, seed={seed}: {seconds:.2f} s"
