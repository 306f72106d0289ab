"""What tells which code is at work."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from common.code_revision import code_revision, find_code_revision, head_commit

FIRST, SECOND = "1" * 40, "a1b2c3d4e5f6" + "0" * 28
VERSION = version("pith")


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "--initial-branch=main")
    git(folder, "commit", "--allow-empty", "--message=first")
    return folder


def write(git_folder: Path, **files: str) -> Path:
    """A .git of these files; "__" in a name stands for a slash, "_" for a hyphen."""
    for name, text in files.items():
        path = git_folder / name.replace("__", "/").replace("_", "-")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return git_folder


def test_the_environment_tells_first(tmp_path: Path) -> None:
    write(tmp_path / ".git", HEAD=FIRST)
    assert find_code_revision(SECOND, tmp_path) == f"{VERSION}+a1b2c3d4e5f6"
    assert find_code_revision("d6176aa", tmp_path) == f"{VERSION}+d6176aa"
    assert find_code_revision("release-3", tmp_path) == f"{VERSION}+release-3"


@pytest.mark.parametrize("told", ["", " ", "two words", "x\n", "ü", "a" * 65])
def test_what_is_no_name_is_not_told(tmp_path: Path, told: str) -> None:
    assert find_code_revision(told, tmp_path) == VERSION
    write(tmp_path / ".git", HEAD=FIRST)
    assert find_code_revision(told, tmp_path) == f"{VERSION}+111111111111"


def test_a_commit_as_git_itself_has_it(checkout: Path, tmp_path: Path) -> None:
    """Of a branch, packed or not, of a worktree, of a subfolder of branches, and with no branch at all."""

    def agree(folder: Path) -> None:
        commit = git(folder, "rev-parse", "HEAD")
        assert head_commit(folder / ".git") == commit
        assert find_code_revision("", folder) == f"{VERSION}+{commit[:12]}"

    agree(checkout)
    git(checkout, "pack-refs", "--all")
    agree(checkout)
    git(checkout, "commit", "--allow-empty", "--message=second")
    agree(checkout)
    tree = tmp_path / "tree"
    git(checkout, "worktree", "add", "-b", "issues/7", str(tree))
    agree(tree)
    git(tree, "commit", "--allow-empty", "--message=third")
    agree(tree)
    git(tree, "pack-refs", "--all")
    agree(tree)
    git(checkout, "checkout", "--detach", "HEAD~1")
    agree(checkout)
    agree(tree)


def test_a_commit_may_be_as_long_as_sha256(tmp_path: Path) -> None:
    assert head_commit(write(tmp_path / ".git", HEAD="f" * 64 + "\n")) == "f" * 64


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"HEAD": ""},
        {"HEAD": "ref: refs/heads/main"},
        {"HEAD": "ref: refs/heads/main", "refs__heads__main": "no commit"},
        {"HEAD": "ref: refs/heads/main", "packed_refs": f"# pack-refs\n{FIRST} refs/heads/other\n^{FIRST}\nx\n"},
        # Of the newer way of keeping branches.
        {"HEAD": "ref: refs/heads/.invalid", "reftable__tables.list": "x"},
        {"HEAD": "ref: ../../../../../../../../etc/hostname"},
        {"HEAD": "g" * 40},
        {"HEAD": "\udcff"},
    ],
    ids=["nothing", "empty", "unborn", "torn", "not packed", "reftable", "outside", "no hexadecimal", "no text"],
)
def test_without_a_commit_the_version_stands_alone(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = tmp_path / ".git" / name.replace("__", "/").replace("_", "-")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode(errors="surrogateescape"))
    assert head_commit(tmp_path / ".git") == ""
    assert find_code_revision("", tmp_path) == VERSION


def test_a_worktree_whose_repository_is_gone_has_none(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("gitdir: /nowhere/at/all\n")
    assert find_code_revision("", tmp_path) == VERSION


def test_this_code_has_its_version() -> None:
    assert code_revision().startswith(VERSION)
