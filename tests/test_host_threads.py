"""Calls that may block: together in one thread, and none waits for one that hangs."""

import asyncio
import gc
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agent import host_threads
from agent.host_threads import HostThreads
from tests.waiting import until

WAIT = 10.0


def run(work: Callable[[], Awaitable[None]]) -> None:
    """Do something in an event loop whose calls go to these threads."""

    async def within() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(HostThreads(loop))
        async with asyncio.timeout(WAIT):
            await work()

    asyncio.run(within())


@contextmanager
def hung_read() -> Iterator[Callable[[], bytes]]:
    """A call that sleeps in the kernel until the block ends."""
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w") as end:
        yield lambda: os.read(reading, 1)
        end.close()


def test_what_is_asked_for_together_is_done_in_one_thread_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_threads, "LONG_TICKS", 10**6)  # a busy machine may not let the thread run
    done = list[tuple[int, int]]()

    def note(number: int) -> None:
        done.append((number, threading.get_ident()))

    async def work() -> None:
        await asyncio.gather(*(asyncio.to_thread(note, number) for number in range(50)))

    run(work)
    assert [number for number, _ in done] == list(range(50))
    assert len({thread for _, thread in done}) == 1
    assert threading.get_ident() not in {thread for _, thread in done}


def test_no_call_waits_for_those_that_hang() -> None:
    async def work() -> None:
        with hung_read() as read:
            hung = [asyncio.ensure_future(asyncio.to_thread(read)) for _ in range(3)]
            assert await asyncio.gather(*(asyncio.to_thread(lambda: 1) for _ in range(5))) == [1] * 5
            assert not any(one.done() for one in hung)
            assert await asyncio.to_thread(lambda: 2) == 2  # nor a later one
        assert await asyncio.gather(*hung) == [b""] * 3

    run(work)


def test_calls_that_sleep_do_so_side_by_side() -> None:
    began = list[int]()

    async def work() -> None:
        with hung_read() as read:

            def call(number: int) -> None:
                began.append(number)
                read()

            calls = [asyncio.ensure_future(asyncio.to_thread(call, number)) for number in range(24)]
            while len(began) < len(calls):  # noqa: ASYNC110 - threads set no event of the loop's
                await asyncio.sleep(0.001)
        await asyncio.gather(*calls)

    run(work)


def test_a_call_that_came_back_is_told_of_while_the_next_one_hangs() -> None:
    async def work() -> None:
        with hung_read() as read:
            first, hung = asyncio.to_thread(lambda: 1), asyncio.ensure_future(asyncio.to_thread(read))
            assert await first == 1
        await hung

    run(work)


def test_it_does_without_what_the_kernel_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_threads, "_is_blocked", lambda _: False)  # as where wchan is hidden
    test_no_call_waits_for_those_that_hang()


def test_the_kernel_tells_a_thread_that_is_blocked_from_one_that_waits_for_a_lock() -> None:
    lock = threading.Lock()
    with ThreadPoolExecutor(2) as pool, hung_read() as read, lock:
        waits, sleeps = thread_of(pool, lambda: pass_through(lock)), thread_of(pool, read)
        until(lambda: host_threads._is_blocked(sleeps))
        until(lambda: state(waits) == "S")
        assert not any(host_threads._is_blocked(waits) for _ in range(100))
    until(lambda: not host_threads._is_blocked(sleeps))  # it ends


def pass_through(lock: threading.Lock) -> None:
    with lock:
        pass


def thread_of(pool: ThreadPoolExecutor, work: Callable[[], object]) -> int:
    """Begin something in a thread; returns which one."""
    began = Future[int]()

    def begin() -> None:
        began.set_result(threading.get_native_id())
        work()

    pool.submit(begin)
    return began.result(WAIT)


def state(thread: int) -> str:
    """What the kernel has a thread down as: R, S, D and so on."""
    return Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[0]


def test_what_a_call_raises_is_raised_where_it_was_asked_for() -> None:
    def fail() -> None:
        raise FileNotFoundError("gone")

    async def work() -> None:
        answers = await asyncio.gather(*(asyncio.to_thread(one) for one in (fail, int, fail)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [FileNotFoundError, int, FileNotFoundError]

    run(work)


def test_what_was_raised_goes_with_its_last_reference() -> None:
    class GoneError(Exception):
        pass

    def fail() -> None:
        raise GoneError

    async def work() -> None:
        with suppress(GoneError):
            await asyncio.to_thread(fail)

    gc.collect()
    gc.disable()
    try:
        run(work)
        assert not [one for one in gc.get_objects() if isinstance(one, GoneError)]
    finally:
        gc.enable()


def test_a_call_that_nobody_waits_for_any_more_is_not_begun() -> None:
    done = list[str]()

    async def work() -> None:
        with hung_read() as read:
            hung = asyncio.ensure_future(asyncio.to_thread(read))
            await asyncio.sleep(0)
            cancelled = asyncio.ensure_future(asyncio.to_thread(done.append, "cancelled"))
            await asyncio.sleep(0)
            cancelled.cancel()
            await asyncio.to_thread(done.append, "kept")
        await hung

    run(work)
    assert done == ["kept"]


def test_no_new_thread_to_be_had_delays_calls_and_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    real, refused = threading.Thread.start, list[str]()

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("host") and len(refused) < 2:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)

    async def work() -> None:
        assert await asyncio.to_thread(lambda: 1) == 1

    run(work)
    assert len(refused) == 2
