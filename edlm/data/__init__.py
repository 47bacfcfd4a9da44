"""Text to tokens: corpora, documents, splits, tokenizers, packing into token files."""
