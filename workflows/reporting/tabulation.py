"""Tables of the measured rows: numbers with their standard errors, rows of the published sampler labeled."""

import math
from collections.abc import Callable, Sequence
from itertools import groupby

from workflows.reporting.comparison import (
    Comparison,
    NotComparable,
    Outcome,
    Verdict,
    against_uniform,
    equal_plain_steps,
    same_cost,
    same_steps,
)
from workflows.reporting.document import Table
from workflows.reporting.figures.calibration import pairs_of
from workflows.reporting.findings import EnergyRanking, Topic, plus_minus, price, standings
from workflows.reporting.quantities import BOUND, CALLS, TEXT_SECONDS, column, measured
from workflows.reporting.sampler_labels import PUBLISHED, Row, energies, last_step_only, series, title, words
from workflows.row_names import NO_STEPS, PLAIN

NONE = "–"
MOST_SIGMAS = 99


def level_table(summary: Row, paper: Sequence[Row] = ()) -> Table:
    """Return the likelihoods that depend on no sampler, each marked as a bound or not.

    `paper`: rows of the paper's estimator; without them its values are read from `summary`.
    """
    rows = []
    for key, name, kind in (
        ("denoiser_nelbo", "denoiser, NELBO (T = ∞)", "upper bound on −log p"),
        ("autoregressive_nll", "autoregressive model", "exact −log p of that model"),
    ):
        if summary.get(key):
            value = summary[key]["nats_per_token"]
            rows.append((name, plus_minus(value, summary[key]["standard_error"]), _perplexity(value), kind))
    if summary.get("entropy_nats_per_token") is not None:
        value = summary["entropy_nats_per_token"]
        rows.append(("entropy of the source", f"{value:.3f}", _perplexity(value), "exact −log q of these sequences"))
    estimates = [(f"{row['energy']}, {row['method']}", row) for row in paper]
    for name, value in estimates or summary.get("paper_ppl_nats_NOT_A_BOUND", {}).items():
        nats = value["nats_per_token"]
        number_of = (f"the paper's estimator, {name}", plus_minus(nats, value["standard_error"]), _perplexity(nats))
        rows.append((*number_of, "NOT a bound"))
    return Table("Likelihood without a sampler", ("what", "nats per token", "perplexity", "kind of number"), rows)


def bound_table(bounds: Sequence[Row]) -> Table:
    """Return the bound of every sampler by T."""
    return _by_steps("T-step bounds, nats per token ± standard error (lower is better)", bounds, _bound)


def gain_table(bounds: Sequence[Row]) -> Table:
    """Return the paired gain of every sampler over plain diffusion, by T."""
    rows = [row for row in bounds if row["energy"] != PLAIN]
    caption = "Gain over plain diffusion at the same T, nats per token, in paired standard errors σ (higher is better)"
    return _by_steps(caption, rows, lambda row: outcome_cell(same_steps(row, bounds, BOUND)))


def step_grid_table(rows: Sequence[Row]) -> Table:
    """Return the fitted step times of each sampler and their gain over equal steps."""
    cells = []
    for row in rows:
        gain = Comparison(row["gain_over_equal_steps"], row["gain_standard_error"], paired=True)
        sampler = NONE if row["energy"] == PLAIN else words(row)
        times = ", ".join(f"{t:.3g}" for t in row["times"])
        cells.append((title(row["energy"]), sampler, str(row["steps"]), _bound(row), outcome_cell(gain), times))
    columns = ("energy", "sampler", "T", "bound, nats per token", "gain over equal steps", "times")
    return Table("Steps fitted to the bound (on training sequences, by dynamic programming)", columns, cells)


def effort_table(rows: Sequence[Row]) -> Table:
    """Return each effort plan: its steps, the gain predicted on training sequences, and the measured gain."""
    cells = []
    for row in rows:
        gain = Comparison(row["gain_over_plain"], row["gain_standard_error"], paired=True)
        plan = "; ".join(f"{len(list(alike))} × {step}" for step, alike in groupby(row["plan"]))
        cells.append(
            (
                str(row["steps"]), f"{row['budget']:g} ×", _bound(row), number(row["promised_gain"], 3),
                outcome_cell(gain), number(row["planned_seconds"], 4), number(row["seconds_per_text"], 4), plan,
            )
        )  # fmt: skip
    columns = (
        "T", "budget, in seconds of plain diffusion", "bound, nats per token", "gain promised", "gain over plain",
        "seconds planned", "seconds per text", "steps from t = 1 on",
    )  # fmt: skip
    return Table("Adaptive effort: energy and k of every step, planned under a budget", columns, cells)


