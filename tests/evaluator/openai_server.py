"""A server on this machine that speaks as OpenAI-compatible endpoints do, and fails as they do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tests import faulty_http
from tests.faulty_http import Answer, FaultyHttp

API_KEY = "s3cret-key-of-the-judge"


@dataclass(frozen=True)
class Asked:
    path: str
    headers: Mapping[str, str]
    question: Mapping[str, Any]

    @property
    def system(self) -> str:
        return str(self.question["messages"][0]["content"])

    @property
    def user(self) -> str:
        return str(self.question["messages"][1]["content"])

    def shown(self, name: str) -> str:
        """What stands in the fence of that name, such as "ANSWER A"."""
        _, _, rest = self.user.partition(f"BEGIN {name} ")
        mark, _, rest = rest.partition("\n")
        return rest.partition(f"\nEND {name} {mark}")[0]


Reply = Answer


def says(content: object, total_tokens: object = 1_000) -> Reply:
    message = {"role": "assistant", "content": content}
    body = {"choices": [{"index": 0, "message": message}], "usage": {"total_tokens": total_tokens}}
    return Reply(body=json.dumps(body).encode())


class OpenAiServer:
    """Answers as `reply` says, and remembers what it was asked."""

    def __init__(self, reply: Callable[[Asked], Reply]) -> None:
        self.reply = reply
        self.asked: list[Asked] = []
        self._http = FaultyHttp(self._answer)
        self.came = self._http.came

    @property
    def url(self) -> str:
        return f"{self._http.url}/v1"

    async def __aenter__(self) -> OpenAiServer:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.__aexit__()

    def _answer(self, raw: faulty_http.Asked) -> Reply:
        asked = Asked(raw.path, raw.headers, json.loads(raw.body))
        self.asked.append(asked)
        return self.reply(asked)


def in_turn(replies: Iterable[Reply]) -> Callable[[Asked], Reply]:
    """One after the other; the last for good."""
    left = list(replies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def prefers(text: str) -> Callable[[Asked], Reply]:
    """A judge that likes the answer that holds this; neither where both or none do."""

    def reply(asked: Asked) -> Reply:
        held = [text in asked.shown(name) for name in ("ANSWER A", "ANSWER B")]
        return says("C" if held[0] == held[1] else "A" if held[0] else "B")

    return reply
