"""Layout of published checkpoints: the name and shape of every tensor, and our network's weights made of them.

Three networks share most of it: MDLM's denoiser (also in EDLM, SEDD and, with one block, BD3-LM), EDLM's NCE energy and
the autoregressive model of both papers. All sizes follow from the tensors.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edlm.models.rotary import ROTARY_BASE
from edlm.published.conditioning import SINUSOIDS

Network = Literal["denoiser", "autoregressive", "energy"]
NAMED = 8  # most wrong tensors that an error lists before it counts the rest
ROTARY = "rotary_emb.inv_freq"
"""Rotary frequencies: a constant, which some checkpoints leave out."""
TIMED = {
    "sigma_map.mlp.0": "transformer.time.first",
    "sigma_map.mlp.2": "transformer.time.second",
    "output_layer.adaLN_modulation": "transformer.norm.modulate",
}
IN_ENERGY = {"vocab_proj": "project", "output_layer.linear": "output", "energy_head.0": "hidden"}
IN_BLOCK = {
    "attn_qkv.weight": "qkv.weight",
    "attn_out.weight": "out.weight",
    "mlp.0.weight": "up.weight",
    "mlp.0.bias": "up.bias",
    "mlp.2.weight": "down.weight",
    "mlp.2.bias": "down.bias",
}


class LayoutError(ValueError):
    """Error in a checkpoint; the message names the tensors."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a published network."""

    network: Network
    rows: int
    """Rows of the embedding: the tokens and, last, the mask."""
    width: int
    layers: int
    conditioning_width: int | None
    """Channels of the embedded noise; None for the autoregressive model, which has none."""

    @property
    def vocabulary(self) -> int:
        """Number of tokens, without the mask."""
        return self.rows - 1

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor by its published name, without the rotary frequencies."""
        h, c = self.width, self.conditioning_width
        shapes: dict[str, tuple[int, ...]] = {"vocab_embed.embedding": (self.rows, h)}
        out = h if self.network == "energy" else self.rows
        shapes |= {"output_layer.norm_final.weight": (h,), **_linear("output_layer.linear", out, h)}
        if c is not None:
            shapes |= _linear("sigma_map.mlp.0", c, SINUSOIDS) | _linear("sigma_map.mlp.2", c, c)
            shapes |= _linear("output_layer.adaLN_modulation", 2 * h, c)
        for i in range(self.layers):
            block = f"blocks.{i}"
            shapes |= {f"{block}.norm1.weight": (h,), f"{block}.norm2.weight": (h,)}
            shapes |= {f"{block}.attn_qkv.weight": (3 * h, h), f"{block}.attn_out.weight": (h, h)}
            shapes |= _linear(f"{block}.mlp.0", 4 * h, h) | _linear(f"{block}.mlp.2", h, 4 * h)
            if c is not None:
                shapes |= _linear(f"{block}.adaLN_modulation", 6 * h, c)
        if self.network == "energy":
            shapes |= _linear("vocab_proj", h, 2 * h) | _linear("energy_head.0", h, h)
            shapes["energy_head.2.weight"] = (1, h)
        return shapes


def sizes_of(tensors: Mapping[str, Tensor]) -> Sizes:
    """Return the network and its sizes that the tensors have, after checking every one of them.

    Raise LayoutError naming the tensors that are missing, extra, of another shape or not finite.
    """
    network: Network = "autoregressive"
    if any(name.startswith(("energy_head.", "vocab_proj.")) for name in tensors):
        network = "energy"
    elif any(name.startswith("sigma_map.") or ".adaLN_modulation." in name for name in tensors):
        network = "denoiser"
    rows, width = _matrix(tensors, "vocab_embed.embedding")
    conditioning = None if network == "autoregressive" else _matrix(tensors, "sigma_map.mlp.0.weight")[0]
    layers = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    sizes = Sizes(network, rows, width, layers, conditioning)
    shapes = sizes.shapes()
    problems = [f"{name} is missing" for name in shapes if name not in tensors]
    problems += [f"{name} is not of this layout" for name in tensors if name not in shapes and name != ROTARY]
    for name, tensor in tensors.items():
        if name in shapes and tuple(tensor.shape) != shapes[name]:
            problems.append(f"{name} has shape {tuple(tensor.shape)}, expected {shapes[name]}")
        elif not tensor.is_floating_point():
            problems.append(f"{name} has dtype {tensor.dtype}, no floating point")
        elif count := int((~torch.isfinite(tensor)).sum()):
            problems.append(f"{name} has {count} values of {tensor.numel()} that are not finite")
    if problems or rows < 2 or layers == 0:
        raise LayoutError(
            f"these are not the weights of {_DESCRIPTIONS[network]} with {layers} blocks of width {width} and a "
            f"vocabulary of {rows} with the mask: {_listed(problems or ['they are too few'])}"
        )
    return sizes


def heads_of(tensors: Mapping[str, Tensor], width: int) -> int | None:
    """Return the number of heads that the rotary frequencies, one per pair of a head's channels, imply.

    None if they are not there. Raise LayoutError if they are not those of base 10,000.
    """
    frequencies = tensors.get(ROTARY)
    if frequencies is None:
        return None
    half = frequencies.numel()
    if frequencies.shape != (half,) or half == 0 or width % (2 * half):
        raise LayoutError(f"{ROTARY} has shape {tuple(frequencies.shape)}, and heads of {2 * half} do not fill {width}")
    expected = ROTARY_BASE ** (-torch.arange(half, dtype=torch.float64) / half)
    tolerance = 2e-2 if frequencies.element_size() == 2 else 1e-5
    if not torch.allclose(frequencies.double(), expected, rtol=tolerance, atol=0):
        raise LayoutError(f"{ROTARY} is not 10000^(-2i / {2 * half}): this network turns its channels in another way")
    return width // (2 * half)


def our_weights(tensors: Mapping[str, Tensor], sizes: Sizes, bos: int | None = None) -> dict[str, Tensor]:
    """Return the weights of our network, in float32, made of the published tensors, which `sizes_of` has checked.

    The autoregressive model becomes one of this project's own, `kind: transformer`: its rows for the mask, which it
    neither reads nor predicts, are left out, and the token `bos`, after which every published row starts, gives its
    embedding to our BOS.
    """
    timed = sizes.conditioning_width is not None
    weights = {ours: tensors[theirs] for theirs, ours in _renamed(sizes, timed).items()}
    for i in range(sizes.layers if timed else 0):
        for kind in ("weight", "bias"):
            halves = tensors[f"blocks.{i}.adaLN_modulation.{kind}"].chunk(2)
            for norm, half in zip(("norm_attention", "norm_mlp"), halves, strict=True):
                weights[f"transformer.layers.{i}.{norm}.modulate.{kind}"] = half
    if sizes.network == "energy":
        weights["scalar.weight"] = tensors["energy_head.2.weight"][0]
    if sizes.network == "autoregressive":
        assert bos is not None
        embedding = weights["embedding.weight"]
        weights["embedding.weight"] = torch.cat([embedding[:-1], embedding[bos : bos + 1]])
        weights |= {name: weights[name][:-1] for name in ("readout.weight", "readout.bias")}
    return {name: tensor.float().contiguous() for name, tensor in weights.items()}


def _renamed(sizes: Sizes, timed: bool) -> dict[str, str]:
    """Return, by its published name, our name of every tensor that is taken as it is."""
    norm = "weight" if timed else "norm.weight"
    renamed = {
        "vocab_embed.embedding": "embedding.weight",
        "output_layer.norm_final.weight": f"transformer.norm.{norm}",
    }
    layers = dict(TIMED) if timed else {}
    layers |= IN_ENERGY if sizes.network == "energy" else {"output_layer.linear": "readout"}
    for theirs, ours in layers.items():
        renamed |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    for i in range(sizes.layers):
        theirs, ours = f"blocks.{i}", f"transformer.layers.{i}"
        renamed |= {f"{theirs}.{here}": f"{ours}.{there}" for here, there in IN_BLOCK.items()}
        renamed |= {f"{theirs}.norm1.weight": f"{ours}.norm_attention.{norm}"}
        renamed |= {f"{theirs}.norm2.weight": f"{ours}.norm_mlp.{norm}"}
    return renamed


_DESCRIPTIONS: dict[Network, str] = {
    "denoiser": "a published denoiser",
    "autoregressive": "a published autoregressive model",
    "energy": "a published NCE energy",
}


def _linear(name: str, outward: int, inward: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outward, inward), f"{name}.bias": (outward,)}


def _matrix(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """Return the shape of a matrix; raise LayoutError if it is not there."""
    if name not in tensors:
        raise LayoutError(f"{name} is missing; there are: {_listed(tensors) or 'no tensors'}")
    if tensors[name].dim() != 2:
        raise LayoutError(f"{name} has shape {tuple(tensors[name].shape)}, and a matrix is expected")
    rows, columns = tensors[name].shape
    return rows, columns


def _listed(problems: Iterable[str]) -> str:
    problems = list(problems)
    more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    return "; ".join(problems[:NAMED]) + more
