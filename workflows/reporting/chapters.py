"""Chapters of the report: sentences, tables and figures from the rows of an evaluation, in reading order."""

from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure

from cluster.tracking.training_curves import Curves
from workflows.reporting.document import (
    Bullet,
    Bullets,
    DocumentBlock,
    Heading,
    Paragraph,
    Picture,
    Table,
    Verbatim,
    visible,
)
from workflows.reporting.figures.bounds import bound_calls_figure, bound_figure, bound_seconds_figure, gain_figure
from workflows.reporting.figures.calibration import calibration_figure
from workflows.reporting.figures.partition import partition_figure
from workflows.reporting.figures.quality import (
    matched_seconds_figure,
    quality_calls_figure,
    quality_figure,
    quality_seconds_figure,
)
from workflows.reporting.figures.quality_cost import quality_cost_figure
from workflows.reporting.figures.training import gain_by_time_figure, loss_figure
from workflows.reporting.figures.trajectory import distinct_figure, ess_figure
from workflows.reporting.findings import (
    LIKELIHOOD,
    MATCHED,
    TEXTS,
    Topic,
    energy_findings,
    level_findings,
    published_findings,
    refusals,
    sampler_at,
    short_findings,
    standings,
)
from workflows.reporting.quantities import BOUND, CALLS, ENTROPY, JUDGED, TEXT_SECONDS, Quantity, measured
from workflows.reporting.results import Results
from workflows.reporting.sampler_labels import PUBLISHED, Row, energies, title
from workflows.reporting.tabulation import (
    bound_table,
    calibration_table,
    comparison_table,
    cost_table,
    effort_table,
    gain_table,
    level_table,
    partition_table,
    standing_table,
    step_grid_table,
    zero_shot_table,
)
from workflows.reporting.text_tabulation import (
    matched_table,
    quality_table,
    race_entropy_table,
    sampled_race_entropy_table,
    trajectory_table,
)
from workflows.row_names import DATA, PLAIN

TEXTS_SHOWN = 2  # per sampler

METHOD = (
    Bullet(
        "Samplers",
        "Plain diffusion unmasks a text in T steps and samples the tokens of a step independently of one another. "
        "With an energy E, a step draws k candidates and resamples one with probability proportional to exp(−E / "
        "τ); exact "
        "is k → ∞. All steps resample unless a row says otherwise: last step means that only the last one does.",
    ),
    Bullet(
        "Bounds",
        "A T-step bound is an upper bound on −log p of the sampler that runs, for every k (in expectation; the table "
        "has its estimate ± one standard error over the test sequences). The denoiser's NELBO is a bound, the "
        "autoregressive model's likelihood is exact.",
    ),
    Bullet(
        "Not bounds",
        "The paper's estimator is not a bound and is shown for comparison with published tables only. A judge's "
        "score of generated "
        "texts is not a likelihood and is meaningful only beside their entropy: judges favor repetition. The two "
        "ends of log "
        "Z are estimates, biased low and high.",
    ),
    Bullet(
        "Controls",
        "Plain diffusion at the same T, at the same network calls, and at the same seconds; and k candidates with "
        "uniform weights, which show the effect of drawing k candidates without information.",
    ),
    Bullet(
        "Same cost",
        "Plain diffusion is interpolated linearly in the logarithm of the cost between its measurements and never "
        "extrapolated. Where its curve is convex, which is typical, the straight line lies above it and favors the "
        "energies. Each candidate counts as one network call, whatever fraction of a pass it takes, which "
        "disadvantages "
        "light energies. "
        "Seconds are the sampling time, measured with no other measurement running.",
    ),
    Bullet(
        "Significance",
        "A difference counts beyond 3 standard errors; smaller ones are undecided, because there are dozens of "
        "comparisons. Bounds are paired by sequence, so that the difficulty of a sequence cancels; texts "
        "are not paired, and the errors of both sides add as if independent. The best of several samplers is selected "
        "after the fact.",
    ),
)

