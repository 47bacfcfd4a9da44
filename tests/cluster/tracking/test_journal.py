"""A journal keeps every whole entry, whatever byte its writer died at."""

import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.tracking.journal import ENTRIES, Journal, history, read, run_of


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(values=st.lists(st.floats(), max_size=8), cut=st.integers(0, 600), tail=st.binary(max_size=8))
def test_after_a_crash_at_any_byte_the_whole_entries_remain_and_more_can_follow(tmp_path, values, cut, tail):
    folder = tmp_path / uuid.uuid4().hex
    journal = Journal(folder, "run")
    for step, value in enumerate(values):
        journal.append("metrics", step=step, values={"loss": value})
    journal.close()
    whole = (folder / ENTRIES).read_bytes()[:cut]
    (folder / ENTRIES).write_bytes(whole + tail.replace(b"\n", b""))
    kept = max(whole.count(b"\n") - 1, 0)

    journal = Journal(folder, "run")
    journal.append("metrics", step=kept, values={"loss": 7.0})
    journal.close()
    assert run_of(folder) == "run"
    assert repr(history(folder)["loss"]) == repr({**dict(enumerate(values[:kept])), kept: 7.0})


def test_reading_goes_on_where_it_stopped_and_ignores_a_line_that_is_still_being_written(tmp_path):
    journal = Journal(tmp_path, "run")
    journal.append("tags", values={"a": "1"})
    (_, _), (_, stop) = read(tmp_path)
    journal.append("tags", values={"b": "2"})
    with (tmp_path / ENTRIES).open("ab") as file:
        file.write(b'{"kind": "ta')
    assert [entry["values"] for entry, _ in read(tmp_path, stop)] == [{"b": "2"}]
    journal.close()


def test_of_a_step_that_was_done_twice_the_first_counts(tmp_path):
    journal = Journal(tmp_path, "run")
    for value in (1.0, 2.0):
        journal.append("metrics", step=5, values={"loss": value})
    journal.append("metrics", step=5, values={"other": 3.0})
    journal.close()
    assert history(tmp_path) == {"loss": {5: 1.0}, "other": {5: 3.0}}


def test_a_folder_keeps_one_run(tmp_path):
    Journal(tmp_path, "one").close()
    with pytest.raises(ValueError, match="is the journal of run one, not of two"):
        Journal(tmp_path, "two")
