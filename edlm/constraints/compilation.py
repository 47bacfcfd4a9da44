"""Compilation of a specification to an automaton over the tokens of a tokenizer, and a cache of what was compiled."""

import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from edlm.config import ConfigurationError, plain
from edlm.constraints.automaton import DEAD, TokenAutomaton, minimal_form
from edlm.constraints.byte_automaton import ByteAutomaton, CompilationLimits, compile_bytes
from edlm.constraints.specification import AbstractSpecification, OneOf
from edlm.constraints.spelling import require_spelt, unspeakable
from edlm.constraints.stop_strings import without_stop_strings
from edlm.data.tokenizer import Tokenizer

CACHED_ENTRIES = 2**26  # states times classes of all cached automata: 256 MiB
DEFAULT_LIMITS = CompilationLimits()


def compile_constraint(
    specification: AbstractSpecification,
    tokenizer: Tokenizer,
    begins: bool = True,
    ends: bool = False,
    limits: CompilationLimits = DEFAULT_LIMITS,
    stops: Sequence[str] = (),
) -> TokenAutomaton:
    """Return the automaton of the token sequences whose text is in the specification.

    `begins`: the text begins with these tokens; otherwise others precede them, which matters to tokenizers that drop a
    space from the first token. `ends`: the text may end early, with the separator, which then fills the rest. `stops`:
    strings that do not occur in the text. Raise ConfigurationError for a specification that exceeds the limits or that
    no tokens can spell.
    """
    bytes_of = tokenizer.bytes_of_tokens
    automaton = without_stop_strings(compile_bytes(specification, limits), stops, limits.byte_states)
    if isinstance(specification, OneOf):
        require_spelt(specification, bytes_of.first if begins else bytes_of.following, bytes_of.following)
    separator = tokenizer.separator if ends else None
    compiled = _Compilation(automaton, limits).over_tokens(
        bytes_of.following, bytes_of.first if begins and bytes_of.first != bytes_of.following else None, separator
    )
    if compiled.start == DEAD:
        raise unspeakable(specification, automaton, bytes_of.following)
    return compiled


