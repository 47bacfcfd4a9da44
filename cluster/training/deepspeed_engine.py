"""ZeRO: DeepSpeed as an `Engine` whose training states are independent of sharding and number of workers.

DeepSpeed keeps the float32 weights and Adam's moments in flat tensors, sharded over the workers. `_shards` locates the
slices of each parameter in them; with it, states are gathered and scattered one parameter at a time, and a checkpoint
is the same for every stage and any number of workers. DeepSpeed's own checkpoint files are not written, because they
are pickles.
"""

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from cluster.config import Zero
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
    FIRST,
    SECOND,
    VALIDATION,
    WEIGHTS,
    average,
    evaluation_mode,
    require_state,
)
from edlm.training.settings import Training, share


@dataclass(frozen=True)
class ShardFragment:
    """`count` elements of the parameter `name` from `offset`, stored in the flat tensor `master` from `start`."""

    name: str
    master: int
    start: int
    offset: int
    count: int


class ZeroEngine:
    """`Engine` of several workers that share the training state (torch.distributed must be initialized)."""

    def __init__(self, objective: Objective, training: Training, zero: Zero, device: torch.device) -> None:
        assert isinstance(objective, nn.Module)
        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.training, self.device, self.step = training, device, 0
        self._stage = _stage(zero, training)
        trained = {n: p for n, p in objective.trained.named_parameters() if p.requires_grad}
        self.shapes = {name: parameter.shape for name, parameter in trained.items()}
        # DeepSpeed initializes the float32 weights of a bfloat16 network from rounded ones, so keep the unrounded ones.
        unrounded = trained if training.precision == "bfloat16" else {}
        initial = {name: p.detach().to("cpu", copy=True) for name, p in unrounded.items()}
        objective.train()  # every worker must make the same calls, which networks guarantee in training mode only
        prepare_blocks(objective.trained, training)
        self._engine = _initialised(objective, list(trained.values()), training, zero, self.world_size)
        names = {id(parameter): name for name, parameter in trained.items()}
        self._masters = _masters(self._engine.optimizer, self._stage, list(trained.values()))
        self._fragments = list(_shards(self._engine.optimizer, self._stage, names, self.rank))
        if initial:
            self._lay_out(initial)
        self._adam.state.clear()  # DeepSpeed may have taken a step without gradients to allocate the moments
        self._averages = [master.detach().clone() for master in self._masters] if training.ema is not None else None
        self._best = [master.detach().clone() for master in self._masters] if training.keep_best else None
        self.validation = unvalidated()

    def backward(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        loss, observations = self._engine(rows.to(self.device))
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # between micro-steps it only counts them
        return loss, observations

    def update(self, learning_rate: float) -> Tensor:
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        norm = self._norm_before_step()
        self._engine.step()
        norm = self._engine.get_global_grad_norm() if norm is None else norm
        if not self._engine.was_step_applied():
            norm = float("nan")  # DeepSpeed skips a step whose gradient is not finite
        if self._averages is not None:
            average(self._averages, [master.detach() for master in self._masters], self.training.ema)
        self.step += 1
        return torch.as_tensor(norm, dtype=torch.float64).detach()

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
        self._best = [weight.detach().clone() for weight in self._averages or self._masters]

    def gather(self, values: Tensor) -> Tensor:
        values = values.contiguous().to(self.device)
        parts = [torch.empty_like(values) for _ in range(self.world_size)]
        torch.distributed.all_gather(parts, values)
        return torch.stack(parts).cpu()

    def part(self) -> list[StateSlice]:
        return self._own(*self._state_slices())

    def state(self) -> dict[str, Tensor] | None:
        state = self._whole(self._kinds())
        if state is not None and self.training.validate_every is not None:
            state[VALIDATION] = self.validation
        return state

    def load(self, state: Mapping[str, Tensor], step: int) -> None:
        source = source_of(state)
        require_state(source.shapes, self.shapes, self.training)
        for master in self._masters:
            self._adam.state[master] = {
                "step": torch.tensor(float(step), device=master.device),  # where a fused optimizer expects it
                FIRST: torch.zeros_like(master),
                SECOND: torch.zeros_like(master),
            }
        self.validation = unvalidated()
        error = None
        try:
            sharded, replicated = self._state_slices()
            source.fill([*sharded, *replicated])
        except StorageError as failure:
            error = failure
        raise_on_all(self, error)  # before the collectives of the next call
        _load_rounded(self._engine.optimizer, self._stage)
        self.step = step

    def exported_part(self) -> list[StateSlice]:
        return self._own(*self._slices({"": self._best or self._averages or self._masters}))

    def export(self) -> dict[str, Tensor] | None:
        return self._whole({"": self._best or self._averages or self._masters})

    @property
    def _adam(self) -> torch.optim.Optimizer:
        return getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)

    def _kinds(self) -> dict[str, list[Tensor]]:
        """Return the flat tensors of each kind of state."""
        kinds = {WEIGHTS: self._masters, **{key: self._moments(key) for key in (FIRST, SECOND)}}
        if self._averages is not None:
            kinds[AVERAGE] = self._averages
        if self._best is not None:
            kinds[BEST] = self._best
        return kinds

    def _state_slices(self) -> tuple[list[StateSlice], list[StateSlice]]:
        """Return what this worker holds of the state: what it alone holds, and what all do."""
        sharded, replicated = self._slices(self._kinds())
        validation = [] if self.training.validate_every is None else [whole(VALIDATION, self.validation)]
        return sharded, [*replicated, *validation]

    def _slices(self, kinds: Mapping[str, list[Tensor]]) -> tuple[list[StateSlice], list[StateSlice]]:
        slices = [
            StateSlice(
                f"{kind}.{part.name}".removeprefix("."),
                self.shapes[part.name],
                part.offset,
                flats[part.master].detach().view(-1)[part.start : part.start + part.count],
            )
            for kind, flats in kinds.items()
            for part in self._fragments
        ]
        return (slices, []) if self._stage > 0 else ([], slices)

    def _own(self, sharded: list[StateSlice], replicated: list[StateSlice]) -> list[StateSlice]:
        """Return what this worker saves: its shards, and its share of what all workers hold."""
        return [*sharded, *shared_out(replicated, self.rank, self.world_size)]

    def _moments(self, key: str) -> list[Tensor]:
        return [self._adam.state[master][key] for master in self._masters]

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
        _load_rounded(self._engine.optimizer, self._stage)

    def _norm_before_step(self) -> Tensor | None:
        """Return the gradient norm at stage 0, where DeepSpeed clips without reporting it; None at other stages."""
        if self._stage > 0:
            return None
        grads = [master.grad for master in self._masters if master.grad is not None]
        return torch.nn.utils.get_total_norm(grads)

    @torch.no_grad()
    def _whole(self, kinds: Mapping[str, list[Tensor]]) -> dict[str, Tensor] | None:
        """Return every kind of every parameter, unsharded, on rank 0; one parameter at a time is in memory twice."""
        result = {}
        for kind, flats in kinds.items():
            for name, shape in self.shapes.items():
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


