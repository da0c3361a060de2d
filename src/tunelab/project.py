"""`tunelab new <folder>`: a small project with parts of one's own that works at once."""

from __future__ import annotations

import importlib.util
import keyword
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tunelab.errors import ConfigError

WHAT = "A project with parts of your own, small and working: <folder>"
TEMPLATE = Path(__file__).parent / "template"
PACKAGE = "my_project"
"""The package's name in the template."""


def main(arguments: Sequence[str], command: str) -> None:
    """Makes the project that a command line asks for, and says what to type next.

    Args:
        arguments: What follows the word `new`.
        command: What stands before it.

    Raises:
        ConfigError: If they are not one folder, which is new or empty and has a name to make a package of.
    """
    if arguments and arguments[0] in ("--help", "-h"):
        print(f"{command} new <folder>\n\n{WHAT}. The folder must be new or empty.")
        return
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(f"`new` must be given a folder. Type: {command} new {PACKAGE}")
    if len(arguments) > 1:
        name = shlex.quote(" ".join(arguments))
        raise ConfigError(
            f"`new` must be given one folder, got {len(arguments)}. For a space type: {command} new {name}"
        )
    folder = Path(arguments[0]).expanduser()
    package = write(folder)
    print(
        f"A new project in {folder}: {package}/ has parts of your own, conf/ makes them options, README.md explains.\n"
        f"Type next:\n\n    cd {shlex.quote(str(folder))}\n    python train.py experiment=first"
    )


def write(folder: Path) -> str:
    """Writes the project.

    Args:
        folder: A new or empty folder.

    Returns:
        The name of its package.

    Raises:
        ConfigError: If the folder has files in it, cannot be written, or has no name to make a package of.
    """
    package = package_name(folder.resolve().name)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"`new` must name a new or empty folder, got {folder}, which exists. Choose another.")
        for source in files():
            target = folder / str(source.relative_to(TEMPLATE)).replace(PACKAGE, package)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(source.read_text(encoding="utf-8").replace(PACKAGE, package), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"`new` must name a folder that can be written, got {folder} ({error.strerror}).") from None
    return package


def files() -> Iterator[Path]:
    """The files of the template."""
    yield from (path for path in sorted(TEMPLATE.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)


def package_name(name: str) -> str:
    """The Python package of a project: `My first net` becomes my_first_net.

    Args:
        name: Of the project's folder.

    Raises:
        ConfigError: If that is no package's name, or is that of another package.
    """
    package = re.sub(r"\W+", "_", name.lower()).strip("_")
    if not package.isidentifier() or keyword.iskeyword(package):
        raise ConfigError(
            f"`new` must have a name that begins with a letter, got {name}. Try my_{package or 'project'}."
        )
    # the project's own files among them: train.py would be imported in its place
    taken = package in {"conf", "tests", "train", *sys.stdlib_module_names} or importlib.util.find_spec(package)
    if taken:
        raise ConfigError(f"`new` must not have the name of another package, got {package}. Try my_{package}.")
    return package
