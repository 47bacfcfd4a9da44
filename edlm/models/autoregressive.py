"""The autoregressive language model: the baseline, the judge, and the source of the energies `ar` and `coar`."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from edlm.cooperative import Bites, finished
from edlm.models.readout import LMHead
from edlm.models.row_invariance import ROWS_MULTIPLE
from edlm.models.token_sums import Embedding
from edlm.models.transformer import Transformer, TransformerConfig
from edlm.rng import Purpose, uniforms


class AutoregressiveModel(nn.Module):
    """A causal transformer; every sequence begins after BOS (id `vocabulary`), so the first token counts too."""

    def __init__(self, trunk: TransformerConfig, vocabulary: int) -> None:
        super().__init__()
        self.trunk, self.vocabulary, self.bos = trunk, vocabulary, vocabulary
        self.embedding = Embedding(vocabulary + 1, trunk.width)
        self.transformer = Transformer(trunk, causal=True)
        self.readout = LMHead(trunk.width, vocabulary)

    def log_p(self, x: Int[Tensor, "b l"], where: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l"]:
        """log p(x^l | x^<l) at the selected positions (all by default), 0 elsewhere; float32."""
        where = torch.ones_like(x, dtype=torch.bool) if where is None else where
        return self.log_p_of(self.read(x), where, x)

    def read(self, x: Int[Tensor, "b l"]) -> Float[Tensor, "b l h"]:
        """The features of what stands left of each position: ONE network pass."""
        context = F.pad(x[:, :-1], (1, 0), value=self.bos)
        return self.transformer(self.embedding(context), torch.zeros(x.shape[0], device=x.device))

    def log_p_of(
        self, features: Float[Tensor, "b l h"], where: Bool[Tensor, "b l"], x: Int[Tensor, "b l"]
    ) -> Float[Tensor, "b l"]:
        """log p of the tokens of x at the selected positions, 0 elsewhere; the vocabulary in chunks."""
        log_p = self.readout.log_p_of(features[where], x[where])
        return torch.zeros(x.shape, device=log_p.device).masked_scatter(where, log_p)

    def distribution(self, features: Float[Tensor, "b l h"], where: Bool[Tensor, "b l"]) -> Float[Tensor, "n v"]:
        """log p of every token at the selected positions, in (b, l) order; float32."""
        return self.readout.distribution(features[where])

    def draw(self, seeds: Int[Tensor, " b"], length: int) -> Int[Tensor, "b l"]:
        """Texts of `length` tokens; of each row its own seed alone."""
        where = torch.ones(len(seeds), length, dtype=torch.bool, device=seeds.device)
        return finished(self.filling(where.long(), where, uniforms(seeds, 0, 0, Purpose.CANDIDATE, (length,))))[0]

    @torch.no_grad()
    def filling(
        self, x: Int[Tensor, "b l"], where: Bool[Tensor, "b l"], u: Float64[Tensor, "b l"]
    ) -> Bites[tuple[Int[Tensor, "b l"], Float[Tensor, "b l"]]]:
        """x with the selected positions drawn one after the other, each from p(. | what stands left of it), and the
        log-probabilities of what was drawn, 0 elsewhere.

        The others are fed as they are, from the keys and values of those before; left of the last selected position
        every one must be a token.
        """
        rows = len(x)
        # Whole multiples of rows: with fewer, BLAS would make a row's last bits depend on how many there are.
        x, where, u = (F.pad(values, (0, 0, 0, -rows % ROWS_MULTIPLE)) for values in (x, where, u))
        drawn = where.any(dim=0).tolist()
        end = len(drawn) - drawn[::-1].index(True) if any(drawn) else 0
        seen, log_p = self.transformer.start(len(x), end), torch.zeros(x.shape, device=x.device)
        token = torch.full_like(x[:, 0], self.bos)
        for place in range(end):
            features = self.transformer.extend(self.embedding(token)[:, None], place, seen)[:, 0]
            if drawn[place]:
                token, found = self.readout.draw(features, u[:, place, None])
                x[:, place] = torch.where(where[:, place], token[:, 0], x[:, place])
                log_p[:, place] = torch.where(where[:, place], found[:, 0], 0.0)
            token = x[:, place]
            yield
        return x[:rows], log_p[:rows]