@contextmanager
def _unavailable(module: str) -> Iterator[None]:
    """Make imports of an optional module fail within, unless it is imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # Python's own mark of a module that there is not
    try:
        yield
    finally:
        del sys.modules[module]


def _initialised(
    objective: nn.Module, trained: list[nn.Parameter], training: Training, zero: Zero, world_size: int
) -> Any:
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    with _unavailable("mlflow"):  # DeepSpeed's autotuner, which is not used, would import it, for seconds
        import deepspeed  # here, because it detects the accelerator on import
    from deepspeed.utils import logger

    gc.freeze()  # DeepSpeed collects garbage many times while it starts, and would walk all that was imported

    logger.setLevel(logging.ERROR)
    # The CPU's shared-memory collectives would be compiled at the first start; gloo's need no compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
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
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": 0.0,  # `update` sets it; a step during DeepSpeed's initialization must change nothing
                "betas": list(training.betas),
                "eps": training.epsilon,
                "weight_decay": training.weight_decay,
                "torch_adam": True,
                "fused": True,
            },
        },
    }
    if training.precision == "bfloat16":
        settings["bf16"] = {"enabled": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
        settings["communication_data_type"] = "fp32"  # gradients are summed over workers in float32, too
    engine, *_ = deepspeed.initialize(model=objective, model_parameters=trained, config=settings)  # type: ignore[arg-type]
    return engine


def _stage(zero: Zero, training: Training) -> int:
    """Return DeepSpeed's stage: 1 for 0 in bfloat16, because without ZeRO it accumulates gradients in bfloat16."""
    return 1 if zero.stage == 0 and training.precision == "bfloat16" else zero.stage


def _offload(zero: Zero) -> dict[str, Any]:
    if not zero.offload:
        return {}
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {"offload_optimizer": host} | ({"offload_param": host} if zero.stage == 3 else {})


def _masters(optimizer: Any, stage: int, trained: list[nn.Parameter]) -> list[Tensor]:
    """Return this worker's float32 weights, as the optimizer holds them."""
    if stage == 3:
        return list(optimizer.fp32_partitioned_groups_flat)
    if hasattr(optimizer, "fp32_groups_flat_partition"):  # BF16_Optimizer: stage 1 in bfloat16
        return list(optimizer.fp32_groups_flat_partition)
    if stage > 0:
        return list(optimizer.single_partition_of_fp32_groups)
    return list(trained)


def _shards(optimizer: Any, stage: int, names: Mapping[int, str], rank: int) -> Iterator[ShardFragment]:
    """Yield this worker's slices of the parameters."""
    if stage == 3:
        for i, group in enumerate(optimizer.fp16_groups):
            for parameter in group:
                _, start, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
                count = max(0, min(size, parameter.ds_numel - rank * size))  # the last shard is padded
                yield ShardFragment(names[id(parameter)], i, start, rank * size, count)
    elif stage > 0:
        for i, group in enumerate(getattr(optimizer, "bf16_groups", None) or optimizer.bit16_groups):
            for parameter in group:
                mapping = parameter._hp_mapping
                if mapping is not None:
                    low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
                    yield ShardFragment(names[id(parameter)], i, high.start, low.start, low.numel)
    else:
        for i, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            yield ShardFragment(names[id(parameter)], i, 0, 0, parameter.numel())


@torch.no_grad()
def _load_rounded(optimizer: Any, stage: int) -> None:
    """Copy the float32 weights to the network, in its own precision."""
    if stage == 3:
        optimizer._partition_all_parameters()
        for i in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(i)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif stage > 0:
        optimizer.update_lp_params()
