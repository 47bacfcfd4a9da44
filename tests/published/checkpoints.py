"""Random weights in the published layouts, and a plain reading of those layouts to compare our networks with."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from edlm.published.layout import ROTARY, Network, Sizes
from tests.paths import DATA

GOLDEN = DATA / "golden"
TOKENS, HEADS = 11, 5
every_network = pytest.mark.parametrize("network", ["denoiser", "autoregressive", "energy"])
every_golden = pytest.mark.parametrize("layout", ["plain", "timed"])


def golden(layout: str, network: str) -> tuple[dict[str, Tensor], dict[str, Tensor], bool]:
    """The tensors of a network with given outputs, the inputs and outputs, and whether it reads the time."""
    folder = GOLDEN / layout
    if not folder.is_dir():
        pytest.skip("the golden values are not beside this checkout (shared/data)")
    reads_time = json.loads((folder / "README.json").read_text())["time_conditioning"]
    return load_file(folder / f"{network}.safetensors"), load_file(folder / "values.safetensors"), reads_time


def sizes(network: Network, layers: int = 3, tokens: int = TOKENS) -> Sizes:
    """Sizes that no two dimensions share."""
    return Sizes(network, tokens + 1, 40, layers, None if network == "autoregressive" else 24)


def published(network: Network, layers: int = 3, seed: int = 0, tokens: int = TOKENS) -> dict[str, Tensor]:
    """A checkpoint's tensors with random weights."""
    generator, made = torch.Generator().manual_seed(seed), sizes(network, layers, tokens)
    tensors = {
        name: (1.0 if "norm" in name else 0.0) + 0.2 * torch.randn(shape, generator=generator)
        for name, shape in made.shapes().items()
    }
    half = made.width // HEADS // 2
    return tensors | {ROTARY: 1 / 10_000 ** (torch.arange(half) / half)}


def reference(tensors: dict[str, Tensor], ids: Tensor, sigma: Tensor, second: Tensor | None = None) -> Tensor:
    """The outputs of a published network by its description, in float64 and without this project's modules.

    Logits with the mask's, or energies of `second` given `ids`.
    """
    p, causal = {name: tensor.double() for name, tensor in tensors.items()}, "sigma_map.mlp.0.weight" not in tensors
    x = p["vocab_embed.embedding"][ids]
    if second is not None:
        x = torch.cat([x, p["vocab_embed.embedding"][second]], dim=-1) @ p["vocab_proj.weight"].T + p["vocab_proj.bias"]
    if not causal:
        angle = sigma.double()[:, None] * torch.exp(-math.log(10_000) * torch.arange(128).double() / 128)
        waves = torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)
        hidden = F.silu(waves @ p["sigma_map.mlp.0.weight"].T + p["sigma_map.mlp.0.bias"])
        c = F.silu(hidden @ p["sigma_map.mlp.2.weight"].T + p["sigma_map.mlp.2.bias"])

    def modulations(name: str, parts: int) -> tuple[Tensor, ...]:
        if causal:
            return (torch.tensor(0.0), torch.tensor(0.0), torch.tensor(1.0)) * 2
        return (c @ p[f"{name}.adaLN_modulation.weight"].T + p[f"{name}.adaLN_modulation.bias"])[:, None].chunk(
            parts, dim=-1
        )

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * p[f"{name}.weight"]

    length, layers = ids.shape[1], len({name.split(".")[1] for name in p if name.startswith("blocks.")})
    turned = torch.arange(length)[:, None] * p[ROTARY]
    cos, sin = torch.cat([turned.cos()] * 2, dim=-1), torch.cat([turned.sin()] * 2, dim=-1)

    def turn(x: Tensor) -> Tensor:  # [b heads l c], pairs of channels of the two halves
        first, last = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-last, first], dim=-1) * sin

    for i in range(layers):
        block = f"blocks.{i}"
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulations(block, 6)
        y = (norm(x, f"{block}.norm1") * (1 + scale) + shift) @ p[f"{block}.attn_qkv.weight"].T
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in y.chunk(3, dim=-1))
        scores = turn(q) @ turn(k).mT / q.shape[-1] ** 0.5
        if causal:
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        attended = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(-2)
        x = x + gate * (attended @ p[f"{block}.attn_out.weight"].T)
        y = norm(x, f"{block}.norm2") * (1 + scale_mlp) + shift_mlp
        y = F.gelu(y @ p[f"{block}.mlp.0.weight"].T + p[f"{block}.mlp.0.bias"], approximate="tanh")
        x = x + gate_mlp * (y @ p[f"{block}.mlp.2.weight"].T + p[f"{block}.mlp.2.bias"])
    shift, scale = modulations("output_layer", 2)[:2]
    x = norm(x, "output_layer.norm_final") * (1 + scale) + shift
    x = x @ p["output_layer.linear.weight"].T + p["output_layer.linear.bias"]
    if second is None:
        return x.float()
    hidden = F.relu(x.mean(dim=1) @ p["energy_head.0.weight"].T + p["energy_head.0.bias"])
    return (hidden @ p["energy_head.2.weight"].T)[:, 0].float()
