"""Corpora: sources of text, as documents in a fixed order."""

import platform
from collections.abc import Iterator
from typing import Literal

from edlm.config import ConfigurationError, config
from edlm.data.corpus_files import Files
from edlm.data.corpus_huggingface import HuggingFace
from edlm.data.document import Document
from edlm.data.synthetic import Agree, HiddenMarkov, Markov

__all__ = ["CorpusConfig", "Document", "Embedded", "Files", "HuggingFace"]


@config
class Embedded:
    """English text that Python ships: 79 chapters of its language reference, 465 kB. Needs no network."""

    kind: Literal["embedded"] = "embedded"

    def documents(self) -> Iterator[Document]:
        """Yield the chapters by name; raise ConfigurationError if Python was built without its documentation."""
        try:
            from pydoc_data.topics import topics
        except ImportError as error:
            raise ConfigurationError(
                "corpus.kind embedded: this Python ships no pydoc_data.topics; use another Python, or kind: files"
            ) from error
        for name in sorted(topics):
            yield Document(topics[name], f"pydoc_data.topics:{name}")

    def version(self) -> str:
        """Return the version of Python, which determines the text."""
        return platform.python_version()


CorpusConfig = Embedded | Files | HuggingFace | Markov | Agree | HiddenMarkov
