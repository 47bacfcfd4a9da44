"""Corpora: sources of text, as documents in a fixed order."""

from collections.abc import Iterator

from edlm.data.corpus_embedded import Embedded
from edlm.data.corpus_files import Files
from edlm.data.corpus_huggingface import HuggingFace
from edlm.data.document import Document
from edlm.data.mixture import Mixture
from edlm.data.synthetic import Agree, HiddenMarkov, Markov

__all__ = ["CorpusConfig", "Document", "Embedded", "Files", "HuggingFace", "Mixture", "holds_conversations"]

CorpusConfig = Embedded | Files | HuggingFace | Mixture | Markov | Agree | HiddenMarkov


def with_fields(corpus: CorpusConfig | None) -> Iterator[Files | HuggingFace]:
    """Yield the corpus, or the parts of a mixture, as far as their rows have fields."""
    for part in [part.corpus for part in corpus.parts] if isinstance(corpus, Mixture) else [corpus]:
        if isinstance(part, Files | HuggingFace):
            yield part


def holds_conversations(corpus: CorpusConfig | None) -> bool:
    """Return whether some documents are conversations, which a chat template writes."""
    return any(part.messages_field is not None for part in with_fields(corpus))
