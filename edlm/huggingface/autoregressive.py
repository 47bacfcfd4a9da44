"""Causal language models of the transformers library as autoregressive models."""

from typing import Any, Literal

import pydantic
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from edlm.config import ConfigurationError, NonNegative, config
from edlm.cooperative_work import Cooperative
from edlm.device_copies import sent
from edlm.huggingface.architecture import built, recorded
from edlm.huggingface.comparison import rebuilt, require_close
from edlm.huggingface.output_embedding import output_of, save_weights_once, take_output
from edlm.huggingface.remote_code import failures_named
from edlm.huggingface.source import HuggingFaceSource
from edlm.huggingface.vocabulary import Vocabulary, id_of, require_same
from edlm.models.autoregressive import (
    AbstractAutoregressiveConfig,
    AbstractAutoregressiveModel,
    up_to_last_selected,
)

AUTO_CLASS = "AutoModelForCausalLM"
CACHED = 16  # positions at which a pass with a KV cache is compared with one without


class HuggingFaceAutoregressiveModel(AbstractAutoregressiveModel):
    """Causal language model of the library; every sequence starts after its BOS token, an ordinary token of it."""

    def __init__(self, config: "HuggingFaceAutoregressiveArchitecture", vocabulary: int, model: Any) -> None:
        super().__init__()
        self.config, self.vocabulary, self.bos = config, vocabulary, config.bos
        self.model = model
        self.readout = take_output(model, vocabulary)
        save_weights_once(self)

    def features(self, tokens: Int[Tensor, "b w"]) -> Float[Tensor, "b w h"]:
        return self.model(input_ids=self._readable(tokens), use_cache=False).logits

    @torch.no_grad()
    def fill(
        self, x: Int[Tensor, "b l"], where: Bool[Tensor, "b l"], u: Float64[Tensor, "b l"]
    ) -> Cooperative[tuple[Int[Tensor, "b l"], Float[Tensor, "b l"]]]:
        x, log_p, cache = x.clone(), torch.zeros(x.shape, device=x.device), None
        selected = up_to_last_selected(where)
        (where,) = sent([where], x.device)
        token = torch.full_like(x[:, 0], self.bos)
        for position, is_selected in enumerate(selected):
            output = self.model(input_ids=self._readable(token)[:, None], cache=cache, use_cache=True)
            cache = output.cache
            if is_selected:
                drawn, drawn_log_p = self.readout.draw(output.logits[:, 0], u[:, position, None])
                x[:, position] = torch.where(where[:, position], drawn[:, 0], x[:, position])
                log_p[:, position] = torch.where(where[:, position], drawn_log_p[:, 0], 0.0)
            token = x[:, position]
            yield
        return x, log_p

    def _readable(self, tokens: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """Replace masks, which stand only to the right of what a row needs and have no embedding here."""
        return torch.where(tokens < self.vocabulary, tokens, self.bos)


@config
class HuggingFaceAutoregressiveArchitecture(AbstractAutoregressiveConfig):
    """Architecture of the library with weights of a model folder, or fresh ones."""

    kind: Literal["huggingface_architecture"] = "huggingface_architecture"
    architecture: dict[str, pydantic.JsonValue]
    """Content of the network's config.json."""
    code: dict[str, str] = pydantic.Field(default_factory=dict)
    """Files of its makers' code, by name, if that defines it; it runs by consent only."""
    bos: NonNegative
    """Id of the token that every sequence starts after."""

    def build(self, vocabulary: int) -> HuggingFaceAutoregressiveModel:
        return HuggingFaceAutoregressiveModel(self, vocabulary, built(AUTO_CLASS, self.architecture, self.code))


@config
class HuggingFaceAutoregressiveSource(HuggingFaceSource):
    """Causal language model that others trained (GPT-2, Llama and other architectures of transformers)."""

    kind: Literal["huggingface"] = "huggingface"
    bos: str | None = None
    """Token that every sequence starts after. None: the BOS token of the network's tokenizer."""

    def open(self, vocabulary: Vocabulary, length: int) -> HuggingFaceAutoregressiveModel:
        """Open the network for sequences of `length` tokens of this vocabulary.

        Raise ConfigurationError as `opened` does, and if its vocabulary is another, it has no BOS token, it cannot read
        `length` tokens, it reads ahead, or its features and KV cache do not give its own logits.
        """
        opened = self.opened(AUTO_CLASS)
        theirs = opened.tokenizer.get_vocab()
        require_same(opened.named, theirs, {*opened.tokenizer.all_special_ids}, vocabulary)
        output_of(opened.model, vocabulary.size)
        bos = opened.tokenizer.bos_token if self.bos is None else self.bos
        if bos is None:
            raise ConfigurationError(
                f"the tokenizer of {opened.named} has no BOS token, and the first token of a text needs one before it; "
                "name a token in `bos`, such as the one that ends documents"
            )
        index = id_of(opened.named, theirs, bos, "bos")
        architecture = HuggingFaceAutoregressiveArchitecture(
            architecture=recorded(opened.model.config, opened.classes), code=dict(opened.code), bos=index
        )
        tokens = torch.randint(vocabulary.size, (2, length), generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), failures_named(opened.named, opened.code):
            logits = _logits(opened.named, opened.model, F.pad(tokens[:, :-1], (1, 0), value=index))
            _require_causal(opened.named, opened.model, tokens)
        expected = logits[..., : vocabulary.size].log_softmax(dim=-1)
        wrapped = HuggingFaceAutoregressiveModel(architecture, vocabulary.size, opened.model)
        network = rebuilt(wrapped, architecture.build(vocabulary.size))
        everywhere = torch.ones_like(tokens, dtype=torch.bool)
        with torch.no_grad():
            actual = network.distribution(network.read(tokens), everywhere).unflatten(0, tokens.shape)
            require_close(opened.named, network.model, "the logits of its features", actual, expected)
            _require_cache(opened.named, network, tokens[:, :CACHED], actual[:, :CACHED])
        return network


def _logits(named: str, model: Any, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l v"]:
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and tokens.shape[1] > positions:
        raise ConfigurationError(
            f"{named} reads at most {positions} tokens, and data.length is {tokens.shape[1]}; set it to {positions} or "
            "less"
        )
    return model(input_ids=tokens, use_cache=False).logits


def _require_causal(named: str, model: Any, tokens: Int[Tensor, "b l"]) -> None:
    """Raise ConfigurationError if logits depend on later tokens: the model would see the tokens it predicts."""
    if tokens.shape[1] < 2:
        return
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 2
    before, after = (model(input_ids=x, use_cache=False).logits[:, :-1] for x in (tokens, changed))
    if not torch.allclose(before, after, rtol=1e-4, atol=1e-5):
        raise ConfigurationError(f"{named} ({type(model).__name__}) reads ahead of the token it predicts")


def _require_cache(named: str, network: HuggingFaceAutoregressiveModel, tokens: Tensor, log_p: Tensor) -> None:
    """Raise ConfigurationError unless a pass position by position gives the same distributions."""
    cache, token, by_position = None, torch.full_like(tokens[:, 0], network.bos), []
    for position in range(tokens.shape[1]):
        output = network.model(input_ids=token[:, None], cache=cache, use_cache=True)
        cache, token = output.cache, tokens[:, position]
        by_position.append(network.readout.distribution(output.logits[:, 0]))
    require_close(named, network.model, "the logits of its KV cache", torch.stack(by_position, dim=1), log_p)
