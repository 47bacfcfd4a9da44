"""The chapter about a source whose law is known: how far denoiser, energies and texts are from the truth."""

from collections.abc import Sequence

from workflows.reporting.document import Block, Heading, Paragraph, Table
from workflows.reporting.findings import plus_minus
from workflows.reporting.results import Results
from workflows.reporting.samplers import PLAIN, Row, title, words
from workflows.reporting.tabulation import NONE, number


def truth_blocks(results: Results) -> list[Block]:
    """Nothing, where the law of the source is not known."""
    tables = [
        table(rows)
        for table, rows in (
            (marginal_table, results.marginal_truth),
            (energy_table, results.energy_truth),
            (sample_table, results.sample_truth),
        )
        if rows
    ]
    if not tables:
        return []
    explained = (
        "The law of the source is known, and with it the best denoiser and the best energy. Energies named exact are "
        "not learned: they are log p_θ − log q. The correlation of a learned energy with the exact one is high for any "
        "energy that finds impossible text unlikely; what counts is the gain that is lost."
    )
    return [Heading("Against the truth"), Paragraph(explained), *tables]


def marginal_table(rows: Sequence[Row]) -> Table:
    """The denoiser's marginals, by t."""
    cells = [
        (
            f"{row['t_from']:g} to {row['t_to']:g}", plus_minus(row["kl_nats_per_position"], row["kl_standard_error"]),
            plus_minus(row["nelbo_above_entropy_nats_per_token"], row["nelbo_standard_error"]),
        )
        for row in rows
    ]  # fmt: skip
    columns = ("t", "KL from the exact marginals, nats per position", "NELBO above the truth, nats per token")
    return Table("The denoiser against the exact marginals", columns, cells)


def energy_table(rows: Sequence[Row]) -> Table:
    """How differently a learned energy chooses, and what that costs."""
    cells = [
        (
            title(row["energy"]), str(row["candidates"]), row["where"],
            *(plus_minus(row[name], row[f"{name}_standard_error"])
              for name in ("choice_total_variation", "exact_gain", "lost_gain")),
            number(row["correlation_misleading"], 2),
        )
        for row in rows
    ]  # fmt: skip
    columns = (
        "energy", "k", "where", "choice differs, total variation", "gain of the exact energy, nats per group",
        "of it lost", "correlation (misleading)",
    )  # fmt: skip
    return Table("Learned energies against the exact one", columns, cells)


def sample_table(rows: Sequence[Row]) -> Table:
    """How probable the texts are under the law, and whether neighbours go together as they should."""
    cells = [
        (
            title(row["energy"]), str(row["steps"]), NONE if row["energy"] == PLAIN else words(row),
            plus_minus(row["excess_nats_per_token"], row["excess_standard_error"]), f"{row['possible_share']:.1%}",
            number(row["pair_total_variation"], 4), number(row["pair_total_variation_of_law"], 4),
        )
        for row in rows
    ]  # fmt: skip
    columns = (
        "energy", "T", "sampler", "−log q above the entropy, nats per token", "possible texts",
        "pairs, total variation", "the same of as many true texts",
    )  # fmt: skip
    return Table("Texts against the law", columns, cells)
