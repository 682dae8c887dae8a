"""Turns at an image: one has it, a thread is told so at once, and a task waits for its end."""

import asyncio
import threading

from reconcilers.actual import FileId
from reconcilers.turns import Turns

ONE, OTHER = FileId(1, 1), FileId(1, 2)


def test_a_thread_is_told_at_once() -> None:
    turns = Turns()
    with turns.at_once(ONE) as first, turns.at_once(ONE) as second, turns.at_once(OTHER) as other:
        assert (first, second, other) == (True, False, True)
    with turns.at_once(ONE) as again:
        assert again


async def test_tasks_wait_for_each_other_and_for_threads() -> None:
    turns, inside, most = Turns(), 0, 0
    begun, go_on = threading.Event(), threading.Event()

    def thread() -> None:
        with turns.at_once(ONE) as mine:
            assert mine
            begun.set()
            go_on.wait()

    async def task() -> None:
        nonlocal inside, most
        async with turns.in_turn(ONE):
            assert go_on.is_set()
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.to_thread(thread))
        await asyncio.to_thread(begun.wait)
        waiting = [tasks.create_task(task()) for _ in range(5)]
        left = asyncio.create_task(task())
        await asyncio.sleep(0)
        left.cancel()  # who no longer waits is in nobody's way
        go_on.set()
    assert most == 1
    assert all(one.done() for one in waiting)
