"""Corpora: sources of text, as documents in a fixed order."""

from edlm.data.corpus_embedded import Embedded
from edlm.data.corpus_files import Files
from edlm.data.corpus_huggingface import HuggingFace
from edlm.data.document import Document
from edlm.data.mixture import Mixture
from edlm.data.synthetic import Agree, HiddenMarkov, Markov

__all__ = ["CorpusConfig", "Document", "Embedded", "Files", "HuggingFace", "Mixture"]

CorpusConfig = Embedded | Files | HuggingFace | Mixture | Markov | Agree | HiddenMarkov
