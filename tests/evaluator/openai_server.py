"""A server on this machine that speaks as OpenAI-compatible endpoints do, and fails as they do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(frozen=True)
class Reply:
    """hang: never comes. endless: goes on until the other side has had enough. cut: the line drops after the head."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: bool = False
    endless: bool = False
    cut: bool = False


def says(content: object, total_tokens: object = 1_000) -> Reply:
    message = {"role": "assistant", "content": content}
    body = {"choices": [{"index": 0, "message": message}], "usage": {"total_tokens": total_tokens}}
    return Reply(body=json.dumps(body).encode())


class OpenAiServer:
    """Answers as `reply` says, and remembers what it was asked."""

    def __init__(self, reply: Callable[[Asked], Reply]) -> None:
        self.reply = reply
        self.asked: list[Asked] = []
        self.came = asyncio.Event()
        self.url = ""
        self._server: asyncio.Server | None = None
        self._stopping = asyncio.Event()

    async def __aenter__(self) -> OpenAiServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            question = json.loads(await reader.readexactly(int(headers["content-length"])))
            asked = Asked(first.split(" ")[1], headers, question)
            self.asked.append(asked)
            self.came.set()
            reply = self.reply(asked)
            if reply.hang:
                await self._stopping.wait()
            head = [f"HTTP/1.1 {reply.status} X", "connection: close", "content-type: application/json"]
            if not reply.endless:
                head.append(f"content-length: {len(reply.body) + reply.cut}")
            head += [f"{name}: {value}" for name, value in reply.headers.items()]
            writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + reply.body)
            await writer.drain()
            while reply.endless:
                writer.write(b" " * 65536)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the other side has gone
        finally:
            writer.close()


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
