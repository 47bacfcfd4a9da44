"""Networks of the transformers library as denoisers: masked language models (BERT, RoBERTa, DistilBERT, ModernBERT,
ESM, ...), and causal ones with open attention."""

from collections.abc import Collection, Sequence
from typing import Any, Literal

import pydantic
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edlm.config import ConfigurationError, NonNegative, config
from edlm.huggingface.architecture import built, recorded
from edlm.huggingface.causal_reading import CausalReading, Shift, append_mask, open_attention, require_open
from edlm.huggingface.comparison import rebuilt, require_close
from edlm.huggingface.output_embedding import output_of, save_weights_once, take_output
from edlm.huggingface.remote_code import failures_named
from edlm.huggingface.source import HuggingFaceSource, OpenedNetwork
from edlm.huggingface.vocabulary import Vocabulary, id_of, require_same
from edlm.models.denoiser import AbstractDenoiser, AbstractDenoiserConfig

MASKED, CAUSAL = "AutoModelForMaskedLM", "AutoModelForCausalLM"


class HuggingFaceDenoiser(AbstractDenoiser):
    """Language model of the library, which reads canvases between its own special tokens and no time.

    Ids are the tokenizer's; the mask, id `vocabulary`, is read as the network's own mask token.
    """

    def __init__(self, config: "HuggingFaceDenoiserArchitecture", vocabulary: int, model: Any) -> None:
        super().__init__()
        self.config, self.vocabulary, self.mask = config, vocabulary, vocabulary
        self.model = model
        self.readout = take_output(model, vocabulary, config.never)
        self.width = self.readout.weight.shape[1]
        save_weights_once(self)

    def read(self, xt: Int[Tensor, "b l"], t: Float[Tensor, " b"]) -> Float[Tensor, "b l h"]:
        return self.config.outputs(self.model, xt, self.mask)


@config
class HuggingFaceDenoiserArchitecture(AbstractDenoiserConfig):
    """Architecture of the library with weights of a model folder, or fresh ones."""

    kind: Literal["huggingface_architecture"] = "huggingface_architecture"
    architecture: dict[str, pydantic.JsonValue]
    """Content of the network's config.json."""
    code: dict[str, str] = pydantic.Field(default_factory=dict)
    """Files of its makers' code, by name, if that defines it; it runs by consent only."""
    mask: NonNegative
    """Id of the network's own mask token."""
    prefix: tuple[NonNegative, ...] = ()
    """Ids that the network expects before a text, such as that of [CLS]."""
    suffix: tuple[NonNegative, ...] = ()
    """Ids that it expects after a text, such as that of [SEP]."""
    never: tuple[NonNegative, ...] = ()
    """Ids with probability 0."""
    shift: Shift | None = None
    """Of a causal language model, the number of positions from an output to the token that it predicts; position 0 is
    predicted from its own output if no `prefix` stands before it. None: a masked language model."""

    def build(self, vocabulary: int) -> HuggingFaceDenoiser:
        return HuggingFaceDenoiser(self, vocabulary, built(auto_class(self.shift), self.architecture, self.code))

    def outputs(self, model: Any, xt: Int[Tensor, "b l"], mask: int) -> Float[Tensor, "b l n"]:
        """Compute, for each position of canvases, the output (logits or features) that predicts its token."""
        ids, length = self.framed(xt, mask), xt.shape[1]
        if self.shift is None:
            start, outputs = len(self.prefix), model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        else:
            start, outputs = len(self.prefix) - self.shift, model(input_ids=ids).logits
        if start < 0:
            return torch.cat([outputs[:, :1], outputs[:, : length - 1]], dim=1)
        return outputs[:, start : start + length]

    def framed(self, xt: Int[Tensor, "b l"], mask: int) -> Int[Tensor, "b w"]:
        """Return canvases as the network reads them: its own mask for `mask`, between its special tokens."""
        prefix, suffix = (xt.new_tensor(ids).expand(len(xt), -1) for ids in (self.prefix, self.suffix))
        return torch.cat([prefix, torch.where(xt == mask, self.mask, xt), suffix], dim=1)


def auto_class(shift: Shift | None) -> str:
    """Return the library's class of a network that is read with this shift."""
    return MASKED if shift is None else CAUSAL


