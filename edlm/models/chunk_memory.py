"""Memory for the distributions of chunks of positions, which are the largest tensors of a step."""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from edlm import equations


class ChunkMemory:
    """What the chunks of a pass write to in turn, so that only the first touches new pages.

    On a CPU, touching a page for the first time takes longer than what is computed in it. A distribution is overwritten
    by the next one and by a draw, except while gradients are recorded: then it has memory of its own.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def log_p(self, logits: Float[Tensor, "n v"]) -> Float[Tensor, "n v"]:
        """Return log p_theta in float32, as `equations.substitute` does."""
        if torch.is_grad_enabled():
            return equations.substitute(logits)
        return equations.substitute(self._wide(logits), out=self.scratch(logits, "distribution"))

    def draw(
        self, logits: Float[Tensor, "n v"], u: Float64[Tensor, "n k"]
    ) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
        """Draw k tokens per position, as `equations.draw` does in float32, which returns no part of this memory."""
        if torch.is_grad_enabled():
            return equations.draw(logits.float(), u)
        return equations.draw(self._wide(logits), u, self.scratch(logits, "distribution"))

    def scratch(self, values: Tensor, name: str) -> Tensor:
        """Return float32 memory of the shape of `values`, with any content: that of this name, if it has the rows."""
        held = self._held.get(name)
        if held is None or len(held) < len(values) or held.shape[1:] != values.shape[1:]:
            held = torch.empty_like(values, dtype=torch.float32, memory_format=torch.contiguous_format)
            self._held[name] = held
        return held[: len(values)]

    def _wide(self, logits: Tensor) -> Tensor:
        return logits if logits.dtype == torch.float32 else self.scratch(logits, "logits").copy_(logits)
