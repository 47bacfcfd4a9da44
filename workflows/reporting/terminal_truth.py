"""What a report says where the source's law is known: how near the models are to the truth."""

from typing import Any

Row = dict[str, Any]
NAME = 18  # columns for an energy's name


def truth_lines(summary: Row, tables: dict[str, list[Row]]) -> list[str]:
    """Nothing, where the law is not known."""
    if summary["entropy_nats_per_token"] is None:
        return []
    entropy, nelbo = summary["entropy_nats_per_token"], summary["denoiser_nelbo"]["nats_per_token"]
    return [
        "Against the truth: the source's law is known",
        f"  -log q of these sequences {entropy:.4f} nats per token, the denoiser's NELBO {nelbo / entropy - 1:+.2%}",
        *_shares(tables["bounds"]),
        *_excess(tables["bounds"], entropy),
        *_marginals(tables.get("marginal_truth", [])),
        *_energies(tables.get("energy_truth", [])),
        *_samples(tables.get("sample_truth", [])),
    ]


def _shares(bounds: list[Row]) -> list[str]:
    """Of what the exact energy of the same kind gains on this denoiser, how much the learned one gains."""
    steps = sorted({row["steps"] for row in bounds})
    whole = [row for row in bounds if (row["window_from"], row["window_to"], row["temperature"]) == (0, 1, 1)]
    gains = {(r["energy"], r["candidates"], r["steps"]): r["gain_nats_per_token"] for r in whole}
    lines = ["  share of the exact energy's gain, same k, T and blocks:"]
    for energy in dict.fromkeys(row["energy"] for row in whole):
        if energy.startswith("exact") or energy in ("plain", "uniform"):
            continue
        for k in sorted({row["candidates"] for row in whole if row["energy"] == energy and row["candidates"] > 1}):
            for exact in dict.fromkeys(r["energy"] for r in whole if r["energy"].startswith("exact-step")):
                cells = [
                    f"T={t} {gains[energy, k, t] / gains[exact, k, t]:.0%}"
                    for t in steps
                    if gains.get((exact, k, t), 0) > 0 and (energy, k, t) in gains
                ]
                lines.append(f"    {energy:<{NAME}}k = {k:<3} of {exact:<14}{'  '.join(cells)}")
    return lines


def _excess(bounds: list[Row], entropy: float) -> list[str]:
    """How far above the entropy exactly sampled energies are."""
    lines = []
    for energy in dict.fromkeys(row["energy"] for row in bounds if row["candidates"] == 0):
        cells = [
            f"T={row['steps']} {row['bound_nats_per_token'] / entropy - 1:+.2%}"
            for row in bounds
            if row["energy"] == energy and row["candidates"] == 0
        ]
        lines.append(f"  {energy}, exact, above the entropy: {'  '.join(cells)}")
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
            f"    {row['energy']:<{NAME}}{row['where']:<20}choice differs by {row['choice_total_variation']:.3f} (TV), "
            f"{row['lost_gain']:.3f} of {row['exact_gain']:.3f} nats of gain lost; "
            f"correlation {row['correlation_misleading']:.2f} (misleading)"
        )
    return lines


def _samples(rows: list[Row]) -> list[str]:
    lines = [
        "  texts: -log q above the entropy, nats per token; total variation of neighbouring pairs (by chance alone):"
    ]
    for row in rows:
        k = row["candidates"] or "exact"
        lines.append(
            f"    {row['energy']:<{NAME}}T = {row['steps']:<3}k = {k!s:<6}{row['excess_nats_per_token']:+.3f} ± "
            f"{row['excess_standard_error']:.3f}, possible {row['possible_share']:.0%}, "
            f"pairs {row['pair_total_variation']:.3f} ({row['pair_total_variation_of_law']:.3f})"
        )
    return lines if rows else []
