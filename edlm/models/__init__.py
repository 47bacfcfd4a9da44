"""Networks: one transformer, the denoiser and the autoregressive model built on it."""
