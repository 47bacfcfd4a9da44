"""KV cache: keys and values of the positions that a causal layer has processed, for a pass position by position."""

from jaxtyping import Float
from torch import Tensor


class KVCache:
    """Keys and values of one layer, of one sequence per row and up to `length` positions; empty at first.

    `like` has the layer's width as last dimension, and the cache's dtype and device.
    """

    def __init__(self, rows: int, length: int, heads: int, like: Tensor) -> None:
        shape = (rows, heads, length, like.shape[-1] // heads)
        self._keys, self._values, self._count = like.new_empty(shape), like.new_empty(shape), 0

    def with_next(self, key: Float[Tensor, "b a one c"], value: Float[Tensor, "b a one c"]) -> tuple[Tensor, Tensor]:
        """Append the next position's key and value; return those of all positions so far, [b a l c] each."""
        index, self._count = self._count, self._count + 1
        self._keys[:, :, index : index + 1], self._values[:, :, index : index + 1] = key, value
        return self._keys[:, :, : self._count], self._values[:, :, : self._count]
