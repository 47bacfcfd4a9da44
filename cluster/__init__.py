"""Infrastructure: Ray, DeepSpeed, MLflow and Ray Serve. The mathematics is in `edlm`."""

import gc

# Importing PyTorch, Ray and MLflow makes millions of objects that live until the process ends. With the usual threshold
# of 700, the garbage collector walks them again and again: a quarter of the time that a process takes to start.
gc.set_threshold(100_000, 20, 20)
