"""Log lines: one JSON object each, in UTC, under the request's id, and never with what people or models wrote."""

import json
import logging as stdlib
from collections.abc import Iterator
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
import structlog

from common.auth import Principal, RequestContext, Role, enter_request
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


def test_a_traceback_has_no_values_of_local_variables(out: StringIO) -> None:
    def fail() -> None:
        prompt = "my " + "secret"
        raise KeyError(len(prompt))

    try:
        fail()
    except KeyError:
        structlog.get_logger().exception("failed")
    (line,) = lines(out)
    assert "KeyError: 9" in line["exception"] and "my secret" not in out.getvalue()


def test_the_standard_librarys_loggers_come_out_the_same_way(out: StringIO) -> None:
    try:
        raise OSError("no disk")
    except OSError:
        stdlib.getLogger("alembic").warning("migrating %s", "now", exc_info=True)
    (line,) = lines(out)
    assert (line["event"], line["level"], line["service"]) == ("migrating now", "warning", "router")
    assert "OSError: no disk" in line["exception"]


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
