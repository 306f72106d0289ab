"""Structured logs: a line of JSON (or console text) an event, in UTC, with the id of the request in hand."""

import json
import logging
import sys
import threading
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, Literal, TextIO, cast

import structlog

from common.auth import current_request
from common.tracebacks import safe_traceback

# What people and models wrote. An event may carry its length, never itself.
_WITHHELD = frozenset(
    {
        "answer",
        "comment",
        "completion",
        "content",
        "messages",
        "output",
        "prompt",
        "prompts",
        "reference",
        "request",
        "response",
        "stop",
        "suppressed_words",
        "text",
    }
)
_JSON = json.JSONEncoder(default=str)


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
        _describe_exception,
    ]
    console = structlog.dev.ConsoleRenderer(colors=out.isatty())
    render: structlog.typing.Processor = _render_json if log_format == "json" else console
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Unfailing(out))),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    handler.addFilter(_drop_what_asyncio_quotes)
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.INFO), force=True)


def log_uncaught() -> None:
    """Has exceptions that nothing catches logged as all others are; Python's own report has their message."""
    log = structlog.get_logger("uncaught")

    def of_main(_kind: type[BaseException], error: BaseException, _frames: TracebackType | None) -> None:
        log.critical("uncaught exception", exc_info=error)

    def of_thread(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, SystemExit):
            name = args.thread.name if args.thread else ""
            log.critical("uncaught exception", thread=name, exc_info=args.exc_value)

    sys.excepthook = of_main
    threading.excepthook = of_thread
    sys.unraisablehook = lambda raised: log.error("exception ignored", exc_info=raised.exc_value)


class _Unfailing:
    """A line that cannot be written, on a full disk for one, is lost: it must not take with it what it speaks of."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    # Each call writes a line, and `contextlib.suppress` takes longer than the rest of this.
    def write(self, line: str) -> None:
        try:  # noqa: SIM105
            self._stream.write(line)
        except OSError:
            pass

    def flush(self) -> None:
        try:  # noqa: SIM105
            self._stream.flush()
        except OSError:
            pass


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


def _describe_exception(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    given = event.pop("exc_info", None)
    error = sys.exc_info()[1] if given is True else given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        event["exception"] = safe_traceback(error)
    return event


def _drop_what_asyncio_quotes(record: logging.LogRecord) -> bool:
    """asyncio's messages quote a task's exception and a callback's arguments; the exception itself comes with them."""
    if record.name == "asyncio" and record.levelno >= logging.ERROR:
        record.msg = "a task or a callback failed" if record.exc_info else record.getMessage().partition("\n")[0]
        record.args = ()
    return True


def _render_json(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> str:
    return _JSON.encode(event)


def _withhold(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if _WITHHELD.isdisjoint(event):
        return event
    for key in _WITHHELD & event.keys():
        value = event[key]
        length = len(value) if hasattr(value, "__len__") else "?"
        event[key] = f"<withheld, length {length}>"
    return event
