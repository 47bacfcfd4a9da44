"""Import of a published checkpoint (MDLM, EDLM, SEDD; safetensors) as a model folder for `given:` of an experiment.

python -m workflows.import_published SOURCE TARGET --tokenizer DATA/tokenizer.json [--denoiser MODEL] ...

The tensors tell what it is: a denoiser, an NCE energy (which needs --denoiser, the folder of the denoiser that it was
trained with) or an autoregressive model. The tokenizer is that of the experiment's data. `python -m workflows.convert`
makes safetensors of .ckpt and .bin.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydantic

from edlm.checkpoints.energies import network_on, save_energy
from edlm.checkpoints.model_folder import TOKENIZER
from edlm.checkpoints.networks import open_denoiser, save_autoregressive, save_denoiser
from edlm.config import ConfigurationError
from edlm.data.tokenizer import Tokenizer, open_tokenizer
from edlm.energies.edlm_nce import EDLMEnergyConfig
from edlm.local_copies import local_copy
from edlm.models.autoregressive import TransformerAutoregressiveConfig
from edlm.published.checkpoint import Checkpoint, open_checkpoint
from edlm.published.layout import Sizes, heads_of, our_weights, sizes_of
from edlm.published.mdlm import MDLMDenoiserConfig
from edlm.redaction import redact_logs, redacted_text
from edlm.schedule import LogLinear
from edlm.storage import committed, publish


@dataclass(frozen=True)
class Choices:
    """What the checkpoint leaves open; None: as its config.json says."""

    tokenizer: Path
    """tokenizer.json of the experiment's data."""
    denoiser: str | None = None
    """Folder or URI of the denoiser that an energy belongs to."""
    length: int | None = None
    """Positions of the canvas."""
    heads: int | None = None
    """Attention heads, where neither the rotary frequencies nor config.json tell them."""
    time_conditioning: bool | None = None
    """Whether the network reads the noise; False where nothing says so, as in the papers' MDLM."""
    bos: int | None = None
    """Token after which the rows of an autoregressive model start; None: the tokenizer's separator."""
    prefix: str | None = None
    """Beginning of the names of one network, where the file holds several."""


def import_published(source: Path, target: str, choices: Choices) -> str:
    """Write a committed model folder to `target`, a folder or URI, and return a line that says what it holds.

    Raise ConfigurationError for a setting that is missing or does not fit, LayoutError for the checkpoint.
    """
    if committed(target) is not None:
        raise ConfigurationError(f"{target} holds a model already; remove it, or name another folder")
    if choices.tokenizer.name != TOKENIZER:
        raise ConfigurationError(f"--tokenizer {choices.tokenizer}: name the file {TOKENIZER} of the experiment's data")
    tokenizer = open_tokenizer(choices.tokenizer.parent)
    checkpoint = open_checkpoint(source, choices.prefix)
    sizes = sizes_of(checkpoint.tensors)
    _require_vocabulary(sizes, tokenizer)
    with tempfile.TemporaryDirectory(prefix="edlm-import-") as folder:
        _save(Path(folder) / "model", checkpoint, sizes, tokenizer, choices, {"imported_from": source.name})
        publish(Path(folder) / "model", target)
    line = f"{target}: {sizes.network}, {sizes.layers} blocks of width {sizes.width}, {sizes.vocabulary} tokens"
    if sizes.conditioning_width is None or choices.time_conditioning is not None:
        return line
    if checkpoint.facts.time_conditioning is None:
        line += "; no config.json says whether it reads the noise: taken as not, give --time_conditioning if it does"
    return line


