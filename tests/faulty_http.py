"""A server on this machine that answers HTTP as a test says, and fails as servers do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True)
class Asked:
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """hang: never comes to an end. drips: a byte now and then, for ever. endless: goes on until the other side has had
    enough. cut: the line drops before the end."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: bool = False
    drips: bool = False
    endless: bool = False
    cut: bool = False


class FaultyHttp:
    """Answers as `answer` says, and remembers what it was asked."""

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.came = asyncio.Event()
        self.url = ""
        self._server: asyncio.Server | None = None
        self._stopping = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            target = urlsplit(first.split(" ")[1])
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            asked = Asked(target.path, dict(parse_qsl(target.query)), headers, body)
            self.asked.append(asked)
            self.came.set()
            answer = self.answer(asked)
            head = [f"HTTP/1.1 {answer.status} X", "connection: close", "content-type: application/json"]
            if not (answer.hang or answer.drips or answer.endless):
                head.append(f"content-length: {len(answer.body) + answer.cut}")
            head += [f"{name}: {value}" for name, value in answer.headers.items()]
            writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + answer.body)
            await writer.drain()
            while answer.endless or answer.drips:
                writer.write(b" " if answer.drips else b" " * 65536)
                await writer.drain()
                await asyncio.sleep(0.01 if answer.drips else 0)
            if answer.hang:
                await self._stopping.wait()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the other side has gone
        finally:
            writer.close()
