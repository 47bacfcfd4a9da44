"""Numbers against the truth, where the law of the source is known: of the bounds and of the denoiser."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workflows.reporting.comparison import Comparison, gain_over, level
from workflows.reporting.quantities import BOUND
from workflows.reporting.samplers import CONTROLS, EXACT_PREFIX, Row, exact_twin, same_sampler, words


@dataclass(frozen=True)
class Share:
    """How much of what the exact energy gains over plain diffusion a learned one of the same kind gains, by T."""

    energy: str
    candidates: int
    of: str
    by_steps: dict[int, float]


def gain_shares(bounds: Sequence[Row]) -> list[Share]:
    """Of every learned energy that an exact one of its kind was measured beside, with the same k, window and T."""
    shares: dict[tuple[str, int, str], Share] = {}
    for row in bounds:
        if row["energy"] in CONTROLS or row["energy"].startswith(EXACT_PREFIX) or not row["candidates"]:
            continue
        name = exact_twin(row["whole_sequence"], row["block"])
        exact = (one for one in bounds if one["energy"] == name and one["steps"] == row["steps"])
        twin = next((one for one in exact if same_sampler(one, row)), None)
        if twin is not None and twin["gain_nats_per_token"] > 0:
            key = (row["energy"], row["candidates"], name)
            share = row["gain_nats_per_token"] / twin["gain_nats_per_token"]
            shares.setdefault(key, Share(*key, {})).by_steps[row["steps"]] = share
    return list(shares.values())


def excess(row: Row, summary: Row) -> Comparison:
    """How far a bound lies above -log q of the same sequences, nats per token, paired; never below it but by chance."""
    of_sequences = summary.get("entropy_by_sequence") or ()
    truth = {"bound_nats_per_token": summary["entropy_nats_per_token"], "by_sequence": of_sequences}
    over = gain_over(level(row, BOUND), truth, BOUND)
    return over if over.paired else Comparison(over.gain, row["standard_error"], paired=False)


def nelbo_excess(marginals: Sequence[Row]) -> tuple[float, float]:
    """NELBO - H and its standard error, nats per token: the distances of the marginals, which the quarters add up to.

    The same as the difference of the two numbers, without the noise of x_t that the NELBO's own estimate has.
    """
    error = math.hypot(*(row["nelbo_standard_error"] for row in marginals))
    return sum(row["nelbo_above_entropy_nats_per_token"] for row in marginals), error


def by_sampler(bounds: Sequence[Row]) -> list[list[Row]]:
    """The rows of one sampler of one energy, by T; samplers of the last step alone are one, whatever their T."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in bounds:
        found.setdefault((row["energy"], words(row)), []).append(row)
    return list(found.values())
