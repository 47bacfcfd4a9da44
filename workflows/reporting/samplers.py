"""Which sampler a measured row is about: its name for a person, and the series of step counts it belongs to."""

from collections.abc import Sequence
from math import isclose
from typing import Any

Row = dict[str, Any]

# What the column `energy` says where no energy was weighed.
PLAIN, UNIFORM, DATA, AUTOREGRESSIVE, REPEATER = "plain", "uniform", "data", "autoregressive", "repeater"
NO_STEPS = (DATA, AUTOREGRESSIVE, REPEATER)  # no diffusion sampler wrote these
ADAPTIVE = "adaptive effort"  # how the names of planned samplers begin, whose steps differ in energy and k
CONTROLS = (PLAIN, UNIFORM, *NO_STEPS)
LEGACY = "legacy"

# Energies that are not learned: log p_theta - log q, where the law q of the source is known.
EXACT_PREFIX = "exact-"
EXACT_DRAFTS, EXACT_CONDITIONAL = f"{EXACT_PREFIX}drafts", f"{EXACT_PREFIX}conditional"

_TITLES = {
    PLAIN: "plain diffusion",
    UNIFORM: "uniform weights (control)",
    DATA: "data",
    AUTOREGRESSIVE: "autoregressive sampler",
    REPEATER: "repeater (sanity check)",
}


def title(energy: str) -> str:
    """The words for what the column `energy` says; of another law, too, which stands behind a comma."""
    name, comma, law = energy.partition(",")
    return _TITLES.get(name, name) + comma + law


def exact_twin(drafts: bool, block: int | None) -> str:
    """The exact energy that weighs what an energy with these attributes weighs."""
    return EXACT_DRAFTS if drafts else f"{EXACT_PREFIX}step{f'-{block}' if block else ''}"


def energies(rows: Sequence[Row]) -> list[str]:
    """The energies that were weighed, in the order of the table; the uniform control is last."""
    found = dict.fromkeys(row["energy"] for row in rows if row["energy"] not in CONTROLS)
    return [*found, *([UNIFORM] if any(row["energy"] == UNIFORM for row in rows) else [])]


def last_step_only(row: Row) -> bool:
    """Whether the window holds the last of several steps and no other."""
    return row["steps"] > 1 and row["window_from"] == 0 and isclose(row["window_to"] * row["steps"], 1)


def every_step(row: Row) -> bool:
    """Whether all steps resample; with one step the last is all."""
    return row["window_from"] == 0 and row["window_to"] >= 1


def planned(row: Row) -> bool:
    """Whether every step has an energy and a k of its own; then the column `candidates` is no sampler's k."""
    return row["energy"].partition(",")[0] == ADAPTIVE


def words(row: Row) -> str:
    """The sampler without its steps: `k = 8`, `exact, last step`, `k = 2, τ = 0.5, legacy`, `k by plan`."""
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
    if row["legacy"]:
        parts.append(LEGACY)
    return ", ".join(parts)


def series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of one energy by sampler, fewest candidates first and exact last; each series in the order of T.

    A series of the last step alone begins with the row of one step, where the last step is all. Where rows of several
    seeds are among them, each seed has its own series.
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
IDENTITY = ("candidates", *WINDOW, "energy_temperature", "precision", "seed", "legacy")


def same_sampler(one: Row, other: Row, besides: Sequence[str] = ()) -> bool:
    """Whether two rows differ in nothing but steps, energy and the columns `besides`."""
    return all(one[name] == other[name] for name in IDENTITY if name not in besides)


def _order(row: Row) -> tuple:
    k = row["candidates"] or float("inf")
    return (
        row["legacy"],
        not every_step(row),
        k,
        row["energy_temperature"],
        row["steps"],
        row.get("token_temperature", 1),
    )
