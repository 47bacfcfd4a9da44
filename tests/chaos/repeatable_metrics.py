"""Metrics of a training that a disturbed run repeats: those that measure the model, not the machine."""

OF_THE_MACHINE = ("tokens_per_second", "memory_mib", "model_flop_per_second", "mfu")


def is_repeatable(metric: str) -> bool:
    """Return whether a training of the same data, settings and seed has the same values of the metric."""
    return metric not in OF_THE_MACHINE and not metric.startswith("seconds_")
