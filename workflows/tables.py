"""The report that a person reads at the end: what the models reach, what each sampler reaches, and what it writes."""

from typing import Any

Row = dict[str, Any]
NAME = 18  # columns for an energy's name
MOST_SIGMAS = 99


def report(summary: Row, bounds: list[Row], quality: list[Row]) -> str:
    """Plain text for a terminal."""
    return "\n".join([*_likelihood(summary), "", *_bounds(bounds), "", *_quality(quality), "", *_texts(quality)])


def _likelihood(summary: Row) -> list[str]:
    lines = [f"Likelihood, nats per token, {summary['sequences']} validation sequences of {summary['length']} tokens"]
    lines.append(f"  denoiser, NELBO (T = infinity)   {_pm(summary['denoiser_nelbo'])}")
    lines.append(f"  autoregressive model             {_pm(summary['autoregressive_nll'])}")
    for name, estimate in summary["paper_ppl_nats_NOT_A_BOUND"].items():
        low, high = summary["log_partition_low_high"][name]
        label = f"the paper's estimator, {name}"
        lines.append(
            f"  {label:<32} {_pm(estimate)}  NOT a bound;"
            f" log Z estimated {low['nats_per_token']:+.3f} (low) {high['nats_per_token']:+.3f} (high)"
        )
    return lines


def _bounds(bounds: list[Row]) -> list[str]:
    steps = sorted({row["steps"] for row in bounds})
    lines = ["T-step bounds of the samplers, nats per token (standard error in the last digits); lower is better"]
    lines.append("  " + f"{'energy':<{NAME}}{'window':<11}{'k':>6}" + "".join(f"{f'T={t}':>12}" for t in steps))
    groups: dict[tuple, dict[int, Row]] = {}
    for row in bounds:
        last = row["window_to"] < 1
        # With one step the last step is all steps.
        if row["steps"] == 1 and last:
            continue
        groups.setdefault((row["energy"], last, row["candidates"]), {})[row["steps"]] = row
    for (energy, last, candidates), by_steps in groups.items():
        cells = "".join(f"{_short(by_steps[t]) if t in by_steps else '':>12}" for t in steps)
        window = "last step" if last else "all steps"
        lines.append(f"  {energy:<{NAME}}{window:<11}{_k(candidates):>6}{cells}")
    lines.append("Gain over plain diffusion at the same T, in paired standard errors (above 3 is beyond doubt)")
    for (energy, last, candidates), by_steps in groups.items():
        if energy == "plain":
            continue
        cells = "".join(f"{_sigmas(by_steps[t]) if t in by_steps else '':>12}" for t in steps)
        window = "last step" if last else "all steps"
        lines.append(f"  {energy:<{NAME}}{window:<11}{_k(candidates):>6}{cells}")
    return lines


def _quality(quality: list[Row]) -> list[str]:
    lines = ["Generated text under the judge: generative perplexity never without entropy (means over samples)"]
    lines.append(
        f"  {'energy':<{NAME}}{'T':>4}{'k':>6}{'gen. ppl':>10}{'nats/token':>16}{'entropy':>14}{'distinct-4':>11}"
        f"{'ESS':>7}{'distinct':>9}{'calls p':>8}{'calls E':>8}{'seconds':>8}"
    )
    for row in quality:
        lines.append(
            f"  {row['energy']:<{NAME}}{row['steps']:>4}{_k(row['candidates']):>6}{row['generative_perplexity']:>10.2f}"
            f"{_with(row['nll_nats_per_token'], row['nll_standard_error']):>16}"
            f"{_with(row['entropy_nats'], row['entropy_standard_error']):>14}{row['distinct_ngrams']:>11.3f}"
            f"{_or_dash(row['ess']):>7}{_or_dash(row['distinct_candidates']):>9}"
            f"{row['denoiser_calls']:>8.1f}{row['energy_calls']:>8.1f}{row['seconds']:>8.2f}"
        )
    lines.append("  calls: network passes per text of the denoiser and of the energy (one for each candidate)")
    return lines


def _texts(quality: list[Row]) -> list[str]:
    plain = next(row for row in quality if row["energy"] == "plain")
    best = min(
        (row for row in quality if row["energy"] != "plain" and row["steps"] == plain["steps"]),
        key=lambda row: row["nll_nats_per_token"],
        default=plain,
    )
    lines = [f"Two texts of T = {plain['steps']} steps"]
    for row in (plain, best):
        lines.append(f"  {row['energy']}, k = {_k(row['candidates'])}: {row['texts'][0]!r}")
    return lines


def _pm(estimate: Row) -> str:
    return f"{estimate['nats_per_token']:.4f} ± {estimate['standard_error']:.4f}"


def _short(row: Row) -> str:
    return f"{row['bound_nats_per_token']:.3f}({round(row['standard_error'] * 1000)})"


def _sigmas(row: Row) -> str:
    if row["gain_standard_error"] == 0:  # nothing was resampled in any sequence, or all gain the same
        return f"{row['gain_nats_per_token']:+.3f}"
    sigmas = row["gain_nats_per_token"] / row["gain_standard_error"]
    return f"{row['gain_nats_per_token']:+.3f} {max(-MOST_SIGMAS, min(MOST_SIGMAS, sigmas)):+.0f}σ"


def _with(value: float, error: float) -> str:
    return f"{value:.3f} ± {error:.3f}"


def _or_dash(value: float) -> str:
    return "-" if value != value else f"{value:.2f}"


def _k(candidates: int) -> str:
    return str(candidates) if candidates else "exact"