SIGMAS = (
    "In nats per token; σ: standard errors of the difference. Better and worse: beyond 3σ; among the samplers of an "
    "energy, the one with the largest difference is named."
)
READING = (
    "+0.216 +47σ: better by 0.216 nats per token, 47 standard errors. –: not comparable. In brackets: more "
    "expensive than any "
    "measured plain diffusion, so compared with the most expensive one, which costs less."
)


def finding_blocks(results: Results) -> list[DocumentBlock]:
    """Return the headlines: levels, then bounds and texts with all their comparisons."""
    blocks: list[DocumentBlock] = [Heading("Findings")]
    levels = [*level_findings(results.summary, results.bounds), *published_findings(results.rows)]
    blocks += [Bullets(levels)] if levels else []
    blocks += _quality_cost(results)
    blocks += _in_short("Summary of bounds", LIKELIHOOD, results.bounds)
    judged = [(TEXTS, judge, rows) for judge, rows in by_judge(at_temperature_one(results.quality)).items()]
    judged += [(MATCHED, judge, rows) for judge, rows in by_judge(results.matched).items()]
    for topic, judge, rows in judged:
        blocks += _in_short(f"{topic.name}: summary ({judge})", topic, rows)
    return blocks


def _quality_cost(results: Results) -> list[DocumentBlock]:
    """Return the figure that shows whether an energy is worth its cost, using the first judge."""
    judge, matched = next(iter(by_judge(results.matched).items()), (None, []))
    data = next((row for row in results.quality if row["energy"] == DATA and row.get("judge") == judge), None)
    caption = (
        "Every sampler that resamples in all steps, by network calls and by seconds: its T-step bound and, where it "
        "was judged, the generative perplexity of its texts at the entropy of the data (bars: 2 standard errors). The "
        "shaded band is the frontier: samplers that no other one beats at their cost."
    )
    return _picture(
        "quality-cost", caption, results.bounds, (BOUND, TEXT_SECONDS),
        lambda: quality_cost_figure(results.summary, results.bounds, matched, results.cost, data, results.effort),
    )  # fmt: skip


def at_temperature_one(rows: Sequence[Row]) -> list[Row]:
    """Drop the sweep of token temperatures, which `matched` summarizes."""
    return [row for row in rows if row.get("token_temperature", 1.0) == 1]


def by_judge(quality: Sequence[Row]) -> dict[str, list[Row]]:
    """Group the rows by judge, because scores of different judges are not comparable."""
    rows_by_judge: dict[str, list[Row]] = {}
    for row in quality:
        rows_by_judge.setdefault(row.get("judge") or "unnamed judge", []).append(row)
    return rows_by_judge


def _in_short(name: str, topic: Topic, rows: Sequence[Row]) -> list[DocumentBlock]:
    bullets = short_findings(topic, rows)
    if not bullets:
        return [Heading(name, 3), Paragraph("No comparable measurements.")]
    return [
        Heading(name, 3),
        Paragraph(SIGMAS),
        Bullets(bullets),
        standing_table(topic, rows),
        Paragraph(_notes(topic, rows)),
    ]


def likelihood_blocks(results: Results) -> list[DocumentBlock]:
    """Return the bounds: tables and figures, then each energy in sentences and numbers."""
    rows, summary = results.bounds, results.summary
    blocks: list[DocumentBlock] = [Heading("Likelihood"), level_table(summary, results.paper)]
    if not rows:
        return [*blocks, Paragraph("Bounds were not measured.")]
    tables = [bound_table(rows), gain_table(rows), *([cost_table(results.cost)] if results.cost else [])]
    tables += [step_grid_table(results.step_grids)] if results.step_grids else []
    tables += [effort_table(results.effort)] if results.effort else []
    return [
        *blocks,
        *_picture("bound-steps", "T-step bound against T.", rows, (BOUND,), lambda: bound_figure(summary, rows)),
        *_picture(
            "gain-steps",
            "Gain over plain diffusion at the same T; the axis is linear within ±0.01 and logarithmic beyond.",
            rows if energies(rows) else [], (BOUND,), lambda: gain_figure(rows),
        ),
        *_picture(
            "bound-calls", "T-step bound against network calls; a light head counts as one call.",
            rows, (BOUND, CALLS), lambda: bound_calls_figure(summary, rows),
        ),
        *_picture(
            "bound-seconds", "T-step bound against the sampler's seconds per text.",
            rows, (BOUND, TEXT_SECONDS), lambda: bound_seconds_figure(summary, rows),
        ),
        *tables,
        *_energy_by_energy(LIKELIHOOD, "The bound by energy", rows),
    ]  # fmt: skip


