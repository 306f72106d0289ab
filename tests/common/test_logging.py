"""Log lines: one JSON object each, in UTC, under the request's id, and never with what people or models wrote."""

import asyncio
import gc
import json
import logging as stdlib
import subprocess
import sys
from collections.abc import Iterator
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
import structlog

from common.auth import Principal, RequestContext, Role, enter_request
from common.errors import unavailable
from common.logging import configure


@pytest.fixture
def out() -> Iterator[StringIO]:
    stream = StringIO()
    configure("router", "info", stream=stream)
    yield stream
    structlog.reset_defaults()
    stdlib.basicConfig(handlers=[stdlib.NullHandler()], force=True)


def lines(out: StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_has_service_level_and_a_moment_in_utc(out: StringIO) -> None:
    structlog.get_logger().info("planned", classes=4)
    (line,) = lines(out)
    moment = datetime.fromisoformat(line.pop("timestamp"))
    assert line == {"event": "planned", "classes": 4, "level": "info", "service": "router"}
    assert abs(datetime.now(UTC) - moment) < timedelta(minutes=1)


def test_what_is_below_the_level_is_dropped(out: StringIO) -> None:
    structlog.get_logger().debug("detail")
    stdlib.getLogger("x").debug("detail")
    assert lines(out) == []


def test_a_line_carries_the_id_of_the_request_in_hand(out: StringIO) -> None:
    def handle() -> None:
        enter_request(RequestContext("r-1", Principal("shop", Role.CLIENT, "acme")))
        structlog.get_logger().info("inside")

    copy_context().run(handle)
    structlog.get_logger().info("outside")
    inside, outside = lines(out)
    assert inside["request_id"] == "r-1" and "request_id" not in outside


@pytest.mark.parametrize("key", ["prompt", "messages", "text", "answer", "completion"])
def test_what_people_and_models_wrote_is_withheld(out: StringIO, key: str) -> None:
    structlog.get_logger().info("odd", **{key: "my secret"})
    (line,) = lines(out)
    assert line[key] == "<withheld, length 9>"


def secret() -> str:
    """Not to be found in a line of source, which tracebacks show."""
    return "-".join(("my", "secret"))


def test_an_exception_is_type_frames_and_causes_without_what_it_quotes(out: StringIO) -> None:
    def parse() -> None:
        raise KeyError(secret())

    def answer() -> None:
        try:
            parse()
        except KeyError as error:
            raise ValueError(f"cannot read {secret()}") from error

    try:
        answer()
    except ValueError as error:
        error.add_note(secret())
        structlog.get_logger().exception("failed")
    (line,) = lines(out)
    told = line["exception"]
    assert told.index("in parse") < told.index("KeyError: (message withheld)") < told.index("is the cause of")
    assert told.index("is the cause of") < told.rindex("in answer") < told.index("ValueError: (message withheld)")
    assert "test_logging.py" in told and "raise KeyError(secret())" in told
    assert secret() not in out.getvalue()


def test_an_exception_while_another_is_handled_and_a_group_are_told_whole(out: StringIO) -> None:
    try:
        try:
            raise KeyError(secret())
        except KeyError:
            raise ExceptionGroup(secret(), [TypeError(secret()), RuntimeError(secret())])  # noqa: B904
    except ExceptionGroup:
        structlog.get_logger().exception("failed")
    (line,) = lines(out)
    parts = [
        "KeyError:",
        "during the handling of which",
        "ExceptionGroup:",
        "of which 1",
        "TypeError:",
        "RuntimeError:",
    ]
    places = [line["exception"].index(part) for part in parts]
    assert places == sorted(places)
    assert secret() not in out.getvalue()


def test_messages_that_hold_no_text_of_anyones_are_told(out: StringIO) -> None:
    for error in (unavailable("DATABASE", "the database does not answer"), OSError(28, "No space left", secret())):
        try:
            raise error
        except Exception:
            structlog.get_logger().exception("failed")
    database, disk = (line["exception"] for line in lines(out))
    assert database.endswith("PithError: UNAVAILABLE DATABASE: the database does not answer")
    assert disk.endswith("OSError: [Errno 28] No space left")


def test_the_standard_librarys_loggers_come_out_the_same_way(out: StringIO) -> None:
    try:
        raise OSError(secret())
    except OSError:
        stdlib.getLogger("alembic").warning("migrating %s", "now", exc_info=True)
    (line,) = lines(out)
    assert (line["event"], line["level"], line["service"]) == ("migrating now", "warning", "router")
    assert "OSError: (message withheld)" in line["exception"]
    assert secret() not in out.getvalue()


async def test_what_asyncio_says_of_a_task_that_nobody_awaits_quotes_nothing(out: StringIO) -> None:
    async def fail() -> None:
        raise ValueError(secret())

    task = asyncio.create_task(fail())
    await asyncio.wait({task})
    del task
    gc.collect()
    asyncio.get_running_loop().call_exception_handler({"message": "odd state\nmore", "value": secret()})
    failed, odd = lines(out)
    assert failed["event"] == "a task or a callback failed" and "in fail" in failed["exception"]
    assert odd["event"] == "odd state"
    assert secret() not in out.getvalue()


UNCAUGHT = """
import sys, threading
from common.logging import configure, log_uncaught
configure("router")
log_uncaught()
secret = "-".join(("my", "secret"))
def fail(): raise ValueError(secret)
class Fails:
    def __del__(self): fail()
Fails()
thread = threading.Thread(target=fail, name="decode")
thread.start()
thread.join()
fail()
"""


def test_what_nothing_catches_is_logged_alike() -> None:
    done = subprocess.run([sys.executable, "-c", UNCAUGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    ignored, thread, main = map(json.loads, done.stderr.splitlines())
    assert (ignored["event"], thread["event"], main["event"]) == ("exception ignored", *["uncaught exception"] * 2)
    assert thread["thread"] == "decode"
    assert all("in fail" in line["exception"] and "ValueError" in line["exception"] for line in (ignored, thread, main))
    assert secret() not in done.stdout + done.stderr


def test_values_that_json_lacks_are_written_as_text(out: StringIO) -> None:
    structlog.get_logger().info("odd", role=Role.ADMIN, when=datetime(2026, 7, 1, tzinfo=UTC))
    (line,) = lines(out)
    assert (line["role"], line["when"]) == ("admin", "2026-07-01 00:00:00+00:00")


def test_the_console_format_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    stream = StringIO()
    configure("router", log_format="console", stream=stream)
    structlog.get_logger().info("planned", classes=4)
    structlog.reset_defaults()
    assert "planned" in stream.getvalue() and "classes=4" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


class FullDisk(StringIO):
    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_full_disk_under_the_log_fails_nobody() -> None:
    configure("router", "info", stream=FullDisk())
    structlog.get_logger().error("outbox cannot be written")
    structlog.reset_defaults()
    stdlib.basicConfig(handlers=[stdlib.NullHandler()], force=True)
