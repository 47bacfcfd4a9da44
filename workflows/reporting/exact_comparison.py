"""Bounds and denoiser compared with the true distribution of a source that is known."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workflows.reporting.comparison import Comparison, gain_over, level
from workflows.reporting.quantities import BOUND
from workflows.reporting.sampler_labels import Row, exact_twin, same_sampler, words
from workflows.row_names import CONTROLS, EXACT_PREFIX


@dataclass(frozen=True)
class Share:
    """Gain of a learned energy over plain diffusion, as a share of the gain of the exact energy of its kind, by T."""

    energy: str
    candidates: int
    exact_energy: str
    by_steps: dict[int, float]


def gain_shares(bounds: Sequence[Row]) -> list[Share]:
    """Return the shares of the learned energies for which an exact one was measured with the same k, window and T."""
    shares: dict[tuple[str, int, str], Share] = {}
    for row in bounds:
        if row["energy"] in CONTROLS or row["energy"].startswith(EXACT_PREFIX) or not row["candidates"]:
            continue
        name = exact_twin(row["whole_sequence"], row["block"])
        exact = (other for other in bounds if other["energy"] == name and other["steps"] == row["steps"])
        twin = next((other for other in exact if same_sampler(other, row)), None)
        if twin is not None and twin["gain_nats_per_token"] > 0:
            key = (row["energy"], row["candidates"], name)
            share = row["gain_nats_per_token"] / twin["gain_nats_per_token"]
            shares.setdefault(key, Share(*key, {})).by_steps[row["steps"]] = share
    return list(shares.values())


def excess(row: Row, summary: Row) -> Comparison:
    """Return the paired excess of a bound over -log q of its sequences, in nats per token; negative only by chance."""
    of_sequences = summary.get("entropy_by_sequence") or ()
    entropy = {"bound_nats_per_token": summary["entropy_nats_per_token"], "by_sequence": of_sequences}
    over = gain_over(level(row, BOUND), entropy, BOUND)
    return over if over.paired else Comparison(over.gain, row["standard_error"], paired=False)


def nelbo_excess(marginals: Sequence[Row]) -> tuple[float, float]:
    """Return NELBO - H and its standard error, in nats per token: the sum of the marginals' distances by quarter of t.

    Equals the difference of the two numbers, without the noise of x_t in the NELBO's own estimate.
    """
    error = math.hypot(*(row["nelbo_standard_error"] for row in marginals))
    return sum(row["nelbo_above_entropy_nats_per_token"] for row in marginals), error


def by_sampler(bounds: Sequence[Row]) -> list[list[Row]]:
    """Group the rows by energy and sampler; last-step samplers form one group, whatever their T."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in bounds:
        groups.setdefault((row["energy"], words(row)), []).append(row)
    return list(groups.values())
