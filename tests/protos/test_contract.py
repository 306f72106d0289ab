"""The contract as others install it, and as its own rules demand."""

from __future__ import annotations

import hashlib
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pith.common.v1.error_pb2 as error_pb2
import pytest
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"
# The reason is the first string of a constructor of common.errors, or goes by name.
REASON_IN_CODE = (
    r"(?:\breason=|\b(?:aborted|failed_precondition|resource_exhausted|unavailable)\(\s*|grpc\.StatusCode\.[A-Z_]+,\s*)"
    r'"([A-Z][A-Z_]+)"'
)


def stub_modules() -> list[str]:
    files = sorted((PROTOS / "pith").rglob("*.proto"))
    return [file.relative_to(PROTOS).with_suffix("").as_posix().replace("/", ".") + "_pb2" for file in files]


def services() -> list[ServiceDescriptor]:
    descriptors: list[FileDescriptor] = [importlib.import_module(name).DESCRIPTOR for name in stub_modules()]
    return [service for file in descriptors for service in file.services_by_name.values()]


def test_every_proto_file_is_generated_and_its_package_is_its_folder() -> None:
    for name in stub_modules():
        module = importlib.import_module(name)
        assert module.DESCRIPTOR.package == name.rpartition(".")[0]


def test_the_services_of_the_design_are_there() -> None:
    assert {service.full_name for service in services()} == {
        "pith.engine.v1.Control",
        "pith.engine.v1.Inference",
        "pith.evaluator.v1.Evaluation",
        "pith.router.v1.Access",
        "pith.router.v1.Directives",
        "pith.router.v1.Feedback",
        "pith.router.v1.Generation",
        "pith.router.v1.Policies",
        "pith.router.v1.Reports",
        "pith.router.v1.Reviews",
        "pith.router.v1.Tasks",
    }


def test_every_rpc_says_what_it_may_fail_with_or_whether_it_repeats_safely() -> None:
    silent = []
    for path in (PROTOS / "pith").rglob("*.proto"):
        comment: list[str] = []
        for line in path.read_text().splitlines():
            stripped = line.strip()
            if stripped.startswith("//"):
                comment.append(stripped.lstrip("/ "))
            else:
                if stripped.startswith("rpc ") and not re.search(
                    r"rror|dempotent|As (Update|Delete)", " ".join(comment)
                ):
                    silent.append(f"{path.name}: {stripped}")
                comment = []
    assert silent == []


def test_reasons_that_the_code_gives_are_documented() -> None:
    documented = {name.removeprefix("ERROR_REASON_") for name in error_pb2.ErrorReason.DESCRIPTOR.values_by_name}
    used: set[str] = set()
    for package in ("common", "router", "engine", "evaluator"):
        for source in (ROOT / package).rglob("*.py"):
            used |= set(re.findall(REASON_IN_CODE, source.read_text()))
    assert len(used) > 10
    assert used <= documented


def test_generating_anew_changes_nothing(tmp_path: Path) -> None:
    shutil.copytree(PROTOS, tmp_path / "protos", ignore=shutil.ignore_patterns("*_pb2*", "__pycache__", "dist"))
    subprocess.run([sys.executable, "generate.py"], cwd=tmp_path / "protos", check=True)

    def digests(folder: Path) -> dict[str, str]:
        return {
            file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in folder.rglob("*_pb2*.py*")
            if "__pycache__" not in file.parts
        }

    assert digests(tmp_path / "protos" / "pith") == digests(PROTOS / "pith")


def test_nothing_generated_is_committed() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert [file for file in files.splitlines() if "_pb2" in file] == []


def test_the_package_needs_nothing_of_the_services() -> None:
    code = "import sys, pith.router.v1.generation_pb2_grpc\nassert not {'common', 'router', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd="/", check=True)
