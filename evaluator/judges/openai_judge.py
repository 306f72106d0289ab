"""A judge behind any endpoint that speaks OpenAI's chat completions; nothing that it sends back can hurt."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NoReturn

import httpx2
from pydantic import SecretStr

from evaluator.judges.budget import JudgeBudget
from evaluator.judges.judge_model import Failure, JudgeError, Verdict
from evaluator.judges.judge_prompt import FIRST, SECOND, JudgePrompt

MAX_BODY_BYTES = 1 << 20
"""A reply is one letter; what describes it is a few kB."""
_MAX_OUTPUT_TOKENS = 16
_MAX_RETRY_AFTER_SECONDS = 24 * 3600.0
# The letter alone, but for what a model may put around a word.
_CHOICE = re.compile(r"[\s\"'`*(\[]*([ABC])[\s\"'`*)\].]*")
_FAILURES = {401: Failure.REFUSED, 403: Failure.REFUSED, 404: Failure.REFUSED, 429: Failure.LIMITED}

# It has a line for every request, with the URL.
logging.getLogger("httpx2").setLevel(logging.WARNING)


class OpenAiJudge:
    """Asks for one letter, and takes nothing else.

    Args:
        base_url: what "/chat/completions" comes after, e.g. https://HOST/v1.
        api_key: sent as a bearer token, and appears nowhere else.
        timeout_seconds: wall time for a whole reply.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: SecretStr | None,
        timeout_seconds: float,
        budget: JudgeBudget,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._model = model
        self._api_key = api_key
        self._timeout_seconds = timeout_seconds
        self._budget = budget
        self._now = now
        self._client: httpx2.AsyncClient | None = None

    async def identify(self) -> str:
        return f"openai:{self._model}"

    async def choose(self, prompt: JudgePrompt) -> Verdict:
        question = {
            "model": self._model,
            "messages": [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}],
            "temperature": 0,
            "max_tokens": _MAX_OUTPUT_TOKENS,
        }
        self._budget.take()
        body = await self._posted(json.dumps(question).encode())
        try:
            # Off the loop: a body at the limit takes a while.
            reply = await asyncio.to_thread(json.loads, body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            self._budget.spent(None, None)
            raise JudgeError(Failure.MALFORMED, "its reply is not JSON") from None
        self._budget.spent(None, _total_tokens(reply))
        match = _CHOICE.fullmatch(_content(reply))
        if match is None:
            raise JudgeError(Failure.UNPARSABLE, "its reply is none of its choices")
        return Verdict({FIRST: 1.0, SECOND: 0.0}.get(match[1], 0.5), await self.identify())

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _posted(self, question: bytes) -> bytes:
        try:
            # httpx has time-outs for each read alone: a reply that drips could take for ever.
            async with asyncio.timeout(self._timeout_seconds):
                return await self._body(question)
        except (TimeoutError, httpx2.TimeoutException):
            raise JudgeError(Failure.TIMEOUT, f"no reply within {self._timeout_seconds:g} s") from None
        except httpx2.HTTPError as error:
            raise JudgeError(Failure.UNREACHABLE, f"cannot be reached ({type(error).__name__})") from None

    async def _body(self, question: bytes) -> bytes:
        if self._client is None:
            self._client = httpx2.AsyncClient(timeout=self._timeout_seconds, follow_redirects=False)
        # What is compressed could be any size once it is not.
        headers = {"accept": "application/json", "accept-encoding": "identity", "content-type": "application/json"}
        if self._api_key is not None:
            headers["authorization"] = f"Bearer {self._api_key.get_secret_value()}"
        async with self._client.stream("POST", self._url, content=question, headers=headers) as response:
            self._check_status(response)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise JudgeError(Failure.MALFORMED, "its reply is compressed, which was not asked for")
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise JudgeError(Failure.MALFORMED, f"its reply is larger than {MAX_BODY_BYTES:,} bytes")
            return bytes(body)

    def _check_status(self, response: httpx2.Response) -> None:
        status = response.status_code
        if status == 200:
            return
        failure = _FAILURES.get(status, Failure.UNREACHABLE if status >= 500 else Failure.REJECTED)
        wait = _retry_after_seconds(response.headers.get("retry-after", ""), self._now())
        raise JudgeError(failure, f"it answers HTTP {status}", wait)


def _content(reply: object) -> str:
    """The reply's text. Raises JudgeError."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise JudgeError(Failure.MALFORMED, "its reply has no choices[0].message")
    content = message.get("content")
    if content is None:
        raise JudgeError(Failure.UNPARSABLE, "it says nothing")
    if not isinstance(content, str):
        raise JudgeError(Failure.MALFORMED, "its reply's content is no text")
    return content


def _total_tokens(reply: object) -> int | None:
    """Of prompt and reply, None where it does not tell."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens < 2**31 else None


def _retry_after_seconds(value: str, now: datetime) -> float | None:
    """RFC 9110, 10.2.3: seconds, or a date; None where it is neither."""
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), _MAX_RETRY_AFTER_SECONDS)
    try:
        until = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    seconds = ((until if until.tzinfo else until.replace(tzinfo=UTC)) - now).total_seconds()
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_SECONDS)


def _refuse_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are no JSON")
