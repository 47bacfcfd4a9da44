"""Scheduling: keys share the work equally, short texts overtake long ones, and no request starves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edlm.inference.scheduler import FairShare, ScheduledRequest, select_running

scheduled = st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 10)), max_size=12).map(
    lambda drawn: [ScheduledRequest(key, due, order) for order, (key, due) in enumerate(drawn)]
)


@given(scheduled, st.integers(1, 6))
def test_no_more_than_the_slots_run_and_every_key_before_any_has_two(scheduled, slots):
    running = select_running(scheduled, slots)
    assert len(running) == min(slots, len(scheduled))
    keys = {request.key for request in scheduled}
    if len(keys) <= slots:
        assert {request.key for request in running} == keys
    counts = {key: sum(request.key == key for request in running) for key in keys}
    for request in scheduled:
        if request not in running:  # then its key has as many as any, but for one
            assert counts[request.key] >= max(counts.values()) - 1
            assert all(other.due <= request.due for other in running if other.key == request.key)


def test_a_short_text_passes_a_long_one_that_came_before_but_not_for_ever():
    long = ScheduledRequest("a", due=0.0 + 10.0, order=0)
    short = ScheduledRequest("a", due=1.0 + 0.1, order=1)
    late = ScheduledRequest("a", due=10.5 + 0.1, order=2)
    assert select_running([long, short], 1) == [short]
    assert select_running([long, late], 1) == [long]


@given(long=st.floats(1, 20), short=st.floats(0.1, 1), slots=st.integers(1, 3))
def test_a_long_text_is_finished_however_many_short_ones_keep_coming(long, short, slots):
    first, waiting, left = ScheduledRequest("a", due=long, order=0), [], long
    for now in range(1, 200):
        waiting += [
            ScheduledRequest("a", due=now + short, order=slots * now + i) for i in range(slots)
        ]  # as many as there is room
        running = select_running([first, *waiting], slots)
        waiting = [request for request in waiting if request not in running]
        left -= first in running
        if left <= 0:
            return
    pytest.fail("the long text never ended")


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=4), st.integers(1, 5))
def test_keys_share_the_work_alike_whatever_a_step_of_theirs_costs_and_however_many_they_have(costs, many):
    keys = dict(zip("abcd", costs, strict=False))
    running = [ScheduledRequest(key, 0.0, i) for i, key in enumerate([*keys] + ["a"] * many)]
    shares, served = FairShare(), dict.fromkeys(keys, 0.0)
    for _ in range(100):
        shares.keep(request.key for request in running)
        (request,) = shares.picked(running, lambda request: keys[request.key], budget=0.0)
        served[request.key] += keys[request.key]
    assert max(served.values()) - min(served.values()) <= max(costs) + 1e-9


@given(scheduled.filter(bool), st.floats(0.1, 3))
def test_every_selected_request_takes_part_again_and_again(running, budget):
    shares, rounds = FairShare(), [0] * len(running)
    for _ in range(4 * len(running)):
        shares.keep(request.key for request in running)
        picked = shares.picked(running, lambda _: 1.0, budget)
        assert 1 <= len(picked) <= max(1, int(budget))
        for request in picked:
            rounds[request.order] += 1
    assert min(rounds) >= 1
    of_key = {
        request.key: [rounds[other.order] for other in running if other.key == request.key] for request in running
    }
    assert all(max(counts) - min(counts) <= 1 for counts in of_key.values())


def test_a_large_step_is_not_passed_over_for_small_ones():
    large, small = ScheduledRequest("a", 0.0, 0), [ScheduledRequest("b", 0.0, order) for order in range(1, 5)]
    shares, cost = FairShare(), lambda request: 5.0 if request is large else 0.2
    for _ in range(6):
        shares.keep("ab")
        picked = shares.picked([large, *small], cost, budget=1.0)
        if large in picked:
            return
    pytest.fail("the large step never came")


def test_an_idle_key_saves_up_no_more_than_one_engine_step():
    shares, greedy = FairShare(), [ScheduledRequest("a", 0.0, order) for order in range(4)]
    modest = [ScheduledRequest("b", 0.0, order) for order in range(4, 8)]
    for _ in range(100):
        shares.keep("ab")
        shares.picked([*greedy, modest[0]], lambda _: 1.0, 4.0)
    turns = []
    for _ in range(15):
        shares.keep("ab")
        turns += [request.key for request in shares.picked([*greedy, *modest], lambda _: 1.0, 1.0)]
    assert "a" in turns[:6]
    assert abs(turns[5:].count("a") - turns[5:].count("b")) <= 1


def test_a_key_that_was_away_has_saved_up_nothing():
    shares, a, b = FairShare(), ScheduledRequest("a", 0.0, 0), ScheduledRequest("b", 0.0, 1)
    for _ in range(100):
        shares.keep("a")
        shares.picked([a], lambda _: 1.0, 1.0)
    turns = []
    for _ in range(10):
        shares.keep("ab")
        turns += [request.key for request in shares.picked([a, b], lambda _: 1.0, 1.0)]
    assert turns.count("a") == turns.count("b") == 5
