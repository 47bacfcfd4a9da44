"""Language model for Python and notebooks: text in, text out, with the names and the texts of the HTTP endpoint."""

import itertools
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from edlm.config import ConfigurationError
from edlm.constraints.specification import AbstractSpecification
from edlm.data.conversations import turns_of
from edlm.inference.arguments import integer, interval, is_count, short, stop_strings
from edlm.inference.call_plan import CallPlan
from edlm.inference.completion_decoding import CompletionDecoder
from edlm.inference.generator import VersionedGenerator
from edlm.inference.incremental_text import IncrementalText
from edlm.inference.offline_generation import run_sequences
from edlm.inference.progress import Text
from edlm.inference.results import MASK, Generation, ScoredText, StreamedText, described
from edlm.inference.sequence import RunningSequence
from edlm.inference.settings import (
    LEAST_SEED,
    MAX_SEED,
    ResolvedSettings,
    consecutive_seeds,
    overridden,
    resolved,
)
from edlm.inference.token_distribution import TokenDistribution
from edlm.interfaces import AbstractEnergy

Prompt = str | Sequence[int]
DRAWN_SEEDS = 2**53 - 16  # integers that JSON represents exactly, so that the endpoint accepts a drawn seed, too


class LanguageModel:
    """A registered model, as `edlm.load` opens it.

    Settings have the names and the meaning that they have in requests to the HTTP endpoint; None is the default that
    was registered with the model. With the same settings and the same seed, the endpoint generates the same texts.

    - `steps`: number of denoising steps. `candidates`: k; 1 is plain diffusion, 0 draws exactly from a normalised
      energy. `energy`: name of the energy that chooses, one of `energies`.
    - `window`: (from, to), the times at which steps choose among candidates. `energy_temperature`: tau of the weights
      exp(-E / tau). `temperature`: of the tokens; any value but 1 changes the model's distribution.
    - `top_k`, `top_p`: each token is drawn from the `top_k` likeliest, and of those from the fewest that have the
      probability `top_p` together; another distribution, too.
    - `logprobs`: record log p_theta of each token at the step that unmasked it, and of this number of likeliest tokens
      in its place, in `logprobs` of a text. Their sum is no log-likelihood; `score` has bounds.
    - `constraint`: what the generated text satisfies, or the whole text with its gaps filled: `edlm.Regex`,
      `edlm.OneOf` or `edlm.JsonSchema` (docs/guides/constraints.md).
    - `seed`: of the first text; text i has `seed` + i. None: drawn, and reported in the result.

    Every method raises ValueError for a setting or a text that the model cannot take, and says what it can.
    """

    def __init__(self, model: VersionedGenerator) -> None:
        self.generator, self.version = model.generator, model.version

    @property
    def name(self) -> str:
        """Name under which the model is registered."""
        return self.generator.bundle.name

    @property
    def energies(self) -> tuple[str, ...]:
        """Names of the energies."""
        return tuple(self.generator.energies)

    @property
    def length(self) -> int:
        """Number of tokens of a canvas. A longer text is generated canvas by canvas."""
        return self.generator.length

    def with_energy(self, name: str, energy: AbstractEnergy) -> "LanguageModel":
        """Return this model with one more energy, such as those of `edlm.energies.compose`."""
        return LanguageModel(VersionedGenerator(self.generator.with_energy(name, energy), self.version))

    def __repr__(self) -> str:
        default = described(ResolvedSettings(self.generator.bundle.sampler, self.generator.bundle.energy))
        energies = ", ".join(self.energies) or "none"
        return f"LanguageModel({self.name!r}, {self.length} tokens, energies: {energies}; default: {default})"

    def generate(
        self,
        prompt: Prompt = "",
        *,
        n: int = 1,
        max_tokens: int = 16,
        steps: int | None = None,
        candidates: int | None = None,
        energy: str | None = None,
        window: tuple[float, float] | None = None,
        energy_temperature: float | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        logprobs: int | None = None,
        stop: str | Sequence[str] | None = None,
        constraint: AbstractSpecification | None = None,
        seed: int | None = None,
    ) -> Generation:
        """Return `n` texts that follow the prompt, of at most `max_tokens` tokens each.

        A text ends early where the model ends the document, or before the first of the `stop` strings, of which none
        occurs in a constrained text. The prompt may have any length; the model sees what fits half a canvas of it, or
        more if the text to generate leaves room.
        """
        distribution = TokenDistribution(temperature, top_k, top_p)
        plan = self._plan(n, steps, candidates, energy, window, energy_temperature, distribution, seed)
        known = self._read(prompt)
        most, stops = integer("max_tokens", max_tokens), stop_strings(stop)
        return self._finished(plan, plan.sequences(known, most, stops, constraint, logprobs), known)

    def continue_(
        self,
        text: Prompt,
        *,
        n: int = 1,
        max_tokens: int = 16,
        steps: int | None = None,
        candidates: int | None = None,
        energy: str | None = None,
        window: tuple[float, float] | None = None,
        energy_temperature: float | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        logprobs: int | None = None,
        stop: str | Sequence[str] | None = None,
        constraint: AbstractSpecification | None = None,
        seed: int | None = None,
    ) -> Generation:
        """Return the text with its continuation: `generate`, with the prompt (as the tokenizer reads it) in front."""
        generation = self.generate(
            text, n=n, max_tokens=max_tokens, steps=steps, candidates=candidates, energy=energy, window=window,
            energy_temperature=energy_temperature, temperature=temperature, top_k=top_k, top_p=top_p, logprobs=logprobs,
            stop=stop, constraint=constraint, seed=seed,
        )  # fmt: skip
        known = self._read(text)
        decoder = CompletionDecoder(self.generator.tokenizer, known)
        whole = [
            replace(
                new,
                text=decoder.echoed(new.tokens, new.text),
                tokens=(*known, *new.tokens),
                logprobs=None if new.logprobs is None else (*[None] * len(known), *new.logprobs),
            )
            for new in generation
        ]
        return replace(generation, texts=tuple(whole))

    def infill(
        self,
        parts: Sequence[str | int] | None = None,
        *,
        tokens: Sequence[int | None] | None = None,
        n: int = 1,
        steps: int | None = None,
        candidates: int | None = None,
        energy: str | None = None,
        window: tuple[float, float] | None = None,
        energy_temperature: float | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        logprobs: int | None = None,
        constraint: AbstractSpecification | None = None,
        seed: int | None = None,
    ) -> Generation:
        """Return the whole text with its gaps filled, `n` times.

        Give `parts`, pieces of text and the numbers of tokens between them (["the ", 8, " of"]), or `tokens` with None
        in the gaps. The text and its gaps must fit one canvas.
        """
        distribution = TokenDistribution(temperature, top_k, top_p)
        plan = self._plan(n, steps, candidates, energy, window, energy_temperature, distribution, seed)
        return self._finished(plan, plan.sequences(self._with_gaps(parts, tokens), None, (), constraint, logprobs))

    def score(
        self,
        text: Prompt,
        *,
        prompt: Prompt = "",
        draws: int = 16,
        exact_order: bool = False,
        steps: int | None = None,
        candidates: int | None = None,
        energy: str | None = None,
        window: tuple[float, float] | None = None,
        energy_temperature: float | None = None,
        seed: int | None = None,
    ) -> ScoredText:
        """Return bounds on the negative log likelihood of a text that fits a canvas, and its energies.

        They are means over `draws` independent noise samples, at least 2. With a prompt, which shares the canvas, they
        are those of the text given the prompt. (A difference of two bounds would be no bound.) `exact_order`: also
        return -log p, exact, of another distribution: the same sampler, but unmasking the most certain first in fixed
        counts. It exists for `candidates` = 1, and for 0 with an energy of a step's tokens.
        """
        plan = self._plan(1, steps, candidates, energy, window, energy_temperature, TokenDistribution(), seed)
        tokens, known, sampler = self._read(text), self._read(prompt), plan.settings.sampler
        draws = integer("draws", draws, least=2)
        score = plan.generator.score(tokens, plan.seed, draws, sampler, plan.settings.energy, known, exact_order)
        read, given = (self.generator.tokenizer.decode(ids) for ids in (tokens, known))
        return ScoredText(
            read, len(tokens), score.nelbo, score.bound, score.energies, plan.settings, plan.seed, given,
            score.exact_order,
        )  # fmt: skip

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """Return the tokens of a conversation up to the assistant's answer, a prompt for the other methods.

        Each message has a `role` and a `content`; what these say is read as text, special tokens included. The model
        has the chat template of the data that its denoiser was trained on or imported for (`corpus.messages_field`).
        """
        if self.generator.denoiser.chat is None:
            raise ConfigurationError(
                f"{self.name!r} was trained on no conversations, and has no chat template; give the prompt as text"
            )
        return tuple(self.generator.denoiser.chat.prompt(self.generator.tokenizer, turns_of(messages)).tolist())

    def stream(
        self,
        prompt: Prompt = "",
        *,
        max_tokens: int = 16,
        steps: int | None = None,
        candidates: int | None = None,
        energy: str | None = None,
        window: tuple[float, float] | None = None,
        energy_temperature: float | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        logprobs: int | None = None,
        stop: str | Sequence[str] | None = None,
        constraint: AbstractSpecification | None = None,
        seed: int | None = None,
    ) -> Iterator[StreamedText]:
        """Yield the states of one text while it is generated, as in `for state in model.stream(...): print(state)`.

        Joined, the `text` of the states is the text that `generate` returns; the last state holds that result.
        """
        distribution = TokenDistribution(temperature, top_k, top_p)
        plan = self._plan(1, steps, candidates, energy, window, energy_temperature, distribution, seed)
        known, stops = self._read(prompt), stop_strings(stop)
        (sequence,) = plan.sequences(known, integer("max_tokens", max_tokens), stops, constraint, logprobs)
        return self._states(plan, sequence, known, stops)

    def _states(
        self, plan: CallPlan, sequence: RunningSequence, known: Sequence[int], stops: tuple[str, ...]
    ) -> Iterator[StreamedText]:
        began, generator = time.monotonic(), plan.generator
        ends = (generator.mask, generator.tokenizer.separator)
        incremental = IncrementalText(CompletionDecoder(generator.tokenizer, known), ends, stops, echo=False)
        for _ in run_sequences([sequence]):
            if not sequence.finished:
                now = sequence.progress
                new, canvas = incremental.more(now.tokens), self._canvas(now.tokens)
                yield StreamedText(new, canvas, now.step, now.steps, now.masked)
        result, now = self._result(plan, [sequence], began, known), sequence.progress
        yield StreamedText(incremental.rest(result.text), result.text, now.step, now.steps, 0, result)

    def _plan(
        self,
        n: int,
        steps: int | None,
        candidates: int | None,
        energy: str | None,
        window: tuple[float, float] | None,
        energy_temperature: float | None,
        distribution: TokenDistribution,
        seed: int | None,
    ) -> CallPlan:
        sampler = overridden(
            self.generator.bundle.sampler,
            steps=steps,
            candidates=candidates,
            window=None if window is None else interval(window),
            energy_temperature=energy_temperature,
        )
        if distribution.is_truncated:
            sampler = replace(sampler, speculative=False)  # verified drafts are redrawn without truncation
        generator = distribution.of(self.generator)
        first = secrets.randbelow(DRAWN_SEEDS) if seed is None else integer("seed", seed, LEAST_SEED, MAX_SEED)
        seeds = consecutive_seeds(first, integer("n", n))
        settings = resolved(generator, sampler, energy, distribution.temperature)
        return CallPlan(generator, settings, distribution, first, seeds)

    def _finished(self, plan: CallPlan, sequences: Sequence[RunningSequence], prompt: Sequence[int] = ()) -> Generation:
        began = time.monotonic()
        for _ in run_sequences(sequences):
            pass
        return self._result(plan, sequences, began, prompt)

    def _result(
        self, plan: CallPlan, sequences: Sequence[RunningSequence], began: float, prompt: Sequence[int]
    ) -> Generation:
        texts: tuple[Text, ...] = tuple(sequence.text() for sequence in sequences)
        read, seconds = self.generator.tokenizer.decode(prompt), time.monotonic() - began
        return Generation(texts, plan.settings, plan.distribution, plan.seed, seconds, read)

    def _read(self, prompt: Prompt) -> tuple[int, ...]:
        if not isinstance(prompt, str) and not all(isinstance(token, int) for token in prompt):
            raise ConfigurationError(f"a prompt is one text, or the ids of its tokens; got {short(prompt)}")
        return self.generator.read(prompt)

    def _with_gaps(
        self, parts: Sequence[str | int] | None, tokens: Sequence[int | None] | None
    ) -> tuple[int | None, ...]:
        if (parts is None) == (tokens is None):
            raise ConfigurationError("give parts or tokens: one of them")
        if tokens is not None:
            return tuple(tokens)
        assert parts is not None
        if isinstance(parts, str) or not all(isinstance(part, str) or is_count(part) for part in parts):
            raise ConfigurationError(
                'parts is a list of texts and of numbers of tokens between them, such as ["the ", 8, " of"]; '
                f"got {short(parts)}"
            )
        return self.generator.read_parts(parts)

    def _canvas(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens in any state, each run of known tokens decoded as if it began a document."""
        tokenizer, mask = self.generator.tokenizer, self.generator.mask
        added = CompletionDecoder(tokenizer, [] if tokenizer.separator is None else [tokenizer.separator])
        runs = [(masked, list(run)) for masked, run in itertools.groupby(tokens, lambda token: token == mask)]
        return "".join(MASK * len(run) if masked else added.whole(run) for masked, run in runs)
