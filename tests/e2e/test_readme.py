"""README's examples, in an environment that has the stubs and nothing of the services."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import venv
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.stack import Stack

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    stack = Stack(tmp_path / "stack")
    await stack.start()
    yield stack
    await stack.stop()


@pytest.fixture
def client(tmp_path: Path) -> Path:
    """Another program: stubs from ./protos, and a module named as one of ours."""
    folder = tmp_path / "client"
    venv.create(folder / ".venv", with_pip=True)
    constraints = ROOT / "deploy" / "constraints.txt"
    subprocess.run(
        [folder / ".venv/bin/python", "-m", "pip", "install", "--quiet", "-c", constraints, ROOT / "protos"], check=True
    )
    (folder / "common.py").write_text("SHOP = 'this program has a module of that name'\n")
    return folder


async def test_examples_run_with_the_stubs_alone(stack: Stack, client: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    # The last one is for a router behind TLS, which tests/integration/test_tls.py has.
    *blocks, _ = blocks
    assert len(blocks) == 3
    (client / "service.py").write_text("import common\n\nassert common.SHOP\n" + "\n".join(blocks))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = await asyncio.to_thread(
        subprocess.run,
        [client / ".venv/bin/python", "service.py"],
        cwd=client,
        env=environment | {"PITH_ROUTER": stack.addresses["router"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^L0 - ", done.stdout, flags=re.MULTILINE), done.stdout
    assert re.search(r"^\d+ tokens, \d+\.\d+ J$", done.stdout, flags=re.MULTILINE), done.stdout
    assert re.search(r"^\d\.\d+e-\d+ g CO2e$", done.stdout, flags=re.MULTILINE), done.stdout
    assert "decided: L0" in done.stdout


@pytest.mark.parametrize(
    ("service", "foreign"),
    [
        ("router", {"torch", "engine", "evaluator", "tokenizers", "typer"}),
        ("evaluator", {"torch", "engine", "router", "sqlalchemy", "tokenizers", "typer"}),
        ("engine", {"router", "evaluator", "sqlalchemy", "alembic", "scipy", "typer"}),
        ("router.cli.main", {"torch", "engine", "evaluator", "sqlalchemy", "scipy"}),
    ],
)
def test_a_service_loads_nothing_that_its_extra_does_not_bring(service: str, foreign: set[str]) -> None:
    module = service if "." in service else f"{service}.__main__"
    code = f"import sys, {module}; print(*sorted({foreign!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