def text_blocks(results: Results) -> list[DocumentBlock]:
    """Return the generated texts and their scores under each judge."""
    judges, matched = by_judge(results.quality), by_judge(results.matched)
    blocks: list[DocumentBlock] = [Heading("Generated texts")]
    if not judges:
        blocks.append(Paragraph("No judge: texts were not judged."))
    for i, (judge, rows) in enumerate(judges.items(), 1):
        suffix = "" if i == 1 else f"-judge-{i}"
        blocks += [Heading(f"Judge: {judge}", 3), *_judged(rows, suffix), *_matched(matched.get(judge, []), suffix)]
    if judges:
        texts = _texts(at_temperature_one(next(iter(judges.values()))))
        blocks += [Verbatim(f"Texts at the largest T, {TEXTS_SHOWN} per sampler", texts, folded=True)]
    blocks += [sampled_race_entropy_table(results.sampled_race_entropy)] if results.sampled_race_entropy else []
    return blocks + ([race_entropy_table(results.race_entropy)] if results.race_entropy else [])


def _matched(rows: Sequence[Row], suffix: str) -> list[DocumentBlock]:
    """Return the judge's scores at equal entropy."""
    if not rows:
        return [Paragraph("At equal entropy: not measured; a sweep of evaluate.token_temperatures measures it.")]
    return [
        Heading("At the entropy of the data", 3),
        matched_table(rows),
        *_picture(
            f"matched-seconds{suffix}", "The judge's nats per token at the entropy of the data, against seconds.",
            rows, (JUDGED, TEXT_SECONDS), lambda: matched_seconds_figure(rows),
        ),
        *_energy_by_energy(MATCHED, "At the entropy of the data, by energy", rows),
    ]  # fmt: skip


def _judged(rows: Sequence[Row], suffix: str) -> list[DocumentBlock]:
    """Return figures and tables of one judge; `suffix` makes its picture names unique."""
    untempered = at_temperature_one(rows)
    return [
        *_picture(
            f"quality-calls{suffix}", "The judge's nats per token against network calls.",
            untempered, (JUDGED, CALLS), lambda: quality_calls_figure(untempered),
        ),
        *_picture(
            f"quality-seconds{suffix}", "The judge's nats per token against seconds per text.",
            untempered, (JUDGED, TEXT_SECONDS), lambda: quality_seconds_figure(untempered),
        ),
        *_picture(
            f"quality-entropy{suffix}", "The judge's nats per token against the entropy of the same texts.",
            rows, (JUDGED, ENTROPY), lambda: quality_figure(rows),
        ),
        quality_table(rows),
        *_energy_by_energy(TEXTS, "The judge, by energy", untempered),
    ]  # fmt: skip


