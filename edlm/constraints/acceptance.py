"""From which states of an automaton a given number of tokens can lead to acceptance, for every number, found once."""

import threading

import numpy as np
from jaxtyping import Bool, Int


class AcceptingStates:
    """The states from which some n tokens lead to acceptance, by n = 0, 1, ...

    A set follows from the one before it, so that the sets repeat from some n on, and no later one is computed. Threads
    may share it.
    """

    def __init__(
        self, state: Int[np.ndarray, " p"], to: Int[np.ndarray, " p"], accepting: Bool[np.ndarray, " s"]
    ) -> None:
        """Take every pair of a state and one that a token leads to, sorted by state; every state is in a pair."""
        self._to, self._first, self._size = to, np.searchsorted(state, np.arange(len(accepting))), len(accepting)
        self._latest = accepting
        self._sets = [np.packbits(accepting)]  # eight states a byte: there may be thousands of sets of thousands
        self._number = {self._sets[0].tobytes(): 0}
        self._repeats: int | None = None  # number of the set that comes again after the last one
        self._lock = threading.Lock()

    def after(self, count: int) -> Bool[np.ndarray, " s"]:
        """Return the states from which some `count` tokens lead to acceptance."""
        with self._lock:
            while self._repeats is None and len(self._sets) <= count:
                self._extend()
        if self._repeats is not None and count >= len(self._sets):
            count = self._repeats + (count - self._repeats) % (len(self._sets) - self._repeats)
        return np.unpackbits(self._sets[count], count=self._size).astype(bool)

    def _extend(self) -> None:
        self._latest = np.logical_or.reduceat(self._latest[self._to], self._first)
        packed = np.packbits(self._latest)
        self._repeats = self._number.setdefault(packed.tobytes(), len(self._sets))
        if self._repeats == len(self._sets):
            self._repeats = None
            self._sets.append(packed)
