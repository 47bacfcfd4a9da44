"""Errors that replicas log are shown on the terminal, each once, and requests are not."""

import json
from pathlib import Path

from cluster.serving.log_errors import LogErrors

REQUEST = {"event": "request", "status": 500, "request_id": "a"}
FAILURE = {"event": "failure", "request_id": "a", "error": "KeyError", "at": ["one.py:1 f", "two.py:2 g"]}
ERROR = {"event": "log", "level": "ERROR", "logger": "cluster", "message": "the disk is full\nTraceback ..."}
WARNING = {**ERROR, "level": "WARNING"}


def log(path: Path, *entries: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)


def test_errors_since_the_last_look_are_lines_that_name_their_log(tmp_path):
    folder, path = tmp_path / "logs", tmp_path / "logs" / "replica-1.log"
    errors = LogErrors(folder)
    assert errors.new() == []
    log(path, REQUEST, WARNING, FAILURE)
    log(folder / "replica-2.log", ERROR)
    assert errors.new() == [
        f"request a failed: KeyError in two.py:2 g; see {path}",
        f"the disk is full; see {folder / 'replica-2.log'}",
    ]
    assert errors.new() == []


def test_earlier_errors_are_not_shown_and_those_of_a_new_file_are(tmp_path):
    path = tmp_path / "replica-1.log"
    log(path, ERROR, ERROR)
    errors = LogErrors(tmp_path)
    assert errors.new() == []
    path.rename(tmp_path / "replica-1.log.1")  # rotated
    log(path, ERROR)
    assert len(errors.new()) == 1


def test_a_line_is_read_once_it_is_whole(tmp_path):
    path, line = tmp_path / "replica-1.log", json.dumps(ERROR)
    errors = LogErrors(tmp_path)
    path.write_text(line[:20])
    assert errors.new() == []
    path.write_text(f"{line}\n{line[:20]}")
    assert len(errors.new()) == 1
    path.write_text(f"{line}\n{line}\n")
    assert len(errors.new()) == 1
