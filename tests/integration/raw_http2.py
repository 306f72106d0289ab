"""A gRPC client that says itself how much it reads, byte by byte: frames of RFC 9113 and RFC 7541 by hand."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4
STREAM = 1


class RawCall:
    """One call over a connection of its own. The server may send `window` bytes of it before any are granted."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.received = b""
        self.ended = False

    def begin(self, path: str, message: bytes, window: int, headers: Mapping[str, str]) -> None:
        fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "test"}
        fields |= {"te": "trailers", "content-type": "application/grpc"} | headers
        self._writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self._send(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, window))
        self._send(HEADERS, END_HEADERS, STREAM, b"".join(_literal(*field) for field in fields.items()))
        self._send(DATA, END_STREAM, STREAM, b"\0" + struct.pack(">I", len(message)) + message)

    async def read(self, count: int) -> bool:
        """Reads until `count` bytes of the answer are here, or it has ended; whether they are here."""
        while len(self.received) < count and not self.ended:
            kind, flags, stream, payload = await self._frame()
            if kind in (SETTINGS, PING) and not flags & ACK:
                self._send(kind, ACK, 0, payload if kind == PING else b"")
            elif stream == STREAM:
                self.received += payload if kind == DATA else b""
                self.ended = kind == RST_STREAM or (kind in (DATA, HEADERS) and bool(flags & END_STREAM))
        return len(self.received) >= count

    def grant(self, count: int) -> None:
        """Lets the server send so many bytes more."""
        for stream in (0, STREAM):
            self._send(WINDOW_UPDATE, 0, stream, struct.pack(">I", count))

    def messages(self) -> list[bytes]:
        """The messages that are complete."""
        found, rest = [], self.received
        while len(rest) >= 5 and len(rest) >= 5 + (size := int.from_bytes(rest[1:5])):
            found.append(rest[5 : 5 + size])
            rest = rest[5 + size :]
        return found

    def vanish(self) -> None:
        """Resets the connection without a word."""
        raw: socket.socket = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def _frame(self) -> tuple[int, int, int, bytes]:
        head = await self._reader.readexactly(9)
        payload = await self._reader.readexactly(int.from_bytes(head[:3]))
        return head[3], head[4], int.from_bytes(head[5:]), payload

    def _send(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self._writer.write(len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload)


@asynccontextmanager
async def raw_call(
    address: str, path: str, message: bytes, window: int, headers: Mapping[str, str] | None = None
) -> AsyncIterator[RawCall]:
    """A call of `path`, under way."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    call = RawCall(reader, writer)
    call.begin(path, message, window, headers or {})
    try:
        yield call
    finally:
        writer.transport.abort()


def _literal(name: str, value: str) -> bytes:
    """A header field that enters no table, by RFC 7541, section 6.2.2; below 127 bytes each."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
