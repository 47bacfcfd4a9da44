import threading
from types import SimpleNamespace

import pytest

from edlm.data import progress
from edlm.data.progress import ReadingProgress


def lines_of(*characters):
    output = []
    heard = ReadingProgress(output.append, "read")
    for count in characters:
        heard.add(count)
    heard.finish()
    return output


def test_there_is_a_line_for_every_so_many_characters_and_one_at_the_end(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 1e9)
    monkeypatch.setattr(progress, "CHARACTERS", 1000)
    assert lines_of(400, 400, 400, 2500, 10) == [
        "1,200 characters read",
        "3,700 characters read",
        "3,710 characters read",
    ]
    assert lines_of(1000) == ["1,000 characters read"]


def test_a_corpus_too_small_for_a_line_has_one_at_the_end_and_an_empty_one_none(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 1e9)
    assert lines_of(3, 4) == ["7 characters read"]
    assert lines_of() == []


def test_however_slowly_a_corpus_is_read_there_are_lines(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    assert lines_of(1, 1) == ["1 characters read", "2 characters read"]


def test_there_are_lines_while_no_text_arrives_and_one_at_the_end(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.001)
    output, reported = [], threading.Event()

    def say(line: str) -> None:
        output.append(line)
        reported.set()

    with ReadingProgress(say, "read") as reading:
        assert reported.wait(60)
        reading.add(7)
    assert output[0] == "0 characters read; no text since the last line"
    assert "7 characters read" in output
    assert not [thread for thread in threading.enumerate() if thread.name == "reading progress"]


def test_a_reading_that_fails_ends_without_a_total(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 1e9)
    output = []

    def read() -> None:
        with ReadingProgress(output.append, "read") as reading:
            reading.add(7)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        read()
    assert output == []
    assert not [thread for thread in threading.enumerate() if thread.name == "reading progress"]


def test_the_speed_counts_the_bytes_that_took_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(progress, "CHARACTERS", 10)
    output = []
    reading = ReadingProgress(output.append, "tokenised")
    now[0] = 2.0
    reading.add(10)
    reading.add(20, computed_bytes=3_000_000)
    now[0] = 4.0
    reading.add(20, computed_bytes=3_000_000)
    assert output == [
        "10 characters tokenised",
        "30 characters tokenised, 1.5 MB/s",
        "50 characters tokenised, 1.5 MB/s",
    ]
