"""JSON over HTTP from somebody else's server, which nothing that it does can hurt: time, size and form are bounded."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from types import MappingProxyType
from typing import NoReturn

import httpx2

MAX_RETRY_AFTER_SECONDS = 24 * 3600.0
_NONE: Mapping[str, str] = MappingProxyType({})

# It has a line for every request, with the URL; an outage is worth one, and that is its caller's.
logging.getLogger("httpx2").setLevel(logging.WARNING)


class HttpFault(Enum):
    """Why there is no answer."""

    TIMEOUT = auto()
    """Not whole in time."""
    UNREACHABLE = auto()
    STATUS = auto()
    """Another than 200."""
    COMPRESSED = auto()
    """Which was not asked for."""
    TOO_LARGE = auto()
    NOT_JSON = auto()


class JsonHttpError(Exception):
    """No answer. Nothing that the other side sent is in it.

    Attributes:
        cause: The class of what broke, for UNREACHABLE.
        status: For STATUS.
        retry_after_seconds: For STATUS; how long the other side wants to be left alone, None where it does not say.
    """

    def __init__(
        self, fault: HttpFault, *, cause: str = "", status: int = 0, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(fault.name)
        self.fault = fault
        self.cause = cause
        self.status = status
        self.retry_after_seconds = retry_after_seconds


class JsonHttp:
    """Requests under one base URL, without redirects.

    Args:
        headers: Sent with every request; may hold a secret, which appears nowhere else.
        timeout_seconds: Wall time for a whole answer.
        max_body_bytes: Of an answer.
    """

    def __init__(
        self, base_url: str, timeout_seconds: float, max_body_bytes: int, headers: Mapping[str, str] = _NONE
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._max_body_bytes = max_body_bytes
        # What is compressed could be any size once it is not.
        self._headers = {"accept": "application/json", "accept-encoding": "identity", **headers}
        self._client: httpx2.AsyncClient | None = None

    async def get(self, path: str, now: datetime, parameters: Mapping[str, str] = _NONE) -> object:
        """The answer's JSON. `now` is what a Retry-After with a date is held against. Raises JsonHttpError."""
        return await self._asked("GET", path, now, parameters, None)

    async def post(self, path: str, now: datetime, document: object) -> object:
        """As `get`, of what `document` asks."""
        return await self._asked("POST", path, now, _NONE, json.dumps(document).encode())

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _asked(
        self, method: str, path: str, now: datetime, parameters: Mapping[str, str], content: bytes | None
    ) -> object:
        try:
            # httpx has time-outs for each read alone: an answer that drips could take for ever.
            async with asyncio.timeout(self._timeout_seconds):
                body = await self._body(method, path, now, parameters, content)
        except (TimeoutError, httpx2.TimeoutException):
            raise JsonHttpError(HttpFault.TIMEOUT) from None
        except httpx2.HTTPError as error:
            raise JsonHttpError(HttpFault.UNREACHABLE, cause=type(error).__name__) from None
        try:
            # Off the loop: a body at the limit takes a while.
            return await asyncio.to_thread(json.loads, body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise JsonHttpError(HttpFault.NOT_JSON) from None

    async def _body(
        self, method: str, path: str, now: datetime, parameters: Mapping[str, str], content: bytes | None
    ) -> bytes:
        if self._client is None:
            self._client = httpx2.AsyncClient(
                headers=self._headers, timeout=self._timeout_seconds, follow_redirects=False
            )
        headers = {} if content is None else {"content-type": "application/json"}
        request = self._client.stream(
            method, self._base_url + path, params=dict(parameters), content=content, headers=headers
        )
        async with request as response:
            if response.status_code != 200:
                wait = _retry_after_seconds(response.headers.get("retry-after", ""), now)
                raise JsonHttpError(HttpFault.STATUS, status=response.status_code, retry_after_seconds=wait)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise JsonHttpError(HttpFault.COMPRESSED)
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > self._max_body_bytes:
                    raise JsonHttpError(HttpFault.TOO_LARGE)
            return bytes(body)


def _retry_after_seconds(value: str, now: datetime) -> float | None:
    """RFC 9110, 10.2.3: seconds, or a date. None where it is neither."""
    if value.isascii() and value.isdigit():
        seconds = float(value[:9])
    else:
        try:
            until = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        seconds = ((until if until.tzinfo else until.replace(tzinfo=UTC)) - now).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def _refuse_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are no JSON")
