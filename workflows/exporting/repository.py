"""Repository folder of a model for `transformers`: configuration, weights, tokenizer, modelling file and model card.

    config.json, model*.safetensors, tokenizer.json, tokenizer_config.json    what `from_pretrained` reads
    chat_template.jinja                                                        of a model of conversations
    modeling_edlm.py                                                           networks and sampler, no edlm needed
    README.md                                                                  the model card
    edlm/                                                                      cards, checksums, indices: the way back

The modelling file is the project's own source, flattened (`flattening`), and no second implementation: a change of a
network or of the sampler is in the next export without anybody's doing, and the comments that explain it come along.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import tokenizers
import transformers
from huggingface_hub import save_torch_state_dict
from torch import Tensor

import edlm
from edlm.checkpoints.energies import EnergyNetwork
from edlm.checkpoints.model_folder import CARD, CHECKSUMS, load_weights, open_folder
from edlm.checkpoints.networks import network_settings
from edlm.checkpoints.weight_files import INDEX
from edlm.config import ConfigurationError, parse, plain
from edlm.data.chat_template import TEMPLATE_FILE, ChatTemplate
from edlm.data.tokenizer import FILE, Tokenizer
from edlm.inference.generator import CARD as BUNDLE
from edlm.inference.generator import DENOISER, ENERGIES, TextGenerator
from edlm.inference.sequence import require_at_random
from edlm.models.autoregressive import TransformerAutoregressiveConfig
from workflows.exporting.flattening import flattened
from workflows.exporting.modeling import ExportedDenoiser

CONFIG, MODELING, README = "config.json", "modeling_edlm", "README.md"
OURS = "edlm"
"""Subfolder with cards, checksums and indices of the model folders, from which the bundle is made again."""
PACKAGES = frozenset({"torch", "typing_extensions", "transformers", "numpy"})  # torch and transformers need the others
INSTEAD = {
    "edlm.config": "workflows.exporting.settings",
    "edlm.kernel_choice": "workflows.exporting.kernel_choice",
}
DENOISERS = tuple(one.kind for one in get_args(ExportedDenoiser))
AUTOREGRESSIVE = (TransformerAutoregressiveConfig.kind,)
HEADER = f"""Energy-based diffusion language model: denoiser, energies and sampler, for torch and transformers alone.

Made from the sources of edlm {edlm.__version__} (Apache-2.0) by `python -m workflows.export`; each section names the
module that it is from. `EdlmModel`, at the end, is what `AutoModel.from_pretrained` returns. An annotation such as
`Float[Tensor, "b l"]` names a shape and is never evaluated. Axes: b sequence, k candidate, l position, v vocabulary,
n selected positions, g group of positions.
"""
SAMPLES = ("", "the ", " two  spaces, 12 and a half: é ß 東京 🙂\n\ttabs", "<|endoftext|> [MASK] </s>")


def write_repository(folder: Path, generator: TextGenerator, shard_bytes: int) -> None:
    """Write all but the model card to an empty folder.

    Raise ConfigurationError for a network or a sampler that the modelling file does not hold, and for a tokenizer that
    transformers reads in another way.
    """
    bundle = generator.denoiser.folder.parent
    weights = dict(named_weights(bundle))
    settings = configuration(generator)
    write_tokenizer(folder, generator.tokenizer)
    if (chat := generator.denoiser.chat) is not None:
        (folder / TEMPLATE_FILE).write_text(standalone(chat), encoding="utf-8")
    (folder / CONFIG).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    (folder / f"{MODELING}.py").write_text(modeling_source(), encoding="utf-8")
    save_torch_state_dict(weights, folder, max_shard_size=shard_bytes, metadata={"format": "pt"})
    (folder / OURS).mkdir()
    shutil.copyfile(bundle / BUNDLE, folder / OURS / BUNDLE)
    for part in parts(bundle):
        (folder / OURS / part).mkdir(parents=True)
        for name in described(bundle / part):
            shutil.copyfile(bundle / part / name, folder / OURS / part / name)


def parts(bundle: Path) -> list[str]:
    """Return the model folders of a bundle, below it: the denoiser, then the energies."""
    energies = sorted(path.name for path in (bundle / ENERGIES).iterdir()) if (bundle / ENERGIES).is_dir() else []
    return [DENOISER, *(f"{ENERGIES}/{name}" for name in energies)]


def described(model: Path) -> list[str]:
    """Return the files of a model folder besides tokenizer and weights: the index says in which file a weight was."""
    return [CARD, CHECKSUMS, *([INDEX] if (model / INDEX).is_file() else [])]


def named_weights(bundle: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of all networks under the names that the modelling file gives them."""
    for part in parts(bundle):
        for name, tensor in load_weights(bundle / part).items():
            yield f"{prefix(part)}{name}", tensor


def prefix(part: str) -> str:
    """Return what the names of a model folder's weights begin with."""
    return part.replace("/", ".") + "."


