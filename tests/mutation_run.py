"""A mutation run: faults that cosmic-ray plants at random places of the science, each against the tests of its file.

make mutants MINUTES=60 SEED=0    # a Markdown report of what no test saw
"""

import ast
import os
import random
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

import tyro
from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.testing import run_tests
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome

from tests.mutants import copy
from tests.paths import PROJECT

OBJECTIVES = "training/test_energy_objectives"


def looked_at_in_energies(edlm: Path, tests: Path) -> dict[str, str]:
    """The tests of each energy with a test of its own: a new one is mutated without being named here."""
    beside = {
        "whole_sequence": "likelihood/test_carry_over_autoregressive",
        "conditional": "sampling/test_speculative",
        "residual": f"energies/test_step {OBJECTIVES}",
    }
    names = sorted(path.stem for path in (edlm / "energies").glob("*.py"))
    tested = [name for name in names if name != "kinds" and (tests / "energies" / f"test_{name}.py").is_file()]
    return {
        f"energies/{name}": f"energies/test_{name} energies/test_kinds {beside.get(name, OBJECTIVES)}"
        for name in tested
    }


LOOKED_AT = looked_at_in_energies(PROJECT / "edlm", PROJECT / "tests") | {
    # file of edlm: the tests that look at it, the quickest first
    "equations": "test_equations likelihood/test_identities inference/test_token_truncation",
    "inverse_cdf": "test_inverse_cdf test_equations",
    "schedule": "test_schedule",
    "rng": "test_rng",
    "rng_kernel": "test_rng_kernel",
    "kernel_choice": "test_kernel_choice",
    "compilers": "test_compilers test_kernel_choice",
    "sampling/sampler": "sampling/test_sampler sampling/test_sampler_distribution",
    "sampling/step": "sampling/test_sampler sampling/test_sampler_distribution",
    "sampling/state": "sampling/test_sampler sampling/test_sampler_distribution",
    "sampling/unmasking": "sampling/test_unmasking",
    "sampling/candidates": "sampling/test_candidates energies/test_residual",
    "sampling/memory_footprint": "sampling/test_memory_footprint",
    "sampling/speculative": "sampling/test_speculative",
    "sampling/constrained": "constraints/test_forward_backward sampling/test_constrained",
    "constraints/acceptance": "constraints/test_automaton",
    "constraints/automaton": "constraints/test_automaton",
    "constraints/constraint": "sampling/test_constrained",
    "constraints/forward_backward": "constraints/test_forward_backward",
    "constraints/class_masses": "constraints/test_forward_backward",
    "constraints/compilation": "constraints/test_compilation",
    "constraints/byte_automaton": "constraints/test_compilation",
    "constraints/stop_strings": "constraints/test_stop_strings",
    "constraints/outlines_process": "constraints/test_json_schema constraints/test_compilation",
    "constraints/spelling": "constraints/test_compilation",
    "constraints/specification": "constraints/test_compilation",
    "constraints/json_schema": "constraints/test_json_schema",
    "constraints/regular_expression": "constraints/test_compilation",
    "likelihood/constrained_bound": "likelihood/test_constrained_bound",
    "likelihood/exact_order": "likelihood/test_exact_order",
    "likelihood/estimate": "likelihood/test_bounds likelihood/test_likelihood",
    "likelihood/bounds": "likelihood/test_likelihood likelihood/test_bounds",
    "likelihood/log_partition": "likelihood/test_likelihood likelihood/test_bounds",
    "likelihood/paper_estimator": "likelihood/test_likelihood likelihood/test_bounds",
    "likelihood/unmasking_paths": "likelihood/test_unmasking_paths",
    "likelihood/carry_over_autoregressive": "likelihood/test_carry_over_autoregressive",
    "training/objectives": "training/test_objectives",
    "training/energy_objectives": "training/test_energy_objectives training/test_objectives",
    "training/validation": "training/test_validation training/test_local_training",
    "training/learning_rate": "training/test_learning_rate",
    "training/early_stopping": "training/test_early_stopping training/test_validation",
    "training/loop": "training/test_loop",
    "training/flops": "training/test_flops",
    "training/block_execution": "training/test_block_execution",
    "training/device_usage": "training/test_device_usage",
    "training/step_clock": "training/test_step_clock",
    "training/step_profiler": "training/test_step_profiler",
    "training/deferred_metrics": "training/test_loop",
    "training/optimizers": "training/test_optimizers",
    "training/local_engine": "training/test_local_engine training/test_loop",
    "training/checkpointing": "training/test_checkpointing",
    "checkpoints/tensor_files": "checkpoints/test_snapshot_state checkpoints/test_training_state",
    "checkpoints/state_slices": "checkpoints/test_snapshot_state",
    "checkpoints/snapshot_state": "checkpoints/test_snapshot_state",
    "checkpoints/snapshot_manifest": "checkpoints/test_snapshot_state checkpoints/test_training_state",
    "checkpoints/snapshot_writer": "checkpoints/test_snapshot_writer checkpoints/test_snapshot_state",
    "checkpoints/snapshot_retention": "checkpoints/test_snapshot_retention",
    "checkpoints/weight_files": "checkpoints/test_weight_files",
    "data/parquet_pages": "data/test_parquet_pages",
    "data/excerpts": "data/test_excerpts",
    "data/preparation": "data/test_preparation data/test_synthetic",
    "data/byte_level_bpe": "data/test_byte_level_bpe",
    "data/encoded_documents": "data/test_shards data/test_preparation data/test_pairs",
    "data/line_range": "data/test_line_range",
    "data/file_part": "data/test_file_part",
    "data/packed_documents": "data/test_packed_documents data/test_shards",
    "data/shards": "data/test_shards",
    "data/packing": "data/test_packing data/test_pairs data/test_preparation",
    "data/batches": "data/test_batches data/test_preparation data/test_pairs",
    "data/local_splits": "data/test_local_splits",
    "data/token_file": "data/test_preparation data/test_pairs data/test_mixture",
    "data/token_blocks": "data/test_token_blocks",
    "data/stored_split": "data/test_stored_split",
    "data/read_ahead": "data/test_read_ahead",
    "data/mixture": "data/test_mixture",
    "data/pairs": "data/test_pairs",
    "data/chat_template": "data/test_chat_template data/test_conversations",
    "data/conversations": "data/test_conversations",
    "data/splits": "data/test_splits data/test_split_statistics",
    "data/text_key": "data/test_text_key data/test_splits",
    "data/shuffle": "data/test_shuffle",
    "data/text_batches": "data/test_text_batches",
    "data/separator": "data/test_separator",
    "data/token_bytes": "data/test_token_bytes constraints/test_compilation",
    "data/stable_prefix": "data/test_stable_prefix inference/test_completion_decoding",
    "data/tokenizer_kinds": "data/test_tokenizer",
    "data/tokenizer": "data/test_tokenizer data/test_separator inference/test_completion_decoding",
    "inference/completion_decoding": "inference/test_completion_decoding",
    "inference/candidate_tokens": "inference/test_candidate_tokens",
    "inference/token_logprobs": "inference/test_token_logprobs",
    "inference/token_truncation": "inference/test_token_truncation",
    "huggingface/autoregressive": "huggingface/test_autoregressive",
    "huggingface/causal_reading": "huggingface/test_causal_reading",
    "huggingface/denoiser": "huggingface/test_denoiser huggingface/test_causal_reading",
    "huggingface/output_embedding": "huggingface/test_denoiser huggingface/test_autoregressive",
    "huggingface/lora": "huggingface/test_lora",
    "huggingface/remote_code": "huggingface/test_remote_code huggingface/test_source huggingface/test_architecture",
    "models/float32_summed_layers": "models/test_float32_summed_layers",
    "published/conditioning": "published/test_mdlm",
    "published/energy": "published/test_energy",
    "published/layout": "published/test_layout published/test_mdlm",
    "published/mdlm": "published/test_mdlm",
    "published/checkpoint": "workflows/test_import_published",
    "models/row_buckets": "models/test_row_buckets",
    "models/row_invariance": "models/test_row_invariance",
    "planning/fitted_step_times": "planning/test_fitted_step_times",
    "planning/compute_budget": "planning/test_compute_budget",
    "planning/devices": "planning/test_training_plan",
    "planning/training_memory": "planning/test_training_memory planning/test_training_plan",
    "planning/training_plan": "planning/test_training_plan",
    "planning/training_work": "planning/test_training_work planning/test_training_memory",
}
CORE = ("equations", "schedule", "rng", "sampling", "constraints", "energies", "likelihood", "training", "data")
LEFT_OUT = {  # of the core, what decides no number: settings, interfaces, progress, the reading of corpora
    *(f"energies/{name}" for name in ("configuration", "edlm_nce", "kinds")),
    *(f"training/{name}" for name in ("interfaces", "local_training", "progress", "resume_compatibility", "settings")),
    *(f"data/corpus{name}" for name in ("", "_embedded", "_files", "_formats", "_huggingface")),
    *(f"data/{name}" for name in ("compressed_files", "document", "encodings", "lost_characters", "progress")),
    *(f"data/{name}" for name in ("remote_files", "repeats", "synthetic", "text_lines")),
}
# No plausible slip, or one that stops every test at once: a sample full of them would flatter the tests.
IMPLAUSIBLE = re.compile(
    r"RemoveDecorator|Exception|Variable|_(LShift|RShift|BitXor|Mod|Pow|FloorDiv|Is|IsNot)$"
    r"|(Add|Sub|Mul|Div|Mod|Pow|FloorDiv)_Bit|Bit(Or|And)_(?!Bit)"
)


