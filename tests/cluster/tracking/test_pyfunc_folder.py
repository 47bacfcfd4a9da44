"""The MLflow model of a repository gives our texts, in process and served, and stands alone."""

import asyncio
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml
from fastapi import FastAPI

import edlm
from tests.bundles import make_bundle
from tests.exports import exported, own_modules

STARTED_SECONDS = 240.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("pyfunc"))


@pytest.fixture(scope="module")
def repository(bundle) -> Path:
    return exported(bundle, bundle.parent / "repository")


def test_mlflow_predicts_our_texts_from_a_copy_that_stands_alone(bundle, repository, tmp_path):
    import mlflow.pyfunc

    alone = shutil.copytree(repository / "mlflow", tmp_path / "alone")
    with own_modules(tmp_path / "modules"):
        model = mlflow.pyfunc.load_model(str(alone))
        texts = model.predict(["the ", "a"], params={"seed": 3, "max_tokens": 20, "candidates": 3})
        defaults = model.predict(["the "])
        with pytest.raises(ValueError, match="energy 'other' is not in this model"):
            model.predict(["a"], params={"energy": "other", "candidates": 2})
    ours = edlm.load(bundle)
    expected = [
        ours.generate(prompt, seed=3 + i, max_tokens=20, candidates=3).text for i, prompt in enumerate(["the ", "a"])
    ]
    assert texts == expected
    assert defaults == [ours.generate("the ", seed=0).text]


def test_weights_are_on_the_disk_once(repository):
    (weights,) = repository.glob("*.safetensors")
    assert os.path.samefile(weights, repository / "mlflow" / "artifacts" / "repository" / weights.name)


def test_weights_are_copied_where_there_are_no_hard_links(bundle, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    (weights,) = exported(bundle, tmp_path / "repository").glob("*.safetensors")
    copy = weights.parent / "mlflow" / "artifacts" / "repository" / weights.name
    assert not os.path.samefile(weights, copy)
    assert copy.read_bytes() == weights.read_bytes()


def test_the_folder_holds_neither_pickles_nor_this_machines_paths(repository):
    names = [path.name for path in (repository / "mlflow").rglob("*")]
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".bin", ".pt"))]
    texts = [path.read_bytes() for path in repository.rglob("*") if path.is_file()]
    assert not [text for text in texts if str(repository.parent.parent).encode() in text]
    flavor = yaml.safe_load((repository / "mlflow" / "MLmodel").read_text())["flavors"]["python_function"]
    assert flavor["model_code_path"] == "pyfunc_code.py"


def test_the_request_of_the_card_is_answered_by_mlflows_application(bundle, repository, tmp_path, monkeypatch):
    import mlflow.pyfunc
    from mlflow.pyfunc import scoring_server

    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "false")  # which the application sets, restored at the end
    _, curl = commands_of_the_card(repository)
    with own_modules(tmp_path / "modules"):
        application = scoring_server.init(mlflow.pyfunc.load_model(str(repository / "mlflow")))
        answer = asyncio.run(_asked(application, shlex.split(curl)[-1]))
    assert answer == expected_answer(bundle)


@pytest.mark.chaos
def test_the_curl_line_of_the_card_is_answered(bundle, repository, tmp_path):
    port = free_port()
    serve, curl = (line.replace("5001", str(port)) for line in commands_of_the_card(repository))
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    log = (tmp_path / "log").open("w+")
    server = subprocess.Popen(
        serve.split(), cwd=repository, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        _wait(f"http://127.0.0.1:{port}/ping", server, tmp_path / "log")
        answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=120, check=True).stdout
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)
        log.close()
    assert answer == expected_answer(bundle)


async def _asked(application: FastAPI, body: str) -> str:
    """The answer of an application in this process."""
    transport, headers = httpx.ASGITransport(application), {"content-type": "application/json"}
    async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=None) as client:
        return (await client.post("/invocations", content=body, headers=headers)).text


def commands_of_the_card(repository: Path) -> list[str]:
    """The command that serves, and the one that asks."""
    return (repository / "README.md").read_text().split("```bash\n")[1].split("```")[0].splitlines()


def expected_answer(bundle: Path) -> str:
    text = edlm.load(bundle).generate("the ", max_tokens=40, seed=1).text
    return f'{{"predictions": ["{text}"]}}'


def _wait(url: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + STARTED_SECONDS
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
