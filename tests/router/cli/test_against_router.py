"""Every command against a router that is one, so that the fake services cannot be wrong unnoticed."""

import asyncio
from typing import Any

from structlog.testing import capture_logs

from tests.router.cli.conftest import Pithctl, Result
from tests.router.running import Running


async def test_every_command(pithctl: Pithctl, router: Running) -> None:
    # The router's log lines would stand among the output, as both are of this process.
    with capture_logs():

        async def run(*arguments: str, code: int = 0) -> Result:
            result = await asyncio.to_thread(pithctl, "--router", router.address, *arguments)
            assert result.code == code, result
            return result

        async def document(*arguments: str) -> Any:
            return (await run(*arguments, "--json")).document

        await run("directive", "create", "terse", "--text", "Be [terse]", "--stop", "END", "--reason", "try")
        updated = await document("directive", "update", "terse", "--text", "Be terser", "--max-output-tokens", "9")
        assert (updated["text"], updated["max_output_tokens"], updated["stop"]) == ("Be terser", 9, ["END"])
        stale = ["directive", "update", "terse", "--text", "x", "--etag", '"0"', "--json"]
        assert (await run(*stale, code=4)).error["reason"] == "ETAG_MISMATCH"
        assert {d["name"] for d in (await document("directive", "list"))["directives"]} == {"L0", "L1", "L2", "terse"}

        faulty = await run("policy", "create", "qa", "--floor", "7", "--directive", "L9", code=2)
        assert "(--floor)" in faulty.err
        assert "(--directive)" in faulty.err
        created = ["policy", "create", "qa", "--task", "qa", "--mode", "on", "--floor", "0.9", "--directive", "L1"]
        await run(*created, "--directive", "terse", "--holdback-share", "0", "--bound-max-age", "1d", "--reason", "r1")
        await run(*created, code=4)
        await run("policy", "show", "qa")
        assert (await document("policy", "update", "qa", "--floor", "0.8", "--reason", "r2"))["revision"] == 2
        in_use = await run("directive", "delete", "terse", "--yes", code=4)
        assert "pithctl policy update" in in_use.err
        assert (await document("policy", "rollback", "qa", "1", "--reason", "r3"))["floor"] == 0.9
        history = (await document("policy", "history", "qa"))["revisions"]
        assert [revision["reason"] for revision in history] == ["r3", "r2", "r1"]
        assert "qa" in (await run("policy", "list")).out

        closed = await document("explain", "--task", "qa", "--prompt", "Why?")
        assert closed["decision"]["reason"] == "none_open"
        await router.open("L1")
        opened = await document("explain", "--task", "qa", "--prompt", "Why?")
        assert {c["directive"]: c["open"] for c in opened["candidates"]} == {"L0": True, "L1": True, "terse": False}
        assert "--floor" in (await run("explain", "--floor", "2", code=2)).err

        bounds = (await run("quality", "--evaluator", "127.0.0.1:1")).out
        assert "open for qa (90 %)" in bounds
        assert (await document("engines"))["engines"][0]["state"] == "ready"

        answers = await asyncio.to_thread(
            pithctl, "chat", "--task", "qa", "--json", "--router", router.address, stdin="one\ntwo\n"
        )
        assert [answer["finished"]["reason"] for answer in answers.lines] == ["stop", "stop"]
        assert answers.lines[1]["finished"]["usage"]["prompt_tokens"] > 0
        assert (await run("chat", "--once", "Hello")).out.count("tokens") == 1
        await run("chat", "--once", "Hello", "--model", "nobody", code=3)

        await router.router.ledger.flush()
        await router.clock.advance(1)
        by_task = (await document("report", "--by", "task", "--from", "-1h"))["rows"]
        assert {row["task"]: row["requests"] for row in by_task} == {"qa": 2, "": 1}
        assert "Without directives" in (await run("report", "--by", "directive")).out
        assert (await document("report", "--from", "2020-01-01", "--to", "2020-01-02"))["total"]["requests"] == 0

        await run("policy", "delete", "qa", "--yes", "--reason", "over")
        await run("directive", "delete", "terse", "--yes")
        await run("directive", "show", "terse", code=3)