def main(
    minutes: float = 60, seed: int = 0, report: Path = Path("runs/mutants.md"), only: tuple[str, ...] = ()
) -> None:
    """Plant as many mutants as fit into `minutes`, in turn over the files, and report those that survive.

    Args:
        minutes: The budget; the tests of a file first pass once without a mutant.
        seed: Chooses the places, and of the mutants at a place one.
        report: The Markdown file to write.
        only: Files of edlm, without .py; none: all that have tests listed here.
    """
    report = report.resolve()
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        copy(Path(scratch))
        os.chdir(scratch)
        os.environ |= {"PYTHONPATH": scratch, "OMP_NUM_THREADS": "1", "CI": "true"}  # hypothesis: the same examples
        files = only or tuple(LOOKED_AT)
        seconds: dict[str, float] = {}
        until, lines = time.monotonic() + 60 * minutes, []
        for spec in _in_turn(files, random.Random(seed)):
            if time.monotonic() > until:
                break
            file = spec.module_path.relative_to("edlm").with_suffix("").as_posix()
            if file not in seconds:
                seconds[file] = _baseline(file)
            result = mutate_and_test([spec], _command(file), 30 + 5 * seconds[file])
            seen = re.search(r"(?:FAILED|ERROR) (\S+)", result.output or "")
            verdict = "SURVIVED" if result.test_outcome is TestOutcome.SURVIVED else seen[1] if seen else "caught"
            change = [line for line in (result.diff or "").splitlines() if re.match(r"[-+][^-+]", line)]
            lines.append((verdict, f"| {file}.py:{spec.start_pos[0]} | {_cell(change)} | {verdict} |"))
            print(*lines[-1][1:], flush=True)
    survived = [line for verdict, line in lines if verdict == "SURVIVED"]
    head = [f"{len(lines) - len(survived)} of {len(lines)} mutants were caught (seed {seed}).", ""]
    table = ["| place | mutant | seen by |", "|---|---|---|"]
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text("\n".join([*head, *table, *survived, "", *table, *(line for _, line in lines), ""]))
    print(head[0], report)


