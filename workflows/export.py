"""Export: a registered model as a Hugging Face repository folder, for transformers and torch alone.

python -m workflows.export MODEL FOLDER [--license apache-2.0] [--measured URI] [--shard_bytes 5000000000]

MODEL is a bundle's folder or URI, or NAME@ALIAS of a registered model. FOLDER must not exist, or be empty; it is
written whole or not at all. `python -m workflows.import_export FOLDER TARGET` is the way back.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import edlm
from edlm.checkpoints.model_folder import digest
from edlm.config import Positive, config, from_flags
from edlm.redaction import redact_logs, redacted_text
from workflows.exporting.model_card import measured_bounds, model_card
from workflows.exporting.repository import README, parts, whole, write_repository
from workflows.stage import say


@config
class Export:
    """How a model is exported."""

    license: str = "unknown"
    """Licence of the weights, as hubs name it: apache-2.0, mit, cc-by-4.0, ... It depends on the corpus, too."""
    measured: str | None = None
    """URI of the output of the model's evaluate stage, whose bounds the model card lists. None: it lists none."""
    shard_bytes: Positive = 5_000_000_000
    """Largest weight file, in bytes; a larger model is in several."""


def export(model: str | os.PathLike[str], folder: Path, settings: Export) -> None:
    """Write the repository of a model to `folder`, which does not exist or is empty; after an error it is unchanged.

    Raise ValueError if there is no such model, or if transformers cannot hold its networks or its tokenizer.
    """
    from cluster.tracking.pyfunc_folder import write_pyfunc  # deferred: MLflow takes seconds

    with whole(folder) as unfinished:
        generator = edlm.load(model).generator
        bounds = []
        if settings.measured is not None:
            bundle = generator.denoiser.folder.parent
            bounds = measured_bounds(settings.measured, {part: digest(bundle / part) for part in parts(bundle)})
        write_repository(unfinished, generator, settings.shard_bytes)
        (unfinished / README).write_text(model_card(generator, settings.license, bounds), encoding="utf-8")
        write_pyfunc(unfinished)


def main(arguments: Sequence[str]) -> None:
    redact_logs()
    if len(arguments) < 2 or arguments[0].startswith("-") or arguments[1].startswith("-"):
        asked = list(arguments) in (["-h"], ["--help"])
        print(__doc__, file=sys.stdout if asked else sys.stderr)
        raise SystemExit(0 if asked else 2)
    model, folder, settings = arguments[0], Path(arguments[1]), from_flags(Export, arguments[2:], __doc__ or "")
    try:
        export(model, folder, settings)
    except ValueError as error:
        print(redacted_text(f"error: nothing was exported: {error}"), file=sys.stderr)
        raise SystemExit(1) from None
    say("export", f"{model} is in {folder}; {folder / README} has a line of Python and a curl line to try it")


if __name__ == "__main__":
    main(sys.argv[1:])
