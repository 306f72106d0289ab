"""Deltas on their way to a client."""

import asyncio
import threading

import pytest

from engine.request import Finished, FinishReason, Update
from engine.stream import AnswerStream, DecodingError, Delta, Handover

FINISHED = Finished(FinishReason.LENGTH, "", 1, 0, 3, 0.0, 0.0, 0.0, 0.0, None)
FOREVER_SECONDS = 1e6


def token(token_id: int, finished: Finished | None = None) -> Update:
    return Update(0, chr(token_id), (token_id,), finished)


async def test_the_first_delta_comes_at_once_the_rest_with_the_end() -> None:
    stream = AnswerStream(FOREVER_SECONDS)
    stream.push(token(65))
    assert await stream.next() == Delta("A", (65,), 0)
    waiting = asyncio.create_task(stream.next())
    for update in (token(66), token(67)):
        stream.push(update)
        await asyncio.sleep(0)
    assert not waiting.done()
    stream.push(token(68, FINISHED))
    assert await waiting == Delta("BCD", (66, 67, 68), 1)
    assert await stream.next() == FINISHED


async def test_without_a_window_every_delta_comes_at_once() -> None:
    stream = AnswerStream(0)
    for token_id in (65, 66):
        stream.push(token(token_id))
        assert (await stream.next()) == Delta(chr(token_id), (token_id,), token_id - 65)


async def test_a_slow_client_gets_one_larger_delta() -> None:
    stream = AnswerStream(0)
    for _ in range(1000):
        stream.push(token(65))
    stream.push(Update(0, "", (), FINISHED))
    assert await stream.next() == Delta("A" * 1000, (65,) * 1000, 0)
    assert await stream.next() == FINISHED


async def test_a_window_lets_a_delta_through_when_it_ends() -> None:
    stream = AnswerStream(0.01)
    stream.push(token(65))
    await stream.next()
    stream.push(token(66))
    assert await stream.next() == Delta("B", (66,), 1)


async def test_a_failed_answer_gives_what_it_has_and_then_raises() -> None:
    stream = AnswerStream(FOREVER_SECONDS)
    stream.push(token(65))
    stream.push(Update(0, "", (), None, failed=True))
    assert await stream.next() == Delta("A", (65,), 0)
    with pytest.raises(DecodingError):
        await stream.next()


async def test_a_handover_keeps_order_and_wakes_the_loop_once() -> None:
    received: list[int] = []
    wakes = 0
    done = asyncio.Event()

    def receive(updates: list[Update]) -> None:
        nonlocal wakes
        wakes += 1
        received.extend(update.token_ids[0] for update in updates)
        if len(received) == 100:
            done.set()

    handover = Handover(asyncio.get_running_loop(), receive)  # type: ignore[arg-type]

    def decode() -> None:
        for token_id in range(100):
            handover([token(token_id)])
            handover([])

    thread = threading.Thread(target=decode)
    thread.start()
    thread.join()  # the loop has been held up all the while
    await done.wait()
    assert received == list(range(100))
    assert wakes == 1
