"""Row buckets: a block computes few numbers of rows, so that each is recorded once, as a CUDA graph, and replayed.

A CUDA graph launches all kernels of a block at once, for the shapes that it was captured with. The number of rows is
that of the texts in a batch, or of the groups of new positions times k: any number. It is padded to the next bucket.
"""

import gc
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from edlm.models.repeated_tokens import RepeatedTokens
from edlm.models.rotary import Rotary

LARGEST = 2**24  # numbers that enter a block, with padding; by estimate, kernels of larger batches outlast their launch
MOST_RECORDINGS = 256  # of a block: scored texts have any length, and each length would need recordings of its own
COS, SIN = 1, 2  # among the arguments of a block; they have no axis of rows if the rows share their positions

Run = Callable[[], object]
Arguments = tuple[Tensor | None, ...]
"""x, cos, sin, condition, valid and seen, as in `Block.forward`."""
Kind = tuple[Hashable, bool]
"""Types and shapes of the arguments without the number of rows, and whether the pass is causal."""


@dataclass
class Recorder:
    """What the blocks of a network share: how a run is recorded, and the buffers that recordings read and write."""

    record: Callable[[Run], Run]
    """Return a run that does the same again; the run has been done before."""
    device: str
    """Type of the device on which runs are recorded."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    _buffers: dict[Kind, Arguments] = field(default_factory=dict)

    def buffers(self, kind: Kind, arguments: Arguments, rows: int) -> Arguments:
        """Return buffers of `rows` rows for these arguments and, last, for the result."""
        held = self._buffers.get(kind)
        if held is None or _rows(held) < rows:
            held = self._buffers[kind] = tuple(
                _empty(i, each, rows) for i, each in enumerate((*arguments, arguments[0]))
            )
        return _first_rows(held, rows)


@dataclass(frozen=True)
class Recording:
    """A recorded run with the buffers that it reads and, last, the one that it writes."""

    buffers: Arguments
    run: Run

    def __call__(self, arguments: Arguments) -> Float[Tensor, "b l h"]:
        """Return the result for the arguments, a copy that no later run overwrites.

        The other rows of the buffers are those of earlier calls; no row depends on another.
        """
        pairs = [(buffer, each) for buffer, each in zip(self.buffers, arguments, strict=False) if each is not None]
        torch._foreach_copy_([buffer[: len(each)] for buffer, each in pairs], [each for _, each in pairs])  # pyright: ignore
        self.run()
        result = self.buffers[-1]
        assert result is not None
        return result[: _rows(arguments)].clone()


class RowBuckets:
    """The forward pass of a block, by recordings on the recorder's device as long as no gradients are asked for.

    The weights must stay where they are once something is recorded.
    """

    def __init__(self, forward: Callable[..., Tensor], recorder: Recorder) -> None:
        self._forward, self._recorder = forward, recorder
        self._recordings: dict[tuple[Kind, int], Recording] = {}

    def __call__(
        self,
        x: Float[Tensor, "b l h"],
        rotary: Rotary,
        condition: Float[Tensor, "b c"] | None = None,
        causal: bool = False,
        valid: Bool[Tensor, "b l"] | None = None,
        seen: Bool[Tensor, "b 1 l l"] | None = None,
        repeated: RepeatedTokens | None = None,
    ) -> Float[Tensor, "b l h"]:
        if x.device.type != self._recorder.device or torch.is_grad_enabled() or repeated is not None:
            return self._forward(x, rotary, condition, causal, valid, seen, repeated)
        arguments = (x, rotary.cos, rotary.sin, condition, valid, seen)
        kind, rows = (_kind(arguments), causal), bucket_of(len(x))
        with self._recorder.lock:
            # For a batch that is too large, the largest bucket of its kind: `record_smaller` goes on from there.
            recorded = min(rows, bucket_within(LARGEST // x.shape[1:].numel()))
            if recorded and (kind, recorded) not in self._recordings and len(self._recordings) < MOST_RECORDINGS:
                self._record(kind, recorded, self._recorder.buffers(kind, arguments, recorded))
            if (kind, rows) in self._recordings:
                return self._recordings[kind, rows](arguments)
        return self._forward(x, rotary, condition, causal, valid, seen)

    @property
    def recordings(self) -> int:
        """Number of recordings."""
        return len(self._recordings)

    def record_smaller(self) -> Iterator[None]:
        """Record every smaller bucket of each kind of arguments that is recorded; pause after each."""
        for (kind, largest), recording in list(self._recordings.items()):
            for rows in reversed(buckets_up_to(largest)):
                if (kind, rows) not in self._recordings and len(self._recordings) < MOST_RECORDINGS:
                    with self._recorder.lock:
                        self._record(kind, rows, _first_rows(recording.buffers, rows))
                    yield

    @torch.no_grad()
    def _record(self, kind: Kind, rows: int, buffers: Arguments) -> None:
        x, cos, sin, condition, valid, seen, result = buffers
        assert x is not None and cos is not None and sin is not None and result is not None  # noqa: PT018

        def compute() -> Tensor:
            return self._forward(x, Rotary(cos, sin), condition, kind[1], valid, seen)

        first = compute()  # compiles, and loads the kernels
        assert (first.shape, first.dtype) == (result.shape, result.dtype)
        del first
        self._recordings[kind, rows] = Recording(buffers, self._recorder.record(lambda: result.copy_(compute())))


class GraphCapture:
    """Recorder's `record` on a GPU; the graphs of a network share the memory of their intermediate values.

    They may, because each is replayed by itself: its input is copied in before, its result out after.
    """

    def __init__(self) -> None:
        self._pool = None

    def __call__(self, run: Run) -> Run:
        graph, collects = torch.cuda.CUDAGraph(), gc.isenabled()
        gc.disable()  # what it destroys, such as the graphs of an earlier model, would break the capture
        try:
            # Other threads may use the device meanwhile, which breaks a capture in the default mode.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                run()
        finally:
            if collects:
                gc.enable()
        self._pool = graph.pool()  # and no handle made before: a pool must have a graph that is alive
        return graph.replay


def bucket_of(rows: int) -> int:
    """Return the least of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is no less than `rows`: at most a third is padding."""
    whole = 1 << (rows - 1).bit_length()
    between = 3 * whole // 4
    return between if rows <= between else whole


def bucket_within(rows: int) -> int:
    """Return the largest bucket of at most `rows` rows; 0 if there is none."""
    whole = 1 << rows.bit_length() >> 1
    between = 3 * whole // 2
    return between if between <= rows else whole


def buckets_up_to(rows: int) -> list[int]:
    """Return the buckets of 1 to `rows` rows, in order."""
    buckets = [1]
    while buckets[-1] < rows:
        buckets.append(bucket_of(buckets[-1] + 1))
    return buckets


def row_buckets(network: nn.Module) -> Iterator[RowBuckets]:
    """Yield the row buckets of the network's blocks; none if it is not compiled."""
    for module in network.modules():
        if isinstance(module.forward, RowBuckets):
            yield module.forward


def _kind(arguments: Arguments) -> Hashable:
    """Return the types and shapes without the number of rows."""
    return tuple(
        None if each is None else (each.dtype, each.dim(), each.shape[1 if _has_rows(i, each) else 0 :])
        for i, each in enumerate(arguments)
    )


def _has_rows(i: int, argument: Tensor) -> bool:
    return i not in (COS, SIN) or argument.dim() == 3


def _rows(arguments: Sequence[Tensor | None]) -> int:
    assert arguments[0] is not None
    return len(arguments[0])


def _empty(i: int, argument: Tensor | None, rows: int) -> Tensor | None:
    if argument is None:
        return None
    return argument.new_zeros((rows, *argument.shape[1:]) if _has_rows(i, argument) else argument.shape)


def _first_rows(buffers: Arguments, rows: int) -> Arguments:
    return tuple(each[:rows] if each is not None and _has_rows(i, each) else each for i, each in enumerate(buffers))
