"""Structured logs: a line of JSON (or console text) an event, in UTC, with the id of the request in hand."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import structlog

from common.auth import current_request

# What people and models wrote. An event may carry its length, never itself.
_WITHHELD = frozenset(
    {
        "answer",
        "completion",
        "content",
        "messages",
        "output",
        "prompt",
        "prompts",
        "request",
        "response",
        "text",
    }
)


def configure(
    service: str,
    level: Literal["debug", "info", "warning", "error"] = "info",
    log_format: Literal["json", "console"] = "json",
    stream: TextIO | None = None,
) -> None:
    """Sets up structlog, and the standard library's logging to come out the same way.

    Args:
        service: stands in every line.
        stream: where lines go; default stderr, so that stdout stays free for a program's results.
    """
    out = stream or sys.stderr
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _Stamp(service),
        _withhold,
    ]
    render: list[structlog.typing.Processor]
    if log_format == "json":
        # Frames without their locals: those hold prompts.
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        render = [structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback)]
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.INFO), force=True)


class _Stamp:
    """Adds the service and, while one is handled, the request's id.

    Read from the request's context rather than bound for each call: a call that logs nothing pays nothing.
    """

    def __init__(self, service: str) -> None:
        self._service = service

    def __call__(self, _logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = self._service
        request = current_request()
        if request is not None:
            event.setdefault("request_id", request.request_id)
        return event


def _withhold(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in _WITHHELD & event.keys():
        value = event[key]
        length = len(value) if hasattr(value, "__len__") else "?"
        event[key] = f"<withheld, length {length}>"
    return event
