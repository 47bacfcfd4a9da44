"""The autoregressive language model: the baseline, the judge, and the source of the energies `ar` and `coar`."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from edlm.streams import Purpose, uniforms
from edlm.transformer import ROWS_MULTIPLE, Readout, Transformer, Trunk


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

    @torch.no_grad()
    def draw(self, seeds: Int[Tensor, " b"], length: int) -> Int[Tensor, "b l"]:
        """Texts of `length` tokens, one after the other from the keys and values of those before; of each row its own
        seed alone.
        """
        # Whole multiples of rows: with fewer, BLAS would make a row's last bits depend on how many there are.
        rows = F.pad(seeds, (0, -len(seeds) % ROWS_MULTIPLE))
        u = uniforms(rows, 0, 0, Purpose.CANDIDATE, (length,))
        seen = self.transformer.start(len(rows), length)
        token, texts = torch.full_like(rows, self.bos), []
        for place in range(length):
            features = self.transformer.extend(self.embedding(token)[:, None], place, seen)[:, 0]
            token = self.readout.draw(features, u[:, place, None])[0][:, 0]
            texts.append(token)
        return torch.stack(texts, dim=1)[: len(seeds)]
