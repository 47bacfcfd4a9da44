"""Single-process engine: float32 weights and their running average, for networks in float32 or bfloat16."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edlm.checkpoints.state_slices import StateSlice, source_of, whole
from edlm.data.batches import Rows
from edlm.interfaces import AbstractEnergy
from edlm.training.block_execution import prepare_blocks
from edlm.training.early_stopping import unvalidated
from edlm.training.interfaces import Objective
from edlm.training.optimizers import ADAMW, MOMENTUM, MUON, blank_state, moment_kinds, optimizer_of
from edlm.training.settings import Training

WEIGHTS, AVERAGE, BEST = "weights", "ema", "best"
VALIDATION = "validation"  # in a state: `Engine.validation`


class LocalEngine:
    """Single-process `Engine` on the device of the objective's weights, to which it moves the rows.

    The float32 weights are authoritative. In float32 they are the network's own; in bfloat16 the network holds rounded
    copies, which are overwritten from the float32 weights after each step. The gradients of micro-steps are accumulated
    in float32.
    """

    rank, world_size = 0, 1

    def __init__(self, objective: Objective, training: Training) -> None:
        assert isinstance(objective, nn.Module)
        self.objective, self.training, self.step = objective, training, 0
        self.names = [name for name, parameter in objective.trained.named_parameters() if parameter.requires_grad]
        self.masters = [p.detach().clone(memory_format=torch.contiguous_format) for p in self._parameters()]
        objective.to(getattr(torch, training.precision))
        self._shared = training.precision == "float32" and all(p.is_contiguous() for p in self._parameters())
        if self._shared:
            self.masters = [p.detach() for p in self._parameters()]
        objective.train()
        prepare_blocks(objective.trained, training, self.masters[0].device)
        self.moments = moment_kinds(objective.trained, training)
        self.optimizer = optimizer_of(dict(zip(self.names, self.masters, strict=True)), self.moments, training)
        self.average = [master.clone() for master in self.masters] if training.ema is not None else None
        self.best = [master.clone() for master in self.masters] if training.keep_best else None
        self.validation = unvalidated()

    def backward(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        loss, observations = self.objective(rows.to(self.masters[0].device))
        (loss / self.training.accumulation).backward()
        for master, parameter in zip(self.masters, self._parameters(), strict=True):
            if parameter.grad is not None:
                gradient, parameter.grad = parameter.grad.float(), None
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        return loss, observations

    def update(self, learning_rate: float) -> Tensor:
        for master in self.masters:
            if master.grad is None:  # the optimizer would skip it, weight decay and moments included
                master.grad = torch.zeros_like(master)
        norm = torch.nn.utils.clip_grad_norm_(self.masters, self.training.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._load_rounded(self.masters)
        if self.average is not None:
            average(self.average, self.masters, self.training.ema)
        self.step += 1
        return norm

    @contextmanager
    def evaluating(self) -> Iterator[Callable[[Rows], Tensor]]:
        device = self.masters[0].device
        kept = [master.clone() for master in self.masters] if self._shared and self.average else self.masters
        self._load_rounded(self.average or self.masters)
        try:
            with evaluation_mode(self.objective):
                yield lambda rows: self.objective(rows.to(device))[0]
        finally:
            self._load_rounded(kept)

    def remember_best(self) -> None:
        assert self.best is not None
        self.best = [weight.clone() for weight in self.average or self.masters]

    def gather(self, values: Tensor) -> Tensor:
        return values[None]

    def part(self) -> list[StateSlice]:
        held = dict(zip(self.names, self.masters, strict=True))
        slices = [whole(f"{WEIGHTS}.{name}", master) for name, master in held.items()]
        for kind in (*ADAMW, *MUON):
            names = [name for name in self.names if kind in self.moments[name]]
            slices += [whole(f"{kind}.{name}", self.optimizer.state[held[name]][kind]) for name in names]
        for kind, copies in ((AVERAGE, self.average), (BEST, self.best)):
            if copies is not None:
                slices += [whole(f"{kind}.{name}", copy) for name, copy in zip(self.names, copies, strict=True)]
        return slices if self.training.validate_every is None else [*slices, whole(VALIDATION, self.validation)]

    def state(self) -> dict[str, Tensor]:
        return {one.name: one.values.view(one.shape).cpu() for one in self.part()}

    def load(self, state: Mapping[str, Tensor], step: int) -> None:
        source = source_of(state)
        shapes = {name: master.shape for name, master in zip(self.names, self.masters, strict=True)}
        require_state(source.shapes, shapes, self.moments, self.training)
        for name, master in zip(self.names, self.masters, strict=True):
            self.optimizer.state[master] = blank_state(master, self.moments[name], step)
        self.validation = unvalidated()
        source.fill(self.part())
        self._load_rounded(self.masters)
        self.step = step

    def exported_part(self) -> list[StateSlice]:
        return [whole(name, weight) for name, weight in self.export().items()]

    def export(self) -> dict[str, Tensor]:
        weights = self.best or self.average or self.masters
        return {name: weight.to("cpu", copy=True) for name, weight in zip(self.names, weights, strict=True)}

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.objective.trained.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def _load_rounded(self, weights: list[Tensor]) -> None:
        """Copy float32 weights into the network, rounded to its precision."""
        if self._shared and weights is self.masters:
            return
        for weight, parameter in zip(weights, self._parameters(), strict=True):
            parameter.copy_(weight)


@contextmanager
def evaluation_mode(objective: nn.Module) -> Iterator[None]:
    """Compute no gradients, and put all modules in evaluation mode, except energies.

    In training mode an energy makes the same calls for any rows, which sharded weights need (`edlm.models.gather`), and
    nothing else differs: its dropout is that of the modules in it.
    """
    modes = [(module, module.training) for module in objective.modules()]
    for module, _ in modes:
        module.training = isinstance(module, AbstractEnergy)
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def average(averages: list[Tensor], weights: list[Tensor], decay: float | None) -> None:
    """Update a <- decay a + (1 - decay) w in place, from the float32 weights after a step."""
    assert decay is not None
    for mean, weight in zip(averages, weights, strict=True):
        mean.lerp_(weight, 1 - decay)


def require_state(
    state: Mapping[str, torch.Size],
    shapes: Mapping[str, torch.Size],
    moments: Mapping[str, tuple[str, ...]],
    training: Training,
) -> None:
    """Raise ValueError, naming the mismatched tensors, unless these shapes are of a state of this training.

    `shapes` are those of the trained weights, `moments` the averages that the optimizer keeps of each.
    """
    copies = [WEIGHTS, *([AVERAGE] if training.ema is not None else []), *([BEST] if training.keep_best else [])]
    expected = {f"{kind}.{name}": shape for name, shape in shapes.items() for kind in (*copies, *moments[name])}
    if training.validate_every is not None:
        expected[VALIDATION] = unvalidated().shape
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is foreign" for name in state if name not in expected]
    problems += [
        f"{name} has shape {tuple(state[name])}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in state and state[name] != shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        saved, resuming = _optimizer_name(state), _optimizer_name(expected)
        other = "it is of another network or training" if saved == resuming else f"{saved} saved it, {resuming} resumes"
        raise ValueError(
            f"the checkpoint does not fit this network: {'; '.join(problems[:5])}{more}; "
            f"{other}: use another workspace, or delete it"
        )


def _optimizer_name(state: Mapping[str, torch.Size]) -> str:
    """Return which optimizer's averages a state has, for messages."""
    return "Muon" if any(name.startswith(f"{MOMENTUM}.") for name in state) else "AdamW"
