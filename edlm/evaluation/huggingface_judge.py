"""External causal language models, opened strictly: complete weights from safetensors, and no remote code."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from edlm.config import ConfigurationError
from edlm.huggingface.source import HuggingFaceSource

ROUNDING = 1e-5  # of float32 features, relative to the change of the altered token's own features


@dataclass(frozen=True)
class CausalModel:
    """A causal language model of the `transformers` library in float32, with its tokenizer."""

    name: str
    """Includes the hub's commit, or the digest of the local folder."""
    model: Any
    tokenizer: Any
    positions: int | None
    """Maximum number of tokens per call; None if the configuration does not say."""

    @property
    def bos(self) -> int | None:
        return self.tokenizer.bos_token_id

    @property
    def eos(self) -> int | None:
        return self.tokenizer.eos_token_id

    def encode(self, text: str) -> Sequence[int]:
        """Return the ids of `text` alone; text that spells a special token is encoded as text."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]

    @torch.no_grad()
    def __call__(self, tokens: Int[Tensor, "b w"]) -> tuple[Float[Tensor, "b w-1"], Float[Tensor, "b w h"]]:
        """Return log p(token | preceding tokens) of every token but the first, and the last layer's features."""
        output = self.model(input_ids=tokens, output_hidden_states=True, use_cache=False)
        log_p = -F.cross_entropy(output.logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
        return log_p, output.hidden_states[-1]


def open_causal_model(name: str, revision: str | None, device: torch.device | str) -> CausalModel:
    """Open the model `name`, of the Hugging Face hub or a local folder, ready for inference.

    Raise ConfigurationError and StorageError as `HuggingFaceSource.opened` does, and ConfigurationError if the model
    has fewer tokens than its tokenizer or lets a token see later ones.
    """
    local = Path(name).is_dir()
    source = HuggingFaceSource(name=None if local else name, folder=name if local else None, revision=revision)
    opened = source.opened("AutoModelForCausalLM")
    configuration = opened.model.config
    if len(opened.tokenizer) > configuration.vocab_size:
        raise ConfigurationError(
            f"the model {name!r} knows {configuration.vocab_size} tokens, its tokenizer {len(opened.tokenizer)}; "
            "one of the two belongs to another model"
        )
    identity = f"{name}@{source.version()[:12] if local else configuration._commit_hash}"
    positions = getattr(configuration, "max_position_embeddings", None)
    judge = CausalModel(identity, opened.model.to(device), opened.tokenizer, positions)
    _require_causal(judge, device)
    return judge


def _require_causal(opened: CausalModel, device: torch.device | str) -> None:
    """Raise ConfigurationError if features depend on later tokens: the model would see the tokens it predicts."""
    tokens, changed = torch.zeros(2, 1, 8, dtype=torch.long, device=device)
    changed[:, -1] = 1
    change = (opened(tokens)[1] - opened(changed)[1]).abs().amax(dim=-1)[0]
    if change[:-1].max() > ROUNDING * change[-1]:
        raise ConfigurationError(
            f"the model {opened.name} reads ahead of the token it predicts: it is not causal; name a causal language "
            "model, such as gpt2"
        )
