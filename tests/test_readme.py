"""The README says what is there: its table is the folders, its commands are accepted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import options
from test_command import GROUPS, REPOSITORY, typed

WHOLE = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# what stands in the folder of a new project is tested there, in test_own_parts
TEXT = re.sub(r"## Your own parts.*?(?=\n## )", "", WHOLE, flags=re.DOTALL)
CHOICES = re.split(r"^## ", TEXT.split("## What can be chosen")[1], flags=re.MULTILINE)[0]
ROWS = re.findall(r"^\| `([\w/]+)` \|(.*)\|$", CHOICES, flags=re.MULTILINE)


def commands() -> list[str]:
    """Every `python train.py …` and `python scripts/….py …` of the README, without its comment."""
    found = re.findall(r"^ *(?:\$ )?((?:\w+=\S+ )?python (?:train|scripts/\w+)\.py[^\n`]*)", TEXT, flags=re.MULTILINE)
    found += re.findall(r"`(python (?:train|scripts/\w+)\.py[^`]*)`", TEXT)
    found += [f"python train.py {arguments}" for arguments in re.findall(r'make train ARGS="([^"]*)"', TEXT)]
    return list(dict.fromkeys(re.split(r"\s+#", command)[0].strip() for command in found))


# one that is shown with the answer to its mistakes is no example to follow
SHOWN_WITH_ITS_MISTAKES = set(re.findall(r"^ *\$ (python train\.py[^\n]*)\n +`", TEXT, flags=re.MULTILINE))
EXAMPLES = [c for c in commands() if "<" not in c and "…" not in c and "--config-dir" not in c and "study=" not in c]


def test_the_table_names_exactly_the_groups_of_the_catalogue() -> None:
    assert sorted(group for group, _ in ROWS) == GROUPS


@pytest.mark.parametrize("group", GROUPS)
def test_the_row_of_a_group_names_exactly_its_options(group: str) -> None:
    cells = [cell for name, cell in ROWS if name == group]
    assert [sorted(re.findall(r"`([^`]+)`", cell)) for cell in cells] == [options(group)]


def test_the_dials_are_those_of_the_page() -> None:
    page = (REPOSITORY / "conf" / "train.yaml").read_text(encoding="utf-8")
    told = re.search(r"dials, each once: `([^`]+)`", TEXT)
    assert told, "the README lists no dials"
    for dial in told[1].split():
        assert re.findall(rf"^{dial}:", page, flags=re.MULTILINE) == [f"{dial}:"]


def test_the_readme_is_short() -> None:
    assert len(WHOLE.splitlines()) < 250


def test_no_placeholder_is_left() -> None:
    assert re.findall(r"^[A-Z][A-Z_]{3,}$|TODO|FIXME|XXX", TEXT, flags=re.MULTILINE) == []


def test_the_readme_has_commands_to_follow() -> None:
    assert "python train.py" in {c.split(" #")[0] for c in EXAMPLES}
    assert any("-m " in command for command in EXAMPLES)


@pytest.mark.parametrize("command", EXAMPLES)
def test_a_command_of_the_readme_is_accepted(tmp_path: Path, command: str) -> None:
    words = shlex.split(command)
    script = next(word for word in words if word.endswith(".py"))
    arguments = words[words.index(script) + 1 :]
    if command in SHOWN_WITH_ITS_MISTAKES:
        answer = TEXT.split(f"$ {command}\n")[1].split("\n\n")[0].split("\n```")[0]
        outcome = typed(tmp_path, *arguments)
        assert outcome.err.splitlines() == [line.strip() for line in answer.splitlines() if line.strip()]
        return
    if "--help" in arguments:
        assert typed(tmp_path, *arguments).out.startswith("python train.py")
        return
    shown = [] if "--cfg" in arguments else ["--cfg", "job"]
    outcome = typed(tmp_path, *arguments, *shown, script=script)
    assert outcome.err == ""
    assert re.search(r"^task:\n +_target_: tunelab\.tasks\.", outcome.out, flags=re.MULTILINE)


def test_the_files_named_in_the_readme_exist() -> None:
    named = set(re.findall(r"\b((?:scripts|benchmarks|conf|src)/[\w/]+\.(?:py|yaml))", TEXT))
    missing = sorted(name for name in named if not (REPOSITORY / name).exists())
    assert missing == []
