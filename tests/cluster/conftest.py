"""A tiny bundle, and an endpoint around it that answers over real HTTP, once for all tests of the service."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.http.local import Service, serving
from cluster.http.warmup import warmed
from edlm.inference.generator import TextGenerator
from edlm.inference.request import Limits
from edlm.storage import publish
from tests.bundles import make_bundle

VERSION, DIGEST = "7", "0" * 64
PATIENT = Limits(patience_seconds=600)  # the tests' machine may be slow


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_bundle(tmp_path_factory.mktemp("endpoint"))
    publish(folder, str(folder))
    return folder


@pytest.fixture
def generator(bundle: Path) -> TextGenerator:
    """A generator of the test's own, to do to it what it likes."""
    return TextGenerator.load(str(bundle))


@pytest.fixture(scope="session")
def service(bundle: Path) -> Iterator[Service]:
    generator = TextGenerator.load(str(bundle))
    warmed(generator)
    with serving(generator, f"{VERSION}/{DIGEST}", limits=PATIENT) as service:
        yield service


@pytest.fixture(scope="session")
def url(service: Service) -> str:
    return service.url
