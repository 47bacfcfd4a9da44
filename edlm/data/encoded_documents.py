"""Encoded documents: the tokens of a batch of documents, and what packing counts of their texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from edlm.config import ConfigurationError
from edlm.data.chat_template import ChatTemplate
from edlm.data.document import Document
from edlm.data.lost_characters import Losses
from edlm.data.repeats import SHOWN
from edlm.data.splits import Split
from edlm.data.text_key import text_key
from edlm.data.tokenizer import Tokenizer

DocumentBatch = Sequence[tuple[Document, Split | None]]
"""Documents with their splits; the split is None for a document that is left out."""


class EncodedDocument(NamedTuple):
    """Tokens of a document of `split`, and what the summary of the split counts of its text."""

    split: Split
    ids: Int[np.ndarray, " n"]
    characters: int
    bytes: int
    """Of the text in UTF-8."""
    key: int
    """`text_key` of the text."""
    beginning: str
    part: str | None = None
    """Name of the part of a mixture that the document is from."""
    given: int | None = None
    """Tokens of the prompt of a pair; None if the document is no pair."""

    @staticmethod
    def of(document: Document, split: Split, ids: Int[np.ndarray, " n"], given: int | None = None) -> "EncodedDocument":
        """Return the document, encoded as `ids`."""
        text = document.text
        size = len(text) if text.isascii() else len(text.encode("utf-8"))
        key = document.key if document.whole_key is None else text_key(text)
        return EncodedDocument(split, ids, len(text), size, key, text[:SHOWN], document.part, given)


@dataclass
class EncodedBatch:
    """Encoded documents in their order, and counts of what was read for them."""

    documents: list[EncodedDocument] = field(default_factory=list)
    dropped: int = 0
    """Documents left out because the validation corpus holds the same text."""
    characters: int = 0
    """Characters read, of documents left out, too."""
    losses: Losses = field(default_factory=Losses)

    def add(self, other: "EncodedBatch") -> None:
        """Append the batch that follows this one."""
        self.documents += other.documents
        self.dropped += other.dropped
        self.characters += other.characters
        self.losses.add(other.losses)


@dataclass(frozen=True)
class DocumentEncoder:
    """Function from documents to their tokens; `chat` writes conversations."""

    tokenizer: Tokenizer
    chat: ChatTemplate | None

    def __call__(self, batch: DocumentBatch) -> EncodedBatch:
        """Encode a batch; raise ConfigurationError for a conversation that the chat template refuses."""
        kept: list[tuple[Document, Split]] = [(document, split) for document, split in batch if split is not None]
        # Of a pair, the answer; a conversation is not written as text.
        texts = ["" if document.turns else document.text[document.given or 0 :] for document, _ in kept]
        encoded = EncodedBatch(
            dropped=len(batch) - len(kept), characters=sum(len(document.text) for document, _ in batch)
        )
        for (document, split), ids in zip(kept, self.tokenizer.encode_documents(texts), strict=True):
            given = None
            if document.turns is not None:
                prompt, answer = self._turns(document)
                ids, given = np.concatenate([prompt, answer]), len(prompt)
            elif document.given is not None:
                # Encoded apart, as a request's prompt is: no token holds letters of both.
                prompt = self.tokenizer.encode(document.text[: document.given])
                ids, given = np.concatenate([prompt, ids]), len(prompt)
            encoded.documents.append(EncodedDocument.of(document, split, ids, given))
        encoded.losses.look(self.tokenizer, [document.text for document, _ in kept])
        return encoded

    def _turns(self, document: Document) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of a conversation before its last message, and those of that message."""
        assert document.turns is not None
        assert self.chat is not None
        try:
            return self.chat.pair(self.tokenizer, document.turns)
        except ConfigurationError as error:
            raise ConfigurationError(f"{document.name}: {error}") from error
