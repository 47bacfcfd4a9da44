"""The Slurm script runs an experiment on a Ray of its own; commands of Slurm are replaced by what they do on a node."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.paths import ONE_ENERGY, PROJECT

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = "#!/usr/bin/env bash\necho 127.0.0.1\n"
HOSTNAME = "#!/usr/bin/env bash\necho 127.0.0.1\n"


def program(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    (folder / name).chmod(0o755)


def end_all_of(home: str) -> None:
    """Kill the processes that were started with this EDLM_HOME: what Slurm does at the end of a job."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it ends just now, or is another user's
            if process.pid != os.getpid() and process.environ().get("EDLM_HOME") == home:
                process.kill()


def run(command: list[str], environment: dict[str, str], log: Path) -> int:
    """Return the status of the command, whose output goes to a file: Ray outlives it and would hold a pipe."""
    with log.open("w") as file:
        return subprocess.run(
            command, cwd=PROJECT, env=environment, stdout=file, stderr=file, timeout=500, check=False
        ).returncode


def test_the_script_trains_registers_and_returns_the_stages_status(tmp_path):
    programs, home = tmp_path / "bin", str(tmp_path / "home")
    ray = tempfile.mkdtemp(prefix="edlm-", dir="/tmp")  # a short path: the names of Ray's sockets are limited
    programs.mkdir()
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL), ("hostname", HOSTNAME)):
        program(programs, name, content)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "EDLM_HOME": home,
        "RAY_TMPDIR": ray,
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_JOB_NUM_NODES": "1",
    }
    command = ["bash", str(PROJECT / "cluster" / "deploy" / "slurm.sbatch"), str(ONE_ENERGY)]
    try:
        assert run(command, environment, tmp_path / "log") == 0
        assert "[register] one-energy version 1 is 'champion'" in (tmp_path / "log").read_text()
        end_all_of(home)
        assert run([*command, "--pretrain.stepz", "3"], environment, tmp_path / "refused") != 0
        assert "stepz" in (tmp_path / "refused").read_text()
    finally:
        end_all_of(home)
        shutil.rmtree(ray, ignore_errors=True)
