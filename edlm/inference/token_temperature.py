"""Token temperatures: a generator that draws every token from p^(1/temperature); NOT the model's distribution.

The logits are divided by the temperature: those of the denoiser and of every energy that has logits (a conditional
energy, an autoregressive model). Candidates, their weights and exact draws therefore follow the same tempered
distribution. Bounds measured at temperature 1 do not hold here.
"""

import copy
from dataclasses import replace

from torch import nn

from edlm.inference.generator import TextGenerator
from edlm.models.readout import LMHead
from edlm.models.transformer import Block

LEAST_TOKEN_TEMPERATURE, MOST_TOKEN_TEMPERATURE = 0.01, 2.0  # lower values overflow logits; 0 is the likeliest token

NEARLY_ZERO = 1e-6  # logits of networks are far from overflowing float32 when they are divided by it


def temperature_given_constraint(temperature: float) -> float:
    """Return the token temperature at which texts with a constraint are drawn.

    At 0 a single text has all of the probability, which may not satisfy the constraint. Close to 0, all of it given the
    constraint is that of the likeliest text that does.
    """
    return temperature if temperature > 0 else NEARLY_ZERO


def tempered(generator: TextGenerator, temperature: float) -> TextGenerator:
    """Return the generator at another token temperature: 0, or LEAST_ to MOST_TOKEN_TEMPERATURE. Weights are shared."""
    return with_heads(generator, temperature=temperature)


def with_heads(generator: TextGenerator, **attributes: object) -> TextGenerator:
    """Return a view of the generator whose LM heads have these attributes. Weights are shared."""
    networks = [generator.denoiser.network, *generator.energies.values()]
    network, *energies = copy.deepcopy(networks, _shared(networks, attributes))
    view = TextGenerator(
        generator.bundle,
        replace(generator.denoiser, network=network),
        dict(zip(generator.energies, energies, strict=True)),
        generator.tokenizer,
    )
    view.viewed, view.automata = generator.model, generator.automata
    return view


def _shared(networks: list[nn.Module], attributes: dict[str, object]) -> dict[int, object]:
    """Return the `copy.deepcopy` memo, keyed by `id`, of modules and weights that are not copied.

    Copies share the weights and the blocks, which may be compiled; their LM heads get the attributes.
    """
    memo: dict[int, object] = {}
    for module in (module for network in networks for module in network.modules()):
        memo |= {id(weight): weight for weight in (*module.parameters(False), *module.buffers(False))}
        if isinstance(module, Block):
            memo[id(module)] = module
        if isinstance(module, LMHead):
            head = copy.copy(module)
            head.__dict__.update(attributes)
            memo[id(module)] = head
    return memo
