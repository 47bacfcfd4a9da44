"""Networks of the transformers library as denoisers and autoregressive models of this project."""
