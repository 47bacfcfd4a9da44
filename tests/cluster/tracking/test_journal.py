"""A journal keeps every whole entry, whatever byte its writer died at, and whatever byte was damaged later."""

import errno
import fcntl
import os
import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.tracking.journal import ENTRIES, Journal, decode, encode, history, is_open, lines, read, record_of
from cluster.tracking.run_record import RunRecord
from edlm.config import ConfigurationError
from tests.small_disk import fill, free, small_disk

RUN = RunRecord("pretrain", "edlm", {"tag": "value"}, parent=RunRecord("pipeline", "edlm"))


def write(folder, values) -> bytes:
    journal = Journal(folder, RUN)
    for step, value in enumerate(values):
        journal.append("metrics", step=step, values={"loss": value})
    journal.close()
    return (folder / ENTRIES).read_bytes()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(values=st.lists(st.floats(), max_size=8), cut=st.integers(0, 1500), tail=st.binary(max_size=8))
def test_after_a_crash_at_any_byte_the_whole_entries_remain_and_more_can_follow(tmp_path, values, cut, tail):
    folder = tmp_path / uuid.uuid4().hex
    whole = write(folder, values)[:cut]
    (folder / ENTRIES).write_bytes(whole + tail.replace(b"\n", b""))
    kept = max(whole.count(b"\n") - 1, 0)

    journal = Journal(folder, RUN)
    journal.append("metrics", step=kept, values={"loss": 7.0})
    journal.close()
    assert record_of(folder) == RUN
    assert repr(history(folder)["loss"]) == repr({**dict(enumerate(values[:kept])), kept: 7.0})
    numbers = [entry["number"] for entry in read(folder)]
    assert numbers == list(range(len(numbers)))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(values=st.lists(st.floats(), min_size=1, max_size=8), place=st.floats(0, 1, exclude_max=True), by=st.data())
def test_a_damaged_byte_costs_the_entries_that_it_lies_between_and_no_other(tmp_path, values, place, by):
    folder = tmp_path / uuid.uuid4().hex
    content = bytearray(write(folder, values))
    ends = [stop for _, stop in lines(folder)]
    at = int(place * (len(content) - 1))  # all but the last line's end, whose damage is a crash
    content[at] = by.draw(st.integers(0, 255).filter(lambda byte: byte != content[at]))
    (folder / ENTRIES).write_bytes(content)
    hit = next(number for number, stop in enumerate(ends) if at < stop)
    lost = {hit, hit + 1} if at == ends[hit] - 1 else {hit}
    assert [entry["number"] for entry in read(folder)] == [n for n in range(len(ends)) if n not in lost]

    Journal(folder, RUN).close()
    assert record_of(folder) == RUN  # written again whenever the journal is opened


def test_reading_goes_on_where_it_stopped_and_ignores_a_line_that_is_still_being_written(tmp_path):
    journal = Journal(tmp_path, RUN)
    journal.append("tags", values={"a": "1"})
    *_, (_, stop) = lines(tmp_path)
    journal.append("tags", values={"b": "2"})
    with (tmp_path / ENTRIES).open("ab") as file:
        file.write(b'{"kind": "ta')
    assert [entry["values"] for entry, _ in lines(tmp_path, stop)] == [{"b": "2"}]
    journal.close()


@given(entry=st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False) | st.text(max_size=5), min_size=1))
def test_a_line_gives_its_entry(entry):
    assert decode(encode(entry)) == entry


def test_of_a_step_that_was_done_twice_the_first_counts(tmp_path):
    journal = Journal(tmp_path, RUN)
    for value in (1.0, 2.0):
        journal.append("metrics", step=5, values={"loss": value})
    journal.append("metrics", step=5, values={"other": 3.0})
    journal.close()
    assert history(tmp_path) == {"loss": {5: 1.0}, "other": {5: 3.0}}


def test_a_journal_is_open_while_its_process_writes_it(tmp_path):
    journal = Journal(tmp_path, RUN)
    assert is_open(tmp_path)
    journal.close()
    assert not is_open(tmp_path)


def test_a_journal_that_is_gone_begins_again_without_its_marks(tmp_path, caplog):
    write(tmp_path, [1.0])
    (tmp_path / "shipped-records.json").write_text("what MLflow had of it")
    (tmp_path / ENTRIES).unlink()
    assert history(tmp_path) == {}
    Journal(tmp_path, RUN).close()
    assert "is gone; the journal begins again" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == [ENTRIES]


def test_a_folder_keeps_one_run(tmp_path):
    Journal(tmp_path, RUN).close()
    with pytest.raises(ValueError, match=f"is the journal of run {RUN.key}, not of"):
        Journal(tmp_path, RunRecord("pretrain", "edlm"))


def test_a_file_system_without_locks_is_named_and_not_taken_for_one_that_is_written(tmp_path, monkeypatch):
    Journal(tmp_path, RUN).close()

    def without_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", without_locks)
    for use in (is_open, lambda folder: Journal(folder, RUN)):
        with pytest.raises(ConfigurationError, match=r"entries.jsonl cannot be locked \(No locks available\)"):
            use(tmp_path)


def test_on_a_full_disk_entries_wait_in_memory_and_none_is_lost_or_there_twice(tmp_path, caplog):
    with small_disk(tmp_path / "disk", "64k") as disk:
        folder = disk / "journal"
        journal = Journal(folder, RUN)
        fill(disk)
        for step in range(200):
            journal.append("metrics", step=step, values={"loss": 1.0})
        on_disk = (folder / ENTRIES).read_bytes()
        assert not on_disk.endswith(b"\n"), "the disk took a part of the last line"
        assert list(history(folder)["loss"]) == list(range(on_disk.count(b"metrics") - 1))
        with pytest.raises(OSError, match=f"No space left on device: '{folder / ENTRIES}'"):
            journal.sync()
        free(disk)
        journal.append("metrics", step=200, values={"loss": 1.0})
        assert list(history(folder)["loss"]) == list(range(201))
        journal.close()
        assert [entry["number"] for entry in read(folder)] == list(range(202))
    assert caplog.text.count("No space left on device") == 1


def test_a_journal_that_is_closed_on_a_full_disk_says_so_and_the_next_one_mends_its_last_line(tmp_path):
    with small_disk(tmp_path / "disk", "64k") as disk:
        folder = disk / "journal"
        journal = Journal(folder, RUN)
        fill(disk)
        for step in range(200):
            journal.append("metrics", step=step, values={"loss": 1.0})
        with pytest.raises(OSError, match="No space left on device"):
            journal.close()
        assert not is_open(folder)
        kept = len(history(folder)["loss"])
        free(disk)
        again = Journal(folder, RUN)
        for step in range(kept, 200):
            again.append("metrics", step=step, values={"loss": 1.0})
        again.close()
        assert list(history(folder)["loss"]) == list(range(200))
