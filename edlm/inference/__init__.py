"""Inference: prompts to texts, one by one or in the engine that batches requests by step."""
