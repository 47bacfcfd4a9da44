"""Serve: an HTTP endpoint for the registered model, until Ctrl-C; on a cluster, until it is taken down.

python -m workflows.serve EXPERIMENT.yaml [--serving.port 8000 ...] [--dry-run]
python -m workflows.serve promote [--alias champion | --version 3] ...   serve another version, or keep the old one
python -m workflows.serve key NAME --file FILE   add an API key, shown once; its hash goes to the file
"""

import argparse
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cluster.config import is_private
from cluster.http.middleware.api_keys import add_key
from cluster.runtime.ray_connection import address
from cluster.serving.deploy import (
    Arguments,
    deploy,
    logs_folder,
    registered,
    remove,
    require_free,
    wait_until_ready,
)
from cluster.serving.log_errors import LogErrors
from cluster.serving.promotion import KEY
from cluster.tracking.model_version import ModelVersion
from edlm.data.tokenizer_kinds import Symbols
from workflows import promote
from workflows.command import experiment_from
from workflows.dry_run import print_settings
from workflows.experiment import Experiment
from workflows.key_check import require_keyed
from workflows.stage import Session, say, storage_root, user_errors
from workflows.stage_runner import open_session

START_SECONDS = 180
LOG_SECONDS = 1.0  # between looks into the logs of the replicas
EXAMPLE = {"prompt": "the ", "max_tokens": 60, "seed": 1, "edlm": {"steps": 16, "candidates": 8}}
NO_PROMPT = {"prompt": "", "max_tokens": 16}  # overrides for texts of a source's symbols instead of words
NO_ENERGY = {"edlm": {"steps": 16}}  # override for plain diffusion


@dataclass(frozen=True)
class Answer:
    """The endpoint's answer, and the command that repeats the request."""

    text: str | None
    """None: not queried, because the endpoint requires a key and EDLM_API_KEY holds none."""
    curl: str


def start(session: Session) -> str:
    """Start the endpoint and return its URL, at which it answers once the model is loaded.

    On a cluster it stays up; a private Ray stops it when the command ends.
    """
    experiment = session.experiment
    logs = logs_folder(session.root) or "the folder of the Ray session"
    say("serve", f"starting {experiment.register.model} ({experiment.serving.alias}); logs in {logs}")
    return deploy(experiment.serving, experiment.tracking, session.root, experiment.register.model)


def await_start(url: str) -> None:
    """Return once the endpoint answers; raise ConfigurationError if it cannot start, or not in time."""
    wait_until_ready(url, START_SECONDS)
    say("serve", f"ready on {url}")


def query_example(session: Session, url: str) -> Answer:
    """Send the started endpoint one request."""
    await_start(url)
    keyed = session.experiment.serving.key_file is not None
    return query(url, example_request(session.experiment), keyed, os.environ.get(KEY))


def example_request(experiment: Experiment) -> dict[str, Any]:
    """Return the request body: a word to continue, if the tokenizer knows words; candidates, if there is an energy."""
    overrides = NO_PROMPT if isinstance(experiment.data.tokenizer, Symbols) else {}
    return EXAMPLE | overrides | (NO_ENERGY if experiment.register.energy is None else {})


def query(url: str, body: dict[str, Any], keyed: bool, key: str | None) -> Answer:
    """Return the endpoint's answer; `keyed`: it requires an API key. Raise RuntimeError if it refuses."""
    command = curl(url, body, keyed)
    if keyed and key is None:
        say("serve", f"not queried: serving.key_file is set and {KEY} is not; set {KEY} to one of its keys")
        return Answer(text=None, curl=command)
    headers = {"authorization": f"Bearer {key}"} if keyed else {}
    response = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=START_SECONDS, trust_env=False)
    if response.status_code != httpx.codes.OK:
        hint = f" (is what {KEY} holds a key of serving.key_file?)" if response.status_code == 401 else ""
        raise RuntimeError(f"the endpoint answered {response.status_code} to {json.dumps(body)}: {response.text}{hint}")
    return Answer(text=body["prompt"] + response.json()["choices"][0]["text"], curl=command)


def curl(url: str, body: dict[str, Any], keyed: bool) -> str:
    """Return the command for the same request; `keyed`: with the key from the shell's environment."""
    key = f' -H "authorization: Bearer ${KEY}"' if keyed else ""
    return f"curl -s {url}/v1/completions -H 'content-type: application/json'{key} -d '{json.dumps(body)}'"


def promotion(address: str, keyed: bool) -> str:
    """Return the command to promote a version on the Ray cluster at `address`, for any shell in this folder."""
    folder, python = Path.cwd(), Path(sys.executable)
    typed = python.relative_to(folder) if python.is_relative_to(folder) else python
    key = f"{KEY}=YOUR-API-KEY " if keyed else ""
    return f"{key}{shlex.quote(str(typed))} -m workflows.serve promote --address {address}"


def require_servable(experiment: Experiment) -> ModelVersion:
    """Return the version to serve; raise ConfigurationError unless there is one and, if keys are required, a key.

    It is called before Ray starts and before anything is written.
    """
    require_keyed(experiment)
    serving, tracking, model = experiment.serving, experiment.tracking, experiment.register.model
    return registered(Arguments(model=model, storage=storage_root(experiment), serving=serving, tracking=tracking))


def serve(experiment: Experiment) -> None:
    """Serve until stopped, then reject new requests, let running ones finish, and take the endpoint down."""
    serving, private = experiment.serving, is_private(experiment.cluster)
    with user_errors():
        require_servable(experiment)
        if private:
            require_free(serving.host, serving.port)
    if private:
        say("serve", "starting Ray, which takes some seconds")
    with open_session(experiment) as session:
        url = start(session)
        await_start(url)
        keyed = serving.key_file is not None
        print(f"try: {curl(url, example_request(experiment), keyed)}", flush=True)
        if not private:
            return  # the cluster keeps it up
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        print(f"another version: {promotion(address(), keyed)}")
        print("Ctrl-C stops it", flush=True)
        _wait(stopped, logs_folder(session.root))
        say("serve", "stopping; running requests may finish")
        remove(serving)  # its Ray ends now, and Serve with it: `undeploy` would print what Ray thinks of that


def _wait(stopped: threading.Event, logs: str | None) -> None:
    """Return once `stopped` is set; until then, print the errors that replicas log."""
    errors = None if logs is None else LogErrors(Path(logs))
    while not stopped.wait(LOG_SECONDS):
        for line in () if errors is None else errors.new():
            print(f"error: {line}", file=sys.stderr, flush=True)


def preview(experiment: Experiment) -> None:
    """Print the settings and the version that would be served."""
    print_settings(experiment)
    with user_errors():
        version = require_servable(experiment)
    say("serve", f"runs: {experiment.register.model} version {version.version}, digest {version.digest[:12]}")


def key(arguments: Sequence[str]) -> None:
    """Add a new API key to the file and print the key, which is stored nowhere else."""
    parser = argparse.ArgumentParser(prog="python -m workflows.serve key", description=key.__doc__)
    parser.add_argument("name", help="name of the owner, for the access log and for fair scheduling among keys")
    parser.add_argument("--file", type=Path, required=True, help="file of serving.key_file")
    given = parser.parse_args(arguments)
    try:
        print(add_key(given.file, given.name))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def main() -> None:
    commands = {"promote": promote.main, "key": key}
    if command := commands.get("".join(sys.argv[1:2])):
        command(sys.argv[2:])
        return
    experiment, dry = experiment_from(__doc__)
    if dry:
        preview(experiment)
    else:
        serve(experiment)


if __name__ == "__main__":
    main()
