"""Corpora that Hugging Face `datasets` reads."""

from collections.abc import Iterator
from typing import Literal

from edlm.config import ConfigurationError, Positive, config
from edlm.corpus_formats import Row, row_documents
from edlm.document import LONGEST, Document


@config
class HuggingFace:
    """A data set read by Hugging Face `datasets`: a name on the hub, or a folder or builder of files that it knows."""

    kind: Literal["huggingface"] = "huggingface"
    name: str
    """For example `Salesforce/wikitext`, or `json` with `data_files`."""
    config: str | None = None
    """Its configuration, for example `wikitext-103-raw-v1`."""
    revision: str | None = None
    """Its commit or tag on the hub; without it, whatever the hub holds on that day."""
    data_files: tuple[str, ...] | None = None
    """The files of the data set to read; without it, those of `split`."""
    split: str = "train"
    text_field: str = "text"
    skip_nulls: bool = False
    """Leave out rows whose text is null, and log how many; otherwise the first one is an error."""
    longest: Positive = LONGEST
    """Documents with more characters are cut into documents of at most this many, after white space if there is any."""
    streaming: bool = False
    """Read over the network as it is needed, instead of storing it first."""

    def documents(self) -> Iterator[Document]:
        """The rows of the split in its order, blank ones left out; those cut by `longest` are named `name[at]`.

        Raises ConfigurationError where there is no such data set, configuration, split or field of text.
        """
        import datasets  # takes seconds, and only this corpus needs it
        from datasets.exceptions import DatasetsError

        try:
            rows = datasets.load_dataset(
                self.name,
                self.config,
                split=self.split,
                revision=self.revision,
                data_files=list(self.data_files) if self.data_files else None,
                streaming=self.streaming,
            )
        except (DatasetsError, ValueError, OSError) as error:
            raise ConfigurationError(
                f"corpus.name {self.name!r} (config {self.config!r}, split {self.split!r}) cannot be read: {error}"
            ) from error
        named = (Row(f"{self.name}:{self.split}:{number}", row) for number, row in enumerate(rows))
        yield from row_documents(named, self.text_field, self.skip_nulls, self.longest)

    def version(self) -> str:
        """The revision that was asked for: without one, what the hub holds may change unseen."""
        return self.revision or "unpinned"
