"""`make serve`: the three services on loopback until Ctrl-C, with the demo's model, on wall time."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from rich.console import Console

from deploy.stack import Stack, StackError

FOLDER = Path(".pith/serve")
PORTS = {"router": 7400, "engine": 7500, "evaluator": 7600}


def main() -> None:
    console = Console(highlight=False, soft_wrap=True)
    try:
        asyncio.run(_serve(console))
    except KeyboardInterrupt:
        pass
    except StackError as error:
        console.print(f"[red]Not served:[/] {error}")
        sys.exit(2)


async def _serve(console: Console) -> None:
    stack = Stack(FOLDER, ports=PORTS)
    try:
        with console.status("Starting router, engine and evaluator"):
            await stack.start()
        for name, address in stack.addresses.items():
            console.print(f"{name:10} {address}   log {stack.log(name)}")
        console.print(f"{'database':10} {FOLDER / 'router.db'}   (kept between runs)\n")
        console.print("Try, in another terminal:\n")
        console.print("  .venv/bin/pithctl chat --once 'Words: pen, cup, hat. How many words are there?'")
        console.print("  .venv/bin/pithctl policy update default --mode on --reason 'try it'")
        console.print("  .venv/bin/pithctl report --by directive\n")
        console.print("Ctrl-C stops all three.")
        while True:
            stack.check()
            await asyncio.sleep(1)
    finally:
        await stack.stop()


if __name__ == "__main__":
    main()
