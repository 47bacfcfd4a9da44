"""Import of an export: the bundle in a repository of `workflows.export`, with the same weights, cards and tokenizer.

python -m workflows.import_export FOLDER TARGET

TARGET must not exist, or be empty; `edlm.load(TARGET)` opens it. No code of FOLDER is run.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edlm.checkpoints.model_folder import TOKENIZER
from edlm.checkpoints.weight_files import INDEX, WEIGHTS, read_index, write_files
from edlm.config import ConfigurationError
from edlm.inference.generator import CARD as BUNDLE
from edlm.inference.generator import open_bundle
from workflows.exporting.repository import OURS, described, parts, prefix, whole
from workflows.stage import say

THEIR_INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def import_export(folder: Path, target: Path) -> None:
    """Write the bundle in the repository `folder` to `target`, every digest checked; after an error it is unchanged.

    Raise ValueError if `folder` is no exported repository, or if weights, cards or tokenizer were changed since.
    """
    if not (folder / OURS / BUNDLE).is_file():
        raise ConfigurationError(
            f"{folder} is no repository of `workflows.export` (no {OURS}/{BUNDLE}); weights of other origin are "
            "opened by what reads their format"
        )
    with whole(target) as unfinished:
        weights = _weights(folder)
        shutil.copyfile(folder / OURS / BUNDLE, unfinished / BUNDLE)
        for part in parts(folder / OURS):
            (unfinished / part).mkdir(parents=True)
            start = prefix(part)
            own = {name.removeprefix(start): weights.pop(name) for name in list(weights) if name.startswith(start)}
            shutil.copyfile(folder / TOKENIZER, unfinished / part / TOKENIZER)
            for name in described(folder / OURS / part):
                shutil.copyfile(folder / OURS / part / name, unfinished / part / name)
            sharded = (unfinished / part / INDEX).is_file()
            write_files(unfinished / part, own, read_index(unfinished / part).files if sharded else {WEIGHTS: own})
        if weights:
            raise ConfigurationError(f"{folder} has weights of no network in it: {', '.join(sorted(weights)[:8])}")
        try:
            open_bundle(unfinished)
        except ValueError as error:
            text = str(error).replace(f"{unfinished}/", "")
            raise ConfigurationError(
                f"{folder} was changed since it was exported: {text}; restore the files, or export the model again"
            ) from error


def _weights(folder: Path) -> dict[str, Tensor]:
    try:
        index = folder / THEIR_INDEX
        files = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {SINGLE}
        if outside := [file for file in files if Path(file).name != file]:
            raise ValueError(f"{THEIR_INDEX} names {outside[0]!r}, which is not in this folder")
        return {name: tensor for file in sorted(files) for name, tensor in load_file(folder / file).items()}
    except FileNotFoundError as error:
        raise ConfigurationError(f"{folder} lacks a file of weights ({error}); copy the whole repository") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise ConfigurationError(f"{folder} has damaged weights ({error}); copy the whole repository") from error


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 2 or any(argument.startswith("-") for argument in arguments):
        asked = list(arguments) in (["-h"], ["--help"])
        print(__doc__, file=sys.stdout if asked else sys.stderr)
        raise SystemExit(0 if asked else 2)
    folder, target = map(Path, arguments)
    try:
        import_export(folder, target)
    except ValueError as error:
        print(f"error: nothing was imported: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    say("import", f"{target} is the bundle of {folder}; edlm.load opens it")


if __name__ == "__main__":
    main(sys.argv[1:])
