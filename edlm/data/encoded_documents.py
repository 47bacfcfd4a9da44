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
from edlm.data.tokenizer import Tokenizer

DocumentBatch = Sequence[Document]


class EncodedDocument(NamedTuple):
    """Tokens of a document, and what of its text decides on the split and is counted in its summary."""

    ids: Int[np.ndarray, " n"]
    characters: int
    bytes: int
    """Of the text in UTF-8."""
    key: int
    """`Document.key`, of the whole text."""
    piece_key: int
    """`Document.piece_key`, of this text."""
    beginning: str
    part: str | None = None
    """Name of the part of a mixture that the document is from."""
    given: int | None = None
    """Tokens of the prompt of a pair; None if the document is no pair."""

    @staticmethod
    def of(document: Document, ids: Int[np.ndarray, " n"], given: int | None = None) -> "EncodedDocument":
        """Return the document, encoded as `ids`."""
        text = document.text
        size = len(text) if text.isascii() else len(text.encode("utf-8"))
        return EncodedDocument(
            ids, len(text), size, document.key, document.piece_key, text[:SHOWN], document.part, given
        )


@dataclass
class EncodedBatch:
    """Encoded documents in their order, and counts of what was read for them."""

    documents: list[EncodedDocument] = field(default_factory=list)
    characters: int = 0
    """Characters read."""
    losses: Losses = field(default_factory=Losses)

    def add(self, other: "EncodedBatch") -> None:
        """Append the batch that follows this one."""
        self.documents += other.documents
        self.characters += other.characters
        self.losses.add(other.losses)


@dataclass(frozen=True)
class DocumentEncoder:
    """Function from documents to their tokens; `chat` writes conversations."""

    tokenizer: Tokenizer
    chat: ChatTemplate | None

    def __call__(self, batch: DocumentBatch) -> EncodedBatch:
        """Encode a batch; raise ConfigurationError for a conversation that the chat template refuses."""
        # Of a pair, the answer; a conversation is not written as text.
        texts = ["" if document.turns else document.text[document.given or 0 :] for document in batch]
        encoded = EncodedBatch(characters=sum(len(document.text) for document in batch))
        for document, ids in zip(batch, self.tokenizer.encode_documents(texts), strict=True):
            given = None
            if document.turns is not None:
                prompt, answer = self._turns(document)
                ids, given = np.concatenate([prompt, answer]), len(prompt)
            elif document.given is not None:
                # Encoded apart, as a request's prompt is: no token holds letters of both.
                prompt = self.tokenizer.encode(document.text[: document.given])
                ids, given = np.concatenate([prompt, ids]), len(prompt)
            encoded.documents.append(EncodedDocument.of(document, ids, given))
        encoded.losses.look(self.tokenizer, [document.text for document in batch])
        return encoded

    def _turns(self, document: Document) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of a conversation before its last message, and those of that message."""
        assert document.turns is not None
        assert self.chat is not None
        try:
            return self.chat.pair(self.tokenizer, document.turns)
        except ConfigurationError as error:
            raise ConfigurationError(f"{document.name}: {error}") from error
