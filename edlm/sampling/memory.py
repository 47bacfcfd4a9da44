"""How much memory generation takes beyond the weights: what is promised, and what a computation really held."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

# What the promise counts, in bytes.
_CHANNEL = 64  # of a channel of a token in a transformer's layer: 16 numbers in float32, at the widest place
_ENTRY = 24  # of an entry of the vocabulary at a position: logits, log-probabilities, cumulative distribution
_CANDIDATE = 64  # of a position of a candidate: its token, uniform and log-probability, and what picking compares


def promised_bytes(
    rows: int, length: int, vocabulary: int, candidates: int, width: int, tokens_at_once: int, chunk: int
) -> int:
    """The most that `Sampler` holds at once for `rows` sequences, in float32, whatever T is.

        features and layers   64 h (b l + max(l, min(b k l, tokens_at_once)))
        vocabulary            24 min(b l |V|, chunk)        chunk >= 8 |V|, or else 8 |V|
        candidates            64 b k l

    h is the width of the denoiser and of the energy. Nothing of size l |V| or k |V| is kept, within a step or between
    steps, and attention adds nothing quadratic (`edlm.models.attention`: where bfloat16 is multiplied out, scores are
    no wider than the widest place). Draws token by token hold the keys and values of their head besides:
    8 h b l a layer, which counts only where a head has many.
    """
    weighed = max(length, min(rows * candidates * length, tokens_at_once)) if candidates != 1 else 0
    projected = min(rows * length * vocabulary, max(chunk, 8 * vocabulary))
    return (
        _CHANNEL * width * (rows * length + weighed)
        + _ENTRY * projected
        + _CANDIDATE * rows * max(candidates, 1) * length
    )


_ALLOCATION = "[memory]"  # what the profiler calls an event of the allocator


def peak_bytes(compute: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that tensors allocated by `compute` take at any moment; it is run once."""
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
    events = [one for one in seen.profiler.kineto_results.events() if one.name() == _ALLOCATION]
    held = most = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue] - torch's stubs do not have it
        most = max(most, held)
    return most
