"""Rows in the format of an evaluation, of an invented experiment with plausible numbers."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

Row = dict[str, Any]

SEQUENCES = 300
LENGTH = 64
NELBO, AR = 2.021, 1.545
STEPS = (1, 2, 4, 8, 16, 32)
CANDIDATES = (2, 8, 32)
PLAIN = dict(zip(STEPS, (2.845, 2.429, 2.222, 2.135, 2.087, 2.055), strict=True))
# (fraction of log k gained per step in nats, network passes per candidate, whether it is sampled exactly)
ENERGIES = {
    "step-blocks": (0.060, 0.05, False),
    "step-whole": (0.009, 0.05, False),
    "conditional": (0.012, 0.05, True),
    "conditional-deep": (0.020, 0.08, True),
    "whole-sequence-nce": (0.003, 1.0, False),
    "ar": (-0.050, 1.0, False),
    "coar": (-0.040, 1.0, False),
    "published-nce": (0.002, 1.0, False),
    "copula": (0.030, 0.3, False),
    "product": (0.035, 0.6, False),
}
WHOLE_SEQUENCE = ("whole-sequence-nce", "ar", "coar", "published-nce")
COMMON: Row = {"seed": 0, "precision": "float32", "published": False, "sequences": SEQUENCES}
ALL_STEPS: Row = {"window_from": 0.0, "window_to": 1.0, "energy_temperature": 1.0}


def summary() -> Row:
    number = {"nats_per_token": NELBO, "standard_error": 0.011}
    return {
        "experiment": "made-up",
        "sequences": SEQUENCES,
        "length": LENGTH,
        "denoiser_nelbo": number,
        "autoregressive_nll": {"nats_per_token": AR, "standard_error": 0.010},
        "paper_ppl_nats_NOT_A_BOUND": {"coar": {"nats_per_token": 0.955, "standard_error": 0.05}},
        "log_partition_low_high": {
            "coar": [
                {"nats_per_token": -0.488, "standard_error": 0.02},
                {"nats_per_token": -0.405, "standard_error": 0.02},
            ]
        },
        "entropy_nats_per_token": None,
    }


def bounds() -> list[Row]:
    rows = [_bound("plain", steps, 1, PLAIN[steps], 0.0, 0.0, steps * 0.011) for steps in STEPS]
    for steps in STEPS:
        rows += [_bound("uniform", steps, k, PLAIN[steps], 0.0, 0.0, steps * 0.012) for k in CANDIDATES]
    for energy, (share, pass_cost, exact) in ENERGIES.items():
        for steps in STEPS:
            for k in (*CANDIDATES, *([0] if exact else [])):
                seconds = steps * (0.011 + 0.011 * pass_cost * (k or 4))
                rows += list(_of_energy(energy, steps, k, share, seconds))
    return rows


def _of_energy(energy: str, steps: int, k: int, share: float, seconds: float) -> Iterator[Row]:
    power = share * math.log(k or 400)
    gain = power * (2 / steps**0.8 if share > 0 else steps**1.05 * (0.3 if steps > 2 else -0.1))
    yield _bound(energy, steps, k, PLAIN[steps] - gain, gain, 0.003 + abs(gain) / 60, seconds)
    if energy in WHOLE_SEQUENCE and steps > 1:
        gain = abs(power) / 4
        row = _bound(energy, steps, k, PLAIN[steps] - gain, gain, 0.002, seconds)
        yield row | {"window_to": 1 / steps}
    if energy == "published-nce":
        yield _bound(energy, steps, k, PLAIN[steps] + 0.08, -0.08, 0.004, seconds) | {"published": True}


def _bound(energy, steps, k, bound, gain, error, seconds) -> Row:
    return {
        "energy": energy, "steps": steps, "candidates": k, **ALL_STEPS, "repeats": 1,
        "bound_nats_per_token": bound, "standard_error": 0.0075, "gain_nats_per_token": gain, "by_sequence": [],
        "whole_sequence": energy in WHOLE_SEQUENCE if energy in ENERGIES else None, "block": None,
        "gain_standard_error": error, "denoiser_calls": float(steps),
        "energy_calls": 0.0 if k == 1 else steps * float(k or 1),
        **COMMON, "seconds": seconds * SEQUENCES, "seconds_per_text": seconds,
    }  # fmt: skip


def quality() -> list[Row]:
    rows = [
        _quality("data", 0, 1, 1.57, 2.81, 0.0, 0.0, 0.0),
        _quality("autoregressive", 0, 1, 1.72, 2.80, 64.0, 0.0, 0.2),
    ]
    judged = dict(zip((1, 2, 4, 8, 16, 32), (3.9, 3.5, 3.22, 2.96, 2.81, 2.74), strict=True))
    for steps, value in judged.items():
        rows.append(_quality("plain", steps, 1, value, 2.80, float(steps), 0.0, steps * 0.012))
        for energy, (share, pass_cost, exact) in (("uniform", (0.0, 0.05, False)), *ENERGIES.items()):
            for k in (8, *([0] if exact else [])):
                better = 3 * share * math.log(k or 400) / steps**0.3
                calls, seconds = steps * float(k or 1), steps * (0.012 + 0.011 * pass_cost * (k or 4))
                sharp = 2.80 - max(better, 0) / 6
                rows.append(_quality(energy, steps, k, value - better, sharp, float(steps), calls, seconds))
    return rows


def _quality(energy, steps, k, nll, entropy, denoiser_calls, energy_calls, seconds) -> Row:
    return {
        "energy": energy, "steps": steps, "candidates": k, **ALL_STEPS, "judge": "ar-64", "token_temperature": 1.0,
        "generative_perplexity": math.exp(nll),
        "nll_nats_per_token": nll, "nll_standard_error": 0.022, "entropy_nats": entropy,
        "entropy_standard_error": 0.008,
        "distinct_ngrams": 0.86, "repetition": 0.03, "divergence": 0.12, "divergence_standard_error": 0.02,
        "flags": [], "ess": 4.2 if k == 8 else math.nan, "distinct_candidates": 8.0 if k == 8 else math.nan,
        "denoiser_calls": denoiser_calls, "energy_calls": energy_calls, "seconds_per_text": seconds,
        "texts": [f"a text of {energy} in {steps} steps, k = {k}", "and another"], **COMMON,
        "seconds": seconds * SEQUENCES,
    }  # fmt: skip


def sweep() -> list[Row]:
    """`quality` at three token temperatures: lower ones have lower judge scores and entropies."""
    return [
        row
        | {
            "token_temperature": temperature,
            "nll_nats_per_token": row["nll_nats_per_token"] + 1.5 * (temperature - 1),
            "entropy_nats": row["entropy_nats"] + 0.4 * (temperature - 1),
        }
        for temperature in (0.9, 1.0, 1.1)
        for row in quality()
        if temperature == 1 or row["energy"] not in ("data", "uniform")
    ]


def matched() -> list[Row]:
    """`sweep` interpolated at the entropy of the data; one sampler does not reach it."""
    rows = []
    for row in quality():
        if row["energy"] in ("data", "uniform"):
            continue
        reached = row["energy"] != "copula"
        nll = row["nll_nats_per_token"] + 3.75 * (2.81 - row["entropy_nats"])
        names = ("energy", "steps", "candidates", *ALL_STEPS, "judge", "denoiser_calls", "energy_calls")
        rows.append(
            {
                **{name: row[name] for name in (*names, "seconds_per_text")}, **COMMON, "entropy_nats": 2.81,
                "nll_nats_per_token": nll if reached else math.nan,
                "nll_standard_error": 0.03 if reached else math.nan,
                "token_temperature_from": 1.0, "token_temperature_to": 1.1,
                "reason": "" if reached else "its texts are less varied at every temperature", "seconds": 0.0,
            }
        )  # fmt: skip
    return rows


def cost() -> list[Row]:
    return [
        {name: row[name] for name in ("energy", "steps", "candidates", *ALL_STEPS, "denoiser_calls", "energy_calls")}
        | {"seconds_per_text": row["seconds_per_text"], "seconds_least": 0.9 * row["seconds_per_text"]}
        | {"seconds_most": 1.2 * row["seconds_per_text"], "texts_at_once": 4, **COMMON, "seconds": 1.0}
        for row in quality()
        if row["energy"] != "data"
    ]


def paper() -> list[Row]:
    return [
        {"energy": "coar", "method": method, "log_partition_estimated": estimated, "nats_per_token": nats,
         "standard_error": 0.05, **COMMON, "seconds": 1.0}
        for method, estimated, nats in (("log Z from 8 draws", True, 0.955), ("log Z = 0, as it is", False, 1.545))
    ]  # fmt: skip


def sampled_race_entropy() -> list[Row]:
    return [
        {"steps": steps, "sampler": sampler, "entropy_nats": nats, "entropy_standard_error": 0.01,
         "entropy_bits": nats / math.log(2), **COMMON, "published": sampler != "exact", "seconds": 1.0}
        for steps in (8, 32)
        for sampler, nats in (("exact", 2.80), ("races in float32", 2.71))
    ]  # fmt: skip


def race_entropy() -> list[Row]:
    return [row | {"sampler": "exact" if not row["published"] else "float32 race"} for row in sampled_race_entropy()]


def step_grids() -> list[Row]:
    row = {"energy": "step-blocks", "steps": 2, "candidates": 8, **ALL_STEPS, **COMMON, "seconds": 1.0}
    numbers = {"bound_nats_per_token": 2.2, "standard_error": 0.01, "gain_over_equal_steps": 0.03}
    return [row | numbers | {"gain_standard_error": 0.002, "times": [0.0, 0.375, 1.0]}]


def effort() -> list[Row]:
    row = {"energy": "adaptive effort, 1.5 times plain", "steps": 3, "candidates": 8, **ALL_STEPS, **COMMON}
    numbers = {"bound_nats_per_token": 2.1, "standard_error": 0.01, "gain_over_plain": 0.05, "promised_gain": 0.06}
    numbers |= {"gain_standard_error": 0.004, "planned_seconds": 0.04, "seconds_per_text": 0.041, "budget": 1.5}
    return [row | numbers | {"plan": ["plain", "plain", "step-blocks, k = 8"], "seconds": 1.0}]


def marginal_distance() -> list[Row]:
    return [
        {"t_from": i / 4, "t_to": (i + 1) / 4, "kl_nats_per_position": 0.01 * (4 - i), "kl_standard_error": 0.001,
         "nelbo_above_entropy_nats_per_token": 0.02, "nelbo_standard_error": 0.002, **COMMON, "seconds": 1.0}
        for i in range(4)
    ]  # fmt: skip


def energy_distance() -> list[Row]:
    names = ("choice_total_variation", "exact_gain", "lost_gain")
    numbers = dict.fromkeys(names, 0.3) | {f"{name}_standard_error": 0.01 for name in names}
    return [
        {"energy": "step-blocks", "candidates": 8, "subset": subset, **numbers, "correlation_misleading": 0.98,
         **COMMON, "seconds": 1.0}
        for subset in ("all steps", "t 0 to 0.25", "2 to 3 new tokens")
    ]  # fmt: skip


def sample_distance() -> list[Row]:
    return [
        {"energy": energy, "steps": 8, "candidates": k, **ALL_STEPS, "possible_share": 0.97,
         "excess_nats_per_token": 0.12, "excess_standard_error": 0.01, "pair_total_variation": 0.05,
         "pair_total_variation_of_source": 0.04, **COMMON, "seconds": 1.0}
        for energy, k in (("plain", 1), ("step-blocks", 8), ("conditional", 0))
    ]  # fmt: skip


def trajectory() -> list[Row]:
    rows = []
    for energy, (share, _, _) in ENERGIES.items():
        for steps in STEPS[2:]:
            for i in range(steps, 0, -1):
                t = i / steps
                ess = 1 + 7 * math.exp(-20 * abs(share) * (0.3 + t) / steps**0.5)
                rows.append(
                    {"energy": energy, "steps": steps, "candidates": 8, **ALL_STEPS, "t": t, "ess": ess,
                     "distinct_candidates": 8 - 6 * math.exp(-0.3 * LENGTH / steps), "unmasked": LENGTH / steps,
                     "token_temperature": 1.0, **COMMON, "seconds": 1.0}
                )  # fmt: skip
    return rows


def calibration() -> list[Row]:
    rng = np.random.default_rng(5)
    rows = []
    for energy, separation in (("step-blocks", 1.6), ("whole-sequence-nce", 0.8)):
        for i in range(4):
            mean = separation * (0.4 + i / 3)
            data, samples = rng.normal(-mean, 1 + 0.2 * i, 300), rng.normal(mean, 1 + 0.2 * i, 300)
            truth = np.concatenate([np.ones(300), np.zeros(300)])
            predicted = 1 / (1 + np.exp(np.concatenate([data, samples])))
            bins = []
            for low in np.arange(0, 1, 0.1):
                inside = (predicted >= low) & (predicted < low + 0.1)
                if inside.any():
                    bins.append({"predicted": float(predicted[inside].mean()), "observed": float(truth[inside].mean()), "count": int(inside.sum())})  # fmt: skip  # noqa: E501
            auc = float((data[:, None] < samples[None]).mean())
            rows.append(
                {"energy": energy, "t_from": i / 4, "t_to": (i + 1) / 4, "auc": auc, "bins": bins,
                 "data_energies": data.tolist(), "sample_energies": samples.tolist(), **COMMON, "seconds": 2.0}
            )  # fmt: skip
    return rows


def partition() -> list[Row]:
    rows = []
    for energy, width in (("whole-sequence-nce", 0.01), ("ar", 1.6), ("coar", 0.5)):
        for draws in (2, 4, 8, 16, 32, 64):
            low, high = -width / draws**0.35, -width / draws**0.35 + 0.5 * width / draws**0.8
            rows.append(
                {"energy": energy, "draws": draws, "low_nats_per_token": low, "low_standard_error": width / 40,
                 "high_nats_per_token": high, "high_standard_error": width / 25, **COMMON, "seconds": 3.0}
            )  # fmt: skip
    return rows


def zero_shot() -> list[Row]:
    rows = []
    for corpus, offset in (("addresses", 0.0), ("novels", 0.12), ("reviews", 0.2)):
        for model, value in (("denoiser", 2.02), ("autoregressive", 1.55), ("conditional@T=8, exact", 2.04)):
            nats = value + offset
            rows.append(
                {"corpus": corpus, "model": model, "nats_per_token": nats, "standard_error": 0.01,
                 "perplexity": math.exp(nats), "word_perplexity": math.exp(5 * nats),
                 "bits_per_byte": nats / math.log(2), "tokens": 19200, "convention": "whole windows, no overlap",
                 **COMMON, "seconds": 4.0}
            )  # fmt: skip
    return rows


def training() -> dict[str, dict[str, dict[int, float]]]:
    rng = np.random.default_rng(7)
    stages = {}
    for stage, start, end in (("pretrain", 3.4, 2.05), ("autoregress", 3.3, 1.6), ("judge", 3.3, 1.7)):
        stages[stage] = _stage(rng, start, end, 400)
    for stage, end in (
        ("finetune-step-blocks", 1.37),
        ("finetune-conditional", 1.9),
        ("finetune-whole-sequence-nce", 0.83),
    ):
        stages[stage] = _stage(rng, 2.08, end, 250)
        for i in range(4):
            rise = [(2.08 - end) * (i + 1) / 4 * (1 - math.exp(-s / 60)) + rng.normal(0, 0.1) for s in range(250)]
            stages[stage][f"gain_nats/t_{i / 4:.2f}_{(i + 1) / 4:.2f}"] = dict(enumerate(rise))
        stages[stage]["gain_nats"] = {s: (2.08 - end) * (1 - math.exp(-s / 60)) for s in range(250)}
    return stages


def _stage(rng, start: float, end: float, steps: int) -> dict[str, dict[int, float]]:
    loss = {s: end + (start - end) * math.exp(-s / 40) + float(rng.normal(0, 0.04)) for s in range(steps)}
    rate = {s: 1.5e-3 * min(1, (s + 1) / 50) * 0.5 * (1 + math.cos(math.pi * s / steps)) for s in range(steps)}
    return {"loss_nats_per_token": loss, "learning_rate": rate, "gradient_norm": dict.fromkeys(range(steps), 1.0)}
