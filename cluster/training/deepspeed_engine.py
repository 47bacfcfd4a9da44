"""ZeRO: DeepSpeed as an `Engine` whose training states are independent of sharding and number of workers.

DeepSpeed keeps the float32 weights and the optimizer's moments in flat tensors, sharded over the workers.
`cluster.training.zero_layout` locates the slices of each parameter in them; with it, states are gathered and scattered
one parameter at a time, and a checkpoint is the same for every stage and any number of workers. DeepSpeed's own
checkpoint files are not written, because they are pickles.
"""

import functools
import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from cluster.config import Zero
from cluster.training.deepspeed_import import import_deepspeed
from cluster.training.disk_memory import DiskMemory
from cluster.training.gathering import Gathering, host_group
from cluster.training.sharded_muon import MatrixShards, ShardedMuon
from cluster.training.unasked_norms import ask_for_no_norm, true_norm
from cluster.training.zero_layout import fragments_of, load_rounded, masters_of, parameters_of
from edlm.checkpoints.state_slices import StateSlice, shared_out, source_of, whole
from edlm.data.batches import Rows
from edlm.storage import StorageError
from edlm.training.block_execution import prepare_blocks
from edlm.training.checkpointing import raise_on_all
from edlm.training.early_stopping import unvalidated
from edlm.training.interfaces import Objective
from edlm.training.local_engine import (
    AVERAGE,
    BEST,
    VALIDATION,
    WEIGHTS,
    average,
    evaluation_mode,
    require_state,
)
from edlm.training.optimizers import ADAMW, MUON, blank_state, moment_kinds, optimizer_of
from edlm.training.settings import Training, share


