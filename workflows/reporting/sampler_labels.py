"""Identity of the sampler of a measured row: its display name, and the series over T that it belongs to."""

from collections.abc import Sequence
from math import isclose
from typing import Any

from workflows.row_names import AUTOREGRESSIVE, CONTROLS, DATA, EXACT_PREFIX, PLAIN, REPEATER, UNIFORM

Row = dict[str, Any]

ADAPTIVE = "adaptive effort"  # name prefix of planned samplers, whose steps differ in energy and k
PUBLISHED = "published sampler"

# Energies that are not learned: log p_theta - log q, for a source with a known distribution q.
EXACT_WHOLE_SEQUENCE, EXACT_CONDITIONAL = f"{EXACT_PREFIX}whole-sequence", f"{EXACT_PREFIX}conditional"

_TITLES = {
    PLAIN: "plain diffusion",
    UNIFORM: "uniform weights (control)",
    DATA: "data",
    AUTOREGRESSIVE: "autoregressive sampler",
    REPEATER: "repeater (sanity check)",
}


def title(energy: str) -> str:
    """Return the display name of a value of `energy`; a suffix after a comma, naming another distribution, is kept."""
    name, comma, suffix = energy.partition(",")
    return _TITLES.get(name, name) + comma + suffix


def exact_twin(whole_sequence: bool, block: int | None) -> str:
    """Return the name of the exact energy that scores the same positions as an energy with these attributes."""
    return EXACT_WHOLE_SEQUENCE if whole_sequence else f"{EXACT_PREFIX}step{f'-{block}' if block else ''}"


def energies(rows: Sequence[Row]) -> list[str]:
    """Return the energies in the order of the table; the uniform control is last."""
    names = dict.fromkeys(row["energy"] for row in rows if row["energy"] not in CONTROLS)
    return [*names, *([UNIFORM] if any(row["energy"] == UNIFORM for row in rows) else [])]


def last_step_only(row: Row) -> bool:
    """Return whether the window contains only the last of several steps."""
    return row["steps"] > 1 and row["window_from"] == 0 and isclose(row["window_to"] * row["steps"], 1)


def every_step(row: Row) -> bool:
    """Return whether all steps resample; a single step is both the last step and all steps."""
    return row["window_from"] == 0 and row["window_to"] >= 1


def planned(row: Row) -> bool:
    """Return whether each step has its own energy and k; the column `candidates` is then not the k of the sampler."""
    return row["energy"].partition(",")[0] == ADAPTIVE


def words(row: Row) -> str:
    """Describe the sampler without T: `k = 8`, `exact, last step`, `k = 2, τ = 0.5, published sampler`, `k by plan`."""
    k = f"k = {row['candidates']}" if row["candidates"] else "exact"
    parts = ["k by plan" if planned(row) else k]
    if last_step_only(row):
        parts.append("last step")
    elif not every_step(row):
        parts.append(f"t from {row['window_from']:g} to {row['window_to']:g}")
    if row["energy_temperature"] != 1:
        parts.append(f"τ = {row['energy_temperature']:g}")
    if row["precision"] != "float32":
        parts.append(row["precision"])
    if row["published"]:
        parts.append(PUBLISHED)
    return ", ".join(parts)


def series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group the rows of one energy by sampler, fewest candidates first and exact last; each series is ordered by T.

    A last-step series begins with the one-step row, where the last step is the only one. If there are several seeds,
    each seed has its own series.
    """
    several = len({row["seed"] for row in rows}) > 1
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=_order):
        groups.setdefault(words(row) + (f", seed {row['seed']}" if several else ""), []).append(row)
    for group in groups.values():
        if last_step_only(group[0]):
            group[:0] = [row for row in rows if row["steps"] == 1 and same_sampler(row, group[0], besides=WINDOW)]
    return groups


WINDOW = ("window_from", "window_to")
IDENTITY = ("candidates", *WINDOW, "energy_temperature", "precision", "seed", "published")


def same_sampler(first: Row, second: Row, besides: Sequence[str] = ()) -> bool:
    """Return whether two rows differ only in steps, energy and the columns `besides`."""
    return all(first[name] == second[name] for name in IDENTITY if name not in besides)


def _order(row: Row) -> tuple:
    k = row["candidates"] or float("inf")
    return (
        row["published"],
        not every_step(row),
        k,
        row["energy_temperature"],
        row["steps"],
        row.get("token_temperature", 1),
    )
