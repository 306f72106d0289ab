"""`pithctl chat`."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pith.common.v1.energy_pb2 import ENERGY_SOURCE_MODELLED, Carbon, Energy, Intensity
from pith.common.v1.text_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP, Delta, Usage
from pith.router.v1.generation_pb2 import (
    DECISION_REASON_PLANNED,
    Decision,
    Finished,
    GenerateRequest,
    Started,
    StreamGenerateResponse,
)

from common.errors import unavailable
from tests.router.cli.conftest import Pithctl
from tests.router.cli.fake_services import FakeServices, wait_for_cancel


def _events(*pieces: str, finished: Finished | None = None, model: str = "") -> Iterator[StreamGenerateResponse]:
    decision = Decision(directive="L1", reason=DECISION_REASON_PLANNED, model=model)
    yield StreamGenerateResponse(started=Started(request_id="r", decision=decision))
    for piece in pieces:
        yield StreamGenerateResponse(delta=Delta(text=piece))
    yield StreamGenerateResponse(finished=finished or Finished(reason=FINISH_REASON_STOP))


def _turns(request: GenerateRequest) -> list[tuple[int, str]]:
    return [(message.role, message.content) for message in request.messages]


def test_once_asks_one_thing(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.answer = lambda request, context: _events("It is ", "[bold]42[/].")
    arguments = ("--once", "What is 6*7?", "--task", "sums", "--tenant", "acme", "--model", "m", "--system", "Calm.")
    result = pithctl("chat", *arguments, "--opt-out")
    assert result.code == 0
    assert result.out.splitlines()[0] == "It is [bold]42[/]."
    sent = fake.called("StreamGenerate")[0]
    assert (sent.task, sent.tenant, sent.model, sent.opt_out) == ("sums", "acme", "m", True)
    assert _turns(sent) == [(1, "Calm."), (2, "What is 6*7?")]


def test_line_after_an_answer_tells_directive_tokens_energy_and_carbon(pithctl: Pithctl, fake: FakeServices) -> None:
    finished = Finished(
        reason=FINISH_REASON_LENGTH,
        usage=Usage(prompt_tokens=1200, output_tokens=34),
        energy=Energy(joules=0.75, source=ENERGY_SOURCE_MODELLED),
        carbon=Carbon(operational_grams=4e-5, embodied_grams=2e-5, intensity=Intensity(g_per_kwh=192.4)),
    )
    fake.answer = lambda request, context: _events("x", finished=finished)
    assert pithctl("chat", "--once", "?").out.splitlines()[1] == (
        "L1, planned · 1,200 + 34 tokens · 750 mJ modelled · 60 µg CO2e at 192 g/kWh · cut at the token limit"
    )


def test_another_model_that_answered_is_named(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.answer = lambda request, context: _events("x", model="tiny@0123456789ab")
    assert "L1, planned · by tiny@0123456789ab · " in pithctl("chat", "--once", "?").out


def test_unknown_energy_is_said(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.answer = lambda request, context: _events("x")
    assert "energy unknown · CO2e unknown" in pithctl("chat", "--once", "?").out


def test_conversation_keeps_its_turns_and_its_id(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.answer = lambda request, context: _events(f"answer {len(request.messages)}")
    result = pithctl("chat", stdin="first\n\n  second  \nthird\n")
    assert result.code == 0
    sent = fake.called("StreamGenerate")
    assert _turns(sent[2]) == [(2, "first"), (3, "answer 1"), (2, "second"), (3, "answer 3"), (2, "third")]
    assert len({request.conversation_id for request in sent}) == 1
    assert sent[0].conversation_id
    pithctl("chat", stdin="hello\n")
    assert fake.called("StreamGenerate")[3].conversation_id != sent[0].conversation_id


def test_json_is_a_line_an_answer(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.answer = lambda request, context: _events("two\n", "lines")
    first, second = pithctl("chat", "--json", stdin="a\nb\n").lines
    assert first["text"] == second["text"] == "two\nlines"
    assert first["started"]["decision"] == {
        **first["started"]["decision"],
        "directive": "L1",
        "reason": "planned",
        "bound": None,
    }
    assert first["finished"]["energy"] is None
    assert first["finished"]["reason"] == "stop"


def test_failed_turn_is_told_and_left_out_of_the_conversation(pithctl: Pithctl, fake: FakeServices) -> None:
    def answer(request: GenerateRequest, context: Any) -> Iterator[StreamGenerateResponse]:
        events = _events("half an answer")
        yield next(events)
        yield next(events)
        if request.messages[-1].content == "bad":
            raise unavailable("ENGINE_LOST", "the engine was lost", 2.0)
        yield from events

    fake.answer = answer
    result = pithctl("chat", stdin="bad\ngood\n")
    assert result.code == 0
    assert "Error: the engine was lost" in result.err
    assert "try again in 2 s" in result.err
    assert _turns(fake.called("StreamGenerate")[1]) == [(2, "good")]
    once = pithctl("chat", "--once", "bad", "--json")
    assert once.code == 5
    assert once.error["reason"] == "ENGINE_LOST"
    assert once.out == ""


def test_answer_cannot_steer_the_terminal(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.answer = lambda request, context: _events("a\x1b]0;owned\x07b\r\n")
    said = pithctl("chat", "--once", "?").out
    assert said.startswith("a�]0;owned�b�\n")


@pytest.fixture
def answer_until_cancelled(fake: FakeServices) -> threading.Event:
    """ "long" gets one piece and no end; set once the client has cancelled it."""
    cancelled = threading.Event()

    def answer(request: GenerateRequest, context: Any) -> Iterator[StreamGenerateResponse]:
        events = _events("piece")
        if request.messages[-1].content == "long":
            context.add_callback(cancelled.set)
            yield next(events)
            yield next(events)
            wait_for_cancel(fake, context)
            return
        yield from events

    fake.answer = answer
    return cancelled


@contextmanager
def _chat(environment: dict[str, str], *arguments: str) -> "Iterator[subprocess.Popen[str]]":
    """Until the block ends, whatever it then waits for."""
    command = [sys.executable, "-m", "router.cli.main", "chat", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def test_interrupt_cancels_the_answer_and_the_conversation_goes_on(
    environment: dict[str, str], fake: FakeServices, answer_until_cancelled: threading.Event
) -> None:
    with _chat(environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("long\n")
        process.stdin.flush()
        assert process.stdout.read(5) == "piece"
        process.send_signal(signal.SIGINT)
        assert answer_until_cancelled.wait(30)
        out, err = process.communicate("short\n", timeout=30)
    assert process.returncode == 0
    assert "Cancelled" in err
    assert "piece" in out
    assert _turns(fake.called("StreamGenerate")[1]) == [(2, "short")]


def test_interrupt_ends_a_single_question(
    environment: dict[str, str], fake: FakeServices, answer_until_cancelled: threading.Event
) -> None:
    with _chat(environment, "--once", "long") as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == "piece"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert answer_until_cancelled.wait(30)
    assert "Traceback" not in err
