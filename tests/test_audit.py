"""What the check of known vulnerabilities makes of the answers of a package index."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.paths import PROJECT

UV = """#!/bin/sh
echo '{answer}'
exit {status}
"""
MAKEFILE = """sbom:
\t@exit 1
audit:
\t@echo audited; exit {status}
"""


@pytest.mark.parametrize(
    ("answer", "finding", "expected"),
    [
        ("No known vulnerabilities found", 0, "audited"),
        ("Found 3 known vulnerabilities in 1 package", 0, "audited"),
        ("No known vulnerabilities found", 1, None),
        ("pip: Dependency not found on PyPI and could not be audited", 1, "NOT AUDITED"),
        ("requests.exceptions.ConnectionError", 1, "NOT AUDITED"),
    ],
)
def test_a_finding_fails_and_a_missing_service_is_said(tmp_path: Path, answer: str, finding: int, expected: str | None):
    for folder in (".ci", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(PROJECT / ".ci" / "audit", tmp_path / ".ci")
    uv = tmp_path / ".venv" / "bin" / "uv"
    uv.write_text(UV.format(answer=answer, status=int("could not" in answer or "Error" in answer)))
    uv.chmod(0o755)
    (tmp_path / "Makefile").write_text(MAKEFILE.format(status=finding))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run([tmp_path / ".ci" / "audit"], env=environment, capture_output=True, text=True, check=False)
    if expected is None:
        assert done.returncode != 0, "a vulnerability was found"
    else:
        assert done.returncode == 0, done.stderr
        assert [line.partition(":")[0] for line in done.stdout.splitlines()] == ["NO BILL OF MATERIALS", expected]
