"""Evaluate stage: likelihood bounds of every sampler and the quality of its texts, each number with its error.

python -m workflows.evaluate EXPERIMENT.yaml [--evaluate.sequences 128 ...] [--dry-run]
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from edlm.checkpoints.model_folder import digest
from edlm.checkpoints.networks import open_denoiser
from edlm.config import ConfigurationError, plain
from edlm.data.synthetic import AbstractSource
from edlm.evaluation.judge_models import TrainedJudge
from edlm.likelihood.estimate import Estimate, difference
from edlm.local_copies import local_copy
from workflows.autoregress import autoregress, judge
from workflows.command import command
from workflows.evaluation.equal_entropy_rows import matched_rows
from workflows.evaluation.grid_execution import measure_all
from workflows.evaluation.measurements.measurement import AbstractMeasurement, MeasuredRows, Row, Subject
from workflows.evaluation_settings import Evaluate
from workflows.experiment import Experiment
from workflows.finetune import finetune
from workflows.prepare import prepare
from workflows.pretrain import pretrain
from workflows.reporting.sampler_labels import planned
from workflows.reporting.terminal import report
from workflows.row_names import PLAIN
from workflows.same_tokens import require_same_tokens
from workflows.stage import Session, StageContext, once

CODE = ("workflows.evaluate", "workflows.evaluation.grid", "workflows.evaluation.equal_entropy_rows")
"""Modules that select the measurements and turn their rows into tables, text and figures."""
SUMMARY, REPORT, FIGURE = "summary.json", "report.txt", "bounds.png"
SAMPLER = ("energy", "steps", "candidates", "window_from", "window_to", "energy_temperature")

LEVELS = ("denoiser_nelbo", "autoregressive_nll")  # in the summary, the second if there is such a model

Tables = dict[str, list[Row]]


@once
def evaluate(session: Session) -> str:
    """Measure, and return the URI of the results: tables (parquet), a report (text) and figures (PNG).

    Raise ConfigurationError without an `evaluate` section.
    """
    experiment, settings = session.experiment, session.experiment.evaluate
    if settings is None:
        raise ConfigurationError("evaluate: there is no such section; add one that says what to measure")
    settings = replace(settings, judge=experiment.judge_config)
    data, denoiser, autoregressive = prepare(session), pretrain(session), autoregress(session)
    judging = judge(session) if settings.judge == TrainedJudge() else None
    energies = finetune(session)
    models = {"data": data, "denoiser": denoiser, "autoregressive": autoregressive, "judge": judging}
    inputs = {name: uri for name, uri in models.items() if uri is not None}
    inputs |= {f"energy {name}": uri for name, uri in energies.items()}
    composed = {energy.name: energy.terms for energy in settings.composed}
    corpus = experiment.data.corpus
    source = corpus if isinstance(corpus, AbstractSource) else None

    def work(work: StageContext) -> dict[str, Any]:
        from workflows.evaluation.grid import exact_kinds, fitted_grid, grid  # deferred: scikit-learn takes seconds

        require_same_tokens(inputs)
        kinds = {entry.name: entry.energy for entry in experiment.finetune}
        subject = Subject(
            data=data,
            denoiser=denoiser,
            autoregressive=autoregressive,
            judge=judging,
            energies=dict(energies),
            sequences=settings.sequences,
            seed=experiment.seed,
            source=source,
            exact={} if source is None else exact_kinds(kinds, composed),
            composed=composed,
        )
        measured = measure_all(session, *grid(experiment, settings, subject))
        measured += measure_all(session, *fitted_grid(settings, subject, measured))
        opened = open_denoiser(local_copy(denoiser))
        models = {"denoiser": opened.digest}
        models |= {f"energies/{name}": digest(local_copy(uri)) for name, uri in energies.items()}
        tables = tabulate(measured, [PLAIN, *energies, *composed, *subject.exact])
        sample = {"sequences": settings.sequences, "length": opened.length}
        return _write(experiment.name, work, tables, sample, models)

    versions = {f"corpus {corpus.name}": corpus.corpus.version() for corpus in settings.zero_shot}
    return session.run_stage("evaluate", stage_settings(experiment, settings), inputs, CODE, work, versions)


def stage_settings(experiment: Experiment, settings: Evaluate) -> dict[str, Any]:
    """Return the settings that determine the measurements, by their names in the YAML."""
    section = plain(settings)
    if not settings.composed:  # so that an evaluation from before there were any is reused
        del section["composed"]
    chosen = {"evaluate": section, "seed": experiment.seed}
    if not settings.zero_shot:
        return chosen
    registered = {"energy": experiment.register.energy, "sampler": plain(experiment.register.sampler)}
    return chosen | {"register": registered}  # the sampler that is registered is measured, too


def tabulate(measured: list[tuple[AbstractMeasurement, MeasuredRows]], order: list[str]) -> Tables:
    """Return one tidy table per kind, its rows in reading order."""
    tables: Tables = {}
    for _, result in measured:
        for name, rows in result.rows.items():
            if rows:
                tables.setdefault(name, []).extend(dict(row) for row in rows)
    if "bounds" in tables:
        tables["bounds"] = bound_rows(tables["bounds"], tables.get("cost", []))
    for row in tables.get("quality", []):
        timed = None if row["published"] else _same(tables.get("cost", []), row)
        row["seconds_per_text"] = timed["seconds_per_text"] if timed else float("nan")
    if matched := matched_rows(tables.get("quality", [])):
        tables["matched"] = matched
    rank = {name: i for i, name in enumerate(order)}
    for rows in tables.values():
        rows.sort(key=lambda row: _order(row, rank))
    return tables


def bound_rows(bounds: list[Row], cost: list[Row]) -> list[Row]:
    """Return the bounds with their gain over plain diffusion at the same T, paired by sequence, and their cost."""

    def estimate(row: Row) -> Estimate:
        return Estimate(torch.tensor(row["by_sequence"], dtype=torch.float64), 1)

    plain_by_steps = {row["steps"]: estimate(row) for row in bounds if row["energy"] == PLAIN}
    rows = []
    for row in bounds:
        gain, timed = difference(plain_by_steps[row["steps"]], estimate(row)), _same(cost, row)
        rows.append(
            {
                **row,
                "gain_nats_per_token": gain.mean,
                "gain_standard_error": gain.standard_error,
                "seconds_per_text": timed["seconds_per_text"] if timed else float("nan"),
            }
        )
    return rows + speculative_rows(rows, cost)


def speculative_rows(bounds: list[Row], cost: list[Row]) -> list[Row]:
    """Return the bounds of timed speculative samplers: those of the distribution they draw from, at their own cost."""
    cost_columns = ("energy", "seconds_per_text", "denoiser_calls", "energy_calls")
    timed = [row for row in cost if row["distribution"] != row["energy"]]
    return [
        {**twin, **{name: row[name] for name in cost_columns}}
        for row in timed
        if (twin := _same(bounds, {**row, "energy": row["distribution"]})) is not None
    ]


def _same(rows: list[Row], sampler: Row) -> Row | None:
    """Return the row of the same sampler, or None."""
    return next((row for row in rows if all(row[name] == sampler[name] for name in SAMPLER)), None)


def _order(row: Row, place: dict[str, int]) -> tuple:
    energy = row.get("energy", row.get("model", ""))
    base = str(energy).partition(",")[0]  # without what distinguishes it from the usual sampler
    return (
        place.get(energy, place.get(base, len(place)) + 0.5),
        row.get("published", False),
        row.get("window_to", 1) < 1,
        row.get("candidates", 1) or float("inf"),
        row.get("energy_temperature", 1),
        row.get("token_temperature", 1),
        -row.get("t", 0),
        row.get("steps", row.get("draws", 0)),
        str(energy),
    )


def summarise(experiment: str, tables: Tables, sample: Mapping[str, int]) -> Row:
    """Return the numbers that belong to no sampler; `sample`: the number of sequences and their length."""

    def pair(row: Row, low: str = "") -> Row:
        return {key: row[f"{low}{key}"] for key in ("nats_per_token", "standard_error")}

    reference = {row["name"]: pair(row) for row in tables["reference"]}
    by_sequence = {row["name"]: row["by_sequence"] for row in tables["reference"]}
    brackets: dict[str, list[Row]] = {}
    for row in tables.get("partition", []):  # rows ascend in draws: the last, of the most, stays
        brackets[row["energy"]] = [pair(row, "low_"), pair(row, "high_")]
    return {
        "experiment": experiment,
        **sample,
        **reference,
        "entropy_nats_per_token": reference["entropy"]["nats_per_token"] if "entropy" in reference else None,
        "entropy_by_sequence": by_sequence.get("entropy"),
        "paper_ppl_nats_NOT_A_BOUND": {
            row["energy"]: pair(row) for row in tables.get("paper", []) if row["log_partition_estimated"]
        },
        "log_partition_low_high": brackets,
    }


def _write(
    experiment: str, work: StageContext, tables: Tables, sample: Mapping[str, int], models: Mapping[str, str]
) -> dict[str, Any]:
    """Write tables, texts and figures; `models`: the digests of the measured models, by their folders in a bundle."""
    from workflows.reporting.figures.bounds import bound_figure  # deferred: Matplotlib takes a second
    from workflows.reporting.figures.quality import quality_figure

    summary = {**summarise(experiment, tables, sample), "models": dict(models)}
    quality = tables.get("quality", [])
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), work.folder / f"{name}.parquet")
    (work.folder / SUMMARY).write_text(json.dumps(summary, indent=1))
    text = report(summary, tables)
    (work.folder / REPORT).write_text(text)
    figures = {FIGURE: bound_figure(summary, tables["bounds"])}
    if quality:
        figures["quality.png"] = quality_figure(quality)
    tracker = work.tracker()
    for name, figure in figures.items():
        figure.savefig(work.folder / name, dpi=150)
        tracker.figure(name, figure)
    for name, rows in tables.items():
        tracker.table(f"{name}.json", _columns([_flat(row) for row in rows]))
    if quality:
        tracker.table("samples.json", _columns(_sample_rows(quality)))
    tracker.text(REPORT, text)
    tracker.log(0, metrics_of(summary, tables["bounds"]))
    tracker.close()
    return {name: summary[name] for name in LEVELS if name in summary}


def _flat(row: Row) -> Row:
    """Return the row without the columns of long lists, which are unreadable in a table; other lists are joined."""
    return {k: v if not isinstance(v, list) else ", ".join(map(str, v)) for k, v in row.items() if k not in _LONG}


_LONG = ("by_sequence", "texts", "data_energies", "sample_energies", "bins")


def _sample_rows(quality: list[Row]) -> list[Row]:
    keys = ("energy", "steps", "candidates", "token_temperature", "published")
    return [{**{k: row[k] for k in keys}, "text": text} for row in quality for text in row["texts"]]


def metrics_of(summary: Row, bounds: list[Row]) -> dict[str, float]:
    """Return the metrics that MLflow shows: one number per sampler, under a name that MLflow accepts."""
    metrics = {name: summary[name]["nats_per_token"] for name in LEVELS if name in summary}
    for row in bounds:
        window = "" if (row["window_from"], row["window_to"]) == (0, 1) else f"/window_{row['window_to']:g}"
        tau = "" if row["energy_temperature"] == 1 else f"/tau_{row['energy_temperature']:g}"
        energy = row["energy"].replace(", ", "/").replace("(", "- ").replace(")", "")  # not allowed by MLflow
        k = "by_plan" if planned(row) else row["candidates"] or "exact"
        name = f"bound/{energy}{window}{tau}/k_{k}/T_{row['steps']}"
        metrics[name] = row["bound_nats_per_token"]
    return metrics


def _columns(rows: list[Row]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def shown(folder: Path) -> str:
    """Return the text report."""
    return (folder / REPORT).read_text()


if __name__ == "__main__":
    command(__doc__, evaluate, lambda session: print(shown(local_copy(evaluate(session)))))
