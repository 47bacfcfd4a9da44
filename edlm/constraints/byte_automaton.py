"""Automata over bytes, compiled from an expression or a schema in a process with limits."""

import json
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from edlm.config import ConfigurationError, Positive, config
from edlm.constraints.specification import AbstractSpecification

_ALLOCATION = b"memory allocation"  # of Rust's message, before it aborts
_PATIENCE = 10  # seconds of the clock for a second of the processor, on a machine that is busy


@config
class CompilationLimits:
    """Limits on the compilation of a constraint; what exceeds them is refused."""

    seconds: Positive = 5
    """Of the processor."""
    memory: Positive = 2**30
    """Bytes."""
    byte_states: Positive = 20_000
    """States of the automaton over bytes."""
    states: Positive = 8_000
    """States of the automaton over tokens."""
    transitions: Positive = 2**19
    """Transitions of the automaton over tokens, from states by classes of tokens. A step costs in proportion to it."""
    entries: Positive = 2**23
    """States times classes."""


@dataclass(frozen=True)
class ByteAutomaton:
    """Deterministic automaton over the bytes of a text in UTF-8; -1: no transition."""

    table: Int[np.ndarray, "s 256"]
    start: int
    accepting: Bool[np.ndarray, " s"]


def compile_bytes(specification: AbstractSpecification, limits: CompilationLimits) -> ByteAutomaton:
    """Return the automaton of a specification; raise ConfigurationError, naming the limit it exceeds."""
    request = specification.source() | {"seconds": limits.seconds, "memory": limits.memory}
    too_large = "; make it simpler, with fewer or shorter repetitions and alternatives"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "edlm.constraints.outlines_process"],
            input=json.dumps(request).encode() + b"\n",
            capture_output=True,
            timeout=_PATIENCE * limits.seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigurationError(
            f"the constraint was not compiled in {_PATIENCE * limits.seconds} seconds{too_large}"
        ) from error
    if _ALLOCATION in done.stderr or b"MemoryError" in done.stderr:
        raise ConfigurationError(f"the constraint takes more than {limits.memory:,} bytes to compile{too_large}")
    if done.returncode < 0:
        raise ConfigurationError(f"the constraint takes more than {limits.seconds} seconds to compile{too_large}")
    if done.returncode:
        raise RuntimeError(f"the compilation of a constraint failed: {done.stderr.decode(errors='replace')[-2000:]}")
    head, _, table = done.stdout.partition(b"\n")
    answer = json.loads(head)
    if "error" in answer:
        raise ConfigurationError(f"the constraint cannot be compiled: {answer['error'][:500]}")
    if "pattern" in answer:
        raise ConfigurationError(
            f"the pattern {answer['pattern'][3:-1]!r} of the JSON schema allows quotes, backslashes or control "
            'characters, which a string of JSON escapes; exclude them, as in [^"\\\\\\x01-\\x1f]'
        )
    if answer.get("whitespace"):
        raise ConfigurationError(
            "the white space of the JSON schema allows other characters than space, tab, \\n and \\r, with which a "
            "text is no JSON; exclude them, as in [ ]*"
        )
    if answer["states"] > limits.byte_states:
        raise ConfigurationError(
            f"the constraint has {answer['states']:,} states over bytes; at most {limits.byte_states:,} are "
            f"taken{too_large}"
        )
    accepting = np.zeros(answer["states"], dtype=bool)
    accepting[answer["final"]] = True
    return ByteAutomaton(np.frombuffer(table, dtype=np.int32).reshape(-1, 256), answer["start"], accepting)
