"""Token automata: which texts, as sequences of token ids, belong to a regular language."""

import functools
import hashlib
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Int, Int32, Int64
from torch import Tensor

from edlm.constraints.acceptance import AcceptingStates

MERGING_WORK = 2**27  # table entries that are compared to merge equal states, before they are kept apart: a second
DEAD = 0  # the state from which nothing is accepted, and the class of the tokens that lead there from everywhere


@dataclass(frozen=True)
class Edges:
    """The transitions of an automaton as a list, by state; every state also has one of the class DEAD to DEAD."""

    state: Int[np.ndarray, " e"]
    token_class: Int[np.ndarray, " e"]
    to: Int[np.ndarray, " e"]
    first: Int[np.ndarray, " s"]
    """Index of the first transition of every state."""


@dataclass(frozen=True)
class TokensByClass:
    """The tokens of all classes but DEAD, sorted by class."""

    tokens: Int[Tensor, " m"]
    token_class: Int[Tensor, " m"]
    first: Int[np.ndarray, " c"]
    """Index of the first token of every class."""
    end: Int[np.ndarray, " c"]


@dataclass(frozen=True, eq=False)
class TokenAutomaton:
    """Deterministic automaton over token ids; tokens with the same transitions from every state form a class.

    State DEAD (0) and class DEAD (0) always exist: every transition of either leads to DEAD. `minimal_form` makes an
    automaton of any transition table.
    """

    classes: Int32[Tensor, " v"]
    """Class of each token of the vocabulary."""
    transitions: Int32[Tensor, "s c"]
    """Next state, by state and class of the token."""
    start: int
    accepting: Bool[Tensor, " s"]
    _on_device: dict[torch.device, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        states, classes = self.transitions.shape
        dead = self.transitions[DEAD].any() or self.transitions[:, DEAD].any() or self.accepting[DEAD]
        for name, values, below in (("classes", self.classes, classes), ("transitions", self.transitions, states)):
            if len(values) and not (int(values.min()) >= 0 and int(values.max()) < below):
                raise ValueError(f"{name} of a token automaton are numbers from 0 to {below - 1}; got others")
        if self.accepting.shape != (states,) or not 0 <= self.start < states or dead:
            raise ValueError(
                "a token automaton has one `accepting` per state, a start state, and a state 0 and a class 0 that lead "
                "to state 0, which does not accept; `minimal_form` makes one of any table"
            )

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return len(self.classes)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the automaton."""
        parts = (self.classes, self.transitions, torch.tensor([self.start]), self.accepting)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(repr(tuple(part.shape)).encode() + part.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def edges(self) -> Edges:
        """The transitions that can lead to acceptance, and one to DEAD per state."""
        table = self.transitions.numpy()
        alive = table != DEAD
        alive[:, DEAD] = True
        state, token_class = np.nonzero(alive)
        first = np.searchsorted(state, np.arange(len(table)))
        return Edges(state, token_class, table[state, token_class].astype(np.int64), first)

    @functools.cached_property
    def by_class(self) -> TokensByClass:
        """The tokens of each class."""
        order = torch.argsort(self.classes, stable=True)
        tokens = order[self.classes[order] != DEAD]
        sorted_classes, number = self.classes[tokens].long(), torch.arange(self.transitions.shape[1])
        first, end = (torch.searchsorted(sorted_classes, number, right=right).numpy() for right in (False, True))
        return TokensByClass(tokens, sorted_classes, first, end)

    def by_class_on(self, device: torch.device) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"]]:
        """Return `by_class.tokens` and `by_class.token_class` on the device, where they stay."""
        if device not in self._on_device:
            index = self.by_class
            self._on_device[device] = index.tokens.to(device), index.token_class.to(device)
        return self._on_device[device]

    def after(self, tokens: Int[Tensor, " l"] | list[int], state: int | None = None) -> int:
        """Return the state after the tokens, from `state` (None: the start); DEAD where they cannot be completed."""
        state = self.start if state is None else state
        for token in tokens:
            state = int(self.transitions[state, self.classes[token]])
        return state

    def accepts(self, tokens: Int[Tensor, " l"] | list[int]) -> bool:
        """Return whether the tokens are a text of the language."""
        return bool(self.accepting[self.after(tokens)])

    @functools.cached_property
    def neighbours(self) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
        """Every pair of a state and one that some token leads to, sorted; DEAD leads to itself alone."""
        edges, size = self.edges, len(self.accepting)
        pairs = np.unique(edges.state * size + edges.to)
        return pairs // size, pairs % size

    @functools.cached_property
    def _acceptance(self) -> AcceptingStates:
        return AcceptingStates(*self.neighbours, self.accepting.numpy())

    def accepting_after(self, count: int) -> Bool[np.ndarray, " s"]:
        """Return from which states some `count` tokens lead to acceptance."""
        return self._acceptance.after(count)

    def following(self, states: Bool[np.ndarray, " s"], token: int | None = None) -> Bool[np.ndarray, " s"]:
        """Return the states, other than DEAD, that the token (None: any token) leads to from `states`."""
        if token is None:
            before, after = self.neighbours
            to = after[states[before]]
        else:
            to = self.transitions[:, int(self.classes[token])].numpy()[states]
        reached = np.zeros_like(states)
        reached[to] = True
        reached[DEAD] = False
        return reached

    @functools.cached_property
    def lengths(self) -> tuple[int, int | None] | None:
        """Numbers of tokens of the shortest and of the longest text (None: no limit); None if there is no text."""
        if self.start == DEAD:
            return None
        following: dict[int, list[int]] = defaultdict(list)
        for state, to in zip(*(part.tolist() for part in self.neighbours), strict=True):
            if to != DEAD:
                following[state].append(to)
        shortest, queue = {self.start: 0}, deque([self.start])
        while queue:
            state = queue.popleft()
            for to in following[state]:
                if to not in shortest:
                    shortest[to] = shortest[state] + 1
                    queue.append(to)
        entering = Counter(to for state in shortest for to in following[state])
        longest, ready = {self.start: 0}, [self.start] if not entering[self.start] else []
        for state in ready:  # in topological order: a state on a cycle is never ready
            for to in following[state]:
                longest[to] = max(longest.get(to, 0), longest[state] + 1)
                entering[to] -= 1
                if not entering[to]:
                    ready.append(to)
        ends = [state for state in shortest if self.accepting[state]]
        return min(shortest[end] for end in ends), max(longest[end] for end in ends) if len(ready) == len(
            shortest
        ) else None


def minimal_form(
    classes: Int[np.ndarray, " v"], table: Int[np.ndarray, "s c"], start: int, accepting: Bool[np.ndarray, " s"]
) -> TokenAutomaton:
    """Return the automaton of a transition table by class (-1: no transition), without useless states and classes.

    `classes` is the class of each token, the column of `table`; np.arange(v) for a table by token. States from which no
    text is accepted, or that no text reaches, are dropped, equal states and equal columns are merged.
    """
    useful = _reached(table, np.arange(len(table)) == start)
    # Of a large table, most states may be within characters that no token has: first those that tokens reach.
    inner = np.append(np.where(useful, np.cumsum(useful) - 1, -1), -1)  # the last entry: of -1
    useful[useful] = _reaching(inner[table[useful]], accepting[useful])
    number = np.append(np.where(useful, np.cumsum(useful), DEAD), DEAD)
    table = np.concatenate([np.zeros((1, table.shape[1]), np.int64), number[table[useful]]])
    accepting = np.append([False], accepting[useful])
    merged = _merged(table, accepting)
    representative = np.unique(merged, return_index=True)[1]
    table = merged[table[representative]]
    # Sorted, so that the column of DEAD comes first.
    table, column = np.unique(
        np.concatenate([np.zeros((len(table), 1), np.int64), table], axis=1), axis=1, return_inverse=True
    )
    return TokenAutomaton(
        torch.from_numpy(column.reshape(-1)[np.asarray(classes, dtype=np.int64) + 1].astype(np.int32)),
        torch.from_numpy(table.astype(np.int32)),
        int(merged[number[start]]),
        torch.from_numpy(accepting[representative]),
    )


def _merged(table: Int[np.ndarray, "s c"], accepting: Bool[np.ndarray, " s"]) -> Int[np.ndarray, " s"]:
    """Return a number for each state, the same for equivalent ones (Moore 1956), by first occurrence: DEAD stays 0.

    Rows are compared by a hash. Were two different ones to collide, the result would be no congruence, and every state
    is kept. So it is where a long chain of states takes more than MERGING_WORK to tell apart.
    """
    weights = np.random.default_rng(0).integers(1, 2**63, table.shape[1] + 1, dtype=np.uint64)
    merged, first, count = accepting.astype(np.uint64), np.zeros(0, dtype=np.int64), 0
    for _ in range(max(2, MERGING_WORK // max(1, table.size))):
        signature = merged * weights[0] + merged[table] @ weights[1:]
        _, first, inverse = np.unique(signature, return_index=True, return_inverse=True)
        merged = np.argsort(np.argsort(first)).astype(np.uint64)[inverse]
        if len(first) == count:
            break
        count = len(first)
    merged, first = merged.astype(np.int64), np.sort(first)
    congruent = (merged[table] == merged[table[first]][merged]).all() and (accepting == accepting[first][merged]).all()
    return merged if congruent else np.arange(len(table))


def _reached(table: Int[np.ndarray, "s c"], states: Bool[np.ndarray, " s"]) -> Bool[np.ndarray, " s"]:
    """Return the states that can be reached from `states`."""
    states, new = states.copy(), states
    while new.any():
        to = table[new]
        reached = np.zeros_like(states)
        reached[to[to >= 0]] = True
        new = reached & ~states
        states |= new
    return states


def _reaching(table: Int[np.ndarray, "s c"], states: Bool[np.ndarray, " s"]) -> Bool[np.ndarray, " s"]:
    """Return the states that can reach `states`."""
    alive = np.flatnonzero(table >= 0)
    pairs = np.unique(table.reshape(-1)[alive].astype(np.int64) * len(table) + alive // table.shape[1])
    state, first = pairs % len(table), np.searchsorted(pairs, np.arange(len(table) + 1) * len(table))
    states, new = states.copy(), np.nonzero(states)[0]
    while len(new):
        before = np.unique(np.concatenate([state[first[each] : first[each + 1]] for each in new]))
        new = before[~states[before]]
        states[new] = True
    return states
