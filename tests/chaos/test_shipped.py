"""The shipped Serve config on a cluster that `ray start` began: deployed, asked, promoted, as docs/serving.md says."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from cluster.config import Tracking
from cluster.runtime.ray_connection import CALLBACK, INTAKE
from cluster.tracking.runs import open_tracking
from tests.cluster.endpoint.spoiled import plain_bundle, published
from tests.cluster.endpoint.stage import until
from tests.paths import PROJECT

pytestmark = [pytest.mark.chaos, pytest.mark.cluster]
BIN = Path(sys.executable).parent
MODEL = "edlm-tiny"


@dataclass(frozen=True)
class Machine:
    """A head that `ray start` began, and the environment of who talks to it."""

    environment: dict[str, str]
    port: int
    config: Path
    dashboard: str

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=PROJECT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
        )

    def get(self, path: str) -> httpx.Response | None:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=30, trust_env=False)
        return None

    def dashboard_answers(self) -> bool:
        """Return whether `serve deploy` can connect, which takes a while after `ray start`."""
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(self.dashboard, timeout=5, trust_env=False).status_code < 500
        return False

    def version(self) -> str | None:
        """Which version says that it is ready."""
        answer = self.get("/readyz")
        return answer.json()["model_version"] if answer is not None and answer.status_code == 200 else None


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    root = Path(tempfile.mkdtemp(prefix="edlm-", dir="/tmp"))
    runs = open_tracking(Tracking(), str(root))
    run_id = runs.settled(None, "register")
    for seed, alias in enumerate(("champion", "challenger")):
        bundle = plain_bundle(root / alias, seed)
        runs.registry.register(MODEL, str(bundle), run_id, alias, published(bundle))
    (root / "token").write_text(secrets.token_hex(32))
    gcs, dashboard, agent, port = free_ports(4)
    config = root / "serve.yaml"
    shipped = yaml.safe_load((PROJECT / "cluster" / "deploy" / "serve.yaml").read_text(encoding="utf-8"))
    shipped["http_options"]["port"] = shipped["applications"][0]["args"]["serving"]["port"] = port  # the only change
    config.write_text(yaml.safe_dump(shipped), encoding="utf-8")
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(PROJECT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(root / "token"),
        "RAY_ADDRESS": f"127.0.0.1:{gcs}",
        "EDLM_HOME": str(root),
        "OMP_NUM_THREADS": "1",
        CALLBACK: INTAKE,
    }
    start = [
        str(BIN / "ray"), "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", "--num-cpus=2", "--object-store-memory=100000000",
        f"--temp-dir={root / 'ray'}", "--disable-usage-stats",
    ]  # fmt: skip
    with (root / "ray.log").open("w") as log:
        without_address = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
        head = subprocess.Popen(start, env=without_address, stdout=log, stderr=log, start_new_session=True)
        try:
            yield Machine(environment, port, config, f"http://127.0.0.1:{dashboard}")
        finally:
            children = psutil.Process(head.pid).children(recursive=True)
            head.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                head.wait(30)
            for process in [*children, head]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            head.wait(30)
            shutil.rmtree(root, ignore_errors=True)


def test_the_shipped_config_is_deployed_answers_and_is_promoted(machine):
    until(lambda: machine.run("ray", "status").returncode == 0 and machine.dashboard_answers())
    deployed = machine.run("serve", "deploy", str(machine.config), "-a", machine.dashboard)
    assert deployed.returncode == 0, deployed.stderr
    until(lambda: machine.version() == "1", seconds=240)
    promoted = machine.run("python", "-m", "workflows.serve", "promote", "--alias", "challenger")
    assert promoted.returncode == 0, promoted.stderr
    assert machine.version() == "2"
    back = machine.run("python", "-m", "workflows.serve", "promote", "--version", "1")
    assert back.returncode == 0, back.stderr
    assert machine.version() == "1"
    unknown = machine.run("python", "-m", "workflows.serve", "promote", "--alias", "unknown")
    assert unknown.returncode == 1
    assert "has no alias 'unknown'" in unknown.stderr
    # Ray's proxy itself refuses what is too large: the replica's gate never sees it.
    large = httpx.post(
        f"http://127.0.0.1:{machine.port}/v1/completions",
        content=b" " * 2**22,
        headers={"content-type": "application/json"},
        trust_env=False,
    )
    assert large.status_code == 413
