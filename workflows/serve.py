"""Serve: the registered model behind an HTTP endpoint, until Ctrl-C; on a cluster, until it is taken down.

python -m workflows.serve EXPERIMENT.yaml [--serving.port 8000 ...]
python -m workflows.serve promote [--alias champion | --version 3] ...   another version answers, or the old one goes on
python -m workflows.serve key NAME --file FILE   a new API key, shown once; its hash goes to the file
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

from cluster.http.middleware.api_keys import add_key, require_keys
from cluster.runtime.session import address, is_private
from cluster.serving.deploy import Arguments, deploy, registered, undeploy, wait_until_ready
from cluster.serving.promotion import KEY
from edlm.config import from_command_line
from edlm.data.tokenizer_kinds import Symbols
from workflows import promote
from workflows.experiment import Experiment
from workflows.stage import Session, mistakes_told, say, session, storage_root

START_SECONDS = 180
QUESTION = {"prompt": "the ", "max_tokens": 60, "seed": 1, "edlm": {"steps": 16, "candidates": 8}}
NO_PROMPT = {"prompt": "", "max_tokens": 16}  # what differs where the texts are a source's symbols, and no words


@dataclass(frozen=True)
class Answer:
    """What the endpoint said, and the command that asks it the same."""

    text: str | None
    """None: it was not asked, for it asks for a key, and EDLM_API_KEY holds none."""
    curl: str


def ask(session: Session) -> Answer:
    """One answer of the endpoint. It stays up on a cluster; a private Ray takes it down when the command ends."""
    keyed = session.experiment.serving.key_file is not None
    return answer(_start(session), question(session.experiment), keyed, os.environ.get(KEY))


def question(experiment: Experiment) -> dict[str, Any]:
    """What the endpoint is asked: to go on from a word, where the tokenizer knows words."""
    return QUESTION | (NO_PROMPT if isinstance(experiment.data.tokenizer, Symbols) else {})


def _start(session: Session) -> str:
    experiment = session.experiment
    say("serve", f"starting {experiment.register.model} ({experiment.serving.alias})")
    url = deploy(experiment.serving, experiment.tracking, session.root, experiment.register.model)
    wait_until_ready(url, START_SECONDS)
    say("serve", f"ready on {url}")
    return url


def answer(url: str, asked: dict[str, Any], keyed: bool, key: str | None) -> Answer:
    """What the endpoint says to the question; `keyed`: only to whoever has a key. RuntimeError where it refuses."""
    command = curl(url, asked, keyed)
    if keyed and key is None:
        say("serve", f"it is not asked, because serving.key_file is set and {KEY} is not; put a key there")
        return Answer(text=None, curl=command)
    headers = {"authorization": f"Bearer {key}"} if keyed else {}
    response = httpx.post(f"{url}/v1/completions", json=asked, headers=headers, timeout=START_SECONDS, trust_env=False)
    if response.status_code != httpx.codes.OK:
        hint = f" (is what {KEY} holds a key of serving.key_file?)" if response.status_code == 401 else ""
        raise RuntimeError(
            f"the endpoint answered {response.status_code} to {json.dumps(asked)}: {response.text}{hint}"
        )
    return Answer(text=asked["prompt"] + response.json()["choices"][0]["text"], curl=command)


def curl(url: str, asked: dict[str, Any], keyed: bool) -> str:
    """The command that asks the same; where a key is needed, with the one that the shell's environment holds."""
    key = f' -H "authorization: Bearer ${KEY}"' if keyed else ""
    return f"curl -s {url}/v1/completions -H 'content-type: application/json'{key} -d '{json.dumps(asked)}'"


def promotion(address: str, keyed: bool) -> str:
    """The command that promotes another version on the Ray cluster at `address`, for any shell in this folder."""
    here, python = Path.cwd(), Path(sys.executable)
    typed = python.relative_to(here) if python.is_relative_to(here) else python
    key = f"{KEY}=YOUR-API-KEY " if keyed else ""
    return f"{key}{shlex.quote(str(typed))} -m workflows.serve promote --address {address}"


def require_servable(experiment: Experiment) -> None:
    """Nothing where there is a model to serve, and a key where one is asked for; ConfigurationError where not.

    Asked before Ray starts, and before anything is written.
    """
    require_keyed(experiment)
    serving, tracking, model = experiment.serving, experiment.tracking, experiment.register.model
    registered(Arguments(model=model, storage=storage_root(experiment), serving=serving, tracking=tracking))


def require_keyed(experiment: Experiment) -> None:
    """Nothing where the file of API keys is good; BadKeyFile where not. That of a cluster lies on its own machines."""
    if experiment.serving.key_file is not None and is_private(experiment.cluster):
        require_keys(Path(experiment.serving.key_file))


def serve(experiment: Experiment) -> None:
    """The endpoint, until it is stopped: nothing new is taken, what is on its way ends, and then it is gone."""
    with mistakes_told():
        require_servable(experiment)
    with session(experiment) as opened:
        url = _start(opened)
        keyed = experiment.serving.key_file is not None
        print(f"try: {curl(url, question(experiment), keyed)}", flush=True)
        if not is_private(experiment.cluster):
            return  # the cluster keeps it up
        stopped = threading.Event()
        for wanted in (signal.SIGINT, signal.SIGTERM):
            signal.signal(wanted, lambda *_: stopped.set())
        print(f"another version: {promotion(address(), keyed)}")
        print("Ctrl-C stops it", flush=True)
        stopped.wait()
        say("serve", "stopping: what is on its way may end")
        undeploy(experiment.serving)


def key(arguments: Sequence[str]) -> None:
    """Afterwards the file knows a new key, which is printed and kept nowhere else."""
    parser = argparse.ArgumentParser(prog="python -m workflows.serve key", description=key.__doc__)
    parser.add_argument("name", help="whose it is; for the logs, and for fairness among those who ask")
    parser.add_argument("--file", type=Path, required=True, help="what serving.key_file names")
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
    else:
        serve(from_command_line(Experiment, description=__doc__))


if __name__ == "__main__":
    main()
