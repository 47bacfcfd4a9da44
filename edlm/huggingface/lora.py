"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685) of networks of transformers, by the library peft.

Adapters alone train; once trained, they are merged into the weights, and the network is an ordinary one again.
"""

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import pydantic
from torch import Tensor, nn

from edlm.config import ConfigurationError, Positive, PositiveFloat, config
from edlm.huggingface.source import library

N = TypeVar("N", bound=nn.Module)


@config
class LowRankAdaptation:
    """Adapters next to linear layers: W x becomes W x + alpha / rank B A x; A and B alone train, from B = 0 on.

    For networks of kind `huggingface`. The trained product is added to W before the network is saved.
    """

    rank: Positive
    """Rows of A, columns of B."""
    alpha: PositiveFloat | None = None
    """Scale of the adapters, times `rank`. None: `rank`, which makes the scale 1."""
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs that are dropped in training."""
    modules: tuple[str, ...] | None = None
    """Linear layers with an adapter, by the ends of their dotted names, such as `query` or `attention.output.dense`.
    None: all but the LM head."""

    def __post_init__(self) -> None:
        if self.modules == ():
            raise ConfigurationError("lora.modules is empty; name a layer, or leave it out for every linear layer")


def with_adapters(network: N, settings: LowRankAdaptation) -> N:
    """Freeze a network, add fresh adapters to it, which alone train, and return it: it computes the same, bit for bit.

    The adapters are drawn from torch's random state. Raise ConfigurationError if the network is not one of the library,
    peft is not installed, or a name in `modules` is of no linear layer.
    """
    peft, transformers = _peft(), library()
    model: Any = getattr(network, "model", None)
    if not isinstance(model, transformers.PreTrainedModel):
        raise ConfigurationError(
            f"lora: {type(network).__name__} is no network of transformers, to whose layers alone adapters are added; "
            "train all weights (leave lora out), or name a network of kind huggingface"
        )
    layers = _linear_layers(network, model)
    names = _selected(type(model).__name__, layers, settings.modules)
    transposed = {not isinstance(layers[name], nn.Linear) for name in names}  # GPT-2's layers hold the transpose of W
    if len(transposed) > 1:
        raise ConfigurationError(
            f"lora.modules: {settings.modules} are layers both of torch and of GPT-2's kind; name those of one kind"
        )
    adapters = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.rank if settings.alpha is None else settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=names,
        fan_in_fan_out=transposed == {True},
    )
    network.requires_grad_(False)
    with warnings.catch_warnings():  # of a property of transformers that peft looks at
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        network.model = peft.get_peft_model(model, adapters)
    return network


def merged(network: nn.Module, adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all weights of a network `with_adapters`, the trained ones merged, by the names of the network without.

    `adapters` are what the training exported. The network itself loses its adapters. Raise ValueError if those
    given are of other layers or of another rank.
    """
    trained = {name: weight.shape for name, weight in network.named_parameters() if weight.requires_grad}
    given = {name: weight.shape for name, weight in adapters.items()}
    if wrong := [name for name in {**trained, **given} if trained.get(name) != given.get(name)]:
        raise ValueError(
            f"the adapters are not those of this network: {wrong[0]} has the shape {given.get(wrong[0])}, expected "
            f"{trained.get(wrong[0])} (of {len(wrong)} that differ); give what was trained with the same settings"
        )
    network.load_state_dict(dict(adapters), strict=False)
    model: Any = network.model
    network.model = model.merge_and_unload()
    return network.state_dict()


def _linear_layers(network: nn.Module, model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that can have an adapter, by name.

    A weight that another part shares cannot be merged for one of the two alone. Layers of derived classes are left out:
    what contains them may read their weight and pass by the adapter.
    """
    from transformers.pytorch_utils import Conv1D  # type: ignore[import-not-found]

    uses = Counter(id(weight) for _, weight in network.named_parameters(remove_duplicate=False))
    return {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) in (nn.Linear, Conv1D) and uses[id(layer.weight)] == 1
    }


def _selected(architecture: str, layers: Mapping[str, nn.Module], ends: tuple[str, ...] | None) -> list[str]:
    """Return the names with one of these ends. Raise ConfigurationError for an end that no name has."""
    if not layers:
        raise ConfigurationError(f"lora: {architecture} has no linear layer of its own to adapt; train all weights")
    if ends is None:
        return [*layers]
    for end in ends:
        if not any(_ends(name, end) for name in layers):
            there = sorted({name.rpartition(".")[2] for name in layers})
            raise ConfigurationError(
                f"lora.modules: {end!r} is the end of no linear layer's name in {architecture}; there are: "
                f"{', '.join(there)} (such as {next(iter(layers))})"
            )
    return [name for name in layers if any(_ends(name, end) for end in ends)]


def _ends(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


def _peft() -> Any:
    """Return the module `peft`. Raise ConfigurationError if it is not installed."""
    try:
        import peft  # type: ignore[import-not-found]
    except ImportError as error:
        raise ConfigurationError(
            'lora: adapters are made with the library peft: in a checkout of the project, run pip install ".[hf]"'
        ) from error
    return peft
