"""Import stages of Hugging Face networks: those that others trained become model folders, for the data's tokenizer.

python -m workflows.import_huggingface EXPERIMENT.yaml [--denoiser.folder FOLDER ...] [--dry-run]
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from edlm.checkpoints.model_folder import TOKENIZER
from edlm.checkpoints.networks import save_autoregressive, save_denoiser
from edlm.config import ConfigurationError, plain
from edlm.data.local_splits import local_index, local_split
from edlm.data.token_file import TokenFile, read_summary
from edlm.data.tokenizer import Tokenizer, open_tokenizer
from edlm.huggingface.autoregressive import HuggingFaceAutoregressiveSource
from edlm.huggingface.denoiser import HuggingFaceDenoiserSource
from edlm.huggingface.vocabulary import Vocabulary
from workflows.command import command
from workflows.prepare import prepare
from workflows.stage import Session, StageContext, once

CODE = ("workflows.import_huggingface",)
CHUNK = 2**22  # tokens of the data that are looked at at a time


@once
def imported_denoiser(session: Session) -> str | None:
    """Import the denoiser and return its URI; None if the experiment's comes without weights."""
    experiment, source = session.experiment, session.experiment.denoiser
    if not isinstance(source, HuggingFaceDenoiserSource):
        return None
    data, length, schedule = prepare(session), experiment.data.length, experiment.schedule

    def work(work: StageContext) -> dict[str, Any]:
        prepared = local_index(data)
        tokenizer = open_tokenizer(prepared)
        network = source.open(vocabulary_of(tokenizer), length)
        summary = read_summary(prepared)
        for split in summary.splits:
            require_possible(TokenFile.open(local_split(data, split), split), network.config.never, tokenizer, split)
        facts = {"experiment": experiment.name, "imported": source.version()}
        weights, file = network.state_dict(), prepared / TOKENIZER
        save_denoiser(work.folder, weights, network.config, schedule, length, file, {**facts, **summary.facts()})
        return facts

    settings = {"denoiser": plain(source), "schedule": plain(schedule), "data.length": length}
    return session.run_stage(
        "import-denoiser", settings, {"data": data}, CODE, work, {"denoiser's files": source.version()}
    )


@once
def imported_autoregressive(session: Session) -> str | None:
    """Import the autoregressive model and return its URI; None if the experiment's comes without weights."""
    experiment, source = session.experiment, session.experiment.autoregressive
    if not isinstance(source, HuggingFaceAutoregressiveSource):
        return None
    data, length = prepare(session), experiment.data.length

    def work(work: StageContext) -> dict[str, Any]:
        prepared = local_index(data)
        network = source.open(vocabulary_of(open_tokenizer(prepared)), length)
        facts = {"experiment": experiment.name, "imported": source.version()}
        save_autoregressive(work.folder, network.state_dict(), network.config, length, prepared / TOKENIZER, facts)
        return facts

    settings = {"autoregressive": plain(source), "data.length": length}
    return session.run_stage(
        "import-autoregressive", settings, {"data": data}, CODE, work, {"autoregressive's files": source.version()}
    )


def import_networks(session: Session) -> None:
    """Import both; raise ConfigurationError if the experiment's networks come without weights."""
    if (imported_denoiser(session), imported_autoregressive(session)) == (None, None):
        raise ConfigurationError(
            "import_huggingface: neither denoiser nor autoregressive is of kind huggingface, which comes with weights"
        )


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """Return a tokenizer's tokens, to be compared with a network's."""
    return Vocabulary(tokenizer.ids(), tokenizer.size, tokenizer.separator)


def require_possible(data: TokenFile, never: Iterable[int], tokenizer: Tokenizer, split: str) -> None:
    """Raise ConfigurationError if a split holds tokens that are never generated, whose loss is infinite.

    Prompts count: no training learns them, but the evaluation measures whole rows.
    """
    counts = np.zeros(tokenizer.size, dtype=np.int64)
    for start in range(0, len(data.tokens), CHUNK):
        counts += np.bincount(data.tokens[start : start + CHUNK], minlength=tokenizer.size)
    found = [index for index in never if counts[index]]
    if found:
        texts = ", ".join(f"{tokenizer.decode([index])!r} {counts[index]:,} times" for index in found)
        raise ConfigurationError(
            f"the data's split {split} holds tokens that the denoiser never generates: {texts} among "
            f"{len(data.tokens):,}, and the evaluation measures whole rows, prompts included; name them in "
            "denoiser.generated (those of a chat template, too), or change the text (an unknown token stands for "
            "characters that the vocabulary lacks)"
        )


if __name__ == "__main__":
    command(__doc__, import_networks)
