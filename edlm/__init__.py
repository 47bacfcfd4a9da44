"""Energy-based diffusion language models: the science, and nothing that needs a cluster."""
