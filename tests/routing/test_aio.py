"""The same for asyncio."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import logbroker


def test_bind_explain_route_and_unbind(tmp_path: Path) -> None:
    async def go() -> None:
        async with logbroker.open_async(tmp_path / "data") as broker:
            for topic in ("orders", "out"):
                await broker.create_topic(topic)
            binding = await broker.bind("orders", "out", when="key == 'k'")
            assert await broker.bindings() == [binding]
            assert (await broker.explain_route("orders", b"x", key=b"k")).targets == ["out"]
            async with broker.producer() as producer:
                await producer.send("orders", b"1", key=b"k")
            assert await broker.run_router(idle_timeout=0.3) == 1
            running = asyncio.create_task(broker.run_router())
            await asyncio.sleep(0.05)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert (await broker.group("__router")).members == []
            await broker.unbind("orders->out")
            assert await broker.bindings() == []

    asyncio.run(go())
