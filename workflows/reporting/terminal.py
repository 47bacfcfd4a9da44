"""Terminal report: likelihoods of the models, results of each sampler, and sample texts."""

from typing import Any

from workflows.reporting.sampler_labels import planned
from workflows.reporting.terminal_exact import exact_lines
from workflows.row_names import AUTOREGRESSIVE, NO_STEPS, PLAIN, UNIFORM

Row = dict[str, Any]
NAME = 36  # columns for an energy's name
MOST_SIGMAS = 99


def report(summary: Row, tables: dict[str, list[Row]]) -> str:
    """Return the report as plain text."""
    sections = [
        _likelihood(summary, tables.get("paper", [])),
        _bounds(tables["bounds"]),
        exact_lines(summary, tables),
        _quality(tables.get("quality", [])),
        _matched(tables.get("matched", [])),
        _calibration(tables.get("calibration", [])),
        _zero_shot(tables.get("zero_shot", [])),
        _race_entropies("of plain diffusion's texts", tables.get("sampled_race_entropy", [])),
        _race_entropies("of the token distributions", tables.get("race_entropy", [])),
        _texts(tables.get("quality", [])),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _likelihood(summary: Row, paper: list[Row]) -> list[str]:
    lines = [f"Likelihood, nats per token, {summary['sequences']} validation sequences of {summary['length']} tokens"]
    lines.append(f"  {'denoiser, NELBO (T = infinity)':<76}{_pm(summary['denoiser_nelbo'])}")
    if "autoregressive_nll" in summary:
        lines.append(f"  {'autoregressive model':<76}{_pm(summary['autoregressive_nll'])}")
    for row in paper:
        label = f"the paper's estimator (NOT a bound), {row['energy']}, {row['method']}"
        lines.append(f"  {label:<76}{_pm(row)}")
    for name, (low, high) in summary["log_partition_low_high"].items():
        ends = f"{low['nats_per_token']:+.4f} (low) {high['nats_per_token']:+.4f} (high)"
        lines.append(f"  {f'log Z estimated, {name}':<76}{ends}")
    return lines


def _bounds(bounds: list[Row]) -> list[str]:
    steps = sorted({row["steps"] for row in bounds})
    lines = ["T-step bounds of the samplers, nats per token (standard error in the last digits); lower is better"]
    wide = _width(bounds)
    lines.append("  " + f"{'energy':<{wide}}{'window':<11}{'k':>6}" + "".join(f"{f'T={t}':>12}" for t in steps))
    groups: dict[tuple, dict[int, Row]] = {}
    for row in bounds:
        name = row["energy"] + ("" if row["energy_temperature"] == 1 else f", tau {row['energy_temperature']:g}")
        groups.setdefault((name, _window(row), _k(row)), {})[row["steps"]] = row
    for (name, window, k), by_steps in groups.items():
        cells = "".join(f"{_short(by_steps[t]) if t in by_steps else '':>12}" for t in steps)
        lines.append(f"  {name:<{wide}}{window:<11}{k:>6}{cells}")
    lines.append("Gain over plain diffusion at the same T, in paired standard errors (significant above 3)")
    for (name, window, k), by_steps in groups.items():
        if name == PLAIN:
            continue
        cells = "".join(f"{_sigmas(by_steps[t]) if t in by_steps else '':>12}" for t in steps)
        lines.append(f"  {name:<{wide}}{window:<11}{k:>6}{cells}")
    lines.append("  uniform: the control, k candidates with uniform weights")
    return lines


def _width(rows: list[Row]) -> int:
    """Return the column width of the longest energy name."""
    return max(NAME, *(len(row["energy"]) + 2 for row in rows))


def _window(row: Row) -> str:
    low, high = row["window_from"], row["window_to"]
    if (low, high) == (0, 1):
        return "all steps"
    return "last step" if low == 0 and abs(high * row["steps"] - 1) < 1e-9 else f"{low:g} to {high:g}"


def _quality(quality: list[Row]) -> list[str]:
    if not quality:
        return ["No judge: texts were not judged"]
    judges = ", ".join(dict.fromkeys(row["judge"] + (" (retokenised)" * row["retokenised"]) for row in quality))
    lines = [f"Texts under the judge {judges}: generative perplexity beside entropy (means over texts)"]
    wide = _width(quality)
    lines.append(
        f"  {'energy':<{wide}}{'T':>4}{'k':>6}{'tok. T':>7}{'gen. ppl':>10}{'nats/token':>16}{'entropy':>14}"
        f"{'distinct-4':>11}{'MAUVE':>7}{'ESS':>7}{'distinct':>9}{'calls p':>8}{'calls E':>8}{'ms/text':>10}"
    )
    for row in quality:
        sampled = row["energy"] not in NO_STEPS
        steps, k = (str(row["steps"]), _k(row)) if sampled else ("", "")
        lines.append(
            f"  {row['energy'] + ' (published)' * row['published']:<{wide}}{steps:>4}{k:>6}"
            f"{row['token_temperature']:>7g}"
            f"{row['generative_perplexity']:>10.2f}{_with(row['nll_nats_per_token'], row['nll_standard_error']):>16}"
            f"{_with(row['entropy_nats'], row['entropy_standard_error']):>14}{row['distinct_ngrams']:>11.3f}"
            f"{row['divergence']:>7.2f}{_or_dash(row['ess']):>7}{_or_dash(row['distinct_candidates']):>9}"
            f"{row['denoiser_calls']:>8.1f}{row['energy_calls']:>8.1f}{_or_dash(row['seconds_per_text'] * 1000):>10}"
            + ("  ! " + ", ".join(row["flags"]) if row["flags"] else "")
        )
    lines.append("  calls: network passes per text of the denoiser and of the energy (one per candidate)")
    lines.append("  tok. T: token temperature; repeater: sanity check, the beginning of a data text repeated")
    return lines


def _matched(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    lines = ["The same at the entropy of the data, by a sweep of the token temperature: judge, nats per token"]
    wide = _width(rows)
    for row in rows:
        sampled = row["energy"] != AUTOREGRESSIVE
        steps, k = (str(row["steps"]), _k(row)) if sampled else ("", "")
        reached = row["reason"] or _with(row["nll_nats_per_token"], row["nll_standard_error"])
        lines.append(f"  {row['energy'] + ' (published)' * row['published']:<{wide}}{steps:>4}{k:>6}  {reached}")
    return lines


def _calibration(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    quarters = sorted({(row["t_from"], row["t_to"]) for row in rows})
    lines = ["Energies trained to distinguish data from samples: AUC (data has the lower energy), by t"]
    lines.append("  " + f"{'energy':<{NAME}}" + "".join(f"{f'{low:g} to {high:g}':>14}" for low, high in quarters))
    by_energy: dict[str, dict[tuple[float, float], Row]] = {}
    for row in rows:
        by_energy.setdefault(row["energy"], {})[row["t_from"], row["t_to"]] = row
    for energy, by_time in by_energy.items():
        lines.append("  " + f"{energy:<{NAME}}" + "".join(f"{by_time[q]['auc']:>14.3f}" for q in quarters))
    return lines


def _zero_shot(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    lines = ["Zero-shot likelihood: corpora unseen in training"]
    for row in rows:
        numbers = f"{_pm(row)} nats per token, perplexity {row['perplexity']:.2f}"
        numbers += f", {row['bits_per_byte']:.4f} bits per byte"
        lines.append(f"  {row['corpus']:<{NAME}}{row['model']:<44}{numbers}")
    lines += [f"  {corpus}: {rules}" for corpus, rules in dict.fromkeys((r["corpus"], r["convention"]) for r in rows)]
    return lines


def _race_entropies(what: str, rows: list[Row]) -> list[str]:
    if not rows:
        return []
    lines = [f"PUBLISHED SAMPLER: entropy {what}, by the published races and exactly (nats; bits as published)"]
    for row in rows:
        entropy = _with(row["entropy_nats"], row["entropy_standard_error"])
        lines.append(f"  T = {row['steps']:<5}{row['sampler']:<34}{entropy:>16}{row['entropy_bits']:>9.3f} bits")
    return lines


def _texts(quality: list[Row]) -> list[str]:
    if not quality:
        return []
    sampled = [
        row for row in quality if row["denoiser_calls"] > 0 and row["token_temperature"] == 1 and not row["published"]
    ]
    plain = next(row for row in sampled if row["energy"] == PLAIN)
    best = min(
        (row for row in sampled if row["energy"] not in (PLAIN, UNIFORM) and row["steps"] == plain["steps"]),
        key=lambda row: row["nll_nats_per_token"],
        default=plain,
    )
    lines = [f"Two texts of T = {plain['steps']} steps"]
    for row in (plain, best):
        lines.append(f"  {row['energy']}, k = {_k(row)}: {row['texts'][0]!r}")
    return lines


def _pm(estimate: Row) -> str:
    return f"{estimate['nats_per_token']:.4f} ± {estimate['standard_error']:.4f}"


def _short(row: Row) -> str:
    return f"{row['bound_nats_per_token']:.3f}({round(row['standard_error'] * 1000)})"


def _sigmas(row: Row) -> str:
    if row["gain_standard_error"] == 0:  # no sequence was resampled, or all gain the same
        return f"{row['gain_nats_per_token']:+.3f}"
    sigmas = row["gain_nats_per_token"] / row["gain_standard_error"]
    return f"{row['gain_nats_per_token']:+.3f} {max(-MOST_SIGMAS, min(MOST_SIGMAS, sigmas)):+.0f}σ"


def _with(value: float, error: float) -> str:
    return f"{value:.3f} ± {error:.3f}"


def _or_dash(value: float) -> str:
    return "-" if value != value else f"{value:.2f}"


def _k(row: Row) -> str:
    return "plan" if planned(row) else str(row["candidates"] or "exact")
