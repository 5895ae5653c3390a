"""What the asyncio twins have in common: opened once, closed once, whoever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
import threading

import pytest

import logbroker
from logbroker.aio_lifetime import Lifetime
from logbroker.errors import ClosedError, WriteFailedError
from logbroker.worker import Worker


class Thing:
    """A lifetime whose opening and closing wait for the test, and what was done with it."""

    def __init__(self) -> None:
        self.may_open = asyncio.Event()
        self.may_close = asyncio.Event()
        self.made = 0
        self.closed = 0
        self.error: Exception | None = None
        self.worker = Worker("thing")
        self.lifetime: Lifetime[str] = Lifetime("thing", self._make, self.worker)

    async def _make(self) -> str:
        self.made += 1
        await self.may_open.wait()
        if self.error is not None:
            raise self.error
        return f"thing {self.made}"

    async def close(self, blocking: str) -> None:
        await self.may_close.wait()
        self.closed += 1
        if self.error is not None:
            raise self.error


async def begun(awaitable) -> asyncio.Task:
    """A task that has got as far as it gets by itself."""
    task = asyncio.ensure_future(awaitable)
    for _ in range(3):
        await asyncio.sleep(0)
    return task


def test_all_who_need_it_wait_for_one_attempt_to_open_it():
    async def main():
        thing = Thing()
        waiting = [await begun(thing.lifetime.opened()) for _ in range(3)]
        thing.may_open.set()
        assert await asyncio.gather(*waiting) == ["thing 1"] * 3
        assert await thing.lifetime.opened() == thing.lifetime.blocking == "thing 1"

    asyncio.run(main())


def test_what_a_cancelled_opener_has_begun_is_there_for_the_next():
    async def main():
        thing = Thing()
        first = await begun(thing.lifetime.opened())
        first.cancel()
        second = await begun(thing.lifetime.opened())
        thing.may_open.set()
        assert await second == "thing 1"
        assert first.cancelled()

    asyncio.run(main())


def test_an_attempt_that_failed_is_told_to_those_who_waited_and_made_again():
    async def main():
        thing = Thing()
        waiting = [await begun(thing.lifetime.opened()) for _ in range(2)]
        thing.error = WriteFailedError("not now")
        thing.may_open.set()
        assert await asyncio.gather(*waiting, return_exceptions=True) == [thing.error] * 2
        thing.error = None
        assert await thing.lifetime.opened() == "thing 2"

    asyncio.run(main())


def test_an_attempt_that_failed_leaves_no_thread():
    async def main():
        thing = Thing()
        await thing.worker.submit(threading.get_ident)
        thing.may_open.set()
        thing.error = WriteFailedError("not now")
        threads = [thread for thread in threading.enumerate() if thread.name == "thing"]
        with pytest.raises(WriteFailedError):
            await thing.lifetime.opened()
        for thread in threads:
            thread.join(10)
        assert [thread.is_alive() for thread in threads] == [False]

    asyncio.run(main())


def test_entering_that_is_cancelled_closes_it():
    async def main():
        thing = Thing()
        entering = await begun(thing.lifetime.entered(thing.close))
        entering.cancel()
        thing.may_open.set()
        thing.may_close.set()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert (thing.made, thing.closed) == (1, 1)

    asyncio.run(main())


def test_closing_what_is_being_opened_waits_for_it_and_closes_it():
    async def main():
        thing = Thing()
        opening = await begun(thing.lifetime.opened())
        closing = await begun(thing.lifetime.close(thing.close))
        assert not closing.done()
        thing.may_open.set()
        thing.may_close.set()
        await closing
        assert thing.closed == 1
        with pytest.raises(ClosedError, match=r"the thing was closed; make another with broker\.thing\(\)"):
            await opening

    asyncio.run(main())


def test_closing_what_could_not_be_opened_is_no_error():
    async def main():
        thing = Thing()
        opening = await begun(thing.lifetime.opened())
        closing = await begun(thing.lifetime.close(thing.close))
        thing.error = WriteFailedError("not now")
        thing.may_open.set()
        await closing
        assert (thing.closed, thing.lifetime.is_closed) == (0, True)
        with pytest.raises(WriteFailedError):
            await opening

    asyncio.run(main())


def test_closing_what_nobody_needed_opens_nothing():
    async def main():
        thing = Thing()
        await thing.lifetime.close(thing.close)
        assert (thing.made, thing.closed) == (0, 0)
        with pytest.raises(ClosedError):
            await thing.lifetime.opened()

    asyncio.run(main())


def test_everybody_who_closes_waits_until_it_is_done_once():
    async def main():
        thing = Thing()
        thing.may_open.set()
        await thing.lifetime.opened()
        first = await begun(thing.lifetime.close(thing.close))
        second = await begun(thing.lifetime.close(thing.close))
        first.cancel()
        await asyncio.wait([first])
        assert thing.closed == 0
        assert not second.done()
        thing.may_close.set()
        await second
        await thing.lifetime.close(thing.close)
        assert thing.closed == 1

    asyncio.run(main())


def test_a_failure_to_close_is_told_once_to_the_first_who_is_still_there():
    async def main():
        thing = Thing()
        thing.may_open.set()
        await thing.lifetime.opened()
        thing.error = WriteFailedError("not any more")
        first = await begun(thing.lifetime.close(thing.close))
        first.cancel()
        await asyncio.wait([first])
        thing.may_close.set()
        with pytest.raises(WriteFailedError):
            await thing.lifetime.close(thing.close)
        await thing.lifetime.close(thing.close)

    asyncio.run(main())


@pytest.mark.parametrize("steps", range(4))
def test_opening_and_closing_are_carried_out_where_all_tasks_are_cancelled(steps):
    """As asyncio.run does at its end, at whatever step of theirs."""
    things = []

    async def go_away(opens: bool):
        thing = Thing()
        things.append(thing)
        asyncio.get_running_loop().call_later(0.02, thing.may_open.set)
        asyncio.get_running_loop().call_later(0.02, thing.may_close.set)
        if not opens:
            await thing.lifetime.opened()
        task = asyncio.ensure_future(thing.lifetime.opened() if opens else thing.lifetime.close(thing.close))
        for _ in range(1 + steps):  # the task has begun: it was asked for
            await asyncio.sleep(0)
        return task

    asyncio.run(go_away(opens=True))
    asyncio.run(go_away(opens=False))
    opened, closed = things
    assert opened.lifetime.blocking == "thing 1"
    assert closed.closed == 1


def test_it_can_be_closed_from_a_later_loop():
    thing = Thing()

    async def first():
        thing.may_open.set()
        thing.may_close.set()
        await thing.lifetime.opened()

    async def second():
        assert await thing.lifetime.opened() == "thing 1"
        await thing.lifetime.close(thing.close)

    asyncio.run(first())
    asyncio.run(second())
    asyncio.run(second_close(thing))
    assert thing.closed == 1


async def second_close(thing: Thing) -> None:
    await thing.lifetime.close(thing.close)


def test_a_relative_path_leads_from_where_it_was_given(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()

    async def main():
        monkeypatch.chdir(tmp_path / "here")
        broker = logbroker.open_async("data")
        monkeypatch.chdir(tmp_path / "elsewhere")
        async with broker:
            await broker.create_topic("t")

    asyncio.run(main())
    assert (tmp_path / "here" / "data" / "logs" / "t-0").is_dir()
    assert list((tmp_path / "elsewhere").iterdir()) == []
