"""No more answers a minute than agreed, whatever comes at once, and none let out of turn."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from common.clock import ManualClock
from evaluator.pace import Pace
from tests.evaluator.bench import Bench
from tests.evaluator.fake_router import FakeTarget

PAUSES = st.lists(st.floats(0.0, 30.0), min_size=1, max_size=30)


@settings(deadline=None, max_examples=50)
@given(pauses=PAUSES, per_minute=st.integers(1, 600))
def test_turns_keep_their_distance_and_their_order(pauses: list[float], per_minute: int) -> None:
    async def run() -> list[tuple[float, int]]:
        clock = ManualClock()
        pace = Pace(per_minute, clock)
        turns: list[tuple[float, int]] = []

        async def take(number: int) -> None:
            await pace.turn()
            turns.append((clock.monotonic(), number))

        async with asyncio.TaskGroup() as group:
            for number, pause in enumerate(pauses):
                group.create_task(take(number))
                await clock.advance(pause)
            await clock.advance(60.0 * len(pauses))
        return turns

    turns = asyncio.run(run())
    moments = [moment for moment, _ in turns]
    assert [number for _, number in turns] == list(range(len(pauses)))
    assert all(later - earlier >= 60.0 / per_minute - 1e-6 for earlier, later in pairwise(moments))


async def test_one_that_comes_after_a_rest_does_not_wait() -> None:
    clock = ManualClock()
    pace = Pace(6, clock)
    await pace.turn()
    await clock.advance(10.0)
    await pace.turn()


async def test_without_a_limit_nobody_waits() -> None:
    pace = Pace(0, ManualClock())
    for _ in range(1_000):
        await pace.turn()


async def test_an_evaluation_generates_no_faster(bench: Bench) -> None:
    router = await bench.router([FakeTarget("extraction", "L2")])
    router.serve("extraction", 8)
    loop = await bench.evaluator(router, answers_per_minute=60)
    evaluation = asyncio.create_task(bench.evaluate(loop))
    seconds = 0
    while True:
        waiting = asyncio.create_task(bench.back_off.asleep())
        await asyncio.wait({waiting, evaluation}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if evaluation.done():
            break
        assert router.generations.total() <= seconds + 1
        await bench.back_off.advance(1.0)
        seconds += 1
    assert router.generations.total() == 8
    assert seconds == 7
