"""What the tools that measure a recipe share: their own keys, their answer, and where they leave it. No torch."""

from __future__ import annotations

import inspect
import logging
import os
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from pydantic import BaseModel, ConfigDict

from tunelab import catalogue, checkout
from tunelab.answers import DPI, write_answer
from tunelab.composing import Composed, compose, composed, found_by_hydra, loader
from tunelab.config import chosen_options, plain, recipe_of, unread_keys, validate
from tunelab.errors import ConfigError, RunFailed, as_typed, training
from tunelab.events import picture, scalar, write_events
from tunelab.folder import discard
from tunelab.job import COMMAND_VARIABLE, import_torch
from tunelab.printing import reader_may_be_gone
from tunelab.ranges import range_mistakes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("tunelab")

LINES_WITHOUT_TERMINAL = 10

HISTOGRAM_BINS = 50

ANSWER = "answer"
"""What an answer's files are called."""


class Numbers(BaseModel):
    """The keys of a tool beside those of the recipe, with their ranges; each stands in conf/<tool>.yaml."""

    model_config = ConfigDict(extra="forbid", strict=True)


N = TypeVar("N", bound=Numbers)

Further = Callable[[DictConfig, Sequence[str]], Iterable[str]]


@dataclass(frozen=True)
class Asked:
    """How a tool was asked; its `measure` is given this if it has a parameter `asked`.

    Args:
        overrides: What was typed behind its name.
        choices: The option of each group.
        variant: The tool's config with other overrides than these.
    """

    overrides: list[str]
    choices: dict[str, Any]
    variant: Callable[[Sequence[str]], DictConfig]


class Answer(ABC):
    """What a tool found: in words, as a table, as a picture and as curves."""

    @abstractmethod
    def said(self) -> str:
        """What is printed; it ends in what to type."""

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """The answer's own numbers, by name, for answer.json."""

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """What was measured, a line each, for answer.csv."""

    @abstractmethod
    def figure(self) -> Figure:
        """The picture."""

    def __repr__(self) -> str:
        return self.said()

    def scalars(self) -> Iterator[tuple[str, int, float]]:
        """Curves for TensorBoard, as (name, step, value)."""
        yield from ()

    def histograms(self) -> Iterator[tuple[str, int, Any]]:
        """Values whose spread TensorBoard draws, as (name, step, values of shape (n,))."""
        yield from ()

    def save(self, folder: Path) -> None:
        """Writes answer.json, answer.csv, answer.png and tensorboard/ into a folder that exists."""
        figure = self.figure()
        write_answer(folder, ANSWER, self.values(), self.rows(), figure)
        png, (width, height) = (folder / f"{ANSWER}.png").read_bytes(), figure.get_size_inches() * DPI
        shown = [(0, picture(folder.parent.name, png, round(width), round(height)))]
        curves = ((step, scalar(name, value)) for name, step, value in self.scalars())
        spreads = ((step, _histogram(name, values)) for name, step, values in self.histograms())
        write_events(folder / "tensorboard", chain(curves, spreads, shown))

    def show(self, folder: Path, keep: Callable[[], None] = lambda: None) -> None:
        """Prints it, and where it was saved.

        Args:
            folder: Where.
            keep: Saves it, once it stands there.

        Raises:
            RunFailed: If it cannot be saved, with the reason.
        """
        with reader_may_be_gone():
            print(self.said())
        try:
            keep()
        except OSError as error:
            raise RunFailed(
                f"The answer stands above, but could not be written to {as_typed(folder)}: {error.strerror or error}. "
                "Nothing of it is left there. To keep it make room, or choose another disk with hydra.run.dir=…"
            ) from error
        shown = shlex.quote(as_typed(folder))
        with reader_may_be_gone():
            print(f"\ncurves, table  {shown}\nlook at it     tensorboard --logdir {shown}")


def _histogram(name: str, values: Any) -> Any:
    from torch.utils.tensorboard.summary import histogram

    return histogram(name, values, HISTOGRAM_BINS)


def take(cfg: DictConfig, kind: type[N]) -> tuple[DictConfig, N]:
    """The recipe of a tool's config, and the tool's own keys.

    Args:
        cfg: Composed of conf/<tool>.yaml.
        kind: Which keys are its own.
    """
    recipe = recipe_of(cfg)
    own = {key: plain(cfg, resolve=True)[key] for key in kind.model_fields}
    with open_dict(recipe):
        for key in kind.model_fields:
            recipe.pop(key)
    return recipe, kind.model_validate(own)


def check(cfg: DictConfig, user_keys: Iterable[str], kind: type[Numbers], further: Further | None = None) -> None:
    """Checks a tool's own keys and the recipe, and raises all mistakes at once.

    Args:
        cfg: Composed of conf/<tool>.yaml.
        user_keys: The value keys that the user typed.
        kind: Which keys are its own.
        further: Tells of mistakes between them; given the config and the mistakes that were found before.

    Raises:
        ConfigError: With a sentence for each mistake.
    """
    values = plain(cfg, resolve=False)
    mistakes = list(range_mistakes({key: values[key] for key in kind.model_fields}, of=kind))
    mistakes += [f"`{key}` must be left out: it is of a run." for key in OF_RUNS if values.get(key)]
    recipe = cfg.copy()
    with open_dict(recipe):
        for key in kind.model_fields:
            recipe.pop(key)
    try:
        validate(recipe, [key for key in user_keys if key.split(".")[0] not in kind.model_fields])
    except ConfigError as error:
        mistakes += error.mistakes
    if further is not None:
        mistakes += list(further(cfg, tuple(mistakes)))
    if mistakes:
        raise ConfigError(*mistakes)


