"""Everything in an S3 store: killed, frozen and refused, from the corpus to the endpoint, and restored from it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edlm.file_systems import file_system, require_answer
from edlm.storage import write_text
from edlm.storage_errors import StoreRefusal
from tests.paths import ONE_ENERGY, PROJECT
from tests.s3_server import BUCKET, SECRET, S3Server, clients_of, environment, free_port, moto_server, rclone_server
from tests.test_docs_commands import FENCE, commands
from tests.training.saving_worker import STEPS
from tests.workflows.commands import command

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]
DRILL = "<!-- restore drill -->"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[S3Server]:
    with moto_server(tmp_path_factory.mktemp("moto")) as server:
        yield server


def start(workspace: str, output: Path, server: S3Server) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.saving_worker", workspace, str(output)],
        cwd=PROJECT, env={**os.environ, **environment(server.endpoint), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(server, tmp_path_factory) -> dict[str, torch.Tensor]:
    """The state after a training whose checkpoints are in a folder, and that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with start(str(folder / "work"), folder / "state.safetensors", server) as process:
        process.communicate()
    return load_file(folder / "state.safetensors")


def same(output: Path, expected: dict[str, torch.Tensor]) -> bool:
    actual = load_file(output)
    return actual.keys() == expected.keys() and all(torch.equal(actual[name], expected[name]) for name in expected)


def test_a_store_that_is_frozen_for_twenty_seconds_is_waited_for(server, tmp_path, expected):
    with start(f"s3://{BUCKET}/frozen", tmp_path / "state.safetensors", server) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("5 "):
                break
        server.signal(signal.SIGSTOP)
        time.sleep(20)
        server.signal(signal.SIGCONT)
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert same(tmp_path / "state.safetensors", expected)


def test_killed_at_random_moments_it_ends_with_the_weights_of_one_that_was_not(server, tmp_path, expected):
    output, kills = tmp_path / "state.safetensors", 0
    while not output.exists():
        with start(f"s3://{BUCKET}/killed", output, server) as process:
            assert process.stdout is not None
            process.stdout.readline()
            if kills < 8:
                time.sleep(0.3 + 0.2 * kills)
                process.kill()
                kills += 1
            _, errors = process.communicate()
            assert process.returncode in (0, -signal.SIGKILL), errors
    assert kills == 8
    assert same(output, expected)
    with clients_of(server.endpoint):
        system, root = file_system(f"s3://{BUCKET}/killed")
        folders = {path.rpartition("/")[2] for path in system.ls(root, detail=False)}
    assert len(folders) <= 2, "what killed launches left is swept"
    assert any(name.startswith(f"step-{STEPS:08d}-") for name in folders)


def test_a_server_that_checks_signatures_refuses_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("INITIAL_NO_AUTH_ACTION_COUNT", "1")  # moto checks them after the bucket is made
    with (
        moto_server(tmp_path) as server,
        clients_of(server.endpoint, secret="wrong" + SECRET),
        pytest.raises(StoreRefusal, match=f"{server.endpoint} refuses this access .InvalidAccessKeyId"),
    ):
        require_answer(f"s3://{BUCKET}/x")


