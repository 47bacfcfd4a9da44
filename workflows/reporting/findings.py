"""Findings: sentences computed from the rows, with no claim beyond what the standard errors support.

Rows of the published sampler (`published`) appear only in the finding that counts them.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from workflows.reporting.comparison import (
    DOUBT,
    Comparison,
    NotComparable,
    Outcome,
    Verdict,
    against_uniform,
    equal_plain_steps,
    plain_curve,
    same_cost,
    same_steps,
    unpaired,
)
from workflows.reporting.document import Bullet
from workflows.reporting.quantities import BOUND, CALLS, ENTROPY, JUDGED, TEXT_SECONDS, Quantity, measured
from workflows.reporting.sampler_labels import PUBLISHED, Row, energies, title, words
from workflows.row_names import PLAIN, UNIFORM

WORTH_SAYING = 1.05  # minimum ratio of equivalent plain steps to own steps
NAMED = 3  # energies named in a sentence; the table lists all


@dataclass(frozen=True)
class Topic:
    """Subject of findings: a quantity where lower is better, its name, and the matching quantity of seconds."""

    y: Quantity
    name: str
    seconds: Quantity


LIKELIHOOD = Topic(BOUND, "Bound", TEXT_SECONDS)
TEXTS = Topic(JUDGED, "Texts under the judge", TEXT_SECONDS)
MATCHED = Topic(JUDGED, "Texts at the data's entropy", TEXT_SECONDS)


@dataclass(frozen=True)
class EnergyRanking:
    """Comparisons of all samplers of one energy with one reference."""

    energy: str
    compared: Sequence[tuple[Row, Comparison]]
    refused: Sequence[NotComparable]

    def count(self, verdict: Verdict) -> int:
        """Return the number of samplers with this verdict."""
        return sum(comparison.verdict == verdict for _, comparison in self.compared)

    def steps(self, verdict: Verdict) -> list[int]:
        """Return the values of T at which a sampler has this verdict."""
        return sorted({row["steps"] for row, comparison in self.compared if comparison.verdict == verdict})

    def extreme(self, verdict: Verdict) -> tuple[Row, Comparison]:
        """Return the sampler with this verdict that differs most."""
        matching = [pair for pair in self.compared if pair[1].verdict == verdict]
        return max(matching, key=lambda pair: abs(pair[1].gain))


@dataclass(frozen=True)
class Standings:
    """Comparisons of an energy with plain diffusion at equal T, calls and seconds, and with uniform weights."""

    steps: EnergyRanking
    calls: EnergyRanking
    seconds: EnergyRanking
    uniform: EnergyRanking


def standings(topic: Topic, rows: Sequence[Row]) -> dict[str, Standings]:
    """Return the standings of every energy, without rows of the published sampler."""
    kept = [row for row in measured(rows, topic.y) if not row["published"]]
    by_energy = {}
    for energy in energies(kept):
        energy_rows = [row for row in kept if row["energy"] == energy]
        by_energy[energy] = Standings(
            _standing(energy, energy_rows, [same_steps(row, kept, topic.y) for row in energy_rows]),
            _standing(energy, energy_rows, [same_cost(row, kept, topic.y, CALLS) for row in energy_rows]),
            _standing(energy, energy_rows, [same_cost(row, kept, topic.y, topic.seconds) for row in energy_rows]),
            _standing(energy, energy_rows, [against_uniform(row, kept, topic.y) for row in energy_rows]),
        )
    return by_energy


def _standing(energy: str, energy_rows: Sequence[Row], outcomes: Sequence[Outcome]) -> EnergyRanking:
    pairs = list(zip(energy_rows, outcomes, strict=True))
    compared = [(row, outcome) for row, outcome in pairs if isinstance(outcome, Comparison)]
    return EnergyRanking(energy, compared, [outcome for outcome in outcomes if isinstance(outcome, NotComparable)])


def level_findings(summary: Row, bounds: Sequence[Row]) -> list[Bullet]:
    """Report the levels of the two models without an energy, and the lowest bound."""
    named = (("denoiser, NELBO", "denoiser_nelbo"), ("autoregressive model", "autoregressive_nll"))
    levels = [
        f"{name} {plus_minus(summary[key]['nats_per_token'], summary[key]['standard_error'])}"
        for name, key in named
        if summary.get(key)
    ]
    if summary.get("entropy_nats_per_token") is not None:
        levels.append(f"the entropy of the source {summary['entropy_nats_per_token']:.3f} (exact)")
    bullets = [Bullet("Levels", f"{'; '.join(levels)} nats per token.")] if levels else []
    kept = [row for row in measured(bounds, BOUND) if not row["published"]]
    if kept:
        best = min(kept, key=BOUND.value)
        value = plus_minus(BOUND.value(best), BOUND.error_of(best))
        bullets.append(Bullet("Lowest bound", f"{sampler_at(best)}: {value} nats per token."))
    return bullets


def short_findings(topic: Topic, rows: Sequence[Row]) -> list[Bullet]:
    """Report, per reference, which energies are significantly better or worse, where and by how much."""
    by_energy = standings(topic, rows)
    without_control = [standing for energy, standing in by_energy.items() if energy != UNIFORM]
    if not without_control:
        return []
    bullets = [
        Bullet("Against plain diffusion at the same T", _ranking([entry.steps for entry in without_control])),
        Bullet(
            f"Against plain diffusion at the same {CALLS.name}", _ranking([entry.calls for entry in without_control])
        ),
        Bullet("Against plain diffusion at the same seconds", _ranking([entry.seconds for entry in without_control])),
        Bullet("Against k candidates with uniform weights", _ranking([entry.uniform for entry in without_control])),
    ]
    if UNIFORM in by_energy:
        control = by_energy[UNIFORM].steps
        differ = control.count(Verdict.BETTER) + control.count(Verdict.WORSE)
        text = (
            f"differs significantly from plain diffusion at the same T in {differ} of {len(control.compared)} samplers."
        )
        bullets.append(Bullet("The control, uniform weights", text))
    return bullets


def _ranking(rankings: Sequence[EnergyRanking]) -> str:
    """`Better somewhere: 2 of 3 energies, most a (by 0.2 at T = 1, k = 8; 47σ), b (...). Worse somewhere: none.`"""
    sentences = []
    compared = [ranking for ranking in rankings if ranking.compared]
    for verdict in (Verdict.BETTER, Verdict.WORSE):
        some = [ranking for ranking in compared if ranking.count(verdict)]
        some.sort(key=lambda ranking: -abs(ranking.extreme(verdict)[1].gain))
        most = ", ".join(f"{title(ranking.energy)} ({_extreme(ranking, verdict)})" for ranking in some[:NAMED])
        count = f"{len(some)} of {len(compared)} energies, most {most}" if some else "none"
        sentences.append(f"{verdict.capitalize()} somewhere: {count}.")
    undecided = [
        title(ranking.energy)
        for ranking in compared
        if not ranking.count(Verdict.BETTER) + ranking.count(Verdict.WORSE)
    ]
    silent = [title(ranking.energy) for ranking in rankings if not ranking.compared]
    sentences += [f"Undecided everywhere: {', '.join(undecided)}."] if undecided else []
    sentences += [f"Not comparable: {', '.join(silent)}."] if silent else []
    return " ".join(sentences if compared else sentences[2:])


def _extreme(standing: EnergyRanking, verdict: Verdict) -> str:
    row, comparison = standing.extreme(verdict)
    scatter = "no scatter" if math.isinf(comparison.sigmas) else f"{abs(comparison.sigmas):.0f}σ"
    return f"by {abs(comparison.gain):.3f} at {_sampler_words(row)}; {scatter}"


def energy_findings(topic: Topic, rows: Sequence[Row]) -> list[Bullet]:
    """Report, per energy, at which T it helps or harms, by how much, with what significance, and at what cost."""
    kept = [row for row in measured(rows, topic.y) if not row["published"]]
    bullets = []
    for energy, standing in standings(topic, rows).items():
        energy_rows = [row for row in kept if row["energy"] == energy]
        sentences = [_help(topic, standing.steps, kept)]
        if standing.steps.count(Verdict.WORSE):
            row, comparison = standing.steps.extreme(Verdict.WORSE)
            steps = ", ".join(map(str, standing.steps.steps(Verdict.WORSE)))
            sentences.append(
                f"Harms at T = {steps}; most at {_sampler_words(row)}: by {_difference(comparison, topic.y)}."
            )
        if energy != UNIFORM:
            sentences += _worth(topic, standing.steps, kept) + _sharpening(topic, energy_rows, kept)
        bullets.append(Bullet(title(energy), " ".join(sentences)))
    return bullets


def published_findings(rows: Sequence[Row]) -> list[Bullet]:
    """Report the number of rows of the published sampler, if there are any."""
    count = sum(bool(row["published"]) for row in rows)
    text = (
        f"Rows of the published sampler, its errors included: {count}. They are labelled '{PUBLISHED}' "
        "everywhere and count in no other finding."
    )
    return [Bullet("Published sampler", text)] if count else []


def _help(topic: Topic, standing: EnergyRanking, rows: Sequence[Row]) -> str:
    if not standing.compared:
        return "Not comparable at the same T: plain diffusion was not measured there."
    if not standing.count(Verdict.BETTER):
        return f"No significant gain in {len(standing.compared)} samplers."
    row, comparison = standing.extreme(Verdict.BETTER)
    steps = ", ".join(map(str, standing.steps(Verdict.BETTER)))
    price = _price(topic, row, rows)
    return f"Helps at T = {steps}; most at {_sampler_words(row)}: by {_difference(comparison, topic.y)}{price}."


def _worth(topic: Topic, standing: EnergyRanking, rows: Sequence[Row]) -> list[str]:
    """Report the significantly better sampler that replaces the most steps of plain diffusion per step of its own."""
    worth = [
        (row, steps)
        for row, comparison in standing.compared
        if comparison.verdict == Verdict.BETTER
        and isinstance(steps := equal_plain_steps(row, rows, topic.y), float)
        and steps > WORTH_SAYING * row["steps"]
    ]
    if not worth:
        return []
    row, steps = max(worth, key=lambda pair: pair[1] / pair[0]["steps"])
    return [f"At {_sampler_words(row)} it equals plain diffusion at T = {steps:.1f}."]


def _sharpening(topic: Topic, energy_rows: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """Report samplers whose texts have lower entropy: a judge scores such texts better without better quality."""
    if topic.y is not JUDGED:
        return []
    lower = 0
    for row in energy_rows:
        twin = next((p for p in plain_curve(row, rows, ENTROPY) if p["steps"] == row["steps"]), None)
        drop = unpaired(ENTROPY.value(twin), ENTROPY.error_of(twin), row, ENTROPY) if twin else None
        lower += drop is not None and drop.sigmas > DOUBT
    if not lower:
        return []
    return [
        f"In {lower} of {len(energy_rows)} its texts have lower entropy than plain diffusion's at the same T "
        "(by more than 2 standard errors): the judge may favor sharper rather than better texts there."
    ]


def price(topic: Topic, row: Row, rows: Sequence[Row]) -> list[tuple[float, str]]:
    """Return the cost of the row as a multiple of plain diffusion at the same T, in calls and in seconds."""
    twin = next((p for p in plain_curve(row, rows, topic.y) if p["steps"] == row["steps"]), None)
    return [
        (cost.value(row) / cost.value(twin), name)
        for cost, name in ((CALLS, CALLS.name), (topic.seconds, "seconds"))
        if twin and len(measured([row, twin], cost)) == 2
    ]


def _price(topic: Topic, row: Row, rows: Sequence[Row]) -> str:
    parts = [f"{times:.1f} times the {name}" for times, name in price(topic, row, rows)]
    return f", for {' and '.join(parts)}" if parts else ""


def _difference(comparison: Comparison, y: Quantity) -> str:
    """Format the size and the significance of a difference."""
    size = f"{abs(comparison.gain):.3f} {y.unit}"
    if math.isinf(comparison.sigmas):
        return f"{size} (no variance)"
    return f"{size} ({abs(comparison.sigmas):.0f} {'paired ' if comparison.paired else ''}standard errors)"


def sampler_at(row: Row) -> str:
    """Format a row as `step, T = 8, k = 8`; plain diffusion without k."""
    name = title(row["energy"])
    return f"{name}, T = {row['steps']}" if row["energy"] == PLAIN else f"{name}, {_sampler_words(row)}"


def _sampler_words(row: Row) -> str:
    return f"T = {row['steps']}, {words(row)}"


def plus_minus(value: float, error: float, digits: int = 3) -> str:
    """Format a number with its standard error if finite; `–` if the number is not finite."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f} ± {error:.{digits}f}" if math.isfinite(error) else f"{value:.{digits}f}"


def refusals(rankings: Sequence[EnergyRanking]) -> list[str]:
    """Return the reasons why samplers could not be compared, each with its count."""
    counts = Counter(refused.reason.partition(", this is")[0] for ranking in rankings for refused in ranking.refused)
    return [f"{reason} ({count})" for reason, count in counts.items()]