def _command(file: str) -> str:
    tests = [f"tests/{name}.py" for name in LOOKED_AT[file].split()]
    return shlex.join(
        [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE", *tests]
    )


def _baseline(file: str) -> float:
    """The seconds that the tests of a file take; SystemExit where they fail without a mutant."""
    started = time.monotonic()
    outcome, output = run_tests(_command(file), 3600)
    if outcome is not TestOutcome.SURVIVED:
        raise SystemExit(f"without a mutant the tests of {file}.py fail:\n{output}")
    return time.monotonic() - started


def _in_turn(files: tuple[str, ...], rng: random.Random) -> Iterator[MutationSpec]:
    """One mutant of every position of the code, in random order, a file after the other."""
    each = []
    for file in files:
        path = Path("edlm", f"{file}.py")
        with use_db(f"{file.replace('/', '-')}.sqlite", WorkDB.Mode.create) as database:
            init([path], database, {})
            specs = [item.mutations[0] for item in database.work_items]
        hints = _annotations(path)
        locations: dict[tuple[int, int], list[MutationSpec]] = {}
        for spec in sorted(specs, key=lambda s: (s.start_pos, s.operator_name, s.occurrence)):
            inside = any(start <= spec.start_pos <= end for start, end in hints)
            if not inside and not IMPLAUSIBLE.search(spec.operator_name):
                locations.setdefault(spec.start_pos, []).append(spec)
        chosen = [rng.choice(ways) for ways in locations.values()]
        rng.shuffle(chosen)
        each.append(chosen)
    return (spec for spec in chain.from_iterable(zip_longest(*each)) if spec is not None)


def _annotations(path: Path) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where type hints and decorators begin and end: what is planted there changes no result or stops the import."""
    actual = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        hints = getattr(node, "annotation", None), getattr(node, "returns", None)
        for part in (*hints, *getattr(node, "decorator_list", ())):
            if isinstance(part, ast.expr):
                end = (part.end_lineno or part.lineno, part.end_col_offset or part.col_offset)
                actual.append(((part.lineno, part.col_offset), end))
    return actual


def _cell(change: list[str]) -> str:
    """Removed and added lines in one cell of a table."""
    return " → ".join(f"`{line[1:].strip()}`".replace("|", "\\|") for line in change)


if __name__ == "__main__":
    tyro.cli(main)
