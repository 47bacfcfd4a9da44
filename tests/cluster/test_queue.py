"""The queue runs one task at a time, refuses what is too much, and drops what nobody waits for."""

import asyncio
import threading

import pytest

from cluster.queue import Abandoned, Full, Queue


def test_tasks_run_one_after_the_other_in_one_thread():
    running, names = [], []

    def task(number: int, _check) -> int:
        running.append(number)
        assert running == [number]
        names.append(threading.current_thread().name)
        running.remove(number)
        return number

    async def ask() -> list[int]:
        queue = Queue(most=8, timeout_seconds=30)
        return await asyncio.gather(*(queue.run(1, lambda check, i=i: task(i, check)) for i in range(8)))

    assert asyncio.run(ask()) == list(range(8))
    assert len(set(names)) == 1


def test_more_than_the_limit_are_refused_and_told_when_to_come_back():
    release = threading.Event()

    async def ask() -> list:
        queue = Queue(most=2, timeout_seconds=30)
        accepted = [asyncio.ensure_future(queue.run(500, lambda _: release.wait(30))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Full) as full:
            await queue.run(1, lambda _: None)
        assert full.value.retry_after_seconds == 10  # 1,000 units at the first guess of 10 ms
        release.set()
        results = await asyncio.gather(*accepted)
        return [*results, await queue.run(1, lambda _: "room again")]

    assert asyncio.run(ask()) == [True, True, "room again"]


def test_a_task_that_takes_too_long_ends_at_its_next_step():
    ended = threading.Event()

    def endless(check) -> None:
        try:
            while True:
                check()
        except Abandoned:
            ended.set()
            raise

    async def ask() -> str:
        queue = Queue(most=2, timeout_seconds=0.05)
        with pytest.raises(TimeoutError):
            await queue.run(1, endless)
        assert await asyncio.to_thread(ended.wait, 30)
        return await queue.run(1, lambda _: "the thread is free")

    assert asyncio.run(ask()) == "the thread is free"


def test_a_request_that_is_cancelled_while_it_waits_never_runs():
    release, ran = threading.Event(), []

    async def ask() -> None:
        queue = Queue(most=2, timeout_seconds=30)
        first = asyncio.ensure_future(queue.run(1, lambda _: release.wait(30)))
        second = asyncio.ensure_future(queue.run(1, lambda _: ran.append("second")))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        release.set()
        await first
        await queue.run(1, lambda _: ran.append("third"))

    asyncio.run(ask())
    assert ran == ["third"]


def test_an_error_reaches_the_one_who_asked_and_nobody_else():
    def wrong(_check) -> None:
        raise ZeroDivisionError

    async def ask() -> str:
        queue = Queue(most=2, timeout_seconds=30)
        with pytest.raises(ZeroDivisionError):
            await queue.run(1, wrong)
        return await queue.run(1, lambda _: "unharmed")

    assert asyncio.run(ask()) == "unharmed"
