"""The chapter about a source whose law is known: how far denoiser, energies and texts are from the truth."""

from collections.abc import Sequence

from workflows.reporting.document import DocumentBlock, Heading, Paragraph, Table
from workflows.reporting.findings import plus_minus
from workflows.reporting.results import Results
from workflows.reporting.samplers import PLAIN, Row, title, words
from workflows.reporting.tabulation import NONE, number
from workflows.reporting.truth import by_sampler, excess, gain_shares, nelbo_excess


def truth_blocks(results: Results) -> list[DocumentBlock]:
    """Nothing, where the law of the source is not known."""
    known = results.summary.get("entropy_nats_per_token") is not None
    tables = [
        *([share_table(results.bounds), excess_table(results.bounds, results.summary)] if known else []),
        *(
            table(rows)
            for table, rows in (
                (marginal_table, results.marginal_truth),
                (energy_table, results.energy_truth),
                (sample_table, results.sample_truth),
            )
            if rows
        ),
    ]
    if not tables:
        return []
    explained = (
        "The law of the source is known, and with it the best denoiser and the best energy. Energies named exact are "
        "not learned: they are log p_θ − log q. The correlation of a learned energy with the exact one is high for any "
        "energy that finds impossible text unlikely; what counts is the gain that is lost."
    )
    level: list[DocumentBlock] = []
    if known and results.marginal_truth:
        entropy, (above, error) = results.summary["entropy_nats_per_token"], nelbo_excess(results.marginal_truth)
        text = f"The denoiser's NELBO lies {above / entropy:.3%} ± {error / entropy:.3%} above the entropy."
        level = [Paragraph(text)]
    return [Heading("Against the truth"), Paragraph(explained), *level, *tables]


def share_table(bounds: Sequence[Row]) -> Table:
    """What the learned energies gain, as a share of what the exact ones do."""
    shares = gain_shares(bounds)
    steps = sorted({t for one in shares for t in one.by_steps})
    cells = []
    for one in shares:
        percent = (f"{one.by_steps[t]:.0%}" if t in one.by_steps else NONE for t in steps)
        cells.append((one.energy, str(one.candidates), one.of, *percent))
    caption = "Gain over plain diffusion, as a share of the gain of the exact energy that weighs the same"
    return Table(caption, ("energy", "k", "exact energy", *(f"T = {t}" for t in steps)), cells)


def excess_table(bounds: Sequence[Row], summary: Row) -> Table:
    """How far every sampler's bound lies above the entropy."""
    entropy, steps = summary["entropy_nats_per_token"], sorted({row["steps"] for row in bounds})
    cells = []
    for rows in by_sampler(bounds):
        found = {row["steps"]: excess(row, summary) for row in rows}
        percent = (
            f"{found[t].gain / entropy:+.2%} ± {found[t].standard_error / entropy:.2%}" if t in found else NONE
            for t in steps
        )  # fmt: skip
        cells.append((title(rows[0]["energy"]), NONE if rows[0]["energy"] == PLAIN else words(rows[0]), *percent))
    caption = "Bounds above the entropy of the source, as a share of it, paired sequence by sequence"
    return Table(caption, ("energy", "sampler", *(f"T = {t}" for t in steps)), cells)


def marginal_table(rows: Sequence[Row]) -> Table:
    """The denoiser's marginals, by t."""
    cells = [
        (
            f"{row['t_from']:g} to {row['t_to']:g}",
            plus_minus(row["kl_nats_per_position"], row["kl_standard_error"], 5),
            plus_minus(row["nelbo_above_entropy_nats_per_token"], row["nelbo_standard_error"], 5),
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