OF_RUNS = ("repeat", "resume", "find_lr")


def lists(tool: ModuleType) -> list[str]:
    """The keys of a tool that take several values, such as activations=[relu,tanh]."""
    own = getattr(tool, "Numbers", Numbers).model_fields
    return [key for key, field in own.items() if "list[" in str(field.annotation)]


def options(group: str) -> list[str]:
    """What there is to choose in a group, the user's own too; for a tool's `check`.

    Args:
        group: Such as init.
    """
    return catalogue.groups(loader())[group]


def _measure(tool: ModuleType, cfg: DictConfig, asked: Asked) -> Answer:
    wanted = {"asked": asked} if "asked" in inspect.signature(tool.measure).parameters else {}
    answer: Answer = tool.measure(cfg, **wanted)
    return answer


def job(tool: ModuleType) -> Callable[[DictConfig], Any]:
    """What Hydra calls for a tool: its `run`, or, where it has a `measure`, what measures and leaves the answer."""
    if hasattr(tool, "run"):
        return tool.run  # type: ignore[no-any-return]

    def measured(cfg: DictConfig) -> None:
        here = HydraConfig.get()
        folder, overrides = Path(here.runtime.output_dir), list(here.overrides.task)

        def variant(others: Sequence[str]) -> DictConfig:
            assert here.job.config_name is not None
            return recipe_of(compose(here.job.config_name, list(others), catalogue.parse(list(others))))

        try:
            import_torch()
            choices = chosen_options(here.runtime.choices, cfg)
            answer = _measure(tool, cfg, Asked(overrides, choices, variant))
            whole = Composed(cfg, choices, overrides)
            answer.show(folder, lambda: leave(answer, whole, folder, os.environ[COMMAND_VARIABLE]))
        except BaseException as error:
            logging.shutdown()
            with suppress(OSError):  # whatever keeps it from being written
                discard(folder)
            if not isinstance(error, RunFailed):
                raise
            print(error, file=sys.stderr)
            sys.exit(1)

    return measured


def leave(answer: Answer, whole: Composed, folder: Path, command: str) -> None:
    """Writes an answer into its folder, and what it takes to measure it again.

    Args:
        answer: What was found.
        whole: Of what.
        folder: Which exists.
        command: What was typed.
    """
    from tunelab.record import Start, record

    unread = unread_keys(whole.cfg)
    record(folder, whole.cfg, Start(command, whole.overrides, whole.choices, checkout.seen(), unread=unread))
    answer.save(folder)


def ask(tool: ModuleType, *overrides: str, config_path: str | Path | None = None) -> Answer:
    """What a tool finds, without a command line.

    Args:
        tool: Of tunelab.tools, with a `measure`.
        *overrides: As they would be typed behind its name.
        config_path: A config folder of the user's own, whose groups stand before the catalogue's.

    Raises:
        ConfigError: If they are refused.
    """
    if hasattr(tool, "ask") and (found := tool.ask(*overrides, config_path=config_path)) is not None:
        return found  # type: ignore[no-any-return]  # by a search
    name = tool.__name__.rpartition(".")[2]
    whole = composed(*overrides, config_name=name, config_path=config_path)
    with found_by_hydra(name, config_path):
        tool.check(whole.cfg, [override.split("=")[0].lstrip("+~") for override in whole.overrides])

    def variant(others: Sequence[str]) -> DictConfig:
        return composed(*others, config_name=name, config_path=config_path).cfg

    import_torch()
    return _measure(tool, whole.cfg, Asked(whole.overrides, whole.choices, variant))


def train_command(overrides: Iterable[str], changes: Mapping[str, str | None], own: Iterable[str] = ()) -> str:
    """How a run is started of what a tool has been asked of.

    Args:
        overrides: Typed to the tool.
        changes: Values of keys and options of groups that are to be others; None to leave one out.
        own: The tool's own keys, which no run has.
    """
    gone = {*changes, *own, "hydra"}
    keys = {override: override.split("=")[0].lstrip("+~") for override in overrides}
    kept = [o for o, key in keys.items() if key not in gone and key.split(".")[0] not in gone]
    changed = [f"{key}={value}" for key, value in changes.items() if value is not None]
    return shlex.join([*training().split(), *kept, *changed])


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Shows how far a measurement is: a bar, or without a terminal about ten lines.

    Args:
        total: How often the function it gives will be called, with what was found last.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console, done = Console(stderr=True), 0
    columns = (MofNCompleteColumn(), BarColumn(bar_width=30), TimeRemainingColumn(compact=True), TextColumn("left"))
    said = TextColumn("{task.description}", markup=False)
    with Progress(*columns, said, console=console, disable=not console.is_terminal, transient=True) as bar:
        row = bar.add_task("", total=total)

        def advance(found: str) -> None:
            nonlocal done
            done += 1
            bar.update(row, advance=1, description=found)
            if not console.is_terminal and done % max(1, total // LINES_WITHOUT_TERMINAL) == 0:
                log.info("%d of %d  %s", done, total, found)

        yield advance
