"""Results of a language model: texts and scores that print as what they are, with the settings that reproduce them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

from edlm.inference.progress import Text
from edlm.inference.settings import ResolvedSettings
from edlm.inference.token_distribution import TokenDistribution
from edlm.likelihood.estimate import Estimate
from edlm.likelihood.exact_order import FIXED_ORDER


@dataclass(frozen=True, repr=False)
class Generation(Sequence[Text]):
    """Texts of one call, in order; `text` and `str` are the text if there is only one."""

    texts: tuple[Text, ...]
    settings: ResolvedSettings
    distribution: TokenDistribution
    """Temperature and truncation of the tokens: other values than the defaults are another distribution."""
    seed: int
    """Seed of the first text, given or drawn: the same call with it generates the same texts. Text i has `seed` + i."""
    seconds: float
    prompt: str = ""
    """Prompt as the tokenizer reads it: it may drop capitals or symbols."""

    @property
    def text(self) -> str:
        """The only text. Raise ValueError if there are several."""
        if len(self.texts) != 1:
            raise ValueError(f"this holds {len(self.texts)} texts; take one by its index, or iterate over them")
        return self.texts[0].text

    @overload
    def __getitem__(self, index: int) -> Text: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Text, ...]: ...
    def __getitem__(self, index: int | slice) -> Text | tuple[Text, ...]:
        return self.texts[index]

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[Text]:
        return iter(self.texts)

    def __str__(self) -> str:
        return self.text if len(self.texts) == 1 else "\n".join(f"[{i}] {text}" for i, text in enumerate(self.texts))

    def __repr__(self) -> str:
        another = "" if self.distribution.is_the_models else ", another distribution"
        facts = f"{described(self.settings)}, seed={self.seed}, {self.seconds:.2f} s{another}"
        return "\n".join([f"Generation({facts})", *(f"  [{i}] {text.text!r}" for i, text in enumerate(self.texts))])


@dataclass(frozen=True)
class StreamedText:
    """State of a text that is being generated; `text` and `str` are what has become certain since the state before."""

    text: str
    canvas: str
    """The whole text as far as it is known, with `MASK` at each masked position."""
    step: int
    """Latest step that unmasked a token, from 1 to `steps`; 0: none yet."""
    steps: int
    masked: int
    """Number of masked positions."""
    generation: Generation | None = None
    """The result, with the last state."""

    def __str__(self) -> str:
        return self.text


MASK = "░"


@dataclass(frozen=True, repr=False, eq=False)
class ScoredText:
    """Likelihood of a text given its prompt in nats, each estimate with the standard error over its noise samples."""

    text: str
    """Text as the tokenizer reads it."""
    tokens: int
    """Number of tokens scored, without the prompt's."""
    nelbo: Estimate
    """NELBO of plain diffusion, in continuous time."""
    bound: Estimate
    """Bound of the generating sampler itself."""
    energies: Mapping[str, Estimate]
    """Mean E(x_0, x_t, t) of every energy: low is likely, the zero is arbitrary."""
    settings: ResolvedSettings
    seed: int
    prompt: str = ""
    """Prompt as the tokenizer reads it."""
    exact_order: float | None = None
    """-log p, exact, of ANOTHER DISTRIBUTION: the sampler that unmasks the most certain first in fixed counts."""

    def __str__(self) -> str:
        after = f" after {self.prompt!r}" if self.prompt else ""
        lines = [f"{self.text!r}{after}, {self.tokens} tokens", f"nelbo {self._nats(self.nelbo)}"]
        lines.append(f"bound {self._nats(self.bound)}: {described(self.settings)}")
        if self.exact_order is not None:
            per_token = f"({self.exact_order / self.tokens:.3f} per token)"
            lines.append(f"exact {self.exact_order:.2f} nats {per_token}: {FIXED_ORDER.name} (another distribution)")
        return "\n".join([*lines, *(f"energy {name} {_shown(value)}" for name, value in self.energies.items())])

    def __repr__(self) -> str:
        return f"ScoredText {self}"

    def _nats(self, estimate: Estimate) -> str:
        return f"{_shown(estimate)} nats ({estimate.mean / self.tokens:.3f} per token)"


def described(settings: ResolvedSettings) -> str:
    """Return the number of steps, the number of candidates and the energy in words."""
    sampler = settings.sampler
    return f"steps={sampler.steps}, candidates={sampler.candidates}, energy={settings.energy!r}"


def _shown(estimate: Estimate) -> str:
    return f"{estimate.mean:.2f} ± {estimate.standard_error:.2f}"
