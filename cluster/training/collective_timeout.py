"""Timeout of collectives, in every process group."""

from datetime import timedelta

from torch.distributed import distributed_c10d


def limit_collectives(seconds: float) -> None:
    """Make `seconds` the timeout of all process groups that this process makes from now on.

    Ray Train's setting reaches the group of all workers only; DeepSpeed computes on a clone, made without a timeout,
    and so with torch's default of 30 minutes (gloo) or 10 (nccl).
    """
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        setattr(distributed_c10d, name, timedelta(seconds=seconds))
