"""A judge behind any endpoint that speaks OpenAI's chat completions; nothing that it sends back can hurt."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime

from pydantic import SecretStr

from common.json_http import HttpFault, JsonHttp, JsonHttpError
from evaluator.judges.budget import JudgeBudget
from evaluator.judges.judge_model import Failure, JudgeError, Verdict
from evaluator.judges.judge_prompt import FIRST, SECOND, JudgePrompt

MAX_BODY_BYTES = 1 << 20
"""A reply is one letter; what describes it is a few kB."""
_MAX_OUTPUT_TOKENS = 16
# The letter alone, but for what a model may put around a word.
_CHOICE = re.compile(r"[\s\"'`*(\[]*([ABC])[\s\"'`*)\].]*")
_FAILURES = {401: Failure.REFUSED, 403: Failure.REFUSED, 404: Failure.REFUSED, 429: Failure.LIMITED}


class OpenAiJudge:
    """Asks for one letter, and takes nothing else.

    Args:
        base_url: what "/chat/completions" comes after, e.g. https://HOST/v1.
        api_key: sent as a bearer token, and appears nowhere else.
        timeout_seconds: wall time for a whole reply.
    """

    way = f"at temperature 0, within {_MAX_OUTPUT_TOKENS} tokens, {_CHOICE.pattern}"

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: SecretStr | None,
        timeout_seconds: float,
        budget: JudgeBudget,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key.get_secret_value()}"}
        self._http = JsonHttp(base_url, timeout_seconds, MAX_BODY_BYTES, headers)
        self._model = model
        self._timeout_seconds = timeout_seconds
        self._budget = budget
        self._now = now

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
        try:
            reply = await self._http.post("/chat/completions", self._now(), question)
        except JsonHttpError as error:
            if error.fault is HttpFault.NOT_JSON:  # it has said something, and that was paid for
                self._budget.spent(None, None)
            raise self._failure(error) from None
        self._budget.spent(None, _total_tokens(reply))
        match = _CHOICE.fullmatch(_content(reply))
        if match is None:
            raise JudgeError(Failure.UNPARSABLE, "its reply is none of its choices")
        return Verdict({FIRST: 1.0, SECOND: 0.0}.get(match[1], 0.5), await self.identify())

    async def close(self) -> None:
        await self._http.close()

    def _failure(self, error: JsonHttpError) -> JudgeError:
        match error.fault:
            case HttpFault.TIMEOUT:
                return JudgeError(Failure.TIMEOUT, f"no reply within {self._timeout_seconds:g} s")
            case HttpFault.UNREACHABLE:
                return JudgeError(Failure.UNREACHABLE, f"cannot be reached ({error.cause})")
            case HttpFault.STATUS:
                status = error.status
                failure = _FAILURES.get(status, Failure.UNREACHABLE if status >= 500 else Failure.REJECTED)
                return JudgeError(failure, f"it answers HTTP {status}", error.retry_after_seconds)
            case HttpFault.COMPRESSED:
                return JudgeError(Failure.MALFORMED, "its reply is compressed, which was not asked for")
            case HttpFault.TOO_LARGE:
                return JudgeError(Failure.MALFORMED, f"its reply is larger than {MAX_BODY_BYTES:,} bytes")
            case HttpFault.NOT_JSON:
                return JudgeError(Failure.MALFORMED, "its reply is not JSON")


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
