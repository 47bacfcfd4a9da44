"""Report chapter for a source with a known distribution: distance of denoiser, energies and texts from it."""

from collections.abc import Sequence

from workflows.reporting.document import DocumentBlock, Heading, Paragraph, Table
from workflows.reporting.exact_comparison import by_sampler, excess, gain_shares, nelbo_excess
from workflows.reporting.findings import plus_minus
from workflows.reporting.results import Results
from workflows.reporting.sampler_labels import Row, title, words
from workflows.reporting.tabulation import NONE, number
from workflows.row_names import PLAIN


def exact_blocks(results: Results) -> list[DocumentBlock]:
    """Return the chapter; empty if the distribution of the source is unknown."""
    known = results.summary.get("entropy_nats_per_token") is not None
    tables = [
        *([share_table(results.bounds), excess_table(results.bounds, results.summary)] if known else []),
        *(
            table(rows)
            for table, rows in (
                (marginal_table, results.marginal_distance),
                (energy_table, results.energy_distance),
                (sample_table, results.sample_distance),
            )
            if rows
        ),
    ]
    if not tables:
        return []
    explained = (
        "The distribution of the source is known, and with it the optimal denoiser and energy. Energies named exact "
        "are "
        "not learned: they are log p_θ − log q. The correlation of a learned energy with the exact one is high for any "
        "energy that gives impossible text a high energy; the lost gain is the measure."
    )
    level: list[DocumentBlock] = []
    if known and results.marginal_distance:
        entropy, (above, error) = results.summary["entropy_nats_per_token"], nelbo_excess(results.marginal_distance)
        text = f"The denoiser's NELBO lies {above / entropy:.3%} ± {error / entropy:.3%} above the entropy."
        level = [Paragraph(text)]
    return [Heading("Against the exact distribution"), Paragraph(explained), *level, *tables]


def share_table(bounds: Sequence[Row]) -> Table:
    """Return the gains of the learned energies as shares of the exact energies' gains."""
    shares = gain_shares(bounds)
    steps = sorted({t for share in shares for t in share.by_steps})
    cells = []
    for share in shares:
        percent = (f"{share.by_steps[t]:.0%}" if t in share.by_steps else NONE for t in steps)
        cells.append((share.energy, str(share.candidates), share.exact_energy, *percent))
    caption = "Gain over plain diffusion, as a fraction of the gain of the exact energy on the same positions"
    return Table(caption, ("energy", "k", "exact energy", *(f"T = {t}" for t in steps)), cells)


def excess_table(bounds: Sequence[Row], summary: Row) -> Table:
    """Return the excess of every sampler's bound over the entropy."""
    entropy, steps = summary["entropy_nats_per_token"], sorted({row["steps"] for row in bounds})
    cells = []
    for rows in by_sampler(bounds):
        by_steps = {row["steps"]: excess(row, summary) for row in rows}
        percent = (
            f"{by_steps[t].gain / entropy:+.2%} ± {by_steps[t].standard_error / entropy:.2%}" if t in by_steps else NONE
            for t in steps
        )  # fmt: skip
        cells.append((title(rows[0]["energy"]), NONE if rows[0]["energy"] == PLAIN else words(rows[0]), *percent))
    caption = "Bounds above the entropy of the source, as a fraction of it, paired by sequence"
    return Table(caption, ("energy", "sampler", *(f"T = {t}" for t in steps)), cells)


def marginal_table(rows: Sequence[Row]) -> Table:
    """Return the distance of the denoiser's marginals from the exact ones, by t."""
    cells = [
        (
            f"{row['t_from']:g} to {row['t_to']:g}",
            plus_minus(row["kl_nats_per_position"], row["kl_standard_error"], 5),
            plus_minus(row["nelbo_above_entropy_nats_per_token"], row["nelbo_standard_error"], 5),
        )
        for row in rows
    ]  # fmt: skip
    columns = ("t", "KL from the exact marginals, nats per position", "NELBO above the entropy, nats per token")
    return Table("The denoiser against the exact marginals", columns, cells)


def energy_table(rows: Sequence[Row]) -> Table:
    """Return how the choices of a learned energy differ from the exact one's, and the gain lost by that."""
    cells = [
        (
            title(row["energy"]), str(row["candidates"]), row["subset"],
            *(plus_minus(row[name], row[f"{name}_standard_error"])
              for name in ("choice_total_variation", "exact_gain", "lost_gain")),
            number(row["correlation_misleading"], 2),
        )
        for row in rows
    ]  # fmt: skip
    columns = (
        "energy", "k", "subset", "resampling, total variation", "gain of the exact energy, nats per group",
        "gain lost", "correlation (misleading)",
    )  # fmt: skip
    return Table("Learned energies against the exact one", columns, cells)


def sample_table(rows: Sequence[Row]) -> Table:
    """Return the probability of the texts under the distribution, and how well their adjacent pairs match it."""
    cells = [
        (
            title(row["energy"]), str(row["steps"]), NONE if row["energy"] == PLAIN else words(row),
            plus_minus(row["excess_nats_per_token"], row["excess_standard_error"]), f"{row['possible_share']:.1%}",
            number(row["pair_total_variation"], 4), number(row["pair_total_variation_of_source"], 4),
        )
        for row in rows
    ]  # fmt: skip
    columns = (
        "energy", "T", "sampler", "−log q above the entropy, nats per token", "possible texts",
        "pairs, total variation", "the same, exact samples",
    )  # fmt: skip
    return Table("Texts against the exact distribution", columns, cells)
