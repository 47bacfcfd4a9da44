"""Hot swap: one model replaces another in the background, and only if it is valid."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

from cluster.tracking.model_version import ModelVersion

Model = TypeVar("Model")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SwapStatus:
    """Model that serves requests, model requested last, and the state of that request."""

    current: ModelVersion
    target: ModelVersion | None
    """None: the last request named no valid version."""
    state: Literal["ready", "loading", "failed"]
    error: str | None = None


class ModelSwap(Generic[Model]):
    """Background loader of models, one at a time; the model requested last is the one that serves in the end.

    `load` fetches and checks a model and raises if it is invalid; `swap` makes it serve, and raises if that fails.
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
        self._status = SwapStatus(first, first, "ready")
        self._thread: threading.Thread | None = None

    @property
    def status(self) -> SwapStatus:
        """Current status of the swap."""
        with self._lock:
            return self._status

    def request(self, target: ModelVersion) -> None:
        """Request a swap to `target` unless it is requested already and has not failed; return at once, never raise."""
        with self._lock:
            if target == self._status.target and self._status.state != "failed":
                return
            self._status = replace(self._status, target=target, state="loading", error=None)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="model-swap", daemon=True)
                self._thread.start()

    def refuse(self, error: str) -> None:
        """Record that the last request failed because it named no valid version."""
        log.error("the current model stays: %s", error)
        self._ended("failed")
        with self._lock:
            self._status = replace(self._status, target=None, state="failed", error=error)

    def _run(self) -> None:
        """Swap models until no request is left."""
        while (target := self._next()) is not None:
            try:
                if target != self.status.current:
                    self._swap_to(target)
            except Exception as error:
                # Whatever is wrong with the new model, the old one continues; the status and the metric report it.
                log.exception("version %s is not loaded; the current model stays", target.version)
                self._settle(target, "failed", f"{type(error).__name__}: {error}")
            else:
                self._settle(target, "ready", None)

    def _next(self) -> ModelVersion | None:
        with self._lock:
            if self._status.state == "loading":
                return self._status.target
            self._thread = None
            return None

    def _swap_to(self, target: ModelVersion) -> None:
        model = self._load(target)
        with self._lock:
            if self._status.target != target:
                return  # another one was requested meanwhile
        self._swap(model, target)
        with self._lock:
            self._status = replace(self._status, current=target)
        self._ended("done")

    def _settle(self, target: ModelVersion, state: Literal["ready", "failed"], error: str | None) -> None:
        if state == "failed":
            self._ended("failed")
        with self._lock:
            if self._status.target == target and self._status.state == "loading":
                self._status = replace(self._status, state=state, error=error)
