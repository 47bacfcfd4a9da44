"""One of two processes of `test_deepspeed_engine`: all stages and precisions, then all objectives; curves as JSON."""

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed

from cluster.config import Zero
from cluster.training import deepspeed_engine
from cluster.training.deepspeed_engine import ZeroEngine
from cluster.training.result import read_result, write_result
from edlm.data.batches import Rows
from edlm.models import attention
from edlm.training.checkpointing import Checkpointing
from edlm.training.interfaces import Engine
from edlm.training.loop import fit
from edlm.training.optimizers import FIRST
from edlm.training.settings import Muon, Training
from edlm.training.validation import METRIC, STEP
from tests import toy
from tests.cluster.training.small_chunks import small_chunks
from tests.cluster.training.state_places import in_memory, saves_what_a_disk_has_lost
from tests.cluster.training.zero_objectives import LENGTH, VOCABULARY, adapted, objectives, science_rows, uneven_rows
from tests.process_groups import leave

CPU = torch.device("cpu")
NAMES = ("loss_nats_per_token", "gradient_norm")


@dataclass(frozen=True)
class Setups:
    """What two workers train."""

    of_precisions: Mapping[str, tuple[int, ...]]
    """Stages of the toy network, by precision."""
    of_objectives: tuple[int, ...]
    """Stages of every objective, and of adapters."""
    validated: tuple[tuple[str, int], ...]
    """(precision, stage) with and without validation."""
    summed: tuple[int, ...]
    """Stages whose sums of gradients are looked at."""
    chunked: tuple[str, ...]
    """Objectives whose LM head computes in small chunks."""
    of_muon: tuple[tuple[str, int], ...]
    """(precision, stage) of a denoiser that Muon and AdamW train."""


USUAL = Setups(
    {"float32": (0, 1, 2, 3), "bfloat16": (1, 3)},
    (3,),
    (("float32", 3), ("bfloat16", 1)),
    (1, 2, 3),
    ("denoising", "next token", "conditional"),
    (("float32", 0), ("float32", 2)),
)
"""For every change of the code; most of what the others would find, these find."""
ALL = Setups(
    {"float32": (0, 1, 2, 3), "bfloat16": (0, 1, 2, 3)},
    (0, 1, 2, 3),
    (*USUAL.validated, ("float32", 0), ("bfloat16", 3)),
    (0, 1, 2, 3),
    (*USUAL.chunked, "published denoising", "step", "bidirectional", "edlm_nce", "residual"),
    tuple((precision, stage) for precision in ("float32", "bfloat16") for stage in range(4)),
)


class HaltTraining(Exception):
    """Thrown at a checkpoint, to stop there."""


def curve(
    engine: Engine,
    settings: Training,
    rows=toy.rows,
    halt: bool = False,
    validation: Rows | None = None,
    measured: list[float] | None = None,
) -> list[list[float]]:
    """Loss and gradient norm of each step, with `halt` up to the first checkpoint; validation losses in `measured`."""
    actual: list[list[float]] = []

    def log(_: int, metrics: Mapping[str, float]) -> None:
        actual.append([metrics[name] for name in NAMES])
        if measured is not None and METRIC in metrics:
            measured.append(metrics[METRIC])

    def stop(_: Engine) -> None:
        if halt:
            raise HaltTraining

    with contextlib.suppress(HaltTraining):
        fit(engine, rows, settings, 0, log, stop, validation)
    return actual


def shared(state):
    """What rank 0 has, on every rank."""
    box = [state]
    torch.distributed.broadcast_object_list(box, 0)
    return box[0]


def checkpointed(engine: Engine, workspace: Path) -> Checkpointing:
    return Checkpointing(engine, str(workspace), from_rank_0=shared)


def stages(setups: Setups, folder: Path) -> dict[str, dict]:
    """For each stage and precision: the whole curve, and the curve that goes on from a state saved in the middle."""
    results = {}
    for precision, chosen in setups.of_precisions.items():
        for stage in chosen:
            settings = toy.training(precision=precision, checkpoint_every=3)
            whole = ZeroEngine(toy.Toy(), settings, Zero(stage=stage), CPU)
            begun = _equal(whole.export(), {name: p.data for name, p in toy.Toy().trained.named_parameters()})
            full = curve(whole, settings)
            half = ZeroEngine(toy.Toy(), settings, Zero(stage=stage), CPU)
            curve(half, settings, halt=True)
            state = shared(half.state())
            workspace = folder / f"{precision}-{stage}"
            with checkpointed(half, workspace) as checkpointing:
                checkpointing.save(half)
            resumed = ZeroEngine(toy.Toy(), settings, Zero(stage=stage), CPU)
            assert checkpointed(resumed, workspace).resume() is not None
            again = shared(resumed.state())
            rest = curve(resumed, settings)
            exported = resumed.export()
            write_result(resumed, str(workspace), "a", {})
            published = exported is None or _equal(exported, read_result(str(workspace)))
            same = _equal(whole.export(), exported) and _equal(state, again) and published
            dropless = curve(ZeroEngine(toy.Toy(0.0), settings, Zero(stage=stage), CPU), settings)
            actual = {"full": full, "rest": rest, "same": same, "begun": begun, "without dropout": dropless}
            results[f"{precision} {stage}"] = actual
    settings = toy.training(checkpoint_every=3)
    moved = ZeroEngine(toy.Toy(), settings, Zero(stage=3), CPU)
    assert checkpointed(moved, folder / "float32-1").resume() is not None
    results["stage 1 to 3"] = {"rest": curve(moved, settings)}
    offloaded = {s: curve(ZeroEngine(toy.Toy(), settings, Zero(stage=s, offload=True), CPU), settings) for s in (2, 3)}
    results["offload"] = {str(stage): actual for stage, actual in offloaded.items()}
    return results