class ZeroEngine:
    """`Engine` of several workers that share the training state (torch.distributed must be initialized)."""

    def __init__(self, objective: Objective, training: Training, zero: Zero, device: torch.device) -> None:
        assert isinstance(objective, nn.Module)
        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.training, self.device, self.step = training, device, 0
        self._gathering = Gathering(self.world_size, host_group())
        self._stage = _stage(zero, training)
        trained = {n: p for n, p in objective.trained.named_parameters() if p.requires_grad}
        self.shapes = {name: parameter.shape for name, parameter in trained.items()}
        self.moments = moment_kinds(objective.trained, training)
        self._disk = None if zero.offload_folder is None else DiskMemory(zero.offload_folder)
        self._zeros_like = torch.zeros_like if self._disk is None else self._disk.zeros_like
        self.room = None if self._disk is None else self._disk.room  # of `SnapshotWriter`
        # DeepSpeed initializes the float32 weights of a bfloat16 network from rounded ones, so keep the unrounded ones.
        unrounded = trained if training.precision == "bfloat16" else {}
        initial = {name: p.detach().to("cpu", copy=True) for name, p in unrounded.items()}
        objective.train()  # every worker must make the same calls, which networks guarantee in training mode only
        prepare_blocks(objective.trained, training, device)  # which DeepSpeed moves it to
        sharded = functools.partial(ShardedMuon, content=self._content, device=device)
        optimizer = optimizer_of(trained, self.moments, training, sharded if self._stage > 0 else None)
        weights, names = list(trained.values()), {id(parameter): name for name, parameter in trained.items()}
        self._engine = _initialised(objective, optimizer, weights, training, zero, self.world_size)
        self._masters = masters_of(self._engine.optimizer, self._stage, weights)
        groups = parameters_of(self._engine.optimizer, self._stage, weights)
        self._groups = [[names[id(parameter)] for parameter in group] for group in groups]
        self._fragments = list(fragments_of(self._engine.optimizer, self._stage, groups, names, self.rank))
        if initial:
            self._lay_out(initial)
        if self._disk is not None:
            self._disk.take_over(self._masters)
        self._forget_moments(0)
        self._averages = [self._copy(master) for master in self._masters] if training.ema is not None else None
        self._best = [self._copy(master) for master in self._masters] if training.keep_best else None
        self.validation = unvalidated()

    def backward(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        loss, observations = self._engine(rows.to(self.device))
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # between micro-steps it only counts them
        return loss, observations

    def update(self, learning_rate: float) -> Tensor:
        for group in self._base.param_groups:
            group["lr"] = learning_rate
        norm = self._norm_before_step()
        self._engine.step()
        norm = self._engine.get_global_grad_norm() if norm is None else norm
        if not self._engine.was_step_applied():
            norm = float("nan")  # DeepSpeed skips a step whose gradient is not finite
        if self._averages is not None:
            average(self._averages, [master.detach() for master in self._masters], self.training.ema)
        self.step += 1
        return true_norm(norm)

    @contextmanager
    def evaluating(self) -> Iterator[Callable[[Rows], Tensor]]:
        self._swap_averages()
        try:
            with evaluation_mode(self._engine.module):
                yield lambda rows: self._engine(rows.to(self.device))[0]
        finally:
            self._swap_averages()

    def remember_best(self) -> None:
        assert self._best is not None
        for best, weight in zip(self._best, self._averages or self._masters, strict=True):
            best.copy_(weight.detach())

    def gather(self, values: Tensor) -> Tensor:
        return self._gathering(values)

    def part(self) -> list[StateSlice]:
        return self._own(*self._state_slices())

    def state(self) -> dict[str, Tensor] | None:
        state = self._whole(self._kinds())
        if state is not None and self.training.validate_every is not None:
            state[VALIDATION] = self.validation
        return state

    def load(self, state: Mapping[str, Tensor], step: int) -> None:
        source = source_of(state)
        require_state(source.shapes, self.shapes, self.moments, self.training)
        self._forget_moments(step)
        self.validation = unvalidated()
        error = None
        try:
            sharded, replicated = self._state_slices()
            source.fill([*sharded, *replicated])
        except StorageError as failure:
            error = failure
        raise_on_all(self, error)  # before the collectives of the next call
        load_rounded(self._engine.optimizer, self._stage)
        self.step = step

    def exported_part(self) -> list[StateSlice]:
        return self._own(*self._slices({"": self._exported()}))

    def export(self) -> dict[str, Tensor] | None:
        return self._whole({"": self._exported()})

    @property
    def _base(self) -> torch.optim.Optimizer:
        return getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)

    def _content(self, flat: Tensor) -> MatrixShards:
        """Return what is in one of the flat tensors of float32 weights."""
        index = next(i for i, master in enumerate(self._masters) if master is flat)
        shapes = {name: self.shapes[name] for name in self._groups[index]}
        return MatrixShards(shapes, [part for part in self._fragments if part.master == index])

    def _forget_moments(self, step: int) -> None:
        self._base.state.clear()  # first, so that memory never holds them twice
        for master, group in zip(self._masters, self._groups, strict=True):
            kinds = self.moments[group[0]]  # alike in a group
            self._base.state[master] = blank_state(master, kinds, step, self._zeros_like)

    def _copy(self, tensor: Tensor) -> Tensor:
        return self._zeros_like(tensor).copy_(tensor.detach())

    def _exported(self) -> dict[int, Tensor]:
        return dict(enumerate(self._best or self._averages or self._masters))

    def _kinds(self) -> dict[str, dict[int, Tensor]]:
        """Return the flat tensors of each kind of state, by the index of the weights that they belong to."""
        kinds = {WEIGHTS: self._masters, AVERAGE: self._averages or [], BEST: self._best or []}
        return {kind: dict(enumerate(flats)) for kind, flats in kinds.items()} | {
            kind: {
                i: self._base.state[master][kind]
                for i, master in enumerate(self._masters)
                if kind in self.moments[self._groups[i][0]]
            }
            for kind in (*ADAMW, *MUON)
        }

    def _state_slices(self) -> tuple[list[StateSlice], list[StateSlice]]:
        """Return what this worker holds of the state: what it alone holds, and what all do."""
        sharded, replicated = self._slices(self._kinds())
        validation = [] if self.training.validate_every is None else [whole(VALIDATION, self.validation)]
        return sharded, [*replicated, *validation]

    def _slices(self, kinds: Mapping[str, Mapping[int, Tensor]]) -> tuple[list[StateSlice], list[StateSlice]]:
        slices = [
            StateSlice(
                f"{kind}.{part.name}".removeprefix("."),
                self.shapes[part.name],
                part.offset,
                flats[part.master].detach().view(-1)[part.start : part.start + part.count],
            )
            for kind, flats in kinds.items()
            for part in self._fragments
            if part.master in flats
        ]
        return (slices, []) if self._stage > 0 else ([], slices)

    def _own(self, sharded: list[StateSlice], replicated: list[StateSlice]) -> list[StateSlice]:
        """Return what this worker saves: its shards, and its share of what all workers hold."""
        if self._disk is not None:
            self._disk.flush()  # raises if the disk has lost something, which is no state to save
        return [*sharded, *shared_out(replicated, self.rank, self.world_size)]

    @torch.no_grad()
    def _swap_averages(self) -> None:
        """Exchange the float32 weights and their averages, each worker its shards, and show them in the network.

        What DeepSpeed has gathered of the weights is released by it, so that none of it survives the exchange.
        """
        if self._averages is not None:
            for master, mean in zip(self._masters, self._averages, strict=True):
                weight = master.detach().clone()
                master.copy_(mean)
                mean.copy_(weight)
        load_rounded(self._engine.optimizer, self._stage)

    def _norm_before_step(self) -> Tensor | None:
        """Return the gradient norm at stage 0, where DeepSpeed clips without reporting it; None at other stages."""
        if self._stage > 0:
            return None
        grads = [master.grad for master in self._masters if master.grad is not None]
        return torch.nn.utils.get_total_norm(grads)

    @torch.no_grad()
    def _whole(self, kinds: Mapping[str, Mapping[int, Tensor]]) -> dict[str, Tensor] | None:
        """Return every kind of every parameter, unsharded, on rank 0; one parameter at a time is in memory twice."""
        result = {}
        for kind, flats in kinds.items():
            for name in (name for i in flats for name in self._groups[i]):
                shape = self.shapes[name]
                buffer = torch.zeros(shape.numel(), device=self.device)
                for part in self._fragments:
                    if part.name == name and (self._stage > 0 or self.rank == 0):
                        buffer[part.offset : part.offset + part.count] = (
                            flats[part.master].flatten()[part.start : part.start + part.count].to(buffer)
                        )
                torch.distributed.reduce(buffer, dst=0)  # exact: one worker has the element, others add 0
                if self.rank == 0:
                    result[f"{kind}.{name}".removeprefix(".")] = buffer.view(shape).cpu()
        return result if self.rank == 0 else None

    @torch.no_grad()
    def _lay_out(self, weights: Mapping[str, Tensor]) -> None:
        for part in self._fragments:
            source = weights[part.name].flatten()[part.offset : part.offset + part.count]
            self._masters[part.master].view(-1)[part.start : part.start + part.count].copy_(source)


