"""A server of the echo service on a free port."""

from collections.abc import AsyncIterator
from io import StringIO
from typing import Any

import grpc
import pytest
import structlog

from common import logging
from common.auth import Authenticator, TokenEntry
from common.config import ServiceConfig
from common.grpc_server import GrpcServer
from common.metrics import Metrics
from tests.common.echo_server import ECHO, ROLES, Echo, Serve, Served


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    opened: list[Served] = []

    async def serve(echo: Echo, tokens: list[TokenEntry] | None = None, **config: Any) -> Served:
        log = StringIO()
        logging.configure("test", "debug", stream=log)
        metrics = Metrics("test")
        server = GrpcServer(ServiceConfig(**config), Authenticator(tokens), metrics)
        server.add(echo, ECHO, roles=ROLES, watches={"Watch"})
        port = await server.start()
        await server.set_serving(True)
        channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{port}",
            options=[
                ("grpc.max_receive_message_length", 32 << 20),
                ("grpc.max_send_message_length", 32 << 20),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        opened.append(Served(server, channel, metrics, log))
        return opened[-1]

    yield serve
    for served in opened:
        await served.channel.close()
        await served.server.drain(grace_seconds=0)
    structlog.reset_defaults()