def standing_table(topic: Topic, rows: Sequence[Row]) -> Table:
    """Return one line per energy: its largest significant gain with its cost, and its verdicts in every comparison."""
    cells = []
    for energy, standing in standings(topic, rows).items():
        best = standing.steps.extreme(Verdict.BETTER) if standing.steps.count(Verdict.BETTER) else None
        times = {name: f"{value:.1f} ×" for value, name in price(topic, best[0], rows)} if best else {}
        gain, sampler = (outcome_cell(best[1]), f"T = {best[0]['steps']}, {words(best[0])}") if best else ("none", NONE)
        cells.append(
            (
                title(energy), gain, sampler,
                times.get(CALLS.name, NONE), times.get("seconds", NONE),
                *(
                    _verdicts(ranking)
                    for ranking in (standing.steps, standing.calls, standing.seconds, standing.uniform)
                ),
            )
        )  # fmt: skip
    columns = (
        "energy", "largest significant gain", "sampler", "its calls", "its seconds", "same T", "same calls", "same "
        "seconds",
        "uniform weights",
    )  # fmt: skip
    caption = f"{topic.name}: samplers better / undecided / worse, compared with plain diffusion and uniform weights"
    return Table(caption, columns, cells)


def _verdicts(standing: EnergyRanking) -> str:
    """Format the counts better / undecided / worse as `16 / 2 / 0`, plus the number not comparable."""
    if not standing.compared:
        return NONE
    better, worse = standing.count(Verdict.BETTER), standing.count(Verdict.WORSE)
    more = f" (+{len(standing.refused)})" if standing.refused else ""
    return f"{better} / {len(standing.compared) - better - worse} / {worse}{more}"


def comparison_table(topic: Topic, energy: str, rows: Sequence[Row]) -> Table:
    """Compare every sampler of one energy with plain diffusion at equal T, calls and seconds, and with the control."""
    energy_rows = [row for row in rows if row["energy"] == energy]
    cells = []
    for row in (row for group in series(energy_rows).values() for row in series_rows(group)):
        steps = equal_plain_steps(row, rows, topic.y)
        cells.append(
            (
                words(row), str(row["steps"]), plus_minus(topic.y.value(row), topic.y.error_of(row)),
                number(CALLS.value(row), 1), number(topic.seconds.value(row), 3),
                outcome_cell(same_steps(row, rows, topic.y)),
                outcome_cell(same_cost(row, rows, topic.y, CALLS)),
                outcome_cell(same_cost(row, rows, topic.y, topic.seconds)),
                outcome_cell(against_uniform(row, rows, topic.y)),
                steps.reason if isinstance(steps, NotComparable) else f"{steps:.1f}",
            )
        )  # fmt: skip
    columns = (
        "sampler", "T", f"{topic.y.name}, {topic.y.unit}", "calls", "seconds", "gain at the same T",
        "at the same calls", "at the same seconds", "over uniform weights", "equivalent T of plain diffusion",
    )  # fmt: skip
    return Table(
        f"{title(energy)}: {topic.name.lower()}, compared with plain diffusion and the control",
        columns,
        cells,
        folded=True,
    )


def cost_table(cost: Sequence[Row]) -> Table:
    """Return the seconds of every timed sampler and their spread."""
    cells = [
        (
            title(row["energy"]), str(steps_of(row) or NONE), sampler_of(row), number(TEXT_SECONDS.value(row), 4),
            f"{row['seconds_least']:.4f} to {row['seconds_most']:.4f}", str(row["texts_at_once"]),
            number(column("denoiser_calls")(row), 1), number(column("energy_calls")(row), 1),
            number(column("accepted_per_call")(row), 1),
        )
        for row in cost
    ]  # fmt: skip
    columns = (
        "energy", "T", "sampler", "seconds per text, median", "rounds from, to", "texts at once", "denoiser calls",
        "energy calls", "kept per call",
    )  # fmt: skip
    return Table("Cost: samplers timed alone", columns, cells, folded=True)


