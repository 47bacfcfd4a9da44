"""The chaos tests, file by file: interrupted, the run goes on at the next file; its report names each file's commit.

make test-chaos    # docs/chaos.md
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import psutil
import tyro

from tests.paths import PROJECT

MARK = "EDLM_CHAOS_RUN"  # in the environment of all processes of a file: which of the living ones are its own
HEAD = """# Chaos tests

`make test-chaos` runs the tests that kill processes, cut connections, fill disks, compile networks or last minutes to
hours, one file after the other. A file that passed at the present commit is not run again, so that an interrupted run
goes on where it was. *Left running* counts the processes that a file's tests left behind; they are ended by their
process ids. This table is the record of the last run of each file; its remarks are what the tests of that run counted
themselves (`record_property("remark", ...)`).

| file | passed | failed | skipped | left running | seconds | day | remarks | commit |
|---|---:|---:|---:|---:|---:|---|---|---|"""
REMARK = "remark"  # property of a test in pytest's report


@dataclass(frozen=True)
class FileResult:
    """One row of the report: what the tests of a file came to."""

    file: str
    passed: int
    failed: int
    skipped: int
    left_running: int
    seconds: int
    day: str
    remarks: str
    """What the tests say of this very run."""
    commit: str

    @property
    def good(self) -> bool:
        """Whether the tests of the file need no further run: some passed, none failed, and no process outlived them."""
        return self.passed > 0 and self.failed == self.left_running == 0

    def row(self) -> str:
        """Return the line of the table."""
        cells = (*vars(self).values(),)
        return "| " + " | ".join(map(str, cells)) + " |"


def main(report: Path = Path("docs/chaos.md"), only: tuple[str, ...] = ()) -> None:
    """Run the chaos tests of every file, and write the report after each of them.

    Args:
        report: The Markdown file to write, and to read the results of earlier runs from.
        only: Paths of test files; none: all with a chaos test.
    """
    results = read_results(report.read_text(encoding="utf-8")) if report.exists() else {}
    files = only or chaos_files()
    results = {file: result for file, result in results.items() if (PROJECT / file).exists()}
    version = code_version()
    for number, file in enumerate(files, 1):
        before = results.get(file)
        if before is not None and before.good and before.commit == version and not version.endswith("+"):
            print(f"[{number}/{len(files)}] {file}: passed at this commit already", flush=True)
            continue
        print(f"[{number}/{len(files)}] {file}", flush=True)
        results[file] = replace(run_file(file), commit=version)
        report.write_text(written(results), encoding="utf-8")
        print(results[file].row(), flush=True)
    bad = [file for file in files if not results[file].good]
    if bad:
        raise SystemExit(f"{len(bad)} of {len(files)} files did not pass: {', '.join(bad)}")


def chaos_files() -> tuple[str, ...]:
    """Return the paths of the files with a chaos test, in order."""
    files = (PROJECT / "tests").rglob("test_*.py")
    return tuple(sorted(str(path.relative_to(PROJECT)) for path in files if "mark.chaos" in path.read_text("utf-8")))


def run_file(file: str) -> FileResult:
    """Run the chaos tests of a file, end every process that they leave behind, and return what they came to."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        outcomes, own = Path(scratch, "outcomes.xml"), Path(scratch).name
        command = [sys.executable, "-m", "pytest", "-m", "chaos", "-n0", "--timeout", "7200", file]
        command += ["-o", "junit_family=xunit1"]  # the later one has no properties of tests
        started = time.monotonic()
        try:
            ended = subprocess.run([*command, f"--junitxml={outcomes}"], cwd=PROJECT, env=os.environ | {MARK: own})
            seconds = round(time.monotonic() - started)
        finally:
            left = end_left_processes(own)
        tests, failed, skipped = _counts(outcomes) if outcomes.exists() else (1, 1, 0)
        remarks = _remarks(outcomes) if outcomes.exists() else ""
        if ended.returncode not in (0, 1):  # pytest itself broke off
            failed = max(failed, 1)
    passed, day = max(0, tests - failed - skipped), f"{datetime.now(UTC):%Y-%m-%d}"
    return FileResult(file, passed, failed, skipped, left, seconds, day, remarks, "")


def end_left_processes(own: str) -> int:
    """End the living processes of a file's tests, by process id; return how many there were."""
    time.sleep(2)  # daemons that were told to end
    left = [process for process in psutil.process_iter() if _mark(process) == own]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            print(f"left running: {process.pid} {' '.join(process.cmdline())[:100]}", flush=True)
            process.send_signal(signal.SIGKILL)
    return len(left)


def read_results(text: str) -> dict[str, FileResult]:
    """Return the rows of a report, by file."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| tests/" in line]
    return {
        file: FileResult(file, int(passed), int(failed), int(skipped), int(left), int(seconds), day, remarks, commit)
        for file, passed, failed, skipped, left, seconds, day, remarks, commit in rows
    }


def written(results: dict[str, FileResult]) -> str:
    """Return the report."""
    return "\n".join([HEAD, *(results[file].row() for file in sorted(results)), ""])


def code_version() -> str:
    """Return the last commit that changed the code or its tests; with a `+` if the checkout differs from it."""
    code = ("edlm", "cluster", "workflows", "tests", "pyproject.toml", "constraints.txt")
    last, changes = (
        subprocess.run(["git", *command, "--", *code], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
        for command in (("log", "-1", "--format=%h"), ("status", "--porcelain"))
    )
    return last.strip() + ("+" if changes else "")


def _mark(process: psutil.Process) -> str | None:
    with suppress(psutil.Error):
        return process.environ().get(MARK)
    return None


def _counts(outcomes: Path) -> tuple[int, int, int]:
    """Return the numbers of tests, of failures and errors, and of skipped tests."""
    (suite,) = ElementTree.parse(outcomes).getroot().iter("testsuite")
    tests, errors, failures, skipped = (int(suite.attrib[name]) for name in ("tests", "errors", "failures", "skipped"))
    return max(tests, errors + failures), errors + failures, skipped


def _remarks(outcomes: Path) -> str:
    """Return what the tests recorded as remarks, in one cell of a table."""
    properties = ElementTree.parse(outcomes).getroot().iter("property")
    remarks = [one.attrib["value"] for one in properties if one.attrib["name"] == REMARK]
    return "; ".join(" ".join(remark.replace("|", "/").split()) for remark in remarks)


if __name__ == "__main__":
    tyro.cli(main)
