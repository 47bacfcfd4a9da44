"""Mixtures: several corpora as one, in given shares of the characters."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from typing import Annotated, Literal

import pydantic

from edlm.config import ConfigurationError, PositiveFloat, config
from edlm.data.corpus_embedded import Embedded
from edlm.data.corpus_files import Files
from edlm.data.corpus_huggingface import HuggingFace
from edlm.data.document import Document

log = logging.getLogger(__name__)


@config
class Part:
    """One corpus of a mixture."""

    name: str | None = None
    """Name in the summary of the data; None: `parts.0`, `parts.1`, ... by its place in the list."""
    corpus: Annotated[Embedded | Files | HuggingFace, pydantic.Field(discriminator="kind")]
    """Text of this part."""
    weight: PositiveFloat
    """Share of the mixture's characters, in proportion to the other weights."""


@config
class Mixture:
    """Several corpora in given shares of the characters; a part's documents keep their order.

    The next text is always one of the part that is furthest below its share, so that the shares hold, up to one text,
    wherever a reader stops. Nothing is drawn at random. A document's split depends on its text alone, as in every
    corpus, so that each split holds the parts in the same shares in expectation.
    """

    kind: Literal["mixture"] = "mixture"
    parts: Annotated[tuple[Part, ...], pydantic.Field(min_length=2)]
    """The corpora, at least two."""
    stop: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    """End of the mixture. first_exhausted: when a part has no more text, the rest of the others is left out.
    all_exhausted: when every part has been read once; those that end before the last are read again."""

    def __post_init__(self) -> None:
        names = self.names()
        if len(set(names)) < len(names):
            raise ConfigurationError(f"corpus.parts: two parts share a name in {names}; give each its own")

    def names(self) -> list[str]:
        """Return the name of each part in the summary."""
        return [part.name or f"parts.{i}" for i, part in enumerate(self.parts)]

    def documents(self) -> Iterator[Document]:
        """Yield the documents of all parts, each with the name of its part; the pieces of a row stay together.

        Raises ConfigurationError for a part without text, and those of the parts' corpora.
        """
        names, total = self.names(), sum(part.weight for part in self.parts)
        shares = [part.weight / total for part in self.parts]
        texts = [_texts(part.corpus.documents()) for part in self.parts]
        characters, exhausted = [0] * len(self.parts), [False] * len(self.parts)
        while not all(exhausted):
            read = sum(characters)
            part = max(range(len(shares)), key=lambda i: shares[i] - characters[i] / max(1, read))
            text = next(texts[part], None)
            if text is None:
                if characters[part] == 0:
                    raise ConfigurationError(f"corpus.parts: {names[part]} holds no text; check its paths and split")
                exhausted[part] = True
                if self.stop == "first_exhausted":
                    log.warning("the mixture ends with its part %s; the rest of the others is left out", names[part])
                    return
                texts[part] = _texts(self.parts[part].corpus.documents())
                continue
            for document in text:
                characters[part] += len(document.text)
                yield replace(document, part=names[part])

    def version(self) -> str:
        """Return the versions of the parts' corpora."""
        return " ".join(part.corpus.version() for part in self.parts)


def _texts(documents: Iterable[Document]) -> Iterator[Iterator[Document]]:
    """Yield each text as its documents: one, or the pieces of a row."""
    for whole_key, pieces in groupby(documents, key=lambda document: document.whole_key):
        if whole_key is None:
            yield from (iter([piece]) for piece in pieces)
        else:
            yield pieces
