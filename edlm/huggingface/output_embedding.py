"""Output embedding of a network of the transformers library, taken out of it to serve as the LM head."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edlm.config import ConfigurationError
from edlm.models.readout import LMHead


class OutputEmbedding(LMHead):
    """LM head with the network's own weight, often that of its input embedding, and its bias, if it has one.

    Rows beyond the vocabulary, which pad a weight, are cut off. Tokens in `never` have probability exactly 0.
    """

    impossible: Tensor

    def __init__(self, output: nn.Linear, bias: nn.Parameter | None, vocabulary: int, never: Sequence[int]) -> None:
        nn.Module.__init__(self)  # not LMHead's, which would make weights of its own
        self.temperature, self.vocabulary = 1.0, vocabulary
        self.weight = output.weight
        if bias is None:
            self.register_buffer("bias", torch.zeros(output.out_features), persistent=False)
        else:
            self.bias = bias
        impossible = torch.zeros(vocabulary, dtype=torch.bool)
        impossible[list(never)] = True
        self.register_buffer("impossible", impossible, persistent=False)

    def logits(self, features: Float[Tensor, "n h"], weight: Tensor, bias: Tensor) -> Float[Tensor, "n v"]:
        return super().logits(features, weight, bias)[:, : self.vocabulary].masked_fill(self.impossible, -torch.inf)


def output_of(model: Any, vocabulary: int) -> nn.Linear:
    """Return the model's output embedding.

    Raise ConfigurationError for an architecture without a linear one of at least `vocabulary` rows.
    """
    output, architecture = model.get_output_embeddings(), type(model).__name__
    if not isinstance(output, nn.Linear):
        raise ConfigurationError(f"the architecture {architecture} has no linear output embedding to read features by")
    if output.out_features < vocabulary:
        raise ConfigurationError(
            f"{architecture} knows {output.out_features} tokens and the tokenizer {vocabulary}: one of the two belongs "
            "to another network"
        )
    return output


def take_output(model: Any, vocabulary: int, never: Sequence[int] = ()) -> OutputEmbedding:
    """Return the model's output embedding as an LM head; the model then returns its input, the features, as logits.

    What the model does with logits, such as scaling them, it then does with the features.
    """
    output = output_of(model, vocabulary)
    path = next(name for name, module in model.named_modules() if module is output)
    parent, _, last = path.rpartition(".")
    head, bias = model.get_submodule(parent), output.bias
    separate = getattr(head, "bias", None)
    if bias is None and isinstance(separate, nn.Parameter) and separate.shape == (output.out_features,):
        bias, head.bias = separate, None  # such as ESM's, which adds it to the embedding's result
        del head.bias
        head.bias = 0.0
    setattr(head, last, nn.Identity())
    return OutputEmbedding(output, bias, vocabulary, never)


def save_weights_once(module: nn.Module) -> None:
    """Let the module's state hold each parameter once, as `named_parameters` does, and no buffer.

    The embeddings share a weight, and what transformers keeps in buffers (positions, frequencies) its configuration
    determines; `edlm.huggingface.comparison` checks that for each network.
    """
    for part in module.modules():
        part._non_persistent_buffers_set.update(part._buffers)
    module.register_state_dict_post_hook(_drop_repeated)
    module.register_load_state_dict_pre_hook(_repeat)


def _drop_repeated(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    kept = {prefix + name for name, _ in module.named_parameters()}
    for name in [name for name in state if name.startswith(prefix) and name not in kept]:
        del state[name]


def _repeat(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    first = {id(parameter): prefix + name for name, parameter in module.named_parameters()}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if first[id(parameter)] in state:
            state.setdefault(prefix + name, state[first[id(parameter)]])
