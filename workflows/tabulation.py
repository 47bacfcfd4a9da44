"""Tabulation: the measured rows as tables of text, every number with its standard error and every legacy row named."""

import math
from collections.abc import Callable, Sequence
from itertools import groupby

from workflows.comparison import (
    Comparison,
    Outcome,
    Refused,
    Verdict,
    against_uniform,
    equal_plain_steps,
    same_cost,
    same_steps,
)
from workflows.document import Table
from workflows.findings import Standing, Topic, plus_minus, price, standings
from workflows.quantities import BOUND, CALLS, ENTROPY, JUDGED, TEXT_SECONDS, column, measured
from workflows.samplers import AUTOREGRESSIVE, DATA, PLAIN, Row, energies, last_step_only, series, title, words

NONE = "–"
MOST_SIGMAS = 99


def level_table(summary: Row) -> Table:
    """The numbers that belong to no sampler, and for each whether it is a bound."""
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
        rows.append(("entropy of the source", f"{value:.3f}", _perplexity(value), "exact: no model can be lower"))
    for energy, value in summary.get("paper_ppl_nats_NOT_A_BOUND", {}).items():
        name, nats = f"the paper's estimator, {energy}", value["nats_per_token"]
        rows.append((name, plus_minus(nats, value["standard_error"]), _perplexity(nats), "NOT a bound"))
    return Table("Likelihood without a sampler", ("what", "nats per token", "perplexity", "kind of number"), rows)


def bound_table(bounds: Sequence[Row]) -> Table:
    """The bound of every sampler by T."""
    return _by_steps("T-step bounds, nats per token ± standard error (lower is better)", bounds, _bound)


def gain_table(bounds: Sequence[Row]) -> Table:
    """The paired gain over plain diffusion of every sampler by T."""
    rows = [row for row in bounds if row["energy"] != PLAIN]
    caption = "Gain over plain diffusion at the same T, nats per token, in paired standard errors σ (higher is better)"
    return _by_steps(caption, rows, lambda row: outcome_cell(same_steps(row, bounds, BOUND)))


def standing_table(topic: Topic, rows: Sequence[Row]) -> Table:
    """Every energy in a line: its largest sure gain with its cost, and its verdicts beside everything compared with."""
    cells = []
    for energy, found in standings(topic, rows).items():
        best = found.steps.extreme(Verdict.BETTER) if found.steps.count(Verdict.BETTER) else None
        times = {name: f"{value:.1f} ×" for value, name in price(topic, best[0], rows)} if best else {}
        gain, where = (outcome_cell(best[1]), f"T = {best[0]['steps']}, {words(best[0])}") if best else ("none", NONE)
        cells.append(
            (
                title(energy), gain, where,
                times.get(CALLS.name, NONE), times.get("seconds", NONE),
                *(_verdicts(one) for one in (found.steps, found.calls, found.seconds, found.uniform)),
            )
        )  # fmt: skip
    columns = (
        "energy", "largest sure gain", "where", "its calls", "its seconds", "same T", "same calls", "same seconds",
        "uniform weights",
    )  # fmt: skip
    caption = (
        f"{topic.name}: samplers better / undecided / worse beyond doubt, beside plain diffusion and uniform weights"
    )
    return Table(caption, columns, cells)


def _verdicts(standing: Standing) -> str:
    """`16 / 2 / 0`, and how many more could not be compared."""
    if not standing.compared:
        return NONE
    better, worse = standing.count(Verdict.BETTER), standing.count(Verdict.WORSE)
    more = f" (+{len(standing.refused)})" if standing.refused else ""
    return f"{better} / {len(standing.compared) - better - worse} / {worse}{more}"


def comparison_table(topic: Topic, energy: str, rows: Sequence[Row]) -> Table:
    """Every sampler of one energy beside plain diffusion at the same T, calls and seconds, and beside the control."""
    own = [row for row in rows if row["energy"] == energy]
    cells = []
    for row in (row for group in series(own).values() for row in _own(group)):
        steps = equal_plain_steps(row, rows, topic.y)
        cells.append(
            (
                words(row), str(row["steps"]), plus_minus(topic.y.value(row), topic.y.error_of(row)),
                number(CALLS.value(row), 1), number(topic.seconds.value(row), 3),
                outcome_cell(same_steps(row, rows, topic.y)),
                outcome_cell(same_cost(row, rows, topic.y, CALLS)),
                outcome_cell(same_cost(row, rows, topic.y, topic.seconds)),
                outcome_cell(against_uniform(row, rows, topic.y)),
                steps.reason if isinstance(steps, Refused) else f"{steps:.1f}",
            )
        )  # fmt: skip
    columns = (
        "sampler", "T", f"{topic.y.name}, {topic.y.unit}", "calls", "seconds", "gain at the same T",
        "at the same calls", "at the same seconds", "over uniform weights", "T of plain diffusion as good",
    )  # fmt: skip
    return Table(f"{title(energy)}: {topic.y.name} beside plain diffusion and the control", columns, cells, folded=True)


