"""The git checkout in which a command was typed: its commit, and whether something in it was changed since."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from typing import Any

MOST_SECONDS = 0.2
"""How long a run waits for git, which has had all the time that importing torch took."""

STATUS = ("git", "-c", "core.fsmonitor=false", "status", "--porcelain=v2", "--branch", "--untracked-files=no")


@cache
def look() -> subprocess.Popen[str] | None:
    """Has git look, beside what this process does; None where there is no git."""
    try:
        return subprocess.Popen(
            [*STATUS, "--ignore-submodules"],
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    except OSError:
        return None


@cache
def seen() -> dict[str, Any] | None:
    """What git said: the `commit`, and whether the tree was `dirty`; None in that place where it took too long.

    None outside a checkout. Asked once in a process: its code is that of its start.
    """
    git = look()
    if git is None:
        return None
    try:
        said, _ = git.communicate(timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        git.kill()
        git.communicate()
        return {"commit": _commit(), "dirty": None}
    if git.returncode:
        return None
    lines = said.splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), None)
    return {"commit": None if commit == "(initial)" else commit, "dirty": any(line[0] != "#" for line in lines)}


def _commit() -> str | None:
    """The commit alone, which needs no look at the files."""
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, timeout=MOST_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip()
