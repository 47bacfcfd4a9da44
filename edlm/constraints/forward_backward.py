"""Forward-backward over automata: log Z, exact draws, and probabilities of clamped positions, in log space.

    beta_L(s) = [s accepts],   beta_l(s) = sum_c m_l(c) beta_{l+1}(delta(s, c)),   Z = beta_0(start)

m_l(c) is the probability at position l of the tokens of class c. Rows have automata of their own, laid side by side in
one list of transitions. A sum runs over the transitions of one state, so that a row's results are the same alone and in
company, to the last bit (docs/mathematics.md 3.7).

Computed in NumPy, on the host: what it reads and returns is small (`edlm.constraints.class_masses`), and each position
needs the results of the next. The same in tensors took 2 to 3 times as long on a CPU (L = 256, 9 to 1,065 states); on a
device, every position would be a dozen kernels.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int

from edlm.constraints.constraint import Constraint
from edlm.cooperative_work import Cooperative, run_to_end

LEAST = 1e-280  # of a sum: below it, its terms may have lost digits, or be 0 where their logarithms are numbers
HEADROOM = 600.0  # nats by which the largest factor exceeds 1: half of the range of a float64
TRANSITIONS_AT_ONCE = 2**20  # between two pauses; some hundredths of a second


class AutomataOfRows:
    """The automata of rows of one length, as one list of transitions."""

    def __init__(self, constraints: Sequence[Constraint], length: int) -> None:
        edges = [constraint.automaton.edges for constraint in constraints]
        states = [len(constraint.automaton.accepting) for constraint in constraints]
        self.classes = max(constraint.automaton.transitions.shape[1] for constraint in constraints)
        """Number of classes of the automaton that has the most."""
        state, edge = (np.cumsum([0, *counts]) for counts in (states, [len(part.to) for part in edges]))
        self._start = (state[:-1] + [constraint.before for constraint in constraints]).astype(np.int64)
        self._first = np.concatenate([part.first + offset for part, offset in zip(edges, edge, strict=False)])
        self._to = np.concatenate([part.to + offset for part, offset in zip(edges, state, strict=False)])
        self._class = np.concatenate([part.token_class for part in edges])
        self._mass = np.concatenate([part.token_class + row * self.classes for row, part in enumerate(edges)])
        self._degree = np.diff(np.append(self._first, edge[-1]))
        self._alive = np.concatenate([each.alive(length) for each in constraints], axis=1)
        self._reads = np.zeros((len(edges), length), dtype=bool)
        for row, constraint in enumerate(constraints):
            self._reads[row, constraint.read(length)] = True
        self._row, self._row_first = np.repeat(np.arange(len(edges)), states), state[:-1]

    def backward(self, mass: Float64[np.ndarray, "b l c"]) -> Float64[np.ndarray, "i s"]:
        """Return log beta before each position and after the last one, for the states of all rows.

        It is -inf for states that texts cannot be in there (`Constraint.alive`), which nothing depends on.
        `mass`: log of the probability of each class; -inf for the class DEAD and beyond a row's classes.
        """
        return run_to_end(self.backward_in_parts(mass))

    def backward_in_parts(self, mass: Float64[np.ndarray, "b l c"]) -> Cooperative[Float64[np.ndarray, "i s"]]:
        """Return `backward` as cooperative work, which pauses each `TRANSITIONS_AT_ONCE`."""
        length, since, everywhere = mass.shape[1], 0, np.asarray(self._reads.all(axis=0))
        weight = np.ascontiguousarray(np.exp(mass).transpose(1, 0, 2))
        beta = np.where(self._alive, 0.0, -np.inf)
        for at in reversed(range(length)):
            since += len(self._to)
            if since > TRANSITIONS_AT_ONCE:
                yield
                since = 0
            before = self._before(weight[at], mass[:, at], beta[at + 1], at)
            if not everywhere[at]:
                before = np.where(self._reads[self._row, at], before, beta[at + 1])
            np.copyto(beta[at], before, where=self._alive[at])
        return beta

    def _before(
        self,
        weight: Float64[np.ndarray, "b c"],
        mass: Float64[np.ndarray, "b c"],
        beta: Float64[np.ndarray, " s"],
        at: int,
    ) -> Float64[np.ndarray, " s"]:
        """Return log beta before position `at` from that after it: sums of products, scaled by each row's largest beta.

        Where a sum is too small for that, although its state can accept, it is computed in log space. `weight` is
        exp(mass). The results of states that cannot accept are of no use.
        """
        most = np.maximum.reduceat(beta, self._row_first)
        scale = (np.where(most == -np.inf, 0.0, most) - HEADROOM)[self._row]  # -inf - -inf would be NaN
        factor = np.exp(beta - scale)
        total = np.add.reduceat(weight.take(self._mass) * factor.take(self._to), self._first)
        result = scale + np.log(np.maximum(total, LEAST))
        small = np.nonzero((total < LEAST) & self._alive[at])[0]
        if len(small):
            degree = self._degree[small]
            first = np.cumsum(degree) - degree
            edge = np.arange(degree.sum()) + np.repeat(self._first[small] - first, degree)
            through = mass.take(self._mass[edge]) + beta[self._to[edge]]
            most = np.maximum.reduceat(through, first)
            most = np.where(most == -np.inf, 0.0, most)
            with np.errstate(divide="ignore"):  # log 0 = -inf
                result[small] = most + np.log(np.add.reduceat(np.exp(through - np.repeat(most, degree)), first))
        return result

    def log_z(self, beta: Float64[np.ndarray, "i s"]) -> Float64[np.ndarray, " b"]:
        """Return log Z, the log-probability that the constraint is satisfied, of each row."""
        return beta[0][self._start]

    def draw(
        self,
        mass: Float64[np.ndarray, "b l c"],
        beta: Float64[np.ndarray, "i s"],
        u: Float64[np.ndarray, "b k l"],
    ) -> Int[np.ndarray, "b k l"]:
        """Draw k sequences of classes per row from the distribution given the constraint, from left to right.

        Positions that the automaton does not read have the class DEAD, as does a whole row with Z = 0.
        """
        b, k, length = u.shape
        classes = np.zeros((b, k, length), dtype=np.int64)
        state = np.repeat(self._start[:, None], k, axis=1)
        with np.errstate(invalid="ignore"):  # a row with Z = 0: its shares are NaN, and its index is 0, that of DEAD
            for at in range(length):
                rows = np.nonzero(self._reads[:, at])[0]
                if len(rows) == 0:
                    continue
                now = state[rows]
                degree = self._degree[now]
                offset = np.arange(degree.max())
                # Beyond a state's transitions stands its first, to DEAD, with probability 0.
                edge = self._first[now][..., None] + offset * (offset < degree[..., None])
                to, through = self._to[edge], mass[:, at].take(self._mass[edge])
                share = through + beta[at + 1].take(to) - beta[at].take(now)[..., None]
                cdf = np.exp(share).cumsum(axis=-1)  # in order, so that what follows a state's transitions adds 0
                whole = cdf[..., -1:]
                # u may round up to the whole sum, which the transitions from the last possible one on have in common.
                index = ((u[rows, :, at][..., None] * whole >= cdf) & (cdf < whole)).sum(axis=-1)
                taken = np.take_along_axis(edge, index[..., None], axis=-1)[..., 0]
                classes[rows, :, at], state[rows] = self._class[taken], self._to[taken]
        return classes
