"""A client of JSON over HTTP that nothing the other side does can hurt: time, size and shape are bounded."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import NoReturn

import httpx2

from common.carbon.source import SourceError

MAX_BODY_BYTES = 2 << 20
"""Two weeks of a region's half-hours with their generation mix are 0.5 MB."""
MAX_RETRY_AFTER_SECONDS = 24 * 3600.0
_NONE: Mapping[str, str] = MappingProxyType({})

# It has a line for every request; an outage is worth one, and that is the poller's.
logging.getLogger("httpx2").setLevel(logging.WARNING)


class JsonApi:
    """GETs under one base URL.

    Args:
        headers: Sent with every request; may hold a token, which appears nowhere else.
        timeout_seconds: Wall time for a whole answer.
    """

    def __init__(self, base_url: str, timeout_seconds: float, headers: Mapping[str, str] = _NONE) -> None:
        self._base_url = base_url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        # What is compressed could be any size once it is not.
        self._headers = {"accept": "application/json", "accept-encoding": "identity", "user-agent": "pith", **headers}
        self._client: httpx2.AsyncClient | None = None

    async def get(self, path: str, now: datetime, parameters: Mapping[str, str] = _NONE) -> object:
        """The answer's JSON. `now` is what a Retry-After with a date is held against.

        Raises SourceError.
        """
        try:
            # httpx has time-outs for each read alone: an answer that drips could take for ever.
            async with asyncio.timeout(self._timeout_seconds):
                body = await self._body(path, now, parameters)
        except (TimeoutError, httpx2.TimeoutException):
            raise SourceError("timeout", f"no answer within {self._timeout_seconds:g} s") from None
        except httpx2.HTTPError as error:
            raise SourceError("failed", f"cannot be reached ({type(error).__name__})") from None
        try:
            # Off the loop: a body at the limit takes a while.
            return await asyncio.to_thread(json.loads, body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise SourceError("malformed", "the answer is not JSON") from None

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _body(self, path: str, now: datetime, parameters: Mapping[str, str]) -> bytes:
        if self._client is None:
            self._client = httpx2.AsyncClient(
                headers=self._headers, timeout=self._timeout_seconds, follow_redirects=False
            )
        async with self._client.stream("GET", self._base_url + path, params=dict(parameters)) as response:
            _check_status(response, now)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise SourceError("malformed", "the answer is compressed, which was not asked for")
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise SourceError("malformed", f"the answer is larger than {MAX_BODY_BYTES} bytes")
            return bytes(body)


def _check_status(response: httpx2.Response, now: datetime) -> None:
    status = response.status_code
    if status == 200:
        return
    wait = _retry_after_seconds(response.headers.get("retry-after", ""), now)
    if status == 429:
        raise SourceError("limited", "HTTP 429: too many requests", wait)
    if status >= 500:
        raise SourceError("failed", f"HTTP {status}", wait)
    if status in (401, 403):
        raise SourceError("refused", f"HTTP {status}: the token is not accepted for this", wait)
    if status == 404:
        raise SourceError("refused", "HTTP 404: no such zone, or not the API's address", wait)
    raise SourceError("refused", f"HTTP {status}", wait)


def _retry_after_seconds(value: str, now: datetime) -> float:
    """RFC 9110, 10.2.3: seconds, or a date. 0 where it is neither."""
    if value.isascii() and value.isdigit():
        seconds = float(value[:9])
    else:
        try:
            until = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return 0.0
        seconds = ((until if until.tzinfo else until.replace(tzinfo=UTC)) - now).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def _refuse_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are no JSON")
