"""Inference: text generation from prompts, one by one or in the engine that batches requests per step."""
