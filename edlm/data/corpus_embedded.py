"""Embedded corpus: text that comes with Python."""

import platform
from collections.abc import Iterator
from typing import Literal

from edlm.config import ConfigurationError, config
from edlm.data.document import Document


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
