"""`python -m router` with a grid that refuses its token: it serves, says so once, and never says the token."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from tests.common.carbon.grid_api import TOKEN, GridApi, said
from tests.integration.test_router_process import environment


async def test_a_token_that_is_refused_is_in_no_line(tmp_path: Path) -> None:
    async with GridApi(lambda asked: said({"error": asked.headers["auth-token"]}, 401)) as grid:
        settings = {
            "PITH_ROUTER_INTENSITY": "electricitymaps:DE",
            "PITH_ROUTER_ELECTRICITY_MAPS_TOKEN": TOKEN,
            "PITH_ROUTER_ELECTRICITY_MAPS_URL": grid.url,
            "PITH_ROUTER_LOG_LEVEL": "debug",
        }
        router = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "router", env=environment(tmp_path, **settings), stderr=asyncio.subprocess.PIPE
        )
        try:
            assert router.stderr is not None
            lines: list[str] = []
            while not all(
                any(event in line for line in lines) for event in ('"listening"', '"no fresh carbon intensity')
            ):
                line = await router.stderr.readline()
                assert line, lines
                lines.append(line.decode())
            router.terminate()
            lines += (await router.stderr.read()).decode().splitlines()
        finally:
            if router.returncode is None:
                router.kill()
            await router.wait()
    events = [json.loads(line) for line in lines]
    (said_so,) = (event for event in events if "carbon intensity" in event["event"])
    assert (said_so["level"], said_so["fault"]) == ("warning", "HTTP 401: the token is not accepted for this")
    assert [asked.headers["auth-token"] for asked in grid.asked] == [TOKEN]
    assert TOKEN not in "".join(lines)
    assert not any("HTTP Request" in line for line in lines)
