"""Causal language models read in both directions: LLaDA, Dream, DiffuLLaMA, and causal models to be trained further.

Sources: LLaDA (arXiv:2502.09992) predicts a token at its own position; DiffuLLaMA (arXiv:2410.17891) and Dream
(arXiv:2508.15487) started from causal models and predict it, as these do, at the position before.
"""

from typing import Any, Literal

import torch

from edlm.config import ConfigurationError, config
from edlm.huggingface.source import OpenedNetwork
from edlm.huggingface.vocabulary import id_of

Shift = Literal[0, 1]
READS = "GPT-2, Llama, Mistral and Qwen2, for example, can be read in both directions"


@config
class CausalReading:
    """How a network with the class of a causal language model reads masks and predicts tokens.

    Its attention is opened, by the library's own setting `is_causal: false`, so that every position attends to all.
    """

    shift: Shift
    """Number of positions from an output to the token it predicts: 0 at the same position (LLaDA), 1 at the next
    (Dream, DiffuLLaMA, and every model that was trained to predict the next token)."""
    mask_token: str | None = None
    """Token that stands for masked positions, if the network's tokenizer does not name its mask token."""
    new_mask: bool = False
    """Give a network without a mask token one: a new row of its embedding, the mean of the others, to be trained."""
    bos: str | None = None
    """Token before every canvas. None: those that the network's tokenizer puts before a text, if any. With a shift
    of 1 its output predicts the first position."""
    first_from_itself: bool = False
    """Predict the first position from its own output, as the samplers of Dream and DiffuLLaMA do: for a shift of 1
    without a token before the canvas."""

    def __post_init__(self) -> None:
        if self.new_mask and self.mask_token is not None:
            raise ConfigurationError(f"causal.mask_token is {self.mask_token!r} and new_mask is set; give one of them")
        if self.first_from_itself and (self.shift == 0 or self.bos is not None):
            raise ConfigurationError(
                "causal.first_from_itself is for a shift of 1 without a token before the canvas, and "
                + ("the shift is 0" if self.shift == 0 else f"bos is {self.bos!r}")
                + "; leave it out"
            )

    def mask_of(self, opened: OpenedNetwork) -> int | None:
        """Return the id of the network's mask token; None for one that it is still to be given.

        Raise ConfigurationError if there is none, or there is one although a new one is asked for.
        """
        own = opened.tokenizer.mask_token
        if self.new_mask:
            if own is not None:
                raise ConfigurationError(f"causal.new_mask: {opened.named} has the mask token {own!r}; leave it out")
            return None
        if self.mask_token is None and own is None:
            raise ConfigurationError(
                f"the tokenizer of {opened.named} names no mask token, which stands for masked positions; name it in "
                "causal.mask_token (<|mdm_mask|> of LLaDA), or set causal.new_mask to train one"
            )
        return id_of(opened.named, opened.tokenizer.get_vocab(), self.mask_token or own, "causal.mask_token")

    def prefix_of(self, opened: OpenedNetwork, usual: tuple[int, ...]) -> tuple[int, ...]:
        """Return the ids before a canvas; `usual` are those that the network's tokenizer puts there.

        Raise ConfigurationError unless it is settled what predicts the first position.
        """
        named, theirs = opened.named, opened.tokenizer.get_vocab()
        prefix = usual if self.bos is None else (id_of(named, theirs, self.bos, "causal.bos"),)
        if self.shift > len(prefix) and not self.first_from_itself:
            raise ConfigurationError(
                f"{named} predicts a position at the one before it, and its tokenizer puts no token before a text; "
                "name one in causal.bos, such as the one that ends documents, or set causal.first_from_itself"
            )
        if self.first_from_itself and prefix:
            before = opened.tokenizer.convert_ids_to_tokens(list(prefix))
            raise ConfigurationError(
                f"causal.first_from_itself: the tokenizer of {named} puts {' '.join(before)} before a text, whose "
                "output predicts the first position; leave it out"
            )
        return prefix


def open_attention(model: Any) -> None:
    """Let every position attend to all others; sliding windows remain, and extend to both sides.

    The setting is part of the model's configuration, so that a network built from its record is open, too.
    """
    model.config.is_causal = False
    model.config.use_cache = False  # keys and values of a position depend on later ones


@torch.no_grad()
def require_open(named: str, model: Any, tokens: tuple[int, int], width: int) -> None:
    """Raise ConfigurationError unless what stands at the right changes the outputs of the first of `width` positions.

    `tokens` are two different ids.
    """
    if width < 2:
        return
    first, other = tokens
    ids = torch.full((1, width), first)
    changed = ids.clone()
    changed[:, 1:] = other
    before, after = (model(input_ids=x).logits[:, 0] for x in (ids, changed))
    if torch.allclose(before, after, rtol=1e-4, atol=1e-5):
        raise ConfigurationError(
            f"{named} ({type(model).__name__}) attends to the left alone, also with the library's setting "
            f"is_causal: false, and a mask is filled by what stands on both sides of it; {READS}"
        )


@torch.no_grad()
def append_mask(model: Any) -> int:
    """Append a row, the mean of the others, to the embeddings of the model, and return its id."""
    index = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(index + 1, mean_resizing=False)
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        for weight in embedding.parameters():
            weight[index] = weight[:index].mean(dim=0)
    return index