def quality_table(quality: Sequence[Row]) -> Table:
    """What the judge makes of every sampler's texts, with their entropy, diversity and cost."""
    names = [DATA, AUTOREGRESSIVE, PLAIN, *energies(quality)]
    ordered = sorted(
        quality, key=lambda row: (row["steps"] if row["energy"] not in names[:2] else 0, names.index(row["energy"]))
    )
    cells = [
        (
            title(row["energy"]), NONE if row["energy"] in names[:2] else str(row["steps"]), _sampler(row),
            plus_minus(JUDGED.value(row), JUDGED.error_of(row)), number(column("generative_perplexity")(row), 2),
            plus_minus(ENTROPY.value(row), ENTROPY.error_of(row)),
            plus_minus(column("divergence")(row), column("divergence_standard_error")(row)),
            number(column("distinct_ngrams")(row), 3), number(column("repetition")(row), 3),
            number(column("ess")(row), 2), number(column("distinct_candidates")(row), 2),
            number(column("denoiser_calls")(row), 1), number(column("energy_calls")(row), 1),
            number(TEXT_SECONDS.value(row), 3), ", ".join(row.get("flags") or []) or NONE,
        )
        for row in ordered
    ]  # fmt: skip
    columns = (
        "energy", "T", "sampler", "judge, nats per token", "generative perplexity", "entropy, nats", "divergence",
        "distinct n-grams", "repetition", "ESS", "distinct candidates", "denoiser calls", "energy calls",
        "seconds per text", "flags",
    )  # fmt: skip
    return Table("Generated texts (perplexity counts only beside entropy)", columns, cells)


def trajectory_table(trajectory: Sequence[Row]) -> Table:
    """The effective sample size and the distinct candidates at both ends of each trajectory."""
    cells = []
    for energy in energies(trajectory):
        for name, group in series([row for row in trajectory if row["energy"] == energy]).items():
            for steps, along in groupby(_own(group), key=lambda row: row["steps"]):
                ends = sorted(along, key=lambda row: -row["t"])
                ess, distinct = column("ess"), column("distinct_candidates")
                both = (number(of(row), 2) for of in (ess, distinct) for row in (ends[0], ends[-1]))
                cells.append((title(energy), name, str(steps), *both))
    columns = (
        "energy",
        "sampler",
        "T",
        "ESS, first step",
        "ESS, last step",
        "distinct, first step",
        "distinct, last step",
    )
    return Table("Weights along the trajectory", columns, cells, folded=True)


def calibration_table(calibration: Sequence[Row]) -> Table:
    """How well each energy tells data from drafts, by t."""
    cells = [
        (_named(row), f"{row['t_from']:g} to {row['t_to']:g}", number(row["auc"], 3), str(len(row["data_energies"])))
        for row in sorted(calibration, key=lambda row: (row["energy"], row["t_from"]))
    ]
    return Table("Data against drafts", ("energy", "t", "area under the ROC curve", "pairs"), cells)


def partition_table(partition: Sequence[Row]) -> Table:
    """Both ends of log Z by the number of drafts."""
    cells = [
        (
            _named(row), str(row["draws"]), plus_minus(row["low_nats_per_token"], row["low_standard_error"]),
            plus_minus(row["high_nats_per_token"], row["high_standard_error"]),
        )
        for row in sorted(partition, key=lambda row: (row["energy"], row["draws"]))
    ]  # fmt: skip
    return Table("log Z, nats per token", ("energy", "drafts n", "low end", "high end"), cells)


def zero_shot_table(zero_shot: Sequence[Row]) -> Table:
    """Other corpora, that no model here was trained on."""
    cells = [
        (
            row["corpus"], row["model"] + (", legacy" if row["legacy"] else ""),
            plus_minus(row["nats_per_token"], row["standard_error"]), number(column("perplexity")(row), 2),
            str(row["tokens"]), row["convention"],
        )
        for row in zero_shot
    ]  # fmt: skip
    columns = ("corpus", "model", "nats per token", "perplexity", "tokens", "convention")
    return Table("Zero-shot: corpora that nothing was trained on", columns, cells)


def outcome_cell(outcome: Outcome) -> str:
    """`+0.216 +47σ`; `–` where refused, and in brackets the one with the dearest plain diffusion, which costs less."""
    if isinstance(outcome, Comparison):
        return f"{outcome.gain:+.3f}{_sigmas(outcome)}"
    if outcome.cheaper is not None:
        return f"({outcome.cheaper.gain:+.3f}{_sigmas(outcome.cheaper)})"
    return NONE


def number(value: float, digits: int) -> str:
    """The number with so many digits; `–` where it was not measured."""
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
    """A line for each sampler, a column for each T."""
    steps = sorted({row["steps"] for row in rows})
    cells = []
    for energy in (PLAIN, *energies(rows)):
        for name, group in series([row for row in rows if row["energy"] == energy]).items():
            by_steps = {row["steps"]: cell(row) for row in _own(group)}
            cells.append((title(energy), NONE if energy == PLAIN else name, *(by_steps.get(t, "") for t in steps)))
    return Table(caption, ("energy", "sampler", *(f"T = {t}" for t in steps)), cells)


def _own(group: Sequence[Row]) -> list[Row]:
    """Without the row of one step that a series of the last step alone borrows from another."""
    return [row for row in group if last_step_only(row)] or list(group)


def _sampler(row: Row) -> str:
    return ("legacy" if row["legacy"] else NONE) if row["energy"] in (DATA, AUTOREGRESSIVE, PLAIN) else words(row)


def _named(row: Row) -> str:
    return title(row["energy"]) + (", legacy" if row["legacy"] else "")
