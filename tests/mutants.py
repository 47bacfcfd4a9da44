"""Faults that the tests must see: each is planted in a copy of the science, and the tests named beside it must fail.

python -m tests.mutants            # all of them, a table at the end
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.paths import PROJECT

SECONDS = 300


@dataclass(frozen=True)
class Mutant:
    """`old` in `edlm/FILE` becomes `new`; then `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


(
    DISTRIBUTION, BOUND, IDENTITY, ENERGY, JUDGE, QUALITY, CONTROL, PUBLISHED, CARRY_OVER, FAST, SPECULATIVE, UNMASK,
    EFFORT, CONTINUOUS, FAIRNESS, STEP_ENERGY, RESIDUAL, COMPOSED, OBJECTIVE, LIKELIHOOD, TRUNCATION, LOGPROBS,
    FORWARD_BACKWARD, CONSTRAINED, CONSTRAINED_BOUND, LOOP, SUMMED_LOG_P, FLOPS, RATE,
) = (
    f"tests/{name}.py"
    for name in (
        "sampling/test_sampler_distribution", "likelihood/test_bounds", "likelihood/test_identities",
        "energies/test_whole_sequence", "evaluation/test_judge_models", "evaluation/test_judged_quality",
        "energies/test_uniform", "baselines/test_published_sampler", "likelihood/test_carry_over_autoregressive",
        "sampling/test_fast_paths", "sampling/test_speculative", "sampling/test_unmasking",
        "planning/test_compute_budget", "inference/test_engine", "inference/test_scheduler", "energies/test_step",
        "energies/test_residual", "energies/test_compose", "training/test_energy_objectives",
        "likelihood/test_likelihood", "inference/test_token_truncation", "inference/test_token_logprobs",
        "constraints/test_forward_backward", "sampling/test_constrained", "likelihood/test_constrained_bound",
        "training/test_loop", "models/test_summed_log_p", "training/test_flops", "training/test_learning_rate",
    )
)  # fmt: skip

MUTANTS = (
    Mutant(
        "a reward is an energy with its own sign",
        "energies/compose.py",
        "return -self.of(texts)",
        "return self.of(texts)",
        (COMPOSED,),
    ),
    Mutant(
        "a sum takes its terms without their weights",
        "energies/compose.py",
        "total += weight * self._by_group",
        "total += self._by_group",
        (COMPOSED,),
    ),
    Mutant(
        "a sum with a whole-sequence term is a step energy",
        "energies/compose.py",
        "any(energy.whole_sequence for energy in energies)",
        "all(energy.whole_sequence for energy in energies)",
        (COMPOSED,),
    ),
    Mutant(
        "a sum has the longest of its terms' blocks",
        "energies/compose.py",
        "math.lcm(*(block for block in blocks if block))",
        "max(block for block in blocks if block)",
        (COMPOSED,),
    ),
    Mutant(
        "the sign of the energy is flipped in the weights",
        "equations.py",
        "return -energy / temperature",
        "return energy / temperature",
        (DISTRIBUTION, BOUND, IDENTITY),
    ),
    Mutant(
        "candidates of one sequence are weighed against those of another",
        "sampling/step.py",
        "equations.log_weight(e.double(), tau)",
        "equations.log_weight(e.double().transpose(0, 1).reshape(e.shape), tau)",
        (DISTRIBUTION,),
    ),
    Mutant(
        "a whole draft is unmasked, not only the step's positions (no carry-over)",
        "sampling/state.py",
        "xs=equations.carry_over(torch.where(broken[:, None], self.xt, self.unselected_tokens), x, unmasked),",
        "xs=x,",
        (DISTRIBUTION,),
    ),
    Mutant(
        "`coar` counts the tokens that were never masked",
        "equations.py",
        "return (log_p * masked).sum(dim=-1)",
        "return log_p.sum(dim=-1) if not masked.any() else (log_p * masked.roll(1, -1)).sum(dim=-1)",
        (IDENTITY, ENERGY),
    ),
    Mutant(
        "the last step takes the likeliest token",
        "sampling/step.py",
        "x0, log_p = propose(model.denoiser, context, state.xt, state.on_host.unmasked, u)",
        "x0, log_p = propose(model.denoiser, context, state.xt, state.on_host.unmasked, u)\n"
        "    if bool((state.s == 0).all()):\n"
        "        rows, at = torch.nonzero(state.unmasked, as_tuple=True)\n"
        "        x0[rows, 0, at] = model.denoiser.log_p(context, state.unmasked).argmax(dim=-1)",
        (DISTRIBUTION,),
    ),
    Mutant(
        "a block sees the new tokens of its neighbours",
        "energies/step.py",
        "token = torch.where(foreign[:, None], xt[rows, inside][:, None], token)",
        "token = torch.where(foreign[:, None], token, token)",
        (STEP_ENERGY,),
    ),
    Mutant(
        "all blocks are resampled with one choice",
        "equations.py",
        "return values.repeat_interleave(length if block is None else block, dim=-1)[..., :length]",
        "return values[..., :1].expand(*values.shape[:-1], length)",
        (DISTRIBUTION,),
    ),
    Mutant(
        "the sampler passes probabilities for log-probabilities",
        "sampling/candidates.py",
        "return x, equations.sum_by_group(by_position, energy.block)",
        "return x, equations.sum_by_group(by_position.exp(), energy.block)",
        (DISTRIBUTION,),
    ),
    Mutant(
        "the autoregressive energy drops the first token",
        "energies/whole_sequence.py",
        "self.model.log_p(x.flatten(0, 1)).sum(dim=-1)",
        "self.model.log_p(x.flatten(0, 1))[:, 1:].sum(dim=-1)",
        (IDENTITY, ENERGY),
    ),
    Mutant(
        "repeats average the weights inside the ratio",
        "equations.py",
        "log_ratio = math.log(k) + _log_shares(log_v, dim=2)[:, :, 0]",
        "log_ratio = math.log(k * repeats) + log_v[:, :, 0] - log_v.logsumexp(dim=2).logsumexp(dim=0)",
        (BOUND,),
    ),
    Mutant(
        "the true tokens stand outside their own normaliser",
        "likelihood/bounds.py",
        "x[:, :, 0] = torch.where(unmasked[:, None], x0[:, None], x[:, :, 0])",
        "x[:, :, 0] = torch.where(unmasked[:, None], x0[:, None], x[:, :, 0]) if repeats < 0 else x[:, :, 0]",
        (BOUND,),
    ),
    Mutant(
        "evaluation has a floor in time",
        "likelihood/bounds.py",
        "t = (uniforms(seed, 0, rows, Purpose.TIME) + i / draws) % 1.0",
        "t = 1e-3 + (1 - 1e-3) * ((uniforms(seed, 0, rows, Purpose.TIME) + i / draws) % 1.0)",
        (BOUND,),
    ),
    Mutant(
        "softplus is log(sigmoid + 1e-8)",
        "equations.py",
        "return F.softplus(data) + F.softplus(-negatives).mean(dim=1)",
        "return -(torch.sigmoid(-data) + 1e-8).log() - (torch.sigmoid(negatives) + 1e-8).log().mean(dim=1)",
        (IDENTITY,),
    ),
    Mutant(
        "single tokens are resampled",
        "sampling/step.py",
        "sum_by_group(host.unmasked.long(), block) > 1)",
        "sum_by_group(host.unmasked.long(), block) > 0)",
        (DISTRIBUTION,),
    ),
    Mutant(
        "exact draws of `coar` fill nothing but what is kept",
        "sampling/step.py",
        "return equations.up_to_last(state.xt == model.denoiser.mask, state.unmasked)",
        "return state.unmasked",
        (DISTRIBUTION,),
    ),
    Mutant(
        "a draw given a constraint does not look ahead",
        "constraints/forward_backward.py",
        "cdf = np.exp(share).cumsum(axis=-1)",
        "cdf = np.exp(through).cumsum(axis=-1)",
        (FORWARD_BACKWARD, CONSTRAINED),
    ),
    Mutant(
        "a token of a class is drawn as if all were as likely",
        "constraints/class_masses.py",
        "own.sub_(log_sum[:, None]).exp_().cumsum(",
        "torch.ones_like(own).cumsum(",
        (FORWARD_BACKWARD,),
    ),
    Mutant(
        "with a constraint each group picks a candidate of its own",
        "sampling/constrained.py",
        "e.double().sum(dim=2, keepdim=True)",
        "e.double()[..., :1]",
        (CONSTRAINED,),
    ),
    Mutant(
        "the bound leaves out that the constraint is given",
        "likelihood/constrained_bound.py",
        "clamped.log_z - posterior.log_z",
        "clamped.log_z",
        (CONSTRAINED_BOUND,),
    ),
    Mutant(
        "a verified draft keeps every token",
        "sampling/speculative.py",
        "kept = u_keep[rows].log() < log_c - log_p[rows].double()",
        "kept = log_c == log_c",
        (DISTRIBUTION, SPECULATIVE),
    ),
    Mutant(
        "candidates change places where few tokens enter at once",
        "sampling/candidates.py",
        "energies.append(torch.cat(parts, dim=1))",
        "energies.append(torch.cat(parts[::-1], dim=1))",
        (FAST,),
    ),
    Mutant(
        "the last position of a chunk of the vocabulary is not drawn",
        "models/readout.py",
        "(count <= start + size)",
        "(count < start + size)",
        (FAST,),
    ),
    Mutant(
        "negatives enter the ranking loss with the wrong sign",
        "equations.py",
        "log_v = log_weight(torch.cat([data[:, None], negatives], dim=1))",
        "log_v = log_weight(torch.cat([data[:, None], -negatives], dim=1))",
        (IDENTITY,),
    ),
    Mutant(
        "text behind the first end-of-text is judged",
        "evaluation/judge_models.py",
        "rows = [row[:length] for row, length in",
        "rows = [row for row, length in",
        (JUDGE, QUALITY),
    ),
    Mutant(
        "generative perplexity is a mean over texts of exponentials",
        "evaluation/judged_quality.py",
        "return Average(math.exp(nats.mean), math.exp(nats.mean) * nats.standard_error)",
        "return average((self.nats / self.tokens).exp())",
        (QUALITY,),
    ),
    Mutant(
        "nats are divided by the judge's tokens, not by the generator's",
        "evaluation/judged_quality.py",
        "return _ratio(self.nats, self.tokens)",
        "return _ratio(self.nats, self.judge_tokens)",
        (QUALITY,),
    ),
    Mutant(
        "entropy is in bits",
        "evaluation/judged_quality.py",
        "index_add(0, row, -p * p.log())",
        "index_add(0, row, -p * p.log2())",
        (QUALITY,),
    ),
    Mutant(
        "the uniform control weighs",
        "energies/uniform.py",
        "return torch.zeros_like(log_p)",
        "return -log_p",
        (CONTROL,),
    ),
    Mutant(
        "the uniform control favours its first candidate",
        "energies/uniform.py",
        "return torch.zeros_like(log_p)",
        "return torch.arange(log_p.shape[1], dtype=log_p.dtype)[None, :, None].expand_as(log_p)",
        (CONTROL,),
    ),
    Mutant(
        "the published race draws tokens without the mask's competition",
        "baselines/published_sampler.py",
        "return race(q, u, dtype)",
        "return torch.where(u[:, -1] < share, race(log_p.exp(), u[:, :-1], dtype), q.shape[1] - 1)",
        (PUBLISHED,),
    ),
    Mutant(
        "the published race has exact noise",
        "baselines/published_sampler.py",
        "return torch.where(rounded == 1, 0, rounded)",
        "return u",
        (PUBLISHED,),
    ),
    Mutant(
        "the race forgets the share that a step unmasks",
        "baselines/published_sampler.py",
        "q = torch.cat([log_p.exp() * share[:, None], 1 - share[:, None]], dim=-1)",
        "q = torch.cat([log_p.exp(), 1 - share[:, None]], dim=-1)",
        (PUBLISHED,),
    ),
    Mutant(
        "all drafts of the published generator are one draft",
        "baselines/published_sampler.py",
        "tokens = race(log_p.exp()[:, None].expand_as(u), u, self.dtype)",
        "tokens = race(log_p.exp()[:, None].expand_as(u), u[:, :1].expand_as(u), self.dtype)",
        (PUBLISHED,),
    ),
    Mutant(
        "what is left at the end of the published generator is its first token",
        "baselines/published_sampler.py",
        "x[chunk] = log_p.argmax(dim=-1)",
        "x[chunk] = 0",
        (PUBLISHED,),
    ),
    Mutant(
        "the masks of the paper's estimator are averaged over tokens that are kept",
        "likelihood/carry_over_autoregressive.py",
        "schedule.weight(t) * (1 - schedule.alpha(t))",
        "schedule.weight(t) * schedule.alpha(t)",
        (CARRY_OVER,),
    ),
    Mutant(
        "log Z of an energy that is not normalised is taken for known",
        "likelihood/paper_estimator.py",
        "if log_partition_draws is None and not isinstance(energy, NormalisedEnergy):",
        "if log_partition_draws is None and not energy.whole_sequence:",
        (CARRY_OVER,),
    ),
    Mutant(
        "the least certain come first",
        "sampling/unmasking.py",
        "order = certainty.argsort(dim=1, descending=True, stable=True)",
        "order = torch.where(unsure, certainty, torch.inf).argsort(dim=1, stable=True)",
        (UNMASK,),
    ),
    Mutant(
        "beside remasking no more is unmasked than without it",
        "equations.py",
        "return (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)",
        "return (alpha_s - alpha_t) / (1 - alpha_t)",
        (UNMASK,),
    ),
    Mutant(
        "what the canvas gave is masked again",
        "sampling/sampler.py",
        "equations.unmask(~masked & ~given, remasking, u_remask)",
        "equations.unmask(~masked, remasking, u_remask)",
        (UNMASK,),
    ),
    Mutant(
        "the seconds of a plan are rounded down",
        "planning/compute_budget.py",
        "prices = ((seconds - least) / tick - HAIR).ceil().clamp(max=ticks + 1).long()",
        "prices = ((seconds - least) / tick).floor().clamp(max=ticks + 1).long()",
        (EFFORT,),
    ),
    Mutant(
        "a plan is carried out backwards",
        "planning/compute_budget.py",
        "return tuple(reversed(plan))",
        "return tuple(plan)",
        (EFFORT,),
    ),
    Mutant(
        "a bound does not pay for what is masked again",
        "likelihood/unmasking_paths.py",
        "masked = (masked & ~new) | (~masked & ~given & (u[1] < remasked[:, None]))",
        "masked = masked & ~new",
        (UNMASK,),
    ),
    Mutant(
        "a text takes the token that a step gave its neighbour",
        "inference/batch_executor.py",
        "results.append((sequences[row], result, i))",
        "results.append((sequences[row], result, i - (len(rows) > 2)))",
        (f"{CONTINUOUS}::test_thousands_of_texts_of_two_users_never_hold_a_token_of_the_other",),
    ),
    Mutant(
        "every canvas of a text has the randomness of the first",
        "inference/sequence.py",
        "sequence._block * sequence.request.sampler.steps + i",
        "i",
        (f"{CONTINUOUS}::test_it_takes_the_very_steps_that_the_sampler_takes",),
    ),
    Mutant(
        "the key that had most goes first",
        "inference/scheduler.py",
        "key = min(queues, key=lambda key: self._served[key])",
        "key = max(queues, key=lambda key: self._served[key])",
        (FAIRNESS,),
    ),
    Mutant(
        "a step energy is not told of the right edge of the canvas",
        "energies/step.py",
        "(beside >= length)",
        "(beside > length)",
        (STEP_ENERGY,),
    ),
    Mutant(
        "a step energy is not told of the left edge of the canvas",
        "energies/step.py",
        "(beside < 0)",
        "(beside < -1)",
        (STEP_ENERGY,),
    ),
    Mutant(
        "a class attribute hides the proposal of a residual energy",
        "interfaces.py",
        "self.proposal = None",
        "type(self).proposal = None",
        (RESIDUAL,),
    ),
    Mutant(
        "NCE weighs groups with one new token",
        "training/energy_objectives.py",
        "equations.sum_by_group(new.long(), block) > 1]",
        "equations.sum_by_group(new.long(), block) > 0]",
        (OBJECTIVE,),
    ),
    Mutant(
        "in conditioning a row weighs as much as it unmasks",
        "training/energy_objectives.py",
        "loss = -log_p / unmasked.sum(dim=-1).clamp(min=1)",
        "loss = -log_p / x0.shape[1]",
        (OBJECTIVE,),
    ),
    Mutant(
        "the gradient of a sum of log-probabilities is that of other tokens",
        "models/summed_log_p.py",
        "torch.full_like(log_p, -1.0)[:, None]",
        "torch.full_like(log_p, 1.0)[:, None]",
        (SUMMED_LOG_P,),
    ),
    Mutant(
        "the backward pass of a projection is not counted",
        "training/flops.py",
        "TRAINED = 3",
        "TRAINED = 2",
        (FLOPS,),
    ),
    Mutant(
        "wsd decays from the warm-up on",
        "training/learning_rate.py",
        "return training.steps - math.ceil(training.decay_share * training.steps)",
        "return training.warmup_steps",
        (RATE,),
    ),
    Mutant(
        "of several steps the last one is named that was not finite",
        "training/deferred_metrics.py",
        "not_finite(by_rank[:, None], one.step, what)",
        "not_finite(by_rank[:, None], steps[-1].step, what)",
        (LOOP,),
    ),
    Mutant(
        "the true candidate shares what it throws away with the last one",
        "likelihood/bounds.py",
        "x[:, :, 0] = torch.where(unmasked[:, None], x0[:, None], x[:, :, 0])",
        "x[:, :, 0] = torch.where(unmasked[:, None], x0[:, None], x[:, :, -1])",
        (LIKELIHOOD,),
    ),
    Mutant(
        "the nucleus lacks its last token",
        "equations.py",
        "torch.where(likelier < top_p, ordered, -torch.inf)",
        "torch.where((likelier + p < top_p) | (likelier < 0), ordered, -torch.inf)",
        (TRUNCATION,),
    ),
    Mutant(
        "the probability of given tokens is truncated, too",
        "models/readout.py",
        "return self(features, _of_tokens, tokens)[0]",
        "return self.distribution(features).gather(-1, tokens[:, None])[:, 0]",
        (TRUNCATION,),
    ),
    Mutant(
        "a prompt is read at the times of what is known",
        "inference/token_logprobs.py",
        "t = (length - before).double() / length",
        "t = before.double() / length",
        (LOGPROBS,),
    ),
    Mutant(
        "log-probabilities are those of the tempered distribution",
        "inference/sequence.py",
        "network, tokens = self.components.model.denoiser.network, result.xs[row : row + 1]",
        "network, tokens = self.components.denoiser.network, result.xs[row : row + 1]",
        (LOGPROBS,),
    ),
)


def copy(folder: Path) -> None:
    """Copy the packages and the tests of the science to `folder`, so that none is imported from elsewhere."""
    for name in ("edlm", "cluster", "workflows", "tests"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "cluster"))
    shutil.copy(PROJECT / "pyproject.toml", folder)


def plant(mutant: Mutant, folder: Path) -> None:
    """Plant the fault in the copy; raise ValueError unless its source line occurs exactly once."""
    path = folder / "edlm" / mutant.file
    source = path.read_text()
    if source.count(mutant.old) != 1:
        raise ValueError(
            f"{mutant.name!r}: {mutant.old!r} stands {source.count(mutant.old)} times in edlm/{mutant.file}"
        )
    path.write_text(source.replace(mutant.old, mutant.new))


def failures(folder: Path, tests: tuple[str, ...]) -> list[str]:
    """The names of the tests that fail in the copy."""
    # -B: a fault of the same size and second would be hidden by the bytecode of the one before
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", "-rf", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return [line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED ")]


def caught(mutant: Mutant) -> list[str]:
    """The tests that see this fault."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as scratch:
        copy(Path(scratch))
        plant(mutant, Path(scratch))
        return failures(Path(scratch), mutant.tests)


def main() -> None:
    every = tuple(dict.fromkeys(test for mutant in MUTANTS for test in mutant.tests))
    with tempfile.TemporaryDirectory(prefix="mutant-") as scratch:
        copy(Path(scratch))
        if wrong := failures(Path(scratch), every):
            raise SystemExit(f"without a fault these fail: {wrong}")
    missed = []
    print("| fault | tests that fail | the first of them |\n|---|---|---|")
    for mutant in MUTANTS:
        seen = caught(mutant)
        print(
            f"| {mutant.name} | {len(seen)} | {seen[0].split('::')[1].partition('[')[0] if seen else 'NONE'} |",
            flush=True,
        )
        missed += [] if seen else [mutant.name]
    if missed:
        raise SystemExit(f"not seen by any test: {missed}")


if __name__ == "__main__":
    main()
