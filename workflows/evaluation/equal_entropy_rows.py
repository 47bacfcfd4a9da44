"""Quality at equal entropy: what each sampler reaches where its texts are as varied as the data."""

from typing import Any

from edlm.evaluation.equal_entropy import Point, nll_at_entropy
from edlm.evaluation.judged_quality import Average
from workflows.row_names import DATA

Row = dict[str, Any]
SWEPT = (
    "energy",
    "steps",
    "candidates",
    "window_from",
    "window_to",
    "energy_temperature",
    "published",
    "judge",
    "seed",
)


def matched_rows(quality: list[Row]) -> list[Row]:
    """Return the judge's nats at the data's entropy per sampler with a swept token temperature; never extrapolate.

    A sampler that does not reach that entropy has nan and the reason.
    """
    data = next((row for row in quality if row["energy"] == DATA), None)
    sweeps: dict[tuple, list[Row]] = {}
    for row in quality:
        sweeps.setdefault(tuple(row[name] for name in SWEPT), []).append(row)
    rows = []
    for sampler, swept in sweeps.items():
        if data is None or len(swept) < 2:
            continue
        match = nll_at_entropy([_point(row) for row in swept], _average(data, "entropy_nats", "entropy"))
        nll, between = match.nll or Average(float("nan"), float("nan")), match.between or (float("nan"),) * 2
        rows.append(
            {
                **dict(zip(SWEPT, sampler, strict=True)),
                "entropy_nats": data["entropy_nats"],
                "nll_nats_per_token": nll.mean,
                "nll_standard_error": nll.standard_error,
                "token_temperature_from": between[0],
                "token_temperature_to": between[1],
                "reason": match.reason or "",
                **{name: swept[0][name] for name in ("denoiser_calls", "energy_calls", "seconds_per_text")},
                **{name: swept[0][name] for name in ("precision", "sequences", "seconds")},
            }
        )
    return rows


def _point(row: Row) -> Point:
    nll = _average(row, "nll_nats_per_token", "nll")
    return Point(row["token_temperature"], nll, _average(row, "entropy_nats", "entropy"))


def _average(row: Row, mean: str, error: str) -> Average:
    return Average(row[mean], row[f"{error}_standard_error"])
