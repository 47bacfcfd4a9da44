"""The runner of the chaos tests: what it counts, what it ends, and where an interrupted run goes on."""

from pathlib import Path

import psutil
import pytest

from tests import chaos_run
from tests.chaos_run import FileResult, main, read_results, run_file, written

PASSED = FileResult("tests/chaos/test_s3.py", 3, 0, 1, 0, 61, "2026-11-28", "", "0643d9f")
TESTS = """
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.{mark}, pytest.mark.filterwarnings("error::pytest.PytestWarning")]


def test_passes(record_property):
    record_property("remark", "3 kills: 2 of a | worker,\\n1 of another")


def test_fails():
    raise AssertionError


def test_leaves_a_daemon():
    command = [sys.executable, "-c", "import time; time.sleep(600)", {name!r}]
    subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
"""


def test_a_report_is_read_as_it_was_written():
    failed = FileResult("tests/workflows/test_pipeline.py", 0, 2, 0, 1, 7, "2026-11-27", "8 kills", "abcdef0+")
    results = {result.file: result for result in (failed, PASSED)}
    assert read_results(written(results)) == results


def test_failures_are_counted_and_the_daemons_of_a_file_end(tmp_path: Path):
    name = str(tmp_path)
    file = tmp_path / "test_with_a_daemon.py"
    file.write_text(TESTS.format(mark="chaos", name=name))
    result = run_file(str(file))
    assert (result.passed, result.failed, result.skipped, result.left_running) == (2, 1, 0, 1)
    assert not result.good
    assert result.remarks == "3 kills: 2 of a / worker, 1 of another"
    assert not [one for one in psutil.process_iter(["cmdline"]) if name in (one.info["cmdline"] or ())]


def test_a_run_goes_on_at_the_file_that_has_not_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = ("tests/test_rng.py", "tests/test_schedule.py", "tests/test_config.py")
    monkeypatch.setattr(chaos_run, "code_version", lambda: "1234567")
    ran: list[str] = []

    def interrupted_once(file: str) -> FileResult:
        ran.append(file)
        if file == files[1] and ran.count(file) == 1:
            raise KeyboardInterrupt
        return FileResult(file, 1, 0, 0, 0, 1, "2026-11-28", "", "")

    monkeypatch.setattr(chaos_run, "run_file", interrupted_once)
    report = tmp_path / "chaos.md"
    with pytest.raises(KeyboardInterrupt):
        main(report, files)
    main(report, files)
    assert ran == [files[0], files[1], files[1], files[2]]


def test_a_file_that_failed_is_named_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chaos_run, "run_file", lambda file: FileResult(file, 1, 1, 0, 0, 1, "2026-11-28", "", ""))
    with pytest.raises(SystemExit, match=r"1 of 1 files did not pass: tests/test_rng\.py"):
        main(tmp_path / "chaos.md", ("tests/test_rng.py",))
