"""Quantities of measured rows: value, standard error and axis label."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workflows.reporting.sampler_labels import Row


@dataclass(frozen=True)
class Quantity:
    """A number of a row and its standard error; nan if the row lacks it."""

    name: str
    unit: str
    value: Callable[[Row], float]
    error: Callable[[Row], float] | None = None
    """Standard error; None: exact, or unknown."""
    sequence_column: str | None = None
    """Column with the values per sequence, for paired comparisons; None: not available."""
    base: int | None = None
    """Base of a logarithmic axis; None: linear axis."""
    gain: "Quantity | None" = None
    """Gain over plain diffusion at the same T, with a paired error, if the row itself contains it."""
    linear_within: float | None = None
    """Threshold of a symmetric logarithmic axis, linear up to here; None: linear everywhere."""

    @property
    def axis(self) -> str:
        """Axis label."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def by_sequence(self, row: Row) -> Sequence[float]:
        """Return the values per sequence; empty if they were not stored."""
        return (row.get(self.sequence_column) or ()) if self.sequence_column else ()

    def error_of(self, row: Row) -> float:
        """Return the standard error; nan if it is unknown."""
        return self.error(row) if self.error else math.nan


def column(name: str) -> Callable[[Row], float]:
    """Return a function that reads column `name` of a row as a float; nan if the value is missing."""

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
    "T-step bound", "nats per token", column("bound_nats_per_token"), column("standard_error"),
    sequence_column="by_sequence", gain=GAIN,
)  # fmt: skip
JUDGED = Quantity("judge", "nats per token", column("nll_nats_per_token"), column("nll_standard_error"))
PERPLEXITY = Quantity(
    "generative perplexity", "per token, at the entropy of the data", lambda row: math.exp(JUDGED.value(row)),
    lambda row: math.exp(JUDGED.value(row)) * JUDGED.error_of(row), base=10,
)  # fmt: skip
ENTROPY = Quantity("unigram entropy of the texts", "nats", column("entropy_nats"), column("entropy_standard_error"))
TEXT_SECONDS = Quantity("seconds per text", "timed alone", column("seconds_per_text"), base=10)


def measured(rows: Sequence[Row], *quantities: Quantity) -> list[Row]:
    """Return the rows in which all quantities are finite, and positive if their axis is logarithmic."""
    return [row for row in rows if all(_drawable(quantity, row) for quantity in quantities)]


def _drawable(quantity: Quantity, row: Row) -> bool:
    value = quantity.value(row)
    return math.isfinite(value) and (quantity.base is None or value > 0)
