"""One small bundle, and an engine around it, for the tests of a file."""

from pathlib import Path

import pytest

from edlm.inference.engine import InferenceEngine
from edlm.inference.generator import TextGenerator, open_bundle
from tests.bundles import make_bundle
from tests.engines import PATIENT


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("continuous"))


@pytest.fixture(scope="module")
def generator(folder) -> TextGenerator:
    return open_bundle(folder)


@pytest.fixture
def engine(generator):
    with InferenceEngine(generator, "1", PATIENT) as engine:
        yield engine


@pytest.fixture
def fresh(folder) -> TextGenerator:
    """A generator of this test alone, which it may break."""
    return open_bundle(folder)
