"""A Ray cluster on the machines of a test, to which jobs are submitted: a head without processors, and nodes."""

import contextlib
import functools
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from ray._private.services import RAYLET_EXECUTABLE
from ray.job_submission import JobStatus, JobSubmissionClient

from tests.chaos.network_namespaces import NetworkMachine
from tests.paths import PROJECT

PORT, DASHBOARD_PORT = 6379, 8265
START_SECONDS = 120
POLL_SECONDS = 0.5
# A machine that is cut off is noticed after a quarter of a minute, not after one.
QUICK_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
}
TIME_TO_STOP = {"RAY_JOB_STOP_WAIT_TIME_S": "120"}  # else a job that is stopped has 3 s for a last checkpoint
DRAIN_SECONDS = 600  # more than a test takes
OF_A_JOB = ("ray::RayTrainWorker", "ray::TrainController", "ray::_Board", "ray::_Mailbox", "-m workflows.")


@dataclass
class RayOnMachines:
    """A cluster of a head and nodes, each on a machine of its own."""

    head: NetworkMachine
    nodes: list[NetworkMachine]
    environment: Mapping[str, str]
    """Of the processes on all machines, besides what is a machine's own."""
    cpus: float = 1.0
    """Of each node."""

    def __post_init__(self) -> None:
        self._token = secrets.token_hex(32)
        self.start_node(self.head)
        for node in self.nodes:
            self.start_node(node)
        self._dashboard = f"http://{self.head.address}:{DASHBOARD_PORT}"
        self._headers = {"Authorization": f"Bearer {self._token}"}
        self._jobs = JobSubmissionClient(self._dashboard, headers=self._headers)

    def start_node(self, machine: NetworkMachine) -> None:
        """Start Ray on a machine that does not run it; what an earlier one has left there ends."""
        role = [f"--address={self.head.address}:{PORT}", f"--num-cpus={self.cpus:g}"]
        if machine is self.head:
            role = ["--head", f"--port={PORT}", "--num-cpus=0", f"--dashboard-host={machine.address}"]
        command = [
            *machine.within, sys.executable, "-m", "ray.scripts.scripts", "start", *role,
            f"--node-ip-address={machine.address}", f"--temp-dir={machine.folder / 'ray'}",
            "--object-store-memory=100000000", "--disable-usage-stats",
        ]  # fmt: skip
        machine.kill()  # the monitor of Ray's logs outlives it
        shutil.rmtree(machine.folder / "ray", ignore_errors=True)
        (machine.folder / "tmp").mkdir(exist_ok=True)
        log = machine.folder / "start.log"  # not a pipe, which Ray's daemons would hold
        with log.open("a") as output:
            done = subprocess.run(
                command, cwd=PROJECT, env=self._environment(machine), stdout=output, stderr=output,
                timeout=START_SECONDS, check=False,
            )  # fmt: skip
        assert done.returncode == 0, log.read_text()

    def drain(self, machine: NetworkMachine) -> None:
        """Announce to the cluster that the machine will be taken away: nothing new is started there."""
        answer = httpx.get(f"{self._dashboard}/nodes?view=summary", headers=self._headers, trust_env=False).json()
        (number,) = (
            one["raylet"]["nodeId"]
            for one in answer["data"]["summary"]
            if one["ip"] == machine.address and one["raylet"]["state"] == "ALIVE"
        )
        command = [
            *self.head.within, sys.executable, "-m", "ray.scripts.scripts", "drain-node",
            f"--address={self.head.address}:{PORT}", f"--node-id={number}", "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=test", f"--deadline-remaining-seconds={DRAIN_SECONDS}",
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=PROJECT, env=self._environment(self.head), capture_output=True, text=True,
            timeout=START_SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def runs_on(self, machine: NetworkMachine) -> bool:
        """Return whether Ray runs on the machine."""
        return any(_line(process).startswith(RAYLET_EXECUTABLE) for process in machine.processes())

    def submit(self, name: str, arguments: str) -> "RayJob":
        """Submit a command of the project, with its files, and return the job."""
        self._jobs.submit_job(
            entrypoint=f"{sys.executable} -m {arguments}",
            submission_id=name,
            runtime_env={"working_dir": str(PROJECT), "env_vars": TIME_TO_STOP},
        )
        return RayJob(name, self._jobs)

    def stop_jobs(self) -> None:
        """Stop every job that has not ended, and wait until it has."""
        for job in self._jobs.list_jobs():
            if job.submission_id is not None and not job.status.is_terminal():
                self._jobs.stop_job(job.submission_id)
                state = functools.partial(self._jobs.get_job_status, job.submission_id)
                wait_for(lambda state=state: state().is_terminal(), START_SECONDS, state)

    def of_jobs(self) -> list[str]:
        """Return the command lines of living processes of jobs, on all machines."""
        found = []
        for machine in (self.head, *self.nodes):
            lines = map(_line, machine.processes())
            found += [f"{machine.name}: {line}" for line in lines if any(part in line for part in OF_A_JOB)]
        return found

    def _environment(self, machine: NetworkMachine) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("EDLM_", "RAY_"))}
        own = {
            "HOME": str(machine.folder / "home"),
            "TMPDIR": str(machine.folder / "tmp"),
            "EDLM_CACHE": str(machine.folder / "cache"),
        }
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token}
        fonts = {"MPLCONFIGDIR": str(Path.home() / ".cache" / "matplotlib")}  # not found anew on every machine
        return {**inherited, **QUICK_CHECKS, **token, **fonts, "OMP_NUM_THREADS": "1", **self.environment, **own}


@dataclass(frozen=True)
class RayJob:
    """A submitted job."""

    name: str
    client: JobSubmissionClient

    @property
    def log(self) -> str:
        return self.client.get_job_logs(self.name)

    def until(self, pattern: str, seconds: float) -> re.Match[str]:
        """Return the first match in the log; raise AssertionError if there is none in time, or the job ends before."""
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.log)) is None:
            ended = self.client.get_job_status(self.name).is_terminal()
            assert not ended, f"{self.name} ended without {pattern!r}: {self.log}"
            assert time.monotonic() < deadline, f"no {pattern!r} within {seconds} s: {self.log}"
            time.sleep(POLL_SECONDS)
        return found

    def ended(self, seconds: float) -> str:
        """Wait until the job has succeeded, and return its log; raise AssertionError if it does not, in time."""
        wait_for(lambda: self.client.get_job_status(self.name).is_terminal(), seconds, lambda: self.log)
        assert self.client.get_job_status(self.name) == JobStatus.SUCCEEDED, self.log
        return self.log


def _line(process: psutil.Process) -> str:
    """Return the command line; an empty one of a process that ends just now."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def wait_for(condition: Callable[[], object], seconds: float, state: Callable[[], object]) -> None:
    """Return once the condition is true; raise AssertionError with the state if it is not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds:g} s: {state()}"
        time.sleep(POLL_SECONDS)
