"""A store that is away, frozen or closed to us is one line, before anything starts."""

import threading
import uuid

import pytest

from edlm.storage import StorageError
from workflows import storage_check
from workflows.storage_check import require_storage


@pytest.fixture
def store(monkeypatch):
    def stands(exists) -> None:
        monkeypatch.setattr(storage_check, "require_answer", exists)
        monkeypatch.setattr(storage_check, "ANSWER_SECONDS", 0.1)

    return stands


def test_a_store_that_refuses_is_named_with_the_first_line_of_its_error(store):
    def exists(_):
        raise ConnectionError("Could not connect to the endpoint\nand a page of details")

    store(exists)
    expected = r"storage: s3://bucket/runs cannot be used \(ConnectionError: Could not connect to the endpoint\); check"
    with pytest.raises(StorageError, match=expected):
        require_storage("s3://bucket/runs")


def test_a_frozen_store_is_not_waited_for(store):
    thaw = threading.Event()
    store(lambda _: thaw.wait(60))
    with pytest.raises(StorageError, match=r"s3://bucket/runs does not answer within 0\.1 s"):
        require_storage("s3://bucket/runs")
    thaw.set()


def test_a_store_that_answers_and_a_path_are_let_pass(tmp_path):
    require_storage(f"memory://{uuid.uuid4().hex}")
    require_storage(str(tmp_path / "not yet there"))
