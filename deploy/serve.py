"""`make serve`: the three services on loopback until Ctrl-C, with the demo's model, on wall time."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from rich.console import Console

from deploy.stack import Stack, StackError, cancel_on_sigterm

FOLDER = Path(".pith/serve")
PORTS = {"router": 7400, "engine": 7500, "evaluator": 7600}


def main() -> None:
    console = Console(highlight=False, soft_wrap=True)
    try:
        asyncio.run(_serve(console))
    except (KeyboardInterrupt, asyncio.CancelledError):
        pass
    except StackError as error:
        console.print(f"[red]Not served:[/] {error}")
        sys.exit(2)


async def _serve(console: Console) -> None:
    cancel_on_sigterm()
    stack = Stack(FOLDER, ports=PORTS)
    try:
        with console.status("Starting router, engine and evaluator"):
            await stack.start()
        for name, address in stack.addresses.items():
            console.print(f"{name:10} {address}   log {stack.log(name)}")
        console.print(f"{'database':10} {FOLDER / 'router.db'}   (kept between runs)\n")
        console.print("Try, in another terminal:\n")
        question = "Count the lines with bus.\\nTraffic log:\\n1. car\\n2. bus\\n3. tram\\n4. bus"
        console.print(f"  .venv/bin/pithctl chat --once \"$(printf '{question}')\"")
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
