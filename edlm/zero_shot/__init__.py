"""Zero-shot evaluation on corpora of other domains."""