def calibration_table(calibration: Sequence[Row]) -> Table:
    """Return how well each energy separates data from samples of the denoiser, by t."""
    cells = [
        (_named(row), f"{row['t_from']:g} to {row['t_to']:g}", number(row["auc"], 3), str(pairs_of(row)))
        for row in sorted(calibration, key=lambda row: (row["energy"], row["t_from"]))
    ]
    return Table("Data against samples", ("energy", "t", "area under the ROC curve", "pairs"), cells)


def partition_table(partition: Sequence[Row]) -> Table:
    """Return the low and the high estimate of log Z by the number of denoiser samples."""
    cells = [
        (
            _named(row), str(row["draws"]), plus_minus(row["low_nats_per_token"], row["low_standard_error"]),
            plus_minus(row["high_nats_per_token"], row["high_standard_error"]),
        )
        for row in sorted(partition, key=lambda row: (row["energy"], row["draws"]))
    ]  # fmt: skip
    return Table("log Z, nats per token", ("energy", "samples n", "low end", "high end"), cells)


def zero_shot_table(zero_shot: Sequence[Row]) -> Table:
    """Return the likelihoods on corpora that no model was trained on."""
    cells = [
        (
            row["corpus"], row["model"] + (f", {PUBLISHED}" if row["published"] else ""),
            plus_minus(row["nats_per_token"], row["standard_error"]),
            *(number(column(name)(row), 3) for name in ("perplexity", "word_perplexity", "bits_per_byte")),
            str(row["tokens"]), row["convention"],
        )
        for row in zero_shot
    ]  # fmt: skip
    columns = (
        "corpus", "model", "nats per token", "perplexity", "word perplexity", "bits per byte", "tokens", "convention"
    )  # fmt: skip
    return Table("Zero-shot: corpora without training", columns, cells)


def outcome_cell(outcome: Outcome) -> str:
    """Format an outcome as `+0.216 +47σ`, or `–` if not comparable.

    In parentheses: the comparison with the most expensive plain diffusion, which still costs less.
    """
    if isinstance(outcome, Comparison):
        return f"{outcome.gain:+.3f}{_sigmas(outcome)}"
    if outcome.cheaper is not None:
        return f"({outcome.cheaper.gain:+.3f}{_sigmas(outcome.cheaper)})"
    return NONE


def number(value: float, digits: int) -> str:
    """Format the number with `digits` decimals; `–` if it was not measured."""
    return f"{value:.{digits}f}" if math.isfinite(value) else NONE


def _sigmas(comparison: Comparison) -> str:
    if not math.isfinite(comparison.sigmas) or comparison.gain == 0:
        return ""
    return f" {max(-MOST_SIGMAS, min(MOST_SIGMAS, comparison.sigmas)):+.0f}σ"


def _perplexity(nats: float) -> str:
    return number(math.exp(nats), 2)


def _bound(row: Row) -> str:
    return plus_minus(BOUND.value(row), BOUND.error_of(row)) if measured([row], BOUND) else NONE


def _by_steps(caption: str, rows: Sequence[Row], cell: Callable[[Row], str]) -> Table:
    """Return a table with one line per sampler and one column per T."""
    steps = sorted({row["steps"] for row in rows})
    cells = []
    for energy in (PLAIN, *energies(rows)):
        for name, group in series([row for row in rows if row["energy"] == energy]).items():
            by_steps = {row["steps"]: cell(row) for row in series_rows(group)}
            cells.append((title(energy), NONE if energy == PLAIN else name, *(by_steps.get(t, "") for t in steps)))
    return Table(caption, ("energy", "sampler", *(f"T = {t}" for t in steps)), cells)


def series_rows(group: Sequence[Row]) -> list[Row]:
    """Drop the one-step row that a last-step series borrows from another series."""
    return [row for row in group if last_step_only(row)] or list(group)


def steps_of(row: Row) -> int:
    """Return T; 0 for text that no diffusion sampler generated."""
    return 0 if row["energy"] in NO_STEPS else row["steps"]


def sampler_of(row: Row) -> str:
    return (PUBLISHED if row["published"] else NONE) if row["energy"] in (*NO_STEPS, PLAIN) else words(row)


def _named(row: Row) -> str:
    return title(row["energy"]) + (f", {PUBLISHED}" if row["published"] else "")