class _Compilation:
    """Composition of an automaton over bytes with the bytes of tokens, within limits."""

    def __init__(self, automaton: ByteAutomaton, limits: CompilationLimits) -> None:
        self.automaton, self.limits = automaton, limits
        states = len(automaton.table)
        # State `states` is where a missing transition leads; from there it stays.
        table = np.where(automaton.table < 0, states, automaton.table)
        self.by_byte = np.ascontiguousarray(np.concatenate([table, np.full((1, 256), states)]).T.astype(np.int32))
        self.dead, self.deadline = states, time.thread_time() + limits.seconds

    def over_tokens(
        self, following: Sequence[bytes | None], first: Sequence[bytes | None] | None, separator: int | None
    ) -> TokenAutomaton:
        """Return the automaton over tokens; `first`: the bytes of tokens at the beginning, if these are others."""
        of_token = self._columns(following)
        number = {column: index for index, column in enumerate(dict.fromkeys(of_token))}
        table = np.stack([np.frombuffer(column, dtype=np.int32) for column in number], axis=1)[: self.dead]
        classes = np.array([number[column] for column in of_token])
        start, accepting = self.automaton.start, self.automaton.accepting
        if first is not None:  # one more state, in which the text begins
            at_start = [np.frombuffer(column, dtype=np.int32)[start] for column in self._columns(first)]
            pairs, classes = np.unique(np.stack([classes, at_start]), axis=1, return_inverse=True)
            table = np.concatenate([table[:, pairs[0]], pairs[1][None]])
            classes, accepting, start = classes.reshape(-1), np.append(accepting, accepting[start]), len(accepting)
        table = np.where(table == self.dead, -1, table)
        if separator is not None:  # one more state, after the end, and one more class, of the separator
            end = len(table)
            column = np.append(np.where(accepting, end, -1), end)
            table = np.concatenate([np.concatenate([table, np.full((1, table.shape[1]), -1)]), column[:, None]], axis=1)
            classes, accepting = classes.copy(), np.append(accepting, True)
            classes[separator] = table.shape[1] - 1
        self._require_time()
        result = minimal_form(classes, table, start, accepting)
        states, kinds = result.transitions.shape
        self._require_size(states, kinds, int((result.transitions != 0).sum()))
        return result

    def _columns(self, texts: Sequence[bytes | None]) -> list[bytes]:
        """Return where each token leads from every state, as the bytes of an array; equal ones are one object."""
        nowhere = np.full(self.dead + 1, self.dead, dtype=np.int32)
        same = np.arange(self.dead + 1, dtype=np.int32)
        known = {nowhere.tobytes(): nowhere.tobytes()}
        result = [*known] * len(texts)
        spelt = sorted((text, index) for index, text in enumerate(texts) if text is not None)
        path, before = [same], b""
        for number, (text, index) in enumerate(spelt):
            shared = next(
                (i for i, (a, b) in enumerate(zip(text, before, strict=False)) if a != b), min(len(text), len(before))
            )
            del path[min(shared, len(path) - 1) + 1 :]
            while len(path) <= len(text) and path[-1] is not nowhere:
                column = self.by_byte[text[len(path) - 1]][path[-1]]
                path.append(nowhere if (column == self.dead).all() else column)
            before = text
            if path[-1] is not nowhere:
                key = path[-1].tobytes()
                result[index] = known.setdefault(key, key)
                if len(known) * self.dead > 4 * self.limits.entries:
                    self._require_size(self.dead, len(known), 0)
            if number % 1000 == 0:
                self._require_time()
        return result

    def _require_time(self) -> None:
        if time.thread_time() > self.deadline:
            raise ConfigurationError(
                f"the constraint takes more than {self.limits.seconds} seconds to compile for the tokens of this "
                "model; make it simpler"
            )

    def _require_size(self, states: int, classes: int, transitions: int) -> None:
        limits = self.limits
        for name, value, most in (
            ("states", states, limits.states),
            ("states times classes of tokens", states * classes, limits.entries),
            ("transitions", transitions, limits.transitions),
        ):
            if value > most:
                raise ConfigurationError(
                    f"the constraint has {value:,} {name} over the tokens of this model; at most {most:,} are taken: "
                    "make it simpler, with fewer or shorter repetitions and alternatives"
                )


class AutomatonCache:
    """Compiled automata of one tokenizer, by the digest of their specification; the least recently used are dropped."""

    def __init__(
        self, tokenizer: Tokenizer, limits: CompilationLimits = DEFAULT_LIMITS, entries: int = CACHED_ENTRIES
    ) -> None:
        self.tokenizer, self.limits, self.entries = tokenizer, limits, entries
        self._automata: OrderedDict[str, TokenAutomaton] = OrderedDict()
        self._lock = threading.Lock()

    def has(self, specification: AbstractSpecification, begins: bool, ends: bool, stops: Sequence[str] = ()) -> bool:
        """Return whether `compiled` has the automaton already."""
        with self._lock:
            return _key(specification, begins, ends, stops) in self._automata

    def compiled(
        self, specification: AbstractSpecification, begins: bool, ends: bool, stops: Sequence[str] = ()
    ) -> TokenAutomaton:
        """Return `compile_constraint`, from the cache if it is there."""
        key = _key(specification, begins, ends, stops)
        with self._lock:
            if key in self._automata:
                self._automata.move_to_end(key)
                return self._automata[key]
        automaton = compile_constraint(specification, self.tokenizer, begins, ends, self.limits, stops)
        with self._lock:
            self._automata[key] = automaton
            while (
                sum(each.transitions.numel() for each in self._automata.values()) > self.entries
                and len(self._automata) > 1
            ):
                self._automata.popitem(last=False)
        return automaton


def _key(specification: AbstractSpecification, begins: bool, ends: bool, stops: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([plain(specification), begins, ends, sorted(stops)]).encode()).hexdigest()
