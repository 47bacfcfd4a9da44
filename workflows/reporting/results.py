"""Results of an evaluation, read from its output folder, and the measurements that are missing."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from workflows.reporting.sampler_labels import Row
from workflows.row_names import NO_STEPS

SUMMARY = "summary.json"

_COMMON = ("seed", "precision", "published", "seconds", "sequences")
_SAMPLER = ("energy", "steps", "candidates", "window_from", "window_to", "energy_temperature")
_NO_SAMPLER: Row = {"steps": 0, "candidates": 1, "window_from": 0.0, "window_to": 1.0, "energy_temperature": 1.0}


@dataclass(frozen=True)
class Expected:
    """A table that an evaluation may write: description, required columns, and optional numbers."""

    name: str
    description: str
    columns: Sequence[str]
    numbers: Sequence[str] = ()

    @property
    def file(self) -> str:
        """File name in the output folder."""
        return f"{self.name}.parquet"


TABLES = (
    Expected(
        "bounds", "the T-step bounds of the samplers",
        (*_SAMPLER, *_COMMON, "repeats", "bound_nats_per_token", "standard_error", "gain_nats_per_token",
         "gain_standard_error"),
        ("denoiser_calls", "energy_calls", "by_sequence", "whole_sequence", "block"),
    ),
    Expected(
        "quality", "the judge's scores of generated texts",
        (*_SAMPLER, *_COMMON, "nll_nats_per_token", "nll_standard_error", "entropy_nats", "entropy_standard_error",
         "texts"),
        ("judge", "token_temperature", "generative_perplexity", "distinct_ngrams", "repetition", "divergence", "flags",
         "ess", "distinct_candidates", "denoiser_calls", "energy_calls", "seconds_per_text"),
    ),
    Expected(
        "trajectory", "the weights and the candidates along the trajectory",
        (*_SAMPLER, *_COMMON, "t", "ess", "distinct_candidates"),
        ("token_temperature",),
    ),
    Expected(
        "calibration", "how well the energies distinguish data from samples",
        (*_COMMON, "energy", "t_from", "t_to", "auc", "bins", "data_energies", "sample_energies"),
    ),
    Expected(
        "partition", "the bracket of log Z by the number of samples",
        (*_COMMON, "energy", "draws", "low_nats_per_token", "low_standard_error", "high_nats_per_token",
         "high_standard_error"),
    ),
    Expected(
        "zero_shot", "likelihood on other corpora",
        (*_COMMON, "corpus", "model", "nats_per_token", "standard_error", "tokens", "convention"),
        ("perplexity", "bits_per_byte", "word_perplexity"),
    ),
    Expected(
        "matched", "texts at the entropy of the data, by a sweep of the token temperature",
        (*_SAMPLER, *_COMMON, "judge", "entropy_nats", "nll_nats_per_token", "nll_standard_error", "reason",
         "token_temperature_from", "token_temperature_to"),
        ("denoiser_calls", "energy_calls", "seconds_per_text"),
    ),
    Expected(
        "cost", "seconds of samplers, timed alone",
        (*_SAMPLER, *_COMMON, "seconds_per_text", "seconds_least", "seconds_most", "texts_at_once"),
        ("denoiser_calls", "energy_calls"),
    ),
    Expected("paper", "the published estimator", (*_COMMON, "energy", "method", "nats_per_token", "standard_error")),
    Expected(
        "sampled_race_entropy", "the entropy of texts by the published races",
        (*_COMMON, "steps", "sampler", "entropy_nats", "entropy_standard_error", "entropy_bits"),
    ),
    Expected(
        "race_entropy", "the entropy that the published races leave of the denoiser's distributions",
        (*_COMMON, "steps", "sampler", "entropy_nats", "entropy_standard_error", "entropy_bits"),
    ),
    Expected(
        "step_grids", "the times of the steps fitted to the bound",
        (*_SAMPLER, *_COMMON, "times", "bound_nats_per_token", "standard_error", "gain_over_equal_steps",
         "gain_standard_error"),
    ),
    Expected(
        "effort", "the plans of adaptive effort",
        (*_SAMPLER, *_COMMON, "budget", "plan", "promised_gain", "planned_seconds", "bound_nats_per_token",
         "standard_error", "gain_over_plain", "gain_standard_error", "seconds_per_text"),
    ),
    Expected(
        "marginal_distance", "the denoiser against the exact distribution of the source",
        (*_COMMON, "t_from", "t_to", "kl_nats_per_position", "kl_standard_error",
         "nelbo_above_entropy_nats_per_token", "nelbo_standard_error"),
    ),
    Expected(
        "energy_distance", "the energies against the exact distribution of the source",
        (*_COMMON, "energy", "candidates", "subset", "choice_total_variation", "choice_total_variation_standard_error",
         "exact_gain", "exact_gain_standard_error", "lost_gain", "lost_gain_standard_error", "correlation_misleading"),
    ),
    Expected(
        "sample_distance", "the texts against the exact distribution of the source",
        (*_SAMPLER, *_COMMON, "possible_share", "excess_nats_per_token", "excess_standard_error",
         "pair_total_variation", "pair_total_variation_of_source"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Results:
    """Rows of every table (empty if not measured), and the missing tables with reasons."""

    summary: Row
    bounds: Sequence[Row] = ()
    quality: Sequence[Row] = ()
    trajectory: Sequence[Row] = ()
    calibration: Sequence[Row] = ()
    partition: Sequence[Row] = ()
    zero_shot: Sequence[Row] = ()
    matched: Sequence[Row] = ()
    cost: Sequence[Row] = ()
    paper: Sequence[Row] = ()
    sampled_race_entropy: Sequence[Row] = ()
    race_entropy: Sequence[Row] = ()
    step_grids: Sequence[Row] = ()
    effort: Sequence[Row] = ()
    marginal_distance: Sequence[Row] = ()
    energy_distance: Sequence[Row] = ()
    sample_distance: Sequence[Row] = ()
    missing: Sequence[tuple[str, str]] = ()

    @property
    def rows(self) -> list[Row]:
        """All rows of all tables."""
        return [row for table in TABLES for row in getattr(self, table.name)]


def read_results(folder: Path) -> Results:
    """Read all tables from the output folder of an evaluation; absent tables are recorded as missing."""
    tables, missing = {}, []
    for expected in TABLES:
        tables[expected.name], lacking = _read(folder / expected.file, expected)
        missing += [(expected.name, f"{expected.description}: {lacking}.")] if lacking else []
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    return Results(summary=summary, missing=missing, **tables)


def _read(path: Path, expected: Expected) -> tuple[list[Row], str]:
    """Return the rows and a description of what is missing; without all required columns there are no rows."""
    if not path.exists():
        return [], f"not measured, there is no {path.name}"
    table = pq.read_table(path)
    if not table.num_rows:
        return [], f"not measured, {path.name} has no rows"
    absent = [name for name in expected.columns if name not in table.column_names]
    if absent:
        return [], f"not usable, {path.name} has no {', '.join(absent)}"
    lacking = [name for name in expected.numbers if name not in table.column_names]
    numbers = {field.name for field in table.schema if pa.types.is_floating(field.type)}
    rows = [_whole(row, numbers) for row in table.to_pylist()]
    return rows, f"not measured are {', '.join(lacking)}" if lacking else ""


def _whole(row: Row, numbers: set[str]) -> Row:
    """Return the row with nan for missing numbers, and with T = 0 if no diffusion sampler generated it.

    The token temperature defaults to 1.
    """
    filled = {name: math.nan if value is None and name in numbers else value for name, value in row.items()}
    filled.setdefault("token_temperature", 1.0)
    if row.get("energy") in NO_STEPS and "steps" in row:
        filled |= _NO_SAMPLER
    return filled
