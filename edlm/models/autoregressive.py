"""Autoregressive language model: the baseline, the judge, and the source of the energies `ar` and `coar`."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from edlm.config import ConfigurationError, config
from edlm.cooperative_work import Cooperative, run_to_end
from edlm.device_copies import fetched, selected_indices, sent
from edlm.models.float32_summed_layers import Embedding
from edlm.models.readout import LMHead
from edlm.models.row_invariance import ROWS_MULTIPLE
from edlm.models.transformer import Transformer, TransformerConfig
from edlm.rng import Purpose, uniforms


class AbstractAutoregressiveModel(nn.Module):
    """Autoregressive model of texts from their first token, which counts too; its LM head reads the features.

    A subclass sets the attributes and computes the features.
    """

    vocabulary: int
    """Number of tokens."""
    bos: int
    """Id of the token that every sequence starts after; it may lie outside of the vocabulary."""
    readout: LMHead
    """LM head."""

    @abstractmethod
    def features(self, tokens: Int[Tensor, "b w"]) -> Float[Tensor, "b w h"]:
        """Compute the features at each token, which may be BOS, of it and the tokens to its left: ONE network pass."""

    @abstractmethod
    def fill(
        self, x: Int[Tensor, "b l"], where: Bool[Tensor, "b l"], u: Float64[Tensor, "b l"]
    ) -> Cooperative[tuple[Int[Tensor, "b l"], Float[Tensor, "b l"]]]:
        """Draw the selected positions of x in order, each from p(. | tokens to its left); pause after each position.

        Returns x and the log-probabilities of the drawn tokens, 0 elsewhere. The pass uses a KV cache and reads the
        other positions as given: each one left of the last selected position must be a token. `where` is fetched
        unless it is on the host.
        """

    def log_p(self, x: Int[Tensor, "b l"], where: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l"]:
        """Return log p(x^l | x^<l) at the selected positions (all by default), 0 elsewhere; float32."""
        where = torch.ones(x.shape, dtype=torch.bool) if where is None else where
        return self.log_p_of(self.read(x), where, x)

    def read(self, x: Int[Tensor, "b l"]) -> Float[Tensor, "b l h"]:
        """Compute the features of the tokens to the left of each position, which predict the token there."""
        return self.features(F.pad(x[:, :-1], (1, 0), value=self.bos))

    def read_within(self, x: Int[Tensor, "b l"], documents: Int[Tensor, "b l"]) -> Float[Tensor, "b l h"]:
        """Compute what `read` does of each document (index) alone: each starts after BOS, and sees no other one.

        Raise ConfigurationError if this network cannot.
        """
        raise ConfigurationError(
            f"{type(self).__name__} attends across documents; leave data.attention at across_documents"
        )

    def log_p_of(
        self, features: Float[Tensor, "b l h"], where: Bool[Tensor, "b l"], x: Int[Tensor, "b l"]
    ) -> Float[Tensor, "b l"]:
        """Return log p of the tokens of x at the selected positions, 0 elsewhere; the vocabulary in chunks."""
        indices = selected_indices(where, features.device)
        log_p = self.readout.log_p_of(features[indices], x[indices])
        return torch.zeros(x.shape, device=log_p.device).index_put(indices, log_p)

    def distribution(self, features: Float[Tensor, "b l h"], where: Bool[Tensor, "b l"]) -> Float[Tensor, "n v"]:
        """Return log p of every token at the selected positions, in (b, l) order; float32."""
        return self.readout.distribution(features[selected_indices(where, features.device)])

    def draw(self, seeds: Int[Tensor, " b"], length: int) -> Int[Tensor, "b l"]:
        """Draw texts of `length` tokens; each row depends on its own seed alone."""
        u = uniforms(seeds, 0, 0, Purpose.CANDIDATE, (length,))
        blank = torch.zeros(u.shape, dtype=torch.long, device=u.device)
        return run_to_end(self.fill(blank, torch.ones(u.shape, dtype=torch.bool), u))[0]


def up_to_last_selected(where: Bool[Tensor, "b l"]) -> list[bool]:
    """Return of each position up to the last selected one whether a row selects it."""
    selected = fetched([where])[0].any(dim=0).tolist()
    while selected and not selected[-1]:
        selected.pop()
    return selected


class AbstractAutoregressiveConfig(ABC):
    """Settings of an autoregressive network; a subclass stands in the file of its network and in the union of kinds.

    The union is `edlm.checkpoints.network_kinds.AutoregressiveConfig`.
    """

    @abstractmethod
    def build(self, vocabulary: int) -> AbstractAutoregressiveModel:
        """Build the network with fresh weights, drawn from torch's random state."""


class AutoregressiveModel(AbstractAutoregressiveModel):
    """Causal transformer; every sequence starts after BOS (id `vocabulary`)."""

    def __init__(self, config: TransformerConfig, vocabulary: int) -> None:
        super().__init__()
        self.config, self.vocabulary, self.bos = config, vocabulary, vocabulary
        self.embedding = Embedding(vocabulary + 1, config.width)
        self.transformer = Transformer(config, causal=True)
        self.readout = LMHead(config.width, vocabulary)

    def features(self, tokens: Int[Tensor, "b w"]) -> Float[Tensor, "b w h"]:
        return self.transformer(self.embedding(tokens), torch.zeros(len(tokens), device=tokens.device))

    def read_within(self, x: Int[Tensor, "b l"], documents: Int[Tensor, "b l"]) -> Float[Tensor, "b l h"]:
        starts = documents != F.pad(documents[:, :-1], (1, 0), value=-1)
        tokens = F.pad(x[:, :-1], (1, 0), value=self.bos).masked_fill(starts, self.bos)
        return self.transformer(
            self.embedding(tokens), torch.zeros(len(tokens), device=tokens.device), documents=documents
        )

    @torch.no_grad()
    def fill(
        self, x: Int[Tensor, "b l"], where: Bool[Tensor, "b l"], u: Float64[Tensor, "b l"]
    ) -> Cooperative[tuple[Int[Tensor, "b l"], Float[Tensor, "b l"]]]:
        rows, selected = len(x), up_to_last_selected(where)
        (where,) = sent([where], x.device)
        # Whole multiples of rows: with fewer, BLAS would make a row's last bits depend on the number of rows.
        x, where, u = (F.pad(values, (0, 0, 0, -rows % ROWS_MULTIPLE)) for values in (x, where, u))
        caches, log_p = self.transformer.start(len(x), len(selected)), torch.zeros(x.shape, device=x.device)
        token = torch.full_like(x[:, 0], self.bos)
        for position, is_selected in enumerate(selected):
            features = self.transformer.extend(self.embedding(token)[:, None], position, caches)[:, 0]
            if is_selected:
                token, token_log_p = self.readout.draw(features, u[:, position, None])
                x[:, position] = torch.where(where[:, position], token[:, 0], x[:, position])
                log_p[:, position] = torch.where(where[:, position], token_log_p[:, 0], 0.0)
            token = x[:, position]
            yield
        return x[:rows], log_p[:rows]


@config
class TransformerAutoregressiveConfig(TransformerConfig, AbstractAutoregressiveConfig):
    """Causal transformer of this project."""

    kind: Literal["transformer"] = "transformer"

    def build(self, vocabulary: int) -> AutoregressiveModel:
        return AutoregressiveModel(self, vocabulary)
