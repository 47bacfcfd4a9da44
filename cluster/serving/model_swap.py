"""Hot swap: one model replaces another in the background, and only if it is valid."""

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
    """Model that answers, model requested last, and the state of that request."""

    answers: ModelVersion
    wanted: ModelVersion | None
    """None: the last request named no valid version."""
    state: Literal["stands", "loading", "failed"]
    error: str | None = None


class ModelSwap(Generic[Model]):
    """Background loader of models, one at a time; the model requested last is the one that answers in the end.

    `load` fetches and checks a model and raises if it is invalid; `swap` makes it answer, and raises if that fails.
    Neither changes anything if it raises.
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
        """Current status of the swap."""
        with self._lock:
            return self._standing

    def ask(self, wanted: ModelVersion) -> None:
        """Request a swap to `wanted` unless it is requested already and has not failed; return at once, never raise."""
        with self._lock:
            if wanted == self._standing.wanted and self._standing.state != "failed":
                return
            self._standing = replace(self._standing, wanted=wanted, state="loading", error=None)
            if self._thread is None:
                self._thread = threading.Thread(target=self._follow, name="succession", daemon=True)
                self._thread.start()

    def refuse(self, error: str) -> None:
        """Record that the last request failed because it named no valid version."""
        log.error("the current model stays: %s", error)
        self._ended("failed")
        with self._lock:
            self._standing = replace(self._standing, wanted=None, state="failed", error=error)

    def _follow(self) -> None:
        """Swap models until no request is left."""
        while (wanted := self._next()) is not None:
            try:
                if wanted != self.standing.answers:
                    self._swap_to(wanted)
            except Exception as error:
                # Whatever is wrong with the new model, the old one continues; the status and the metric report it.
                log.exception("version %s is not loaded; the current model stays", wanted.version)
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
                return  # another one was requested meanwhile
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