def _initialised(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    trained: list[nn.Parameter],
    training: Training,
    zero: Zero,
    world_size: int,
) -> Any:
    deepspeed = import_deepspeed()
    from deepspeed.utils import logger

    gc.freeze()  # DeepSpeed collects garbage many times while it starts, and would walk all that was imported

    ask_for_no_norm()
    logger.setLevel(logging.ERROR)
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": share(training, world_size),
        "gradient_accumulation_steps": training.accumulation,
        "gradient_clipping": training.clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": _stage(zero, training),
            # DeepSpeed's own default, but not for a smaller network: the memory is reserved.
            "reduce_bucket_size": min(5 * 10**8, sum(parameter.numel() for parameter in trained)),
            **_offload(zero),
        },
    }
    if training.precision == "bfloat16":
        # Its answer would be waited for; the norm of such a gradient is infinite, which `fit` finds at the next log.
        settings["bf16"] = {"enabled": True, "check_grad_overflow": False}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
        settings["communication_data_type"] = "fp32"  # gradients are summed over workers in float32, too
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # `update` sets it; a step during DeepSpeed's initialization must change nothing
    engine, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, model_parameters=trained, config=settings)  # type: ignore[arg-type]
    return engine


def _stage(zero: Zero, training: Training) -> int:
    """Return DeepSpeed's stage: 1 for 0 in bfloat16, because without ZeRO it accumulates gradients in bfloat16."""
    return 1 if zero.stage == 0 and training.precision == "bfloat16" else zero.stage


def _offload(zero: Zero) -> dict[str, Any]:
    if not zero.offload:
        return {}
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {"offload_optimizer": host} | ({"offload_param": host} if zero.stage == 3 else {})
