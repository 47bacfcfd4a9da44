"""Import of published checkpoints: pickles become safetensors in a process of their own."""
