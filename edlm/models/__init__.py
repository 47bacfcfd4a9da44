"""Networks: one transformer, and the denoiser and the autoregressive model built on it."""
