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
from edlm.huggingface.source import require_no_adapters
from edlm.storage import File, digest_of, sha256

NAMED = 8  # most wrong weights that an error lists
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

    Raise ConfigurationError if it is unavailable, stores no safetensors, holds adapters, needs remote code, has
    missing, unexpected or mismatched weights, or lets a token see later ones.
    """
    try:
        import transformers  # type: ignore[import-not-found]  # takes seconds, and only these models need it
    except ImportError as error:
        raise ConfigurationError(
            f"the model {name!r} is opened with the transformers library: "
            'in a checkout of the project, run pip install ".[hf]"'
        ) from error
    origin: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": False}
    try:
        require_no_adapters(f"the model {name!r}", name, origin["revision"])
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **origin)
        result: Any = transformers.AutoModelForCausalLM.from_pretrained(
            name, **origin, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        model, loaded = result
    except ConfigurationError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"the model {name!r} (revision {origin['revision']}) cannot be opened; it must be on the hub or in a local "
            f"folder, stored as safetensors, and need no code of its makers: {error}"
        ) from error
    _require_whole(name, loaded)
    if len(tokenizer) > model.config.vocab_size:
        raise ConfigurationError(
            f"the model {name!r} knows {model.config.vocab_size} tokens, its tokenizer {len(tokenizer)}; "
            "one of the two belongs to another model"
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    opened = CausalModel(_identity(name, model.config), model.to(device), tokenizer, positions)
    _require_causal(opened, device)
    return opened


def _identity(name: str, configuration: Any) -> str:
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{configuration._commit_hash}"
    # Not `inventory`, which rejects links: in the hub's own cache the files are links.
    files = [path for path in folder.iterdir() if path.is_file()]
    return f"{name}@{digest_of(File(path=p.name, bytes=p.stat().st_size, sha256=sha256(p)) for p in files)[:12]}"


def _require_whole(name: str, loaded: Any) -> None:
    """Raise ConfigurationError unless the weights match the architecture exactly.

    `transformers` fills missing weights with random numbers, drops unexpected ones, and continues.
    """
    for what in ("missing", "mismatched", "unexpected"):
        if wrong := sorted(str(key) for key in loaded[f"{what}_keys"]):
            raise ConfigurationError(
                f"the model {name!r} has {len(wrong)} {what} weights: {', '.join(wrong[:NAMED])}; "
                "it is no complete causal language model of the architecture that it names"
            )


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
