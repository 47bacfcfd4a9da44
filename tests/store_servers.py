"""Object stores that are not S3, in processes of their own: emulators of Google Cloud Storage and of Azure Blobs."""

import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest

from tests.s3_server import BUCKET, free_port, running

# The account and key of every emulator of Azure's stores, published by Microsoft.
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
INSTALL = 'pip install ".[test-chaos]" installs it'


@contextmanager
def google_server(folder: Path) -> Iterator[str]:
    """The emulator gcp-storage-emulator, which keeps objects in memory; yield the URI of its bucket."""
    for package in ("gcp_storage_emulator", "gcsfs"):
        pytest.importorskip(package, reason=INSTALL)
    port = free_port()
    start = "from gcp_storage_emulator.__main__ import main; main()"
    arguments = ["start", "--host", "127.0.0.1", "--port", str(port), "--in-memory", "--default-bucket", BUCKET]
    command = [sys.executable, "-c", start, *arguments]
    address = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}
    with running(command, port, folder / "google.log"), _variables(address):
        yield f"gs://{BUCKET}"


@contextmanager
def azure_server(folder: Path) -> Iterator[str]:
    """Microsoft's Azurite, which keeps blobs in memory; yield the URI of its container."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob is not on the PATH: npm install azurite, and add node_modules/.bin")
    pytest.importorskip("adlfs", reason=INSTALL)
    port = free_port()
    options = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    account = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY}"
    address = {"AZURE_STORAGE_CONNECTION_STRING": f"{account};BlobEndpoint=http://127.0.0.1:{port}/{ACCOUNT};"}
    command = [program, *options, "--blobPort", str(port)]
    with running(command, port, folder / "azure.log"), _variables(address):
        fsspec.filesystem("az").mkdir(BUCKET)
        yield f"az://{BUCKET}"


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, by which clients made in the context find a server."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield
