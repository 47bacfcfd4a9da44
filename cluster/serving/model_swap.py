"""Succession: one model follows another in the background, and only a good one ever does."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

from cluster.tracking.registry import ModelVersion

Model = TypeVar("Model")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SwapStatus:
    """Which model answers, which one was asked for last, and what came of that."""

    answers: ModelVersion
    wanted: ModelVersion | None
    """None: what was asked for was no version at all."""
    state: Literal["stands", "loading", "failed"]
    error: str | None = None


class ModelSwap(Generic[Model]):
    """Loads models one at a time in a thread of its own; the one asked for last is the one that answers in the end.

    `load` brings and checks a model and raises where it is not good; `swap` makes it answer, and raises where it does
    not even then. Neither changes anything where it raises.
    """

    def __init__(
        self,
        first: ModelVersion,
        load: Callable[[ModelVersion], Model],
        swap: Callable[[Model, ModelVersion], None],
        ended: Callable[[Literal["done", "failed"]], None],
    ) -> None:
        self._load, self._swap, self._ended = load, swap, ended
        self._lock = threading.Lock()
        self._standing = SwapStatus(first, first, "stands")
        self._thread: threading.Thread | None = None

    @property
    def standing(self) -> SwapStatus:
        """How things stand now."""
        with self._lock:
            return self._standing

    def ask(self, wanted: ModelVersion) -> None:
        """Afterwards `wanted` is on its way, if it does not stand already; returns at once, and never raises."""
        with self._lock:
            if wanted == self._standing.wanted and self._standing.state != "failed":
                return
            self._standing = replace(self._standing, wanted=wanted, state="loading", error=None)
            if self._thread is None:
                self._thread = threading.Thread(target=self._follow, name="succession", daemon=True)
                self._thread.start()

    def refuse(self, error: str) -> None:
        """Afterwards what was asked for has failed: it was no version at all."""
        log.error("the model stays as it is: %s", error)
        self._ended("failed")
        with self._lock:
            self._standing = replace(self._standing, wanted=None, state="failed", error=error)

    def _follow(self) -> None:
        """Until nothing is wanted any more that does not stand."""
        while (wanted := self._next()) is not None:
            try:
                if wanted != self.standing.answers:
                    self._swap_to(wanted)
            except Exception as error:
                # Whatever is wrong with the new model, the old one goes on; the standing and the metric say so.
                log.exception("version %s does not follow; the model stays as it is", wanted.version)
                self._settle(wanted, "failed", f"{type(error).__name__}: {error}")
            else:
                self._settle(wanted, "stands", None)

    def _next(self) -> ModelVersion | None:
        with self._lock:
            if self._standing.state == "loading":
                return self._standing.wanted
            self._thread = None
            return None

    def _swap_to(self, wanted: ModelVersion) -> None:
        model = self._load(wanted)
        with self._lock:
            if self._standing.wanted != wanted:
                return  # another one was asked for meanwhile
        self._swap(model, wanted)
        with self._lock:
            self._standing = replace(self._standing, answers=wanted)
        self._ended("done")

    def _settle(self, wanted: ModelVersion, state: Literal["stands", "failed"], error: str | None) -> None:
        if state == "failed":
            self._ended("failed")
        with self._lock:
            if self._standing.wanted == wanted and self._standing.state == "loading":
                self._standing = replace(self._standing, state=state, error=error)
