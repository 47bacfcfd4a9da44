"""Token temperatures: a generator whose every token is drawn from p^(1/temperature); ANOTHER LAW than the model's.

The logits are divided: the denoiser's, and those of every energy that has any (a conditional energy's, an
autoregressive model's). So the candidates, their weights and exact draws all speak of the same tempered law. No bound
that was measured at temperature 1 is a bound here.
"""

import copy
from dataclasses import replace

from torch import nn

from edlm.inference.generator import TextGenerator
from edlm.models.readout import LMHead
from edlm.models.transformer import Block

LEAST_TOKEN_TEMPERATURE, MOST_TOKEN_TEMPERATURE = 0.01, 2.0  # below, logits overflow; 0 itself is the likeliest token


def tempered(generator: TextGenerator, temperature: float) -> TextGenerator:
    """The generator at another temperature of its tokens, 0 or LEAST_ to MOST_TOKEN_TEMPERATURE; weights are shared."""
    networks = [generator.denoiser.network, *generator.energies.values()]
    shared = _shared(networks, temperature)
    network, *energies = copy.deepcopy(networks, shared)
    return TextGenerator(
        generator.bundle,
        replace(generator.denoiser, network=network),
        dict(zip(generator.energies, energies, strict=True)),
        generator.tokenizer,
    )


def _shared(networks: list[nn.Module], temperature: float) -> dict[int, object]:
    """What a copy of the networks does not copy: weights, and layers, which may be compiled; its readouts are tempered.

    By `id`, as `copy.deepcopy` takes it.
    """
    found: dict[int, object] = {}
    for module in (module for network in networks for module in network.modules()):
        found |= {id(weight): weight for weight in (*module.parameters(False), *module.buffers(False))}
        if isinstance(module, Block):
            found[id(module)] = module
        if isinstance(module, LMHead):
            view = copy.copy(module)
            view.temperature = temperature
            found[id(module)] = view
    return found