def weight_blocks(results: Results) -> list[DocumentBlock]:
    """Return the behavior of the energies: weights along the trajectory, calibration and log Z."""
    blocks: list[DocumentBlock] = []
    if rows := at_temperature_one(results.trajectory):
        blocks += [
            Heading("Weights along the trajectory", 3),
            Picture("ess", ess_figure(rows), "Effective sample size of the candidates, from t = 1 to 0."),
            Picture("distinct", distinct_figure(rows), "Number of distinct candidates, from t = 1 to 0."),
            trajectory_table(rows),
        ]
    if rows := results.calibration:
        blocks += [Heading("Data against samples", 3), calibration_table(rows)]
        for energy in dict.fromkeys(row["energy"] for row in rows):
            caption = f"{energy}: energies of data and samples, reliability of σ(−E), area under the ROC curve by t."
            blocks.append(Picture(f"calibration-{energy}", calibration_figure(energy, rows), caption))
    if rows := results.partition:
        caption = "Both ends of log Z, which converge as n grows."
        blocks += [Heading("log Z", 3), Picture("partition", partition_figure(rows), caption), partition_table(rows)]
    return [Heading("Energies"), *(blocks or [Paragraph("Neither weights nor calibration nor log Z were measured.")])]


def zero_shot_blocks(results: Results) -> list[DocumentBlock]:
    """Return the likelihoods on other corpora."""
    blocks: list[DocumentBlock] = [zero_shot_table(results.zero_shot)] if results.zero_shot else []
    return [Heading("Other corpora"), *(blocks or [Paragraph("Not measured.")])]


def training_blocks(training: Mapping[str, Curves]) -> list[DocumentBlock]:
    """Return the training curves of all stages."""
    figures = (
        ("training-loss", loss_figure(training), "Training loss of each stage."),
        ("training-gain", gain_by_time_figure(training), "Gain of a step during the training of an energy, by t."),
    )
    pictures = [Picture(name, figure, caption) for name, figure, caption in figures if figure is not None]
    return [Heading("Training"), *(pictures or [Paragraph("The tracking store has no curves of these stages.")])]


def missing_blocks(results: Results, stages: Sequence[str]) -> list[DocumentBlock]:
    """List the missing contents of the report; `stages`: stages without a run in the tracking store."""
    lost = "seconds, commit, machine and curves: its run is not in the tracking store."
    items = [Bullet(name, text) for name, text in (*results.missing, *((stage, lost) for stage in stages))]
    return [Heading("Not measured"), *([Bullets(items)] if items else [Paragraph("Nothing is missing.")])]


def _picture(
    name: str, caption: str, rows: Sequence[Row], axes: Sequence[Quantity], draw: Callable[[], Figure]
) -> list[DocumentBlock]:
    """Return the figure, or a sentence if no row has all required quantities."""
    if measured(rows, *axes):
        return [Picture(name, draw(), caption)]
    return [Paragraph(f"No figure: {caption.rstrip('.')}: not measured.")]


def _energy_by_energy(topic: Topic, name: str, rows: Sequence[Row]) -> list[DocumentBlock]:
    bullets = energy_findings(topic, rows)
    if not bullets:
        return []
    tables: list[Table] = [comparison_table(topic, energy, rows) for energy in energies(rows)]
    return [Heading(name, 3), Bullets(bullets), Paragraph(READING), *tables]


def _notes(topic: Topic, rows: Sequence[Row]) -> str:
    all_standings = list(standings(topic, rows).values())
    reasons = refusals(
        [
            ranking
            for standing in all_standings
            for ranking in (standing.steps, standing.calls, standing.seconds, standing.uniform)
        ]
    )
    return f"+n: n more could not be compared, because {'; '.join(reasons)}." if reasons else "All were compared."


def _texts(rows: Sequence[Row]) -> str:
    lines = []
    most: dict[str, int] = {}
    for row in rows:
        most[row["energy"]] = max(row["steps"], most.get(row["energy"], 0))
    for row in rows:
        if row["steps"] == most[row["energy"]] and row["texts"]:
            named = title(row["energy"]) if row["energy"] not in (PLAIN, *energies(rows)) else sampler_at(row)
            published = f", {PUBLISHED}" if row["published"] and PUBLISHED not in named else ""
            lines += [f"{named}{published}", *(f"  {visible(text)}" for text in row["texts"][:TEXTS_SHOWN])]
    return "\n".join(lines)
