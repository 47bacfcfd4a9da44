"""Optimizers: AdamW for all weights, or Muon for the matrices of the transformer's blocks and AdamW for the others.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces the averaged gradient U S V^T of a matrix
by U V^T, nearly: five steps of a Newton-Schulz iteration, which torch computes in bfloat16, leave its singular values
between about 0.7 and 1.2. Times 0.2 sqrt(max(rows, columns)) (Liu et al. 2025, arXiv:2502.16982, equation 4), the
update has the root mean square of AdamW's, so that one learning rate and one weight decay serve both.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from edlm.config import ConfigurationError
from edlm.models.transformer import Block
from edlm.training.settings import Training

FIRST, SECOND = "exp_avg", "exp_avg_sq"  # AdamW's averages of a weight's gradient and of its square
MOMENTUM = "momentum_buffer"  # Muon's average of a matrix's gradient; torch's names, as are those of AdamW
ADAMW, MUON = (FIRST, SECOND), (MOMENTUM,)


class AdamW(torch.optim.AdamW):
    """torch's, whose methods as torch wraps them would load its compiler: for seconds, in every worker.

    The wrappers keep the methods out of graphs that are compiled, of which none here has an optimizer in it; that of
    `step` turns off gradients, too.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class JointOptimizer(torch.optim.Optimizer):
    """Optimizers of disjoint weights as one, which has their groups (the same objects) and the states of all.

    The groups in `param_groups` step; ZeRO leaves one of them there at a time.
    """

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self._by_optimizer = [(optimizer, optimizer.param_groups) for optimizer in optimizers]
        for optimizer in optimizers:
            optimizer.state = self.state

    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for optimizer, groups in self._by_optimizer:
            optimizer.param_groups = [group for group in groups if any(group is one for one in self.param_groups)]
            optimizer.step()


def block_matrices(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the matrices of a network's blocks that train, by name: the weights of their linear layers, four each.

    Others are embeddings, LM heads, projections outside of the blocks, and what modulates norms by the time.
    """
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    matrices = {id(layer.weight) for block in blocks for layer in block.children() if isinstance(layer, nn.Linear)}
    return {
        name: weight for name, weight in network.named_parameters() if weight.requires_grad and id(weight) in matrices
    }


def moment_kinds(network: nn.Module, training: Training) -> dict[str, tuple[str, ...]]:
    """Return which averages of its gradient the optimizer keeps of each trained weight, by name: `ADAMW` or `MUON`.

    Raise ConfigurationError if Muon is set and no matrix of a block trains.
    """
    kinds = dict.fromkeys((name for name, weight in network.named_parameters() if weight.requires_grad), ADAMW)
    if training.muon is None:
        return kinds
    matrices = block_matrices(network)
    if not matrices:
        raise ConfigurationError(
            f"muon: {type(network).__name__} has no transformer blocks of this project whose matrices train; leave it "
            "out, and AdamW trains all weights"
        )
    return kinds | dict.fromkeys(matrices, MUON)


def optimizer_of(
    weights: Mapping[str, Tensor],
    kinds: Mapping[str, tuple[str, ...]],
    training: Training,
    make_muon: Callable[[list[Tensor], float, float, float], torch.optim.Optimizer] | None = None,
) -> torch.optim.Optimizer:
    """Return the optimizer of float32 weights, by name, with averages of these kinds.

    `make_muon` makes the optimizer of the matrices from what `muon`, the default, takes.
    """
    adamw = AdamW(
        [weight for name, weight in weights.items() if kinds[name] == ADAMW],
        lr=training.learning_rate,
        betas=training.betas,
        eps=training.epsilon,
        weight_decay=training.weight_decay,
        fused=True,
    )
    if training.muon is None:
        return adamw
    matrices = [weight for name, weight in weights.items() if kinds[name] == MUON]
    make = muon if make_muon is None else make_muon
    return JointOptimizer(make(matrices, training.learning_rate, training.weight_decay, training.muon.momentum), adamw)


def muon(matrices: list[Tensor], learning_rate: float, weight_decay: float, momentum: float) -> torch.optim.Muon:
    """Return Muon for whole matrices, with Nesterov momentum and the scale of Liu et al. 2025."""
    return torch.optim.Muon(
        matrices, lr=learning_rate, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
    )


def blank_state(
    weight: Tensor, kinds: Iterable[str], step: int, zeros_like: Callable[[Tensor], Tensor] = torch.zeros_like
) -> dict[str, Tensor]:
    """Return an optimizer's state of a weight after `step` steps whose averages, still 0, are to be filled."""
    averages = {kind: zeros_like(weight) for kind in kinds}
    if FIRST not in averages:
        return averages
    return {"step": torch.tensor(float(step), device=weight.device), **averages}  # where a fused optimizer expects it