def configuration(generator: TextGenerator) -> dict[str, Any]:
    """Return the content of config.json. Raise ConfigurationError for what the modelling file does not hold."""
    bundle, opened = generator.bundle, generator.denoiser
    require_at_random(bundle.sampler)
    sampler = plain(bundle.sampler)
    del sampler["unmasking"]  # the rule that every exported sampler has
    energies = {name: _energy(opened.folder.parent / ENERGIES / name) for name in generator.energies}
    return {
        "model_type": "edlm",
        "architectures": ["EdlmModel"],
        "auto_map": {
            "AutoConfig": f"{MODELING}.EdlmConfig",
            "AutoModel": f"{MODELING}.EdlmModel",
            "AutoModelForMaskedLM": f"{MODELING}.EdlmModel",
        },
        "dtype": "float32",
        "transformers_version": transformers.__version__,
        "vocab_size": opened.network.vocabulary,
        "mask_id": opened.network.mask,
        "separator_id": generator.tokenizer.separator,
        "canvas_length": opened.length,
        "denoiser": _own(network_settings(open_folder(opened.folder)), DENOISERS, f"the denoiser of {bundle.name!r}"),
        "schedule": plain(opened.schedule),
        "energies": energies,
        "energy": bundle.energy,
        "sampler": sampler,
    }


def _energy(folder: Path) -> dict[str, Any]:
    return _energy_settings(parse(EnergyNetwork, open_folder(folder).network, str(folder)), folder.name)


def _energy_settings(network: EnergyNetwork, name: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"energy": plain(network.energy)}
    if network.autoregressive is not None:
        causal = plain(network.autoregressive)
        settings["autoregressive"] = _own(causal, AUTOREGRESSIVE, f"the model under energy {name!r}")
    if network.base is not None:
        settings["base"] = _energy_settings(network.base, name)
    return settings


def _own(network: Mapping[str, Any], kinds: tuple[str, ...], what: str) -> dict[str, Any]:
    """Return the settings of a network. Raise ConfigurationError for one whose code is not this project's."""
    if network["kind"] not in kinds:
        raise ConfigurationError(
            f"{what} is a network of kind {network['kind']!r}, whose code is not this project's: only the kinds "
            f"{', '.join(kinds)} are exported; publish that network with its own library, and the energy beside it"
        )
    return dict(network)


def modeling_source() -> str:
    """Return the source of the modelling file."""
    return flattened("workflows.exporting.modeling", HEADER, PACKAGES, INSTEAD)


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write the tokenizer for transformers; its tokenizer.json is the model's own, byte for byte.

    Raise ConfigurationError if transformers encodes or decodes otherwise.
    """
    tokenizer.save(folder)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # text that looks like a special token is read as text
    }
    if tokenizer.separator is not None:
        settings["eos_token"] = tokenizers.Tokenizer.from_file(str(folder / FILE)).id_to_token(tokenizer.separator)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    problem = difference(tokenizer, folder)
    if problem is not None:
        raise ConfigurationError(
            f"transformers cannot hold this tokenizer: {problem}; train the model on a tokenizer that it can "
            "(tokenizer.kind bpe, bytes or characters)"
        )


def standalone(chat: ChatTemplate) -> str:
    """Return the template with the texts of its special tokens set in it, whatever the tokenizer's own are.

    The newline after each is no part of what it writes: transformers' Jinja drops the first one after a statement.
    """
    tokens = {"eos_token": "", **chat.special_tokens}  # transformers would pass the separator
    lines = [f"{{% set {name} = {json.dumps(text, ensure_ascii=False)} %}}\n" for name, text in tokens.items()]
    return "".join([*lines, chat.template])


def difference(tokenizer: Tokenizer, folder: Path) -> str | None:
    """Return how the tokenizer in `folder`, opened by transformers, differs from ours; None if it does not."""
    try:
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the library raises no narrower class
        return f"it does not open ({error})"
    if (size := max(theirs.get_vocab().values()) + 1) != tokenizer.size:
        return f"it has {size} tokens there, and {tokenizer.size} here"
    for text in SAMPLES:
        try:
            ours = tokenizer.encode(text).tolist()
        except ValueError:  # a character outside of an alphabet of symbols
            continue
        if (read := theirs(text, add_special_tokens=False)["input_ids"]) != ours:
            return f"the text {text!r} is {read} there, and {ours} here"
    ids = list(range(tokenizer.size))
    if theirs.decode(ids) != tokenizer.decode(ids):
        return "the text of all of its tokens in order is another one there"
    return None


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` at the end; after an error, nothing is left.

    Raise ConfigurationError if `target` exists and is not an empty folder.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigurationError(f"{target} is not empty; give a folder that does not exist yet, or an empty one")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp's 0700 would hide it from other users of a shared disk
        os.replace(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
