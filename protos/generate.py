"""Generates the stubs next to their .proto files: as a hatchling build hook at install, or `python generate.py`."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from importlib import resources
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent


def generate(root: Path = ROOT) -> None:
    """Runs protoc from `root`, so that package path, proto path and import path are one and the same.

    Raises:
        SystemExit: protoc refused a file; its message has gone to standard error.
    """
    # Build-time only: the hook is imported by tools that merely read metadata, without grpcio-tools installed.
    from grpc_tools import protoc

    protos = sorted(path.relative_to(root).as_posix() for path in (root / "pith").rglob("*.proto"))
    arguments = [
        "protoc",
        f"--proto_path={root}",
        f"--proto_path={resources.files('grpc_tools') / '_proto'}",
        f"--python_out={root}",
        f"--grpc_python_out={root}",
        f"--plugin=protoc-gen-mypy={_script('protoc-gen-mypy')}",
        f"--mypy_out=quiet:{root}",
        f"--plugin=protoc-gen-mypy_grpc={_script('protoc-gen-mypy_grpc')}",
        f"--mypy_grpc_out=quiet:{root}",
        *protos,
    ]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed; see its message above")


def _script(name: str) -> str:
    # An isolated build has its scripts on PATH only; an environment that is not activated has them beside its Python.
    return shutil.which(name) or str(Path(sysconfig.get_path("scripts")) / name)


class GenerateStubs(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        generate(Path(self.root))


if __name__ == "__main__":
    generate()