def on_disk(folder: Path) -> dict[str, dict]:
    """For each precision: what a training whose state is in a folder does, beside one whose state is in memory."""
    results = {}
    in_folder = folder / "on disk"
    in_folder.mkdir(exist_ok=True)
    for precision in ("float32", "bfloat16"):
        settings = toy.training(precision=precision, checkpoint_every=3, validate_every=2, keep_best=True)
        memory, disk = Zero(stage=3, offload=True), Zero(stage=3, offload=True, offload_folder=str(in_folder))
        whole, half, other, resumed, mapped = (ZeroEngine(toy.Toy(), settings, z, CPU) for z in (memory, *4 * [disk]))
        measured: dict[str, list[float]] = {"memory": [], "disk": [], "rest": []}
        full = curve(whole, settings, validation=held_out(), measured=measured["memory"])
        workspace = folder / f"on-disk-{precision}"
        curve(half, settings, halt=True, validation=held_out())
        with Checkpointing(half, str(workspace), from_rank_0=shared, room=half.room) as checkpointing:
            checkpointing.save(half)
        assert checkpointed(resumed, workspace).resume() is not None
        results[precision] = {
            "memory": full,
            "disk": curve(other, settings, validation=held_out(), measured=measured["disk"]),
            "rest": curve(resumed, settings, validation=held_out(), measured=measured["rest"]),
            "measured": measured,
            "same": _equal(whole.state(), other.state()) and _equal(whole.state(), resumed.state()),
            "exported": _equal(whole.export(), resumed.export()),
            "files": len(list(in_folder.iterdir())),
            "in memory": in_memory(mapped, in_folder),
            "lost": saves_what_a_disk_has_lost(mapped),
        }
    return results


def validations(setups: Setups) -> dict[str, dict]:
    """For some stages and precisions: what training with validation, and a resumed one, find beside one without."""
    results = {}
    for precision, stage in setups.validated:
        settings = toy.training(precision=precision, checkpoint_every=3)
        without = ZeroEngine(toy.Toy(), settings, Zero(stage=stage), CPU)
        plain = curve(without, settings)
        settings = replace(settings, validate_every=2, keep_best=True)
        engine = ZeroEngine(toy.Toy(), settings, Zero(stage=stage), CPU)
        measured: list[float] = []
        validated = curve(engine, settings, validation=held_out(), measured=measured)
        half = ZeroEngine(toy.Toy(), settings, Zero(stage=stage), CPU)
        curve(half, settings, halt=True, validation=held_out())
        state = shared(half.state())
        resumed = ZeroEngine(toy.Toy(), settings, Zero(stage=stage), CPU)
        resumed.load(state, 3)
        rest: list[float] = []
        curve(resumed, settings, validation=held_out(), measured=rest)
        state, other = without.state(), engine.state()
        unchanged = state is None or all(torch.equal(other[name], tensor) for name, tensor in state.items())
        results[f"{precision} {stage}"] = {
            "plain": plain,
            "validated": validated,
            "unchanged": unchanged,
            "measured": measured,
            "rest": rest,
            "same": _equal(engine.export(), resumed.export()),
            "best": engine.validation.tolist(),
        }
    return results


def held_out(vocabulary: int = toy.VOCABULARY, length: int = toy.LENGTH) -> Rows:
    """Validation rows: no multiple of the ranks or of any batch."""
    tokens = torch.randint(vocabulary, (11, length), generator=torch.Generator().manual_seed(99))
    return Rows(tokens, STEP, torch.arange(11), 11)