def test_rclone_refuses_a_wrong_secret_in_one_line(tmp_path):
    with (
        rclone_server(tmp_path) as server,
        clients_of(server.endpoint, secret="wrong" + SECRET),
        pytest.raises(StoreRefusal, match=f"{server.endpoint} refuses this access"),
    ):
        require_answer(f"s3://{BUCKET}/x")


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def shell(server, tmp_path, monkeypatch) -> Path:
    """The environment of a machine that has nothing but the project; returns its home folder."""
    for name, value in {**environment(server.endpoint), "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("EDLM_CACHE")
    return tmp_path


def pipeline(home: str, database: str, *flags: str, corpus: str, expect: int = 0) -> str:
    settings = ["--tracking.uri", database, "--storage", home, *flags]
    arguments, options = command(Path(os.environ["HOME"]), "pipeline", *settings, experiment=Path(corpus))
    done = subprocess.run(arguments, timeout=900, check=False, **options)
    assert done.returncode == expect, done.stdout
    return done.stdout


@pytest.fixture
def experiment(server, shell) -> Path:
    """One energy on a corpus that lies in the store, too."""
    with clients_of(server.endpoint):
        for part in range(4):
            text = "\n\n".join(f"paragraph {part} {line} of a text in a store" for line in range(60))
            write_text(f"s3://{BUCKET}/corpus/{part}.txt", text)
    text = (PROJECT / "tests" / "workflows" / "one_energy.yaml").read_text()
    corpus = f"{{kind: files, paths: ['s3://{BUCKET}/corpus/*.txt'], cut: paragraph}}"
    target = shell / "stored.yaml"
    target.write_text(text.replace("{kind: embedded}", corpus).replace("name: smallest", "name: stored"))
    return target


def test_the_pipeline_in_a_store_and_the_restore_drill_of_the_documentation(shell, experiment, database):
    home = f"s3://{BUCKET}/edlm"
    first = pipeline(home, database, corpus=str(experiment))
    assert "Traceback" not in first
    again = pipeline(home, database, corpus=str(experiment))
    assert "[pretrain] reused" in again

    (shell / "fresh").mkdir()
    saved = shell / "backup.db"
    shutil.copy(database.removeprefix("sqlite:///"), saved)
    os.environ["HOME"] = str(shell / "fresh")
    replaced = {
        "s3://bucket/edlm": home,
        "sqlite:////backup/mlflow.db": f"sqlite:///{saved}",
        "edlm-tiny@champion": "one-energy@champion",
        "workflows/experiments/tiny.yaml": str(experiment),
    }
    page = (PROJECT / "docs" / "operations.md").read_text()
    block = FENCE.search(page, page.index(DRILL))
    assert block is not None
    outputs = []
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for words in commands(block["text"]):
        words = [replaced.get(word, word) for word in words]
        if words[0] == "export":
            variables |= {name: replaced.get(value, value) for name, _, value in (w.partition("=") for w in words[1:])}
        elif words[0] == "python":
            done = subprocess.run(
                [sys.executable, *words[1:]], cwd=PROJECT, env=variables, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, done.stdout + done.stderr
            outputs.append(done.stdout)
        else:
            assert words[0] in ("make", "."), words
    text, planned, ran = outputs
    assert text.strip()
    assert "runs" not in {line.split("]", 1)[-1].split()[0] for line in planned.splitlines() if line.startswith("[")}
    assert "[pretrain] reused" in ran
    assert not (shell / "fresh" / ".cache" / "edlm").stat().st_mode & 0o077


def test_a_pipeline_whose_store_is_away_is_one_line_within_seconds(experiment, database, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    started = time.monotonic()
    output = pipeline(f"s3://{BUCKET}/edlm", database, corpus=str(experiment), expect=1)
    assert time.monotonic() - started < 60
    assert "error: s3://bucket/edlm cannot be reached at http://127.0.0.1:" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("refusing", [moto_server, rclone_server])
def test_a_pipeline_whose_store_refuses_its_credentials_is_one_line_within_seconds(
    shell, database, monkeypatch, refusing
):
    monkeypatch.setenv("INITIAL_NO_AUTH_ACTION_COUNT", "1")  # moto checks signatures after the bucket is made
    (shell / "store").mkdir()
    with refusing(shell / "store") as server:
        for name, value in environment(server.endpoint, secret="wrong" + SECRET).items():
            monkeypatch.setenv(name, value)
        started = time.monotonic()
        output = pipeline(f"s3://{BUCKET}/edlm", database, corpus=str(ONE_ENERGY), expect=1)
        assert time.monotonic() - started < 60
    (line,) = (line for line in output.splitlines() if line.startswith("error: "))
    assert f"{server.endpoint} refuses this access (" in line
    assert "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in line
    assert "Traceback" not in output
    assert SECRET not in output
