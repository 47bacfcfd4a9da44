"""Energy-based diffusion language models: the science, independent of any cluster."""

__version__ = "0.1.0"
