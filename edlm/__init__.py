"""Energy-based diffusion language models: the science, independent of any cluster."""
