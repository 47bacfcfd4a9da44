"""The endpoint in one process, without Ray: for tests, playground development and inspection of a model folder.

python -m cluster.http.local FOLDER [--port 8000] [--keys FILE]
"""

import argparse
import logging
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import uvicorn

from cluster.http.endpoint import Endpoint, make_app
from cluster.http.limits.settings import RequestLimits
from cluster.http.metrics.instruments import PrometheusMetrics
from cluster.http.middleware.access_log import log_to_standard_error
from cluster.http.middleware.api_keys import require_keys
from cluster.http.warmup import warmed
from edlm.inference.engine import InferenceEngine
from edlm.inference.generator import TextGenerator, open_bundle
from edlm.inference.request import Limits
from edlm.redaction import redact_logs, redacted_text
from edlm.storage import committed

HOST = "127.0.0.1"
REQUEST_LIMITS, LIMITS = RequestLimits(), Limits()


@dataclass(frozen=True)
class Service:
    """A running endpoint at `url`."""

    url: str
    endpoint: Endpoint
    metrics: PrometheusMetrics


@contextmanager
def serving(
    generator: TextGenerator,
    version: str,
    port: int = 0,
    request_limits: RequestLimits = REQUEST_LIMITS,
    limits: Limits = LIMITS,
) -> Iterator[Service]:
    """Serve the generator at an endpoint of its own while the block runs; port 0 selects a free port."""
    with InferenceEngine(generator, version, limits) as engine:
        metrics = PrometheusMetrics()
        endpoint = Endpoint(engine, request_limits, metrics)
        endpoint.warm = True
        with listening(make_app(endpoint), port) as url:
            yield Service(url, endpoint, metrics)


@contextmanager
def listening(app: Any, port: int = 0) -> Iterator[str]:
    """Serve the app from a thread of this process while the block runs, and yield its URL."""
    config = uvicorn.Config(
        app, log_config=None, access_log=False, ws="none", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    with socket.create_server((HOST, port)) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="http")
        thread.start()
        try:
            while not server.started and thread.is_alive():
                thread.join(0.01)
            yield f"http://{HOST}:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until Ctrl-C; end with status 1 and one line for a folder, a key file or a port that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of a bundle, as written by the register stage")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--keys", type=Path, help="file of API keys, as written by `workflows.serve key`")
    given = parser.parse_args(arguments)
    redact_logs()
    logging.basicConfig(level=logging.WARNING)
    log_to_standard_error()
    torch.set_num_threads(1)
    try:
        _serve(given.folder, given.port, given.keys)
    except KeyboardInterrupt:
        return
    except (ValueError, OSError) as error:
        raise SystemExit(redacted_text(f"error: {error}")) from None


def _serve(folder: Path, port: int, keys: Path | None) -> None:
    """Serve the bundle until KeyboardInterrupt. Raise ValueError or OSError for what cannot be used."""
    require_free(port)
    if keys is not None:
        require_keys(keys)
    marker = committed(str(folder))
    version = f"local/{'unpublished' if marker is None else marker.digest}"
    generator = open_bundle(folder)
    warmed(generator)
    with serving(generator, version, port, RequestLimits(keys=keys)) as service:
        print(f"{service.url}; Ctrl-C stops it", flush=True)
        threading.Event().wait()


def require_free(port: int) -> None:
    """Raise OSError if the port cannot be bound, before a model is loaded for it."""
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise OSError(f"port {port} cannot be used ({error.strerror}); give another one with --port") from None


if __name__ == "__main__":
    main()
