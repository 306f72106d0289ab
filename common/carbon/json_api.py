"""A grid's API, whose failures are those of a source."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType

from common.carbon.source import SourceError
from common.json_http import HttpFault, JsonHttp, JsonHttpError

MAX_BODY_BYTES = 2 << 20
"""Two weeks of a region's half-hours with their generation mix are 0.5 MB."""
_NONE: Mapping[str, str] = MappingProxyType({})


class JsonApi:
    """GETs under one base URL.

    Args:
        headers: Sent with every request; may hold a token, which appears nowhere else.
        timeout_seconds: Wall time for a whole answer.
    """

    def __init__(self, base_url: str, timeout_seconds: float, headers: Mapping[str, str] = _NONE) -> None:
        self._timeout_seconds = timeout_seconds
        self._http = JsonHttp(base_url, timeout_seconds, MAX_BODY_BYTES, {"user-agent": "pith", **headers})

    async def get(self, path: str, now: datetime, parameters: Mapping[str, str] = _NONE) -> object:
        """The answer's JSON. `now` is what a Retry-After with a date is held against.

        Raises SourceError.
        """
        try:
            return await self._http.get(path, now, parameters)
        except JsonHttpError as error:
            raise self._failure(error) from None

    async def close(self) -> None:
        await self._http.close()

    def _failure(self, error: JsonHttpError) -> SourceError:
        match error.fault:
            case HttpFault.TIMEOUT:
                return SourceError("timeout", f"no answer within {self._timeout_seconds:g} s")
            case HttpFault.UNREACHABLE:
                return SourceError("failed", f"cannot be reached ({error.cause})")
            case HttpFault.STATUS:
                return _of_status(error.status, error.retry_after_seconds or 0.0)
            case HttpFault.COMPRESSED:
                return SourceError("malformed", "the answer is compressed, which was not asked for")
            case HttpFault.TOO_LARGE:
                return SourceError("malformed", f"the answer is larger than {MAX_BODY_BYTES} bytes")
            case HttpFault.NOT_JSON:
                return SourceError("malformed", "the answer is not JSON")


def _of_status(status: int, wait_seconds: float) -> SourceError:
    if status == 429:
        return SourceError("limited", "HTTP 429: too many requests", wait_seconds)
    if status >= 500:
        return SourceError("failed", f"HTTP {status}", wait_seconds)
    if status in (401, 403):
        return SourceError("refused", f"HTTP {status}: the token is not accepted for this", wait_seconds)
    if status == 404:
        return SourceError("refused", "HTTP 404: no such zone, or not the API's address", wait_seconds)
    return SourceError("refused", f"HTTP {status}", wait_seconds)