def _save(
    folder: Path,
    checkpoint: Checkpoint,
    sizes: Sizes,
    tokenizer: Tokenizer,
    choices: Choices,
    facts: Mapping[str, pydantic.JsonValue],
) -> None:
    width, layers, heads = sizes.width, sizes.layers, _heads(checkpoint, sizes, choices)
    if sizes.network == "autoregressive":
        weights = our_weights(checkpoint.tensors, sizes, _bos(sizes, tokenizer, choices))
        network = TransformerAutoregressiveConfig(width=width, layers=layers, heads=heads)
        save_autoregressive(folder, weights, network, _length(checkpoint, choices), choices.tokenizer, facts)
        return
    weights, reads, noise = our_weights(checkpoint.tensors, sizes), choices.time_conditioning, sizes.conditioning_width
    assert noise is not None
    reads = bool(checkpoint.facts.time_conditioning if reads is None else reads)
    if sizes.network == "denoiser":
        network = MDLMDenoiserConfig(
            width=width, layers=layers, heads=heads, conditioning_width=noise, time_conditioning=reads
        )
        length = _length(checkpoint, choices)
        save_denoiser(folder, weights, network, LogLinear(), length, choices.tokenizer, facts)
        return
    if choices.denoiser is None:
        raise ConfigurationError("an energy belongs to a denoiser; import that first, and name its folder: --denoiser")
    denoiser = open_denoiser(local_copy(choices.denoiser))
    energy = EDLMEnergyConfig(
        width=width, layers=layers, heads=heads, conditioning_width=noise, time_conditioning=reads
    )
    save_energy(folder, weights, network_on(energy, denoiser), denoiser.length, choices.tokenizer, facts)


def _require_vocabulary(sizes: Sizes, tokenizer: Tokenizer) -> None:
    """Raise ConfigurationError unless the checkpoint has a row for each of the tokens and one, last, for the mask."""
    if sizes.vocabulary == tokenizer.size:
        return
    reason = "the tokenizer is another one"
    if sizes.rows == tokenizer.size:
        reason = "it has no row for a mask besides (uniform noise), or the mask is one of the tokenizer's tokens"
    raise ConfigurationError(
        f"the checkpoint has {sizes.rows} rows, which would be {sizes.vocabulary} tokens and the mask, last, and the "
        f"tokenizer has {tokenizer.size} tokens: {reason}"
    )


def _heads(checkpoint: Checkpoint, sizes: Sizes, choices: Choices) -> int:
    """Return the number of heads; raise ConfigurationError if nothing tells it, or two sources disagree."""
    known = {
        "--heads": choices.heads,
        "the rotary frequencies": heads_of(checkpoint.tensors, sizes.width),
        "config.json": checkpoint.facts.heads,
    }
    stated = {name: heads for name, heads in known.items() if heads is not None}
    if len({*stated.values()}) != 1:
        listed = "; ".join(f"{name}: {heads}" for name, heads in stated.items()) or "it has no rotary frequencies"
        raise ConfigurationError(f"the number of heads is not known ({listed}); give it with --heads")
    return next(iter(stated.values()))


def _length(checkpoint: Checkpoint, choices: Choices) -> int:
    length = checkpoint.facts.length if choices.length is None else choices.length
    if length is None:
        raise ConfigurationError("the length of the canvas is not known; give it with --length (1024 in the papers)")
    return length


def _bos(sizes: Sizes, tokenizer: Tokenizer, choices: Choices) -> int:
    bos = tokenizer.separator if choices.bos is None else choices.bos
    if bos is None or not 0 <= bos < sizes.vocabulary:
        raise ConfigurationError(
            f"bos is {bos}; name with --bos the token, below {sizes.vocabulary}, after which the model's rows start"
        )
    return bos


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m workflows.import_published",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a safetensors file, or a repository's folder")
    parser.add_argument("target", metavar="TARGET", help="folder or URI of the model folder that is written")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json of the experiment's data")
    parser.add_argument("--denoiser", help="of an energy: the folder of its denoiser")
    parser.add_argument("--length", type=int, help="positions of the canvas, unless config.json says")
    parser.add_argument("--heads", type=int, help="attention heads, unless the checkpoint says")
    parser.add_argument("--time_conditioning", action=argparse.BooleanOptionalAction, help="it reads the noise")
    parser.add_argument("--bos", type=int, help="of an autoregressive model: the token that rows start after")
    parser.add_argument("--prefix", help="which of several networks, such as backbone.")
    given = vars(parser.parse_args(arguments))
    source, target = given.pop("source"), given.pop("target")
    redact_logs()
    try:
        print(import_published(source, target, Choices(**given)))
    except ValueError as error:
        print(redacted_text(f"error: {error}"), file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main(sys.argv[1:])
