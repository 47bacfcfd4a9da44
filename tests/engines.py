"""Requests and generators for tests of the engine: networks that wait, break, or betray whose text they read."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from edlm.checkpoints.networks import OpenDenoiser
from edlm.data.tokenizer_kinds import Characters
from edlm.inference.canvas import canvas, context_tokens
from edlm.inference.completion_decoding import CompletionDecoder
from edlm.inference.components import Bundle
from edlm.inference.engine import InferenceEngine
from edlm.inference.future import TextFuture
from edlm.inference.generator import TextGenerator
from edlm.inference.progress import GenerationCost, Progress, Text, document_end
from edlm.inference.request import Limits, Request
from edlm.interfaces import AbstractEnergy, Model
from edlm.models.denoiser import Denoiser
from edlm.models.transformer import TransformerConfig
from edlm.sampling.sampler import Sampler
from edlm.sampling.state import StepResult
from edlm.schedule import LogLinear
from tests.bundles import ENERGIES, LENGTH
from tests.networks import stirred

PATIENT = Limits(waiting=10_000, patience_seconds=1e6)
SECONDS = 120.0  # that a test waits before it fails


def new_request(
    known: tuple[int | None, ...] = (), max_tokens: int | None = LENGTH, seed: int = 1, **changes: Any
) -> Request:
    """A plain request of few steps; `changes` are fields of Request, or of its sampler."""
    fields = {name: changes.pop(name) for name in ("energy", "key", "deadline", "stop") if name in changes}
    sampler = replace(Sampler(steps=4), **changes)
    defaults = {"energy": None, "key": "a", "deadline": time.monotonic() + 1e6}
    return Request(known=known, max_tokens=max_tokens, seed=seed, sampler=sampler, **{**defaults, **fields})


def alone(generator: TextGenerator, request: Request, on_step: Callable[[StepResult], None] = lambda _: None) -> Text:
    """The text of this request by the sampler, canvas by canvas and step by step; stop strings left aside.

    This loop shares nothing with the product but the step.
    """
    sampler, mask, device = request.sampler, generator.mask, generator.device
    times = sampler.times()[:, None].to(device)
    energy = generator.energy_for(sampler, request.energy)
    model = Model(generator.denoiser.network, energy, generator.denoiser.schedule)
    seed, cost, block, ended = torch.tensor([request.seed], device=device), GenerationCost(), 0, None
    infills = request.max_tokens is None
    prompt = [] if infills else list(request.known)
    written, token_count = [], len(request.known) if infills else request.max_tokens
    separator = None if infills else generator.tokenizer.separator
    while len(written) < token_count and ended is None:
        before = [*prompt, *written]
        context = context_tokens(len(before), token_count - len(written), generator.length)
        known = request.known if infills else before[len(before) - context :]
        new = slice(context, context + token_count - len(written))
        xt = canvas(known, generator.length, mask)[None].to(device)
        for i in range(sampler.steps, 0, -1):
            if mask not in (tokens := xt[0, new].tolist()) or document_end(tokens, mask, separator) is not None:
                break
            index = torch.tensor([block * sampler.steps + i], device=device)
            result = sampler.step(xt, times[i], times[i - 1], index, seed, model)
            xt, cost = result.xs, cost.plus(result, 0)
            on_step(result)
        tokens = xt[0, new].tolist()
        ended, block = document_end(tokens, mask, separator), block + 1
        written += tokens[:ended]
    text = CompletionDecoder(generator.tokenizer, prompt).whole(written)
    return Text(tuple(written), text, request.seed, "length" if ended is None else "stop", cost)


@st.composite
def requests(draw: st.DrawFn, vocabulary: int = 27, length: int = LENGTH) -> Request:
    """Any request that the tiny bundle can serve."""
    tokens = st.integers(0, vocabulary - 1)
    candidates = draw(st.sampled_from([0, 1, 1, 2, 3, 9]))
    if draw(st.booleans()):
        known, max_tokens = draw(st.lists(st.none() | tokens, min_size=1, max_size=length)), None
    else:
        known, max_tokens = draw(st.lists(tokens, max_size=2 * length)), draw(st.integers(1, 3 * length))
    return new_request(
        tuple(known),
        max_tokens,
        draw(st.integers(0, 2**53)),
        steps=draw(st.sampled_from([1, 2, 5, 40])),
        candidates=candidates,
        window=draw(st.sampled_from([(0.0, 1.0), (0.5, 1.0), (0.0, 0.3)])),
        energy_temperature=draw(st.sampled_from([1.0, 0.5])) if candidates else 1.0,
        speculative=candidates == 0 and draw(st.booleans()),
        energy="conditional" if candidates == 0 else draw(st.sampled_from([None, "step", "conditional"])),
        key=draw(st.sampled_from("abc")),
    )


def watched(
    generator: TextGenerator,
    before: Callable[[Tensor], None] | None = None,
    after: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> TextGenerator:
    """The generator, whose denoiser calls `before` with the canvases of each pass, and hands on what `after` makes."""
    network: Any = generator.denoiser.network

    def hooked(inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def read(xt: Tensor, *rest: Tensor) -> Tensor:
            if before is not None:
                before(xt)
            context = inner(xt, *rest)
            return context if after is None else after(xt, context)

        return read

    network.read, network.read_at = hooked(network.read), hooked(network.read_at)
    return generator


@contextmanager
def canvases(generator: TextGenerator) -> Iterator[list[Tensor]]:
    """The canvases of each pass of the denoiser within the block."""
    seen: list[Tensor] = []
    watched(generator, before=lambda xt: seen.append(xt.clone()))
    try:
        yield seen
    finally:
        del generator.denoiser.network.read, generator.denoiser.network.read_at


class Gate:
    """Holds up the engine before each pass, until the test lets so many through."""

    def __init__(self) -> None:
        self._reached, self._open = threading.Semaphore(0), threading.Semaphore(0)
        self.rows: list[int] = []

    def __call__(self, xt: Tensor) -> None:
        self.rows.append(len(xt))
        self._reached.release()
        assert self._open.acquire(timeout=SECONDS)

    def wait(self) -> None:
        """Return when the engine is about to start a pass that no earlier call waited for."""
        assert self._reached.acquire(timeout=SECONDS)

    def let(self, passes: int = 1) -> None:
        self._open.release(passes)


@contextmanager
def gated(generator: TextGenerator, limits: Limits = PATIENT):
    """An engine that stands before its first pass, and its gate, which is open for good at the end."""
    gate = Gate()
    engine = InferenceEngine(watched(generator, before=gate), "1", limits)
    try:
        yield engine, gate
    finally:
        gate.let(1_000_000)
        engine.close()


class TableEnergy(AbstractEnergy):
    """An energy that a test makes up: from the shape [b k l] of the candidates, one number each."""

    whole_sequence = False

    def __init__(self, energies: Callable[[int, int], Tensor]) -> None:
        super().__init__()
        self._energies = energies

    def forward(self, x, xt, t, log_p, context):
        return self._energies(x.shape[0], x.shape[1])[..., None].float()


class Echo(Denoiser):
    """Predicts the first token of the canvas everywhere: a text with another token was mixed with another request."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__(TransformerConfig(width=32, layers=1, heads=2), vocabulary)
        with torch.no_grad():
            self.readout.weight.copy_(torch.eye(vocabulary, 32))

    def read(self, xt: Tensor, t: Tensor) -> Tensor:
        return 60.0 * F.one_hot(xt[:, :1], 32).float().expand(-1, xt.shape[1], -1)

    def read_at(self, xt: Tensor, t: Tensor, where: Tensor) -> Tensor:
        return self.read(xt, t)


def echo() -> TextGenerator:
    """A generator that repeats the first token of its prompt, with the usual energies to choose by."""
    tokenizer = Characters().build([])
    network = Echo(tokenizer.size).eval()
    energies = {name: stirred(energy.build(network), seed=3, scale=0.1) for name, energy in ENERGIES.items()}
    denoiser = OpenDenoiser(network, LogLinear(), LENGTH, Path())
    return TextGenerator(Bundle(name="echo", energy="step", sampler=Sampler(steps=4)), denoiser, energies, tokenizer)


def recorded(future: TextFuture) -> list[Progress]:
    """The list that every later state of the future is added to."""
    states: list[Progress] = []
    future.watch(lambda: states.append(future.progress()))
    return states
