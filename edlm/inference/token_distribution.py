"""Distribution that each token is drawn from: the model's own, or ANOTHER one by a temperature or a truncation."""

from dataclasses import dataclass

from edlm.config import ConfigurationError
from edlm.inference.arguments import integer, short
from edlm.inference.generator import TextGenerator
from edlm.inference.token_temperature import LEAST_TOKEN_TEMPERATURE, MOST_TOKEN_TEMPERATURE, tempered
from edlm.inference.token_truncation import truncated


@dataclass(frozen=True)
class TokenDistribution:
    """Temperature and truncation of a call; with the defaults, the distribution is the model's.

    Raise ConfigurationError for a value outside its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    """Number of likeliest tokens that each token is drawn from; None: all."""
    top_p: float = 1.0
    """Probability of the nucleus that each token is drawn from, after `top_k`; 1: all tokens."""

    def __post_init__(self) -> None:
        low, high = LEAST_TOKEN_TEMPERATURE, MOST_TOKEN_TEMPERATURE
        if self.temperature != 0 and not low <= self.temperature <= high:
            raise ConfigurationError(
                f"temperature is {self.temperature}; give 0, where each token is the likeliest, or {low:g} to {high:g}"
            )
        if self.top_k is not None:
            integer("top_k", self.top_k)
        if not 0 <= self.top_p <= 1:
            raise ConfigurationError(f"top_p is {short(self.top_p)}; give 0 to 1")

    @property
    def is_truncated(self) -> bool:
        return self.top_k is not None or self.top_p < 1

    @property
    def is_the_models(self) -> bool:
        """Whether the bounds of the model apply to the texts."""
        return self.temperature == 1 and not self.is_truncated

    def of(self, generator: TextGenerator) -> TextGenerator:
        """Return the generator that draws each token from this distribution; weights are shared."""
        tempered_ = generator if self.temperature == 1 else tempered(generator, self.temperature)
        return truncated(tempered_, self.top_k, self.top_p) if self.is_truncated else tempered_
