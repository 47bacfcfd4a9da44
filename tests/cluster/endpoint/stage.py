"""The endpoint that these tests promote models on, ask, and take apart."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from ray import serve

from cluster.config import Serving, Tracking
from cluster.serving.deploy import APPLICATION
from cluster.serving.promotion import Promotion, swap_statuses
from cluster.tracking.model_version import ModelVersion
from cluster.tracking.runs import open_tracking
from edlm.client.client import Client
from tests.bundles import make_bundle
from tests.cluster.endpoint.spoiled import (
    NAME,
    not_a_number,
    plain_bundle,
    published,
    with_other_tokenizer,
    with_weights,
)
from workflows.promote import CANARY

TRACKING = Tracking()
START_SECONDS = 120.0
SECONDS = 120.0  # that anything else may take on a busy machine
SPOILED = {
    "missing": "holds no committed output",
    "digest": "was registered with digest .*, and .* holds digest",
    "shapes": "has shape",
    "numbers": "values of .* that are not finite",
    "vocabulary": "tokenizer",
}


@dataclass
class Stage:
    """The endpoint, the versions that are registered, and those whose models are spoiled."""

    root: Path
    settings: Serving
    url: str
    versions: dict[str, ModelVersion]

    def promote(self, name: str) -> None:
        """Promote the version and wait until it serves; raise NotPromoted if it does not."""
        Promotion(SECONDS, key=None).run(self.versions[name], CANARY)

    def swap_statuses(self) -> list[dict[str, Any]]:
        """How the replicas stand; one that Serve is just telling of a version is not asked."""
        return swap_statuses(serve.get_app_handle(APPLICATION))

    def answers(self) -> list[str]:
        """The names of the versions that the replicas answer with."""
        names = {version.digest: name for name, version in self.versions.items()}
        return [names[status["current"]["digest"]] for status in self.swap_statuses()]

    def pids(self) -> set[int]:
        return {status["pid"] for status in self.swap_statuses()}

    def client(self) -> Client:
        return Client(self.url, timeout_seconds=SECONDS)

    def ask(self, **fields: Any) -> httpx.Response:
        body = {"prompt": "the ", "max_tokens": 10, "seed": 1} | fields
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=SECONDS, trust_env=False)


def register_all(root: Path) -> dict[str, ModelVersion]:
    """Register two valid versions, of which `first` is the champion, and the spoiled ones."""
    runs = open_tracking(TRACKING, str(root))
    run_id, versions = runs.settled(None, "register"), {}
    for seed, name in enumerate(("first", "second", *SPOILED)):
        # The first has energies, too; the others stand for themselves by their weights alone.
        bundle = make_bundle(root / name, NAME) if name == "first" else plain_bundle(root / name, seed)
        if name == "shapes":
            with_weights(bundle, lambda tensor: tensor[:-1])
        elif name == "numbers":
            with_weights(bundle, not_a_number)
        elif name == "vocabulary":
            with_other_tokenizer(bundle)
        versions[name] = runs.registry.register(NAME, str(bundle), run_id, name, published(bundle))
    shutil.rmtree(root / "missing")
    with_weights(root / "digest" / "bundle", torch.neg)
    published(root / "digest" / "bundle")
    runs.registry.register(NAME, str(root / "first" / "bundle"), run_id, "champion", versions["first"].digest)
    return versions


def until(holds: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Nothing, once it holds; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.1)
