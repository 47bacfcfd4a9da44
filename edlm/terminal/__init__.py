"""The command line `python -m edlm`: a text while it is denoised, of a model in this process or of a service."""
