"""One process at a time writes to a workspace; a dead one keeps none out, and one that lost it is told."""

import json
import subprocess
import time
import uuid
from dataclasses import asdict, replace

import pytest

from edlm.checkpoints import lease as leases
from edlm.checkpoints.lease import LeaseHeld, LeaseLost, leased
from edlm.storage import join, write_text


@pytest.fixture(params=["local", "memory"])
def workspace(request, tmp_path, monkeypatch) -> str:
    for name, seconds in {"RENEWAL": 0.05, "EXPIRY": 0.4, "POLL": 0.01}.items():
        monkeypatch.setattr(leases, name, seconds)
    return str(tmp_path / "work") if request.param == "local" else f"memory://{uuid.uuid4().hex}/work"


def leave(workspace: str, number: int = 1, **changes) -> leases.LeaseHolder:
    """A lease of another process, as its file says."""
    holder = replace(leases._this_process(), **changes)
    write_text(join(workspace, "lease", f"{number:06d}.json"), json.dumps(asdict(holder)))
    return holder


def test_the_second_is_refused_by_the_name_of_the_first_and_has_it_after_the_first(workspace):
    with (
        leased(workspace) as first,
        pytest.raises(LeaseHeld, match=r"written by process \d+ on .+, since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"),
        leased(workspace),
    ):
        pass
    with leased(workspace) as second:
        assert second.key != first.key
        second.require()
        with pytest.raises(LeaseLost, match="it is now written by process"):
            first.require()
    with pytest.raises(LeaseLost, match="its lease is gone"):
        second.require()


def test_a_process_of_this_machine_holds_its_lease_as_long_as_it_runs(workspace):
    with subprocess.Popen(["sleep", "60"]) as other:
        leave(workspace, pid=other.pid, began=leases._began(other.pid))
        with pytest.raises(LeaseHeld, match=f"process {other.pid} "), leased(workspace):
            pass
        other.kill()
    with leased(workspace) as lease:
        assert lease.number == 2


def test_a_later_process_with_the_number_of_a_dead_one_does_not_hold_its_lease(workspace):
    leave(workspace, began="1")
    with leased(workspace):
        pass


def test_of_another_machine_silence_until_the_expiry_is_death_and_a_renewal_is_life(workspace):
    holder = leave(workspace, number=7, machine="another")
    started = time.monotonic()
    with leased(workspace) as lease:
        assert time.monotonic() - started >= 0.4
        assert lease.number == 8
    observer = leave(workspace, number=7, machine="another")
    leave(workspace, number=7, **{**asdict(observer), "renewals": 1})
    with pytest.raises(LeaseHeld):
        leases._wait_until_expired(workspace, 7, holder)


def test_whether_a_workspace_is_held_is_known_without_waiting(workspace, monkeypatch):
    assert not leases.seems_held(workspace)
    with leased(workspace):
        assert leases.seems_held(workspace)
    assert not leases.seems_held(workspace)
    leave(workspace, began="1")
    assert not leases.seems_held(workspace), "its process has ended"
    leave(workspace, machine="another")
    started = time.monotonic()
    assert leases.seems_held(workspace)
    monkeypatch.setattr(leases, "STALE", 0.0)
    assert not leases.seems_held(workspace), "it was not renewed for long"
    assert time.monotonic() - started < leases.EXPIRY


def test_one_that_is_held_is_renewed(workspace):
    with leased(workspace) as lease:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and leases._newest(workspace)[1].renewals < 2:
            time.sleep(0.01)
        assert leases._newest(workspace)[1].renewals >= 2
        lease.require()


def test_of_two_that_create_a_lease_one_does(workspace):
    uri = join(workspace, "lease", "000001.json")
    assert [leases._create(uri, text) for text in ("{}", "{ }")] == [True, False]


def test_a_holder_whose_lease_was_taken_over_neither_renews_nor_releases_it(workspace):
    with leased(workspace) as lease:
        other = leave(workspace, number=lease.number + 1)
        with pytest.raises(LeaseLost, match="nothing more is written there"):
            lease.require()
        time.sleep(0.2)
    assert leases._newest(workspace) == (lease.number + 1, other)
