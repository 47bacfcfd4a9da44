"""Corpora read by Hugging Face `datasets`: from its hub, from files, or from a folder of `save_to_disk`."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fsspec.implementations.local import LocalFileSystem

from edlm.config import ConfigurationError, Positive, config
from edlm.data.corpus_files import stamp
from edlm.data.corpus_formats import Row, SkippedNulls, row_documents
from edlm.data.document import LONGEST, Document
from edlm.data.pairs import Prompts, require_one_form
from edlm.data.remote_files import PROGRAMMING_ERRORS
from edlm.file_systems import file_system, require_hub

if TYPE_CHECKING:  # its import takes seconds, and only this corpus needs it
    from datasets import Dataset, IterableDataset

WAITS = (1.0, 4.0, 16.0, 64.0)  # seconds before a broken stream is reopened
SAVED = ("state.json", "dataset_dict.json")  # files that `save_to_disk` writes for a Dataset and for a DatasetDict

log = logging.getLogger(__name__)


@config
class HuggingFace:
    """Data set read by Hugging Face `datasets`: a name on the hub, one of its file builders, or a folder.

    `datasets` holds a whole parquet row group or line of text in memory, however large; kind: files bounds what it
    holds.
    """

    kind: Literal["huggingface"] = "huggingface"
    name: str
    """For example `Salesforce/wikitext`, `json` with `data_files`, or a folder written by `save_to_disk`."""
    config: str | None = None
    """Configuration of the data set, for example `wikitext-103-raw-v1`."""
    revision: str | None = None
    """Commit or tag on the hub; without it, the content of the hub at the time of reading."""
    data_files: tuple[str, ...] | None = None
    """Files of the data set to read; without it, those of `split`."""
    split: str = "train"
    """Split of the data set to read; `data_files` without splits of their own are `train`."""
    text_field: str = "text"
    """Column that holds the text."""
    skip_nulls: bool = False
    """Skip rows whose text is null and log their number; otherwise the first one is an error."""
    prompts: Prompts | None = None
    """Prompts to which the texts are answers: only the answers are learnt, each row of the data set is one pair, and no
    pair is divided between rows of training. None: the texts stand alone."""
    messages_field: str | None = None
    """Column that holds conversations, lists of messages with `role` and `content`, in place of the text column. Each
    is a pair: the last message, the assistant's, is learnt, given those before it as the chat template of the
    tokenizer (kind: huggingface) writes them."""
    longest: Positive = LONGEST
    """Maximum characters per document; longer documents are split, after white space if there is any. The parts of a
    row belong to one split."""
    streaming: bool = False
    """Read over the network on demand instead of storing the data set first."""

    def __post_init__(self) -> None:
        require_one_form(self.prompts, self.messages_field)

    def documents(self) -> Iterator[Document]:
        """Yield the rows of the split in order except blank ones; those split by `longest` are named `name[at]`.

        A broken stream is reopened at the row that failed, up to `len(WAITS)` times in succession; each time is logged.
        Raises ConfigurationError if the data set, configuration, split or text field does not exist, or if a row cannot
        be read.
        """
        source_rows = rows(self._opened(), f"{self.name}:{self.split}")
        nulls = SkippedNulls() if self.skip_nulls else None
        yield from row_documents(source_rows, self.text_field, nulls, self.longest, self.prompts, self.messages_field)
        if nulls is not None:
            nulls.report(self.text_field if self.messages_field is None else self.messages_field)

    def version(self) -> str:
        """Return the requested revision and a digest that changes when a file outside the hub does.

        The digest covers the files of a folder and local `data_files`. Without a revision, changes on the hub go
        unnoticed.
        """
        files = []
        system, folder = file_system(self.name)
        if system.isdir(folder):
            files += [(system, path, path) for path in sorted(system.find(folder))]
        for data_file in self.data_files or ():
            system, path = file_system(data_file)
            if isinstance(system, LocalFileSystem):
                files += [(system, match, match) for match in sorted(system.glob(path)) if system.isfile(match)]
        revision = self.revision or "unpinned"
        return f"{revision} {stamp(files)}" if files else revision

    def _opened(self) -> "Dataset | IterableDataset":
        system, folder = file_system(self.name)
        saved = any(system.isfile(f"{folder}/{mark}") for mark in SAVED)
        try:
            return self._saved() if saved else self._loaded()
        except ConfigurationError:
            raise
        except Exception as error:  # builders raise exceptions of any class
            if "Dataset scripts are no longer supported" in str(error):
                raise ConfigurationError(
                    f"corpus.name {self.name!r} is a script, which `datasets` no longer runs; "
                    f"{_instead_of_script(self.name)}"
                ) from error
            raise ConfigurationError(
                f"corpus.name {self.name!r} (config {self.config!r}, split {self.split!r}) cannot be read: "
                f"{_described(error)}; check these settings and corpus.data_files, and that the hub can be reached"
            ) from error

    def _loaded(self) -> "Dataset | IterableDataset":
        import datasets
        from datasets.config import HF_HUB_OFFLINE

        on_hub = "/" in self.name and "://" not in self.name and not Path(self.name).exists()
        if on_hub and not HF_HUB_OFFLINE:  # offline, `datasets` reads its cache
            require_hub(self.name)
        return datasets.load_dataset(
            self.name,
            self.config,
            split=self.split,
            revision=self.revision,
            data_files=list(self.data_files) if self.data_files else None,
            streaming=self.streaming,
        )

    def _saved(self) -> "Dataset":
        import datasets

        for field in ("config", "revision", "data_files"):
            if getattr(self, field) is not None:
                raise ConfigurationError(
                    f"corpus.{field} means nothing for {self.name!r}, a folder of `save_to_disk`; leave it out"
                )
        saved = datasets.load_from_disk(self.name)
        if isinstance(saved, datasets.Dataset):
            saved = datasets.DatasetDict({str(saved.split or self.split): saved})
        if self.split not in saved:
            raise ConfigurationError(
                f"corpus.split: {self.name!r} holds no {self.split!r}; "
                f"set corpus.split to one of: {', '.join(map(str, saved))}"
            )
        return saved[self.split]


def rows(data: "Dataset | IterableDataset", name: str) -> Iterator[Row]:
    """Yield the rows, numbered from 0; a stream that breaks off still yields every row once and in the same order.

    Raises ConfigurationError with the number of a row that cannot be read; for a stream, after the last of WAITS.
    """
    import datasets

    stream = data if isinstance(data, datasets.IterableDataset) else None
    state = stream.state_dict() if stream else {}
    unread, number, tries = iter(data), 0, 0
    while True:
        try:
            row = next(unread, None)
        except Exception as error:  # builders, file systems and networks raise exceptions of any class
            # Malformed data stays malformed, of which some builders raise a TypeError; another error may come from the
            # network, a FileNotFoundError, too.
            lasting = isinstance(error, (ValueError, *PROGRAMMING_ERRORS))
            if stream is None or lasting or tries == len(WAITS):
                attempts = f" in {tries + 1} tries" if tries else ""
                raise ConfigurationError(
                    f"{name}:{number}: cannot be read{attempts}: {_described(error)}; mend or remove the row, or run "
                    "the command again if its source was out of reach"
                ) from error
            log.warning("%s:%d: %s; reading on from there in %g s", name, number, _described(error), WAITS[tries])
            time.sleep(WAITS[tries])
            tries += 1
            stream.load_state_dict(state)
            unread = iter(stream)
            continue
        if row is None:
            return
        state = stream.state_dict() if stream else {}
        yield Row(f"{name}:{number}", row)
        number, tries = number + 1, 0


def _instead_of_script(name: str) -> str:
    if Path(name).is_dir():
        return f"read the files beside it: corpus: {{kind: files, paths: [{name!r}]}}"
    return (
        "read the files that the hub makes of it: corpus: {kind: files, "
        f"paths: ['hf://datasets/{name}@refs/convert/parquet/**/train/*.parquet']}}"
    )


def _described(error: BaseException) -> str:
    """Describe the error and its causes: `datasets` often reports only that something failed."""
    description = f"{type(error).__name__}: {error}"
    return description if error.__cause__ is None else f"{description} (from {_described(error.__cause__)})"
