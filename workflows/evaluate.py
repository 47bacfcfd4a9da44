"""Evaluate: likelihood bounds of every sampler, and the quality of what it writes, each number with its error.

python -m workflows.evaluate EXPERIMENT.yaml [--evaluate.sequences 128 ...]
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.tasks import spread
from edlm.config import from_command_line, plain
from edlm.likelihood import Estimate, difference
from edlm.models import open_denoiser, open_energy
from edlm.sampler import EXACT, Sampler
from edlm.storage import local_copy
from workflows.autoregress import autoregress, judge
from workflows.experiment import Experiment
from workflows.figures.bounds import bound_figure
from workflows.figures.quality import quality_figure
from workflows.finetune import finetune
from workflows.measure import PLAIN, Bound, Drawn, Measured, Reference, References, Samples, Subject, measure
from workflows.prepare import prepare
from workflows.pretrain import pretrain
from workflows.stage import Session, Work, say, session
from workflows.tables import report

BOUNDS, QUALITY, SUMMARY, REPORT, FIGURE = (
    "bounds.parquet",
    "quality.parquet",
    "summary.json",
    "report.txt",
    "bounds.png",
)

Row = dict[str, Any]


def evaluate(
    session: Session, data: str, denoiser: str, autoregressive: str, judging: str, energies: Mapping[str, str]
) -> str:
    """The URI of the measurements: tables (parquet), a report (text) and figures (PNG)."""
    experiment = session.experiment
    inputs = {"data": data, "denoiser": denoiser, "autoregressive": autoregressive, "judge": judging}
    inputs |= {f"energy {name}": uri for name, uri in energies.items()}

    def work(work: Work) -> dict[str, Any]:
        subject = Subject(
            data=data,
            denoiser=denoiser,
            autoregressive=autoregressive,
            judge=judging,
            energies=dict(energies),
            sequences=experiment.evaluate.sequences,
            seed=experiment.seed,
        )
        results = _measure_all(experiment, subject)
        return _write(experiment, work, subject, results)

    settings = {"evaluate": plain(experiment.evaluate), "seed": experiment.seed}
    return session.run_stage("evaluate", settings, inputs, work)


def cells(experiment: Experiment, subject: Subject) -> list[Bound | Samples | Reference]:
    """Everything to measure, the longest first."""
    wanted, denoiser = experiment.evaluate, open_denoiser(local_copy(subject.denoiser))
    found: list[Bound | Samples | Reference] = [
        Bound(subject, PLAIN, Sampler(steps=steps), repeats=1) for steps in wanted.steps
    ]
    found += [Samples(subject, PLAIN, Sampler(steps=steps), wanted.samples) for steps in wanted.sample_steps]
    for name, uri in subject.energies.items():
        energy = open_energy(local_copy(uri), denoiser)
        many = [k for k in wanted.candidates if k > 1] + ([EXACT] if energy.normalised else [])
        for steps in wanted.steps:
            # The last step alone is where whole drafts throw nothing away (docs/mathematics.md 4).
            windows = {(0.0, 1.0), (0.0, 1 / steps)} if energy.drafts else {(0.0, 1.0)}
            found += [
                Bound(subject, name, Sampler(steps=steps, candidates=k, window=window), wanted.repeats)
                for window in sorted(windows)
                for k in many
            ]
        for steps in wanted.sample_steps:
            found += [
                Samples(subject, name, Sampler(steps=steps, candidates=k), wanted.samples)
                for k in {max(wanted.candidates), EXACT if energy.normalised else max(wanted.candidates)}
            ]
    found.append(Reference(subject, wanted.nelbo_draws, wanted.paper_draws, wanted.log_partition_draws))
    return sorted(found, key=_cost, reverse=True)


def _cost(cell: Bound | Samples | Reference) -> float:
    if isinstance(cell, Reference):
        return float("inf")
    return cell.sampler.steps * max(cell.sampler.candidates, 4)


def _measure_all(experiment: Experiment, subject: Subject) -> list[tuple[Any, Any]]:
    work = cells(experiment, subject)
    results = []
    machines = experiment.cluster
    for cell, result in spread(measure, work, machines.cpus_per_worker, machines.gpus_per_worker):
        results.append((cell, result))
        if len(results) % max(1, len(work) // 10) == 0 or len(results) == len(work):
            say("evaluate", f"{len(results)} of {len(work)} cells measured")
    return results


def _write(experiment: Experiment, work: Work, subject: Subject, results: list[tuple[Any, Any]]) -> dict[str, Any]:
    length = open_denoiser(local_copy(subject.denoiser)).length
    references = next(result for result in (r for _, r in results) if isinstance(result, References))
    bounds = bound_rows([(c, r) for c, r in results if isinstance(c, Bound)], length)
    quality = [_quality_row(c, r) for c, r in results if isinstance(c, Samples)]
    order = [PLAIN, *subject.energies]
    quality.sort(key=lambda row: (row["steps"], order.index(row["energy"]), *_by_k(row)))
    summary = {
        "experiment": experiment.name,
        "sequences": subject.sequences,
        "length": length,
        "denoiser_nelbo": _per_token(references.denoiser_nelbo, length),
        "autoregressive_nll": _per_token(references.autoregressive_nll, length),
        "paper_ppl_nats_NOT_A_BOUND": {name: _per_token(e, length) for name, e in references.paper.items()},
        "log_partition_low_high": {
            name: [_per_token(end, length) for end in ends] for name, ends in references.log_partition.items()
        },
    }
    pq.write_table(pa.Table.from_pylist(bounds), work.folder / BOUNDS)
    pq.write_table(pa.Table.from_pylist(quality), work.folder / QUALITY)
    (work.folder / SUMMARY).write_text(json.dumps(summary, indent=1))
    text = report(summary, bounds, quality)
    (work.folder / REPORT).write_text(text)
    figures = {FIGURE: bound_figure(summary, bounds), "quality.png": quality_figure(quality)}
    tracker = work.tracker()
    for name, figure in figures.items():
        figure.savefig(work.folder / name, dpi=150)
        tracker.figure(name, figure)
    tracker.table("bounds.json", _columns(bounds))
    tracker.table("quality.json", _columns([{k: v for k, v in row.items() if k != "texts"} for row in quality]))
    tracker.table("samples.json", _columns(_sample_rows(quality)))
    tracker.text(REPORT, text)
    tracker.log(0, _metrics(summary, bounds))
    tracker.close()
    return {"denoiser_nelbo": summary["denoiser_nelbo"], "autoregressive_nll": summary["autoregressive_nll"]}


def bound_rows(results: list[tuple[Bound, Measured]], length: int) -> list[Row]:
    """The tidy table of bounds in nats per token; gains are paired with plain diffusion on the same noise."""
    plain_by_steps = {c.sampler.steps: r.estimate for c, r in results if c.energy == PLAIN}
    rows = []
    for cell, result in results:
        gain = difference(plain_by_steps[cell.sampler.steps], result.estimate)
        rows.append(
            {
                "energy": cell.energy,
                "steps": cell.sampler.steps,
                "candidates": cell.sampler.candidates,
                "window_from": cell.sampler.window[0],
                "window_to": cell.sampler.window[1],
                "temperature": cell.sampler.temperature,
                "legacy": False,
                "repeats": cell.repeats,
                "bound_nats_per_token": result.estimate.mean / length,
                "standard_error": result.estimate.standard_error / length,
                "gain_nats_per_token": gain.mean / length,
                "gain_standard_error": gain.standard_error / length,
                "sequences": len(result.estimate.values),
                "seed": cell.subject.seed,
                "precision": "float32",
                "seconds": result.seconds,
            }
        )
    order = [PLAIN, *results[0][0].subject.energies]
    return sorted(rows, key=lambda row: (order.index(row["energy"]), row["window_to"] < 1, *_by_k(row)))


def _by_k(row: Row) -> tuple[float, int]:
    return row["candidates"] or float("inf"), row["steps"]


def _quality_row(cell: Samples, drawn: Drawn) -> Row:
    sampler = cell.sampler
    return {
        "energy": cell.energy,
        "steps": sampler.steps,
        "candidates": sampler.candidates,
        "window_from": sampler.window[0],
        "window_to": sampler.window[1],
        "temperature": sampler.temperature,
        "seed": cell.subject.seed,
        "precision": "float32",
        "legacy": False,
        "sequences": cell.count,
        "seconds_per_text": drawn.seconds / cell.count,
        **asdict(drawn),
    }


def _sample_rows(quality: list[Row]) -> list[Row]:
    keys = ("energy", "steps", "candidates")
    return [{**{k: row[k] for k in keys}, "text": text} for row in quality for text in row["texts"]]


def _per_token(estimate: Estimate, length: int) -> dict[str, float]:
    return {"nats_per_token": estimate.mean / length, "standard_error": estimate.standard_error / length}


def _metrics(summary: Row, bounds: list[Row]) -> dict[str, float]:
    metrics = {name: summary[name]["nats_per_token"] for name in ("denoiser_nelbo", "autoregressive_nll")}
    for row in bounds:
        whole = "" if row["window_to"] == 1 else "_last_step"
        name = f"bound/{row['energy']}{whole}/k_{row['candidates'] or 'exact'}/T_{row['steps']}"
        metrics[name] = row["bound_nats_per_token"]
    return metrics


def _columns(rows: list[Row]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def main() -> None:
    experiment = from_command_line(Experiment, description=__doc__)
    with session(experiment) as opened:
        data = prepare(opened)
        denoiser, ar, judging = pretrain(opened, data), autoregress(opened, data), judge(opened, data)
        energies = finetune(opened, data, denoiser, ar)
        report_uri = evaluate(opened, data, denoiser, ar, judging, energies)
        print((local_copy(report_uri) / REPORT).read_text())


if __name__ == "__main__":
    main()
