"""What is read off a measured row: the value, how sure it is, and the words that stand beside an axis."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workflows.reporting.samplers import Row


@dataclass(frozen=True)
class Quantity:
    """A number of a row and its standard error; nan where the row does not have it."""

    name: str
    unit: str
    value: Callable[[Row], float]
    error: Callable[[Row], float] | None = None
    """None: exact, or its scatter is not known."""
    each: str | None = None
    """The column that holds the number of every sequence, for pairs; None: there is none."""
    base: int | None = None
    """Of the logarithmic axis it is drawn on; None: a linear one."""
    gain: "Quantity | None" = None
    """What the row is better by than plain diffusion at the same T, where it says so itself, with a paired error."""
    linear_within: float | None = None
    """On an axis with both signs: linear up to here and logarithmic beyond; None: linear everywhere."""

    @property
    def axis(self) -> str:
        """The words beside an axis."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def each_of(self, row: Row) -> Sequence[float]:
        """The number of every sequence; empty where it was not kept."""
        return (row.get(self.each) or ()) if self.each else ()

    def error_of(self, row: Row) -> float:
        """The standard error; nan where it is not known."""
        return self.error(row) if self.error else math.nan


def column(name: str) -> Callable[[Row], float]:
    """The number that a row has under this name; nan where there is none."""

    def read(row: Row) -> float:
        value = row.get(name)
        return math.nan if value is None else float(value)

    return read


def _calls(row: Row) -> float:
    return column("denoiser_calls")(row) + column("energy_calls")(row)


STEPS = Quantity("denoising steps T", "", column("steps"), base=2)
CALLS = Quantity("network calls", "denoiser and energy, per sequence", _calls, base=2)
GAIN = Quantity(
    "gain over plain diffusion", "nats per token", column("gain_nats_per_token"), column("gain_standard_error"),
    linear_within=0.01,
)  # fmt: skip
BOUND = Quantity(
    "T-step bound", "nats per token", column("bound_nats_per_token"), column("standard_error"), each="by_sequence",
    gain=GAIN,
)  # fmt: skip
JUDGED = Quantity("judge", "nats per token", column("nll_nats_per_token"), column("nll_standard_error"))
PERPLEXITY = Quantity(
    "generative perplexity", "per token, at the entropy of the data", lambda row: math.exp(JUDGED.value(row)),
    lambda row: math.exp(JUDGED.value(row)) * JUDGED.error_of(row), base=10,
)  # fmt: skip
ENTROPY = Quantity("unigram entropy of the texts", "nats", column("entropy_nats"), column("entropy_standard_error"))
TEXT_SECONDS = Quantity("seconds per text", "timed alone", column("seconds_per_text"), base=10)


def measured(rows: Sequence[Row], *quantities: Quantity) -> list[Row]:
    """The rows in which all these numbers are finite, and above 0 where their axis is logarithmic."""
    return [row for row in rows if all(_drawable(quantity, row) for quantity in quantities)]


def _drawable(quantity: Quantity, row: Row) -> bool:
    value = quantity.value(row)
    return math.isfinite(value) and (quantity.base is None or value > 0)
