"""Memory of generation beyond the weights: the promised maximum, and the measured peak of a computation."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

# Bytes counted by `promised_bytes`.
_CHANNEL = 64  # per channel of a token in a transformer block: 16 float32 numbers at its widest point
_ENTRY = 24  # per vocabulary entry of a position: at most two distributions and cumulative sums, in float64
_CANDIDATE = 64  # per position of a candidate: token, uniform, log-probability, and the comparisons of picking


def promised_bytes(
    rows: int, length: int, vocabulary: int, candidates: int, width: int, tokens_at_once: int, chunk: int
) -> int:
    """Return the most bytes that `Sampler` holds at once for `rows` sequences, in float32, for any T.

        features and layers   64 h (b l + max(l, min(b k l, tokens_at_once)))
        vocabulary            24 min(b l |V|, chunk)        chunk >= 8 |V|, or else 8 |V|
        candidates            64 b k l

    h is the width of the denoiser and of the energy. Nothing of size l |V| or k |V| is kept, within a step or between
    steps, and attention adds nothing quadratic (`edlm.models.attention`: where it computes bfloat16 scores explicitly,
    they are no larger than the widest point of the block). Token-by-token draws also hold the KV cache of their head:
    8 h b l per layer, which matters only for a head with many layers.
    """
    scored = max(length, min(rows * candidates * length, tokens_at_once)) if candidates != 1 else 0
    projected = min(rows * length * vocabulary, max(chunk, 8 * vocabulary))
    return (
        _CHANNEL * width * (rows * length + scored)
        + _ENTRY * projected
        + _CANDIDATE * rows * max(candidates, 1) * length
    )


_ALLOCATION = "[memory]"  # the profiler's name for allocator events


def peak_bytes(compute: Callable[[], Any], device: torch.device) -> int:
    """Run `compute` once and return the peak bytes held by the tensors that it allocates."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        compute()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        compute()
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == _ALLOCATION]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue] - missing in torch's stubs
        most = max(most, held)
    return most
