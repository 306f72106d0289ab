"""Which code is at work: the package's version, with the commit it was built from where that is known."""

from __future__ import annotations

import os
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

VARIABLE = "PITH_CODE_REVISION"
"""Environment variable by which an image, which has no .git, tells its commit."""

_SHOWN = 12
_MAX_REFERENCE_BYTES = 1024
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?").fullmatch
_NAME = re.compile(r"[A-Za-z0-9._+-]{1,64}").fullmatch


@cache
def code_revision() -> str:
    """E.g. "0.1.0+d6176aa3c0de"; the version alone where no commit is known. As it was when first asked, since a
    checkout may move on below a process.

    What is edited in a checkout and not committed is not told.
    """
    return find_code_revision(os.environ.get(VARIABLE, ""), Path(__file__).parent.parent)


def find_code_revision(told: str, root: Path) -> str:
    """As `code_revision`.

    Args:
        told: of the environment: a commit or any name of letters, digits and ". _ + -"; what is not one counts as none.
        root: the folder that `common` is in.
    """
    commit = told if _NAME(told) else head_commit(root / ".git")
    commit = commit[:_SHOWN] if _COMMIT(commit) else commit
    return f"{_version()}+{commit}" if commit else _version()


def head_commit(git: Path) -> str:
    """The commit that is checked out, read from git's files; empty where there is none, or they are of another kind.

    Args:
        git: a repository's .git: a folder or, of a worktree and a submodule, a file that names one.
    """
    try:
        folder = git
        if git.is_file():
            folder = git.parent / _read(git).removeprefix("gitdir:").strip()
        head = _read(folder / "HEAD")
        if not head.startswith("ref:"):
            return head if _COMMIT(head) else ""
        reference = head.removeprefix("ref:").strip()
        # A worktree's branches are kept with those of the repository that it is of.
        common = folder / _read(folder / "commondir") if (folder / "commondir").is_file() else folder
        for place in (folder, common):
            if (place / reference).is_file():
                commit = _read(place / reference)
                return commit if _COMMIT(commit) else ""
        return _packed(common / "packed-refs", reference)
    except (OSError, ValueError):
        return ""


def _read(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(_MAX_REFERENCE_BYTES).decode().strip()


def _packed(file: Path, reference: str) -> str:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            commit, _, name = line.strip().partition(" ")
            if name == reference and _COMMIT(commit):
                return commit
    return ""


def _version() -> str:
    try:
        return version("pith")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"