def sums(stage: int) -> float:
    """How far a bfloat16 gradient of four micro-steps is from the mean of theirs in float32, of its largest number."""
    settings = toy.training(
        precision="bfloat16", accumulation=4, steps=1, betas=(0.0, 0.9), clip=1e9, ema=None, learning_rate=1e-30
    )  # the weights stay, and Adam's first moment is the gradient
    each = replace(settings, accumulation=1, batch=toy.BATCH // 4, steps=4, checkpoint_every=1)
    actual = []

    def gradients(engine: Engine) -> None:
        state = engine.state()
        actual.append(None if state is None else {n: g.double() for n, g in state.items() if n.startswith(FIRST + ".")})

    whole = ZeroEngine(toy.Toy(0.0), settings, Zero(stage=stage), CPU)
    fit(whole, toy.rows, settings, 0, lambda *_: None, gradients)
    gradients(whole)
    parts = ZeroEngine(toy.Toy(0.0), each, Zero(stage=stage), CPU)
    fit(parts, lambda step, a, b: toy.rows(0, 2 * step + a, 2 * step + b), each, 0, lambda *_: None, gradients)
    gradients(parts)
    if parts.rank > 0:
        return 0.0
    together, *apart = actual
    return max(
        ((sum(part[name] for part in apart) / 4 - g).abs().max() / g.abs().max()).item() for name, g in together.items()
    )


def _equal(left, other) -> bool:
    return left is None or (left.keys() == other.keys() and all(torch.equal(left[name], other[name]) for name in left))


def adaptations(setups: Setups) -> dict[str, dict]:
    """For each stage: the curve of adapters, the names in their state, and whether a resumed training ends equally."""
    results = {}
    for stage in setups.of_objectives:
        full = curve(ZeroEngine(adapted(), ADAPTED, Zero(stage=stage), CPU), ADAPTED, science_rows)
        whole, half, resumed = (ZeroEngine(adapted(0.3), ADAPTED, Zero(stage=stage), CPU) for _ in range(3))
        curve(whole, ADAPTED, science_rows)
        curve(half, ADAPTED, science_rows, halt=True)
        state = shared(half.state())
        resumed.load(state, 2)
        curve(resumed, ADAPTED, science_rows)
        same = _equal(whole.export(), resumed.export())
        results[str(stage)] = {"full": full, "names": sorted(state), "same": same}
    return results


def by_muon(setups: Setups, folder: Path) -> dict[str, dict]:
    """For some stages and precisions: the curves of a whole training, a resumed one and one of a later stage."""
    results = {}
    for precision, stage in setups.of_muon:
        settings = replace(MATRICES, precision=precision)
        build = objectives()["denoising"]
        whole, half, resumed = (ZeroEngine(build(), settings, Zero(stage=stage), CPU) for _ in range(3))
        full = curve(whole, settings, science_rows)
        curve(half, settings, science_rows, halt=True)
        workspace = folder / f"muon-{precision}-{stage}"
        with checkpointed(half, workspace) as checkpointing:
            checkpointing.save(half)
        zero = Zero(stage=(stage + 1) % 4, offload=stage in (1, 2))
        moved = ZeroEngine(build(), settings, zero, CPU)
        rests = {}
        for name, engine in (("rest", resumed), ("moved", moved)):
            assert checkpointed(engine, workspace).resume() is not None
            rests[name] = curve(engine, settings, science_rows)
        names = sorted(shared(half.state()))
        same = _equal(whole.export(), resumed.export())
        results[f"{precision} {stage}"] = {"full": full, "names": names, "same": same, **rests}
    return results


def chunked(setups: Setups) -> dict[str, dict]:
    """The objectives' curves under ZeRO-3 in small chunks, and their number on each rank.

    Some ranks have none, and every weight is gathered for use.
    """
    results, offload = {}, deepspeed_engine._offload
    deepspeed_engine._offload = lambda zero: {**offload(zero), "stage3_param_persistence_threshold": 0}
    for name in setups.chunked:
        with small_chunks() as mine:
            full = curve(ZeroEngine(objectives()[name](), UNEVEN, Zero(stage=3), CPU), UNEVEN, uneven_rows)
        numbers = [None, None]
        torch.distributed.all_gather_object(numbers, mine[0])
        results[name] = {"full": full, "numbers": numbers}
    deepspeed_engine._offload = offload
    return results


SCIENCE = Training(steps=3, batch=8, learning_rate=1e-3, clip=1.0)
UNEVEN = replace(SCIENCE, steps=8)
MEASURED = replace(SCIENCE, ema=0.9, validate_every=1)  # the averages are validated, and training is the same
ADAPTED = replace(SCIENCE, steps=4, ema=0.9, checkpoint_every=2)
MATRICES = replace(ADAPTED, muon=Muon(), weight_decay=0.1, learning_rate=1e-2, clip=0.3)


def main(rank: int, port: int, output: Path, setups: Setups) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    attention.BY_ROW = LENGTH  # so that the short rows of these objectives attend by row
    results = stages(setups, output.parent)
    results["validations"] = validations(setups)
    results["on disk"] = on_disk(output.parent)
    results["chunked"] = chunked(setups)
    results["adaptations"] = adaptations(setups)
    results["muon"] = by_muon(setups, output.parent)
    results["sums"] = {str(stage): sums(stage) for stage in setups.summed}
    for name, build in objectives().items():
        for stage in setups.of_objectives:
            engine, measured = ZeroEngine(build(), MEASURED, Zero(stage=stage), CPU), []
            held = held_out(VOCABULARY, LENGTH)
            full = curve(engine, MEASURED, science_rows, validation=held, measured=measured)
            results[f"{name} {stage}"] = {"full": full, "measured": measured}
    if rank == 0:
        output.write_text(json.dumps(results))
    leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), {"usual": USUAL, "all": ALL}[sys.argv[4]])
