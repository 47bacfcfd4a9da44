"""Everything that computes, on a device: the pretended one in every run of the tests, CUDA in `make gpu-check`."""
