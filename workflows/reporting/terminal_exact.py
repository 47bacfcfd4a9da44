"""Terminal report section for a source with a known distribution: distance of the models from it."""

from typing import Any

from workflows.reporting.exact_comparison import by_sampler, excess, gain_shares, nelbo_excess

Row = dict[str, Any]
NAME = 18  # columns for an energy's name


def exact_lines(summary: Row, tables: dict[str, list[Row]]) -> list[str]:
    """Return the lines of the section; none if the distribution is unknown."""
    if summary["entropy_nats_per_token"] is None:
        return []
    return [
        "Against the exact distribution of the source",
        *_nelbo(summary, tables.get("marginal_distance", [])),
        *_shares(tables["bounds"]),
        *_excess(tables["bounds"], summary),
        *_marginals(tables.get("marginal_distance", [])),
        *_energies(tables.get("energy_distance", [])),
        *_samples(tables.get("sample_distance", [])),
    ]


def _nelbo(summary: Row, marginals: list[Row]) -> list[str]:
    entropy = summary["entropy_nats_per_token"]
    lines = [f"  -log q of these sequences {entropy:.4f} nats per token"]
    if marginals:
        above, error = nelbo_excess(marginals)
        lines[0] += f"; the denoiser's NELBO is {above / entropy:+.3%} ± {error / entropy:.3%} above it"
    return lines


def _shares(bounds: list[Row]) -> list[str]:
    """Report the gain of each learned energy as a share of the exact energy's gain on this denoiser."""
    lines = ["  fraction of the gain of the exact energy on the same positions, same k and T:"]
    for learned in gain_shares(bounds):
        cells = "  ".join(f"T={t} {share:.0%}" for t, share in learned.by_steps.items())
        lines.append(f"    {learned.energy:<{NAME}}k = {learned.candidates:<3} of {learned.exact_energy:<14}{cells}")
    return lines


def _excess(bounds: list[Row], summary: Row) -> list[str]:
    """Report the bounds of exactly sampled energies relative to the entropy."""
    entropy, lines = summary["entropy_nats_per_token"], []
    for rows in by_sampler(bounds):
        if rows[0]["candidates"] == 0:
            cells = "  ".join(f"T={row['steps']} {excess(row, summary).gain / entropy:+.2%}" for row in rows)
            lines.append(f"  {rows[0]['energy']}, exact, above the entropy: {cells}")
    return lines


def _marginals(rows: list[Row]) -> list[str]:
    cells = [f"t {r['t_from']:g} to {r['t_to']:g}: {r['kl_nats_per_position']:.4f}" for r in rows]
    return (
        [f"  KL of the denoiser's marginals from the exact ones, nats per position: {'  '.join(cells)}"] if rows else []
    )


def _energies(rows: list[Row]) -> list[str]:
    lines = ["  learned energies against log p_theta - log q (k candidates at the same x_t):"] if rows else []
    for row in rows:
        lines.append(
            f"    {row['energy']:<{NAME}}{row['subset']:<20}resampling differs by "
            f"{row['choice_total_variation']:.3f} (TV), "
            f"{row['lost_gain']:.3f} of {row['exact_gain']:.3f} nats of gain lost; "
            f"correlation {row['correlation_misleading']:.2f} (misleading)"
        )
    return lines


def _samples(rows: list[Row]) -> list[str]:
    lines = ["  texts: -log q above the entropy, nats per token; total variation of neighboring pairs (chance level):"]
    for row in rows:
        k = row["candidates"] or "exact"
        lines.append(
            f"    {row['energy']:<{NAME}}T = {row['steps']:<3}k = {k!s:<6}{row['excess_nats_per_token']:+.3f} ± "
            f"{row['excess_standard_error']:.3f}, possible {row['possible_share']:.0%}, "
            f"pairs {row['pair_total_variation']:.3f} ({row['pair_total_variation_of_source']:.3f})"
        )
    return lines if rows else []
