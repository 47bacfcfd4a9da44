"""A real server that speaks the service's protocol as it was agreed on, and both clients of it."""

from collections.abc import Iterator

import pytest

from cluster.http.local import listening
from edlm.client.client import Client
from tests.client.blocking import BlockingClient
from tests.client.protocol import Protocol


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    return Protocol()


@pytest.fixture(scope="module")
def url(protocol) -> Iterator[str]:
    with listening(protocol.app) as at:
        yield at


@pytest.fixture(params=[Client, BlockingClient])
def client_class(request):
    return request.param


@pytest.fixture
def client(url, protocol, client_class) -> Iterator[Client]:
    protocol.asked.clear()
    protocol.cancelled.clear()
    with client_class(url, "secret", timeout_seconds=20) as opened:
        yield opened
