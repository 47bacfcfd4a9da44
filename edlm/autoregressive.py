"""The autoregressive language model: the baseline, the judge, and the source of the energies `ar` and `coar`."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from edlm.transformer import Readout, Transformer, Trunk


class AutoregressiveModel(nn.Module):
    """A causal transformer; every sequence begins after BOS (id `vocabulary`), so the first token counts too."""

    def __init__(self, trunk: Trunk, vocabulary: int) -> None:
        super().__init__()
        self.trunk, self.vocabulary, self.bos = trunk, vocabulary, vocabulary
        self.embedding = nn.Embedding(vocabulary + 1, trunk.width)
        self.transformer = Transformer(trunk, causal=True)
        self.readout = Readout(trunk.width, vocabulary)

    def log_p(self, x: Int[Tensor, "b l"], where: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l"]:
        """log p(x^l | x^<l) at the selected positions (all by default), 0 elsewhere; float32."""
        where = torch.ones_like(x, dtype=torch.bool) if where is None else where
        context = F.pad(x[:, :-1], (1, 0), value=self.bos)
        features = self.transformer(self.embedding(context), torch.zeros(x.shape[0], device=x.device))
        log_p = self.readout.log_p_of(features[where], x[where])
        return torch.zeros(x.shape, device=log_p.device).masked_scatter(where, log_p)