@config
class HuggingFaceDenoiserSource(HuggingFaceSource):
    """Masked language model that others trained (BERT, RoBERTa, DistilBERT, ModernBERT, ESM, ...), or a causal one."""

    kind: Literal["huggingface"] = "huggingface"
    causal: CausalReading | None = None
    """How to read a causal language model (LLaDA, Dream, DiffuLLaMA; GPT-2, Llama or Qwen2 to be trained further).
    None: the network is a masked language model."""
    generated: tuple[str, ...] = ()
    """Special tokens that may be generated. The separator between documents always may; every other special token of
    the network (padding, mask, unknown, ...) has probability 0, so that a text which holds one has none."""

    def open(self, vocabulary: Vocabulary, length: int) -> HuggingFaceDenoiser:
        """Open the network for canvases of `length` tokens of this vocabulary.

        Raise ConfigurationError as `opened` does, and if its vocabulary is another, it has no mask token, it cannot
        read `length` tokens and its special ones, its features do not give its own logits, or a causal one's attention
        cannot be opened.
        """
        causal, shift = self.causal, None if self.causal is None else self.causal.shift
        opened = self.opened(auto_class(shift))
        named, tokenizer, original = opened.named, opened.tokenizer, opened.model
        theirs, mask = tokenizer.get_vocab(), _mask_of(opened) if causal is None else causal.mask_of(opened)
        special = {*tokenizer.all_special_ids, *(() if mask is None else (mask,))}
        require_same(named, theirs, special, vocabulary)
        output_of(original, vocabulary.size)
        prefix, suffix = _around(named, tokenizer)
        if causal is not None:
            prefix = causal.prefix_of(opened, prefix)
            open_attention(original)
        _require_embedded(named, original, {*prefix, *suffix, *(() if mask is None else (mask,))})
        mask = append_mask(original) if mask is None else mask
        generated = {vocabulary.separator, *(id_of(named, theirs, token, "generated") for token in self.generated)}
        if mask in generated:
            raise ConfigurationError(f"the mask token of {named} is never generated; name another separator or token")
        settings = HuggingFaceDenoiserArchitecture(
            architecture=recorded(original.config, opened.classes),
            code=dict(opened.code),
            mask=mask,
            prefix=prefix,
            suffix=suffix,
            never=tuple(_never(vocabulary, special - generated)),
            shift=shift,
        )
        xt, masked = _canvases(vocabulary.size, settings.never, length)
        expected = _log_p(named, original, settings, xt, masked, vocabulary.size)
        if causal is not None:
            first, other = _possible(vocabulary.size, settings.never)[:2].tolist()
            require_open(named, original, (first, other), len(prefix) + length + len(suffix))
        network = rebuilt(HuggingFaceDenoiser(settings, vocabulary.size, original), settings.build(vocabulary.size))
        with torch.no_grad():
            actual = network.log_p(network.read(xt, torch.ones(len(xt))), masked)
        require_close(named, original, "the logits of its features", actual, expected)
        return network


def _mask_of(opened: OpenedNetwork) -> int:
    """Return the id of a masked language model's mask token. Raise ConfigurationError if its tokenizer names none."""
    if opened.tokenizer.mask_token_id is None:
        raise ConfigurationError(
            f"the tokenizer of {opened.named} has no mask token, which stands for masked positions; a causal model "
            "belongs in `autoregressive`, or takes the setting `causal`; a masked language model's "
            "tokenizer_config.json names its mask_token"
        )
    return opened.tokenizer.mask_token_id


def _require_embedded(named: str, model: Any, ids: Collection[int]) -> None:
    """Raise ConfigurationError unless the network has an embedding of each id."""
    try:
        rows = model.get_input_embeddings().num_embeddings
    except NotImplementedError as error:
        raise ConfigurationError(
            f"{named}: {type(model).__name__}, by its makers' code, does not say which embedding its ids have; add the "
            "method get_input_embeddings to it, in a copy of the folder"
        ) from error
    if beyond := sorted(index for index in ids if index >= rows):
        raise ConfigurationError(
            f"{named} embeds {rows} ids, and its tokenizer's special tokens have ids {beyond}: one of the two belongs "
            "to another network"
        )


def _never(vocabulary: Vocabulary, special: Collection[int]) -> list[int]:
    """Return the ids that are no token of a text: special ones, and those that the tokenizer.json skips."""
    tokens = {*vocabulary.ids.values()}
    return [index for index in range(vocabulary.size) if index in special or index not in tokens]


def _around(named: str, tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the network's tokenizer puts before and after a text."""
    text = tokenizer.convert_ids_to_tokens(next(i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids))
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer(text)["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return tuple(whole[:start]), tuple(whole[start + len(bare) :])
    raise ConfigurationError(f"the tokenizer of {named} does not keep a text's tokens together: {bare} became {whole}")


def _possible(vocabulary: int, never: Sequence[int]) -> Int[Tensor, " n"]:
    return torch.tensor([index for index in range(vocabulary) if index not in {*never}])


def _canvases(vocabulary: int, never: Sequence[int], length: int) -> tuple[Int[Tensor, "b l"], Bool[Tensor, "b l"]]:
    """Draw canvases to compare on, from half to wholly masked, and where they are masked."""
    generator = torch.Generator().manual_seed(0)
    tokens = _possible(vocabulary, never)
    x = tokens[torch.randint(len(tokens), (2, length), generator=generator)]
    masked = torch.rand(2, length, generator=generator) < torch.tensor([[0.5], [1.0]])
    return torch.where(masked, vocabulary, x), masked


@torch.no_grad()
def _log_p(
    named: str,
    model: Any,
    settings: HuggingFaceDenoiserArchitecture,
    xt: Int[Tensor, "b l"],
    masked: Bool[Tensor, "b l"],
    vocabulary: int,
) -> Float[Tensor, "n v"]:
    """Return the network's own log p over the tokens that may be generated, at the masked positions."""
    width, positions = settings.framed(xt, vocabulary).shape[1], getattr(model.config, "max_position_embeddings", None)
    with failures_named(named, settings.code):
        try:
            if positions is not None and width > positions:
                raise IndexError("it was not trained for later positions")
            logits = settings.outputs(model, xt, vocabulary)
        except (IndexError, RuntimeError) as error:
            raise ConfigurationError(
                f"{named} cannot read {width} tokens: data.length {xt.shape[1]} and {width - xt.shape[1]} special ones "
                f"(its max_position_embeddings: {positions}): {error}; set a smaller data.length"
            ) from error
    allowed = logits[..., :vocabulary][masked]
    allowed[:, list(settings.never)] = -torch.inf
    return allowed.log_softmax(dim=-1)
