"""Tables of generated texts: judge scores, entropies and sampling trajectories."""

from collections.abc import Sequence
from itertools import groupby

from workflows.reporting.document import Table
from workflows.reporting.findings import plus_minus
from workflows.reporting.quantities import CALLS, ENTROPY, JUDGED, TEXT_SECONDS, column
from workflows.reporting.sampler_labels import PUBLISHED, Row, energies, series, title
from workflows.reporting.tabulation import NONE, number, sampler_of, series_rows, steps_of
from workflows.row_names import NO_STEPS, PLAIN


def quality_table(quality: Sequence[Row]) -> Table:
    """Return the judge's score of every sampler's texts, with their entropy, diversity and cost."""
    names = [*NO_STEPS, PLAIN, *energies(quality)]
    ordered = sorted(quality, key=lambda row: (steps_of(row), names.index(row["energy"])))
    cells = [
        (
            title(row["energy"]), str(steps_of(row) or NONE), sampler_of(row), f"{column('token_temperature')(row):g}",
            plus_minus(JUDGED.value(row), JUDGED.error_of(row)), number(column("generative_perplexity")(row), 2),
            plus_minus(ENTROPY.value(row), ENTROPY.error_of(row)),
            plus_minus(column("divergence")(row), column("divergence_standard_error")(row)),
            number(column("distinct_ngrams")(row), 3), number(column("repetition")(row), 3),
            number(column("ess")(row), 2), number(column("distinct_candidates")(row), 2),
            number(column("denoiser_calls")(row), 1), number(column("energy_calls")(row), 1),
            number(TEXT_SECONDS.value(row), 4), ", ".join(row.get("flags") or []) or NONE,
        )
        for row in ordered
    ]  # fmt: skip
    columns = (
        "energy", "T", "sampler", "token temperature", "judge, nats per token", "generative perplexity",
        "entropy, nats", "divergence (MAUVE)", "distinct n-grams", "repetition", "ESS", "distinct candidates",
        "denoiser calls", "energy calls", "seconds per text", "flags",
    )  # fmt: skip
    return Table("Generated texts (read perplexity beside entropy)", columns, cells)


def matched_table(matched: Sequence[Row]) -> Table:
    """Return the judge's score of each sampler at the entropy of the data, or why that entropy is not reached."""
    cells = [
        (
            title(row["energy"]), str(steps_of(row) or NONE), sampler_of(row),
            row["reason"] or plus_minus(JUDGED.value(row), JUDGED.error_of(row)), number(ENTROPY.value(row), 3),
            f"{row['token_temperature_from']:g} to {row['token_temperature_to']:g}" if not row["reason"] else NONE,
            number(CALLS.value(row), 1), number(TEXT_SECONDS.value(row), 4),
        )
        for row in matched
    ]  # fmt: skip
    columns = (
        "energy", "T", "sampler", "judge, nats per token", "entropy, nats", "between token temperatures", "calls",
        "seconds per text",
    )  # fmt: skip
    return Table("Texts at the entropy of the data, interpolated between two token temperatures", columns, cells)


def race_entropy_table(rows: Sequence[Row]) -> Table:
    """Return the entropy of the denoiser's distributions, and what the published race leaves of it."""
    return _entropies("Entropy of the token distributions, and of those under float32 races (published sampler)", rows)


def sampled_race_entropy_table(rows: Sequence[Row]) -> Table:
    """Return the entropy of plain diffusion's texts sampled by the published races and exactly."""
    caption = (
        "Unigram entropy of plain diffusion's texts, by the published races in float32 (published sampler) and exactly"
    )
    return _entropies(caption, rows)


def _entropies(caption: str, rows: Sequence[Row]) -> Table:
    cells = [
        (
            str(row["steps"]),
            row["sampler"] + (f", {PUBLISHED}" if row["published"] and PUBLISHED not in row["sampler"] else ""),
            plus_minus(row["entropy_nats"], row["entropy_standard_error"]), number(row["entropy_bits"], 3),
        )
        for row in rows
    ]  # fmt: skip
    return Table(caption, ("T", "draws", "entropy, nats", "entropy, bits"), cells)


def trajectory_table(trajectory: Sequence[Row]) -> Table:
    """Return the effective sample size and the distinct candidates at both ends of each trajectory."""
    cells = []
    for energy in energies(trajectory):
        for name, group in series([row for row in trajectory if row["energy"] == energy]).items():
            for steps, along in groupby(series_rows(group), key=lambda row: row["steps"]):
                ends = sorted(along, key=lambda row: -row["t"])
                ess, distinct = column("ess"), column("distinct_candidates")
                both = (number(value(row), 2) for value in (ess, distinct) for row in (ends[0], ends[-1]))
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
