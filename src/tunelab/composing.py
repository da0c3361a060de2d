"""From overrides to a composed config, or to what keeps them from composing. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tunelab import catalogue, conf_folder
from tunelab.aliases import without_aliases
from tunelab.config import chosen_options, plain, recipe_of
from tunelab.errors import ConfigError
from tunelab.overrides import CommandLineError


@dataclass(frozen=True)
class Composed:
    """What overrides compose.

    Args:
        cfg: The recipe and, of a tool, its own keys; interpolations unresolved.
        choices: The option of each group.
        overrides: They, those of keys that pass on another written to that one.
    """

    cfg: DictConfig
    choices: dict[str, Any]
    overrides: list[str]


def composed(*overrides: str, config_name: str = "train", config_path: str | Path | None = None) -> Composed:
    """The recipe of a command line, for those who have none.

    Args:
        *overrides: As they would be typed: `optimizer=sgd`, `lr=0.1`.
        config_name: The primary config: train, or a tool.
        config_path: A config folder of the user's own, whose groups stand before the catalogue's.

    Raises:
        ConfigError: With every mistake that keeps them from composing.
    """
    with found_by_hydra(config_name, config_path):
        typed, known = catalogue.parse(list(overrides)), catalogue.groups(loader())
        if any(sentence for override in typed for sentence in catalogue.unknown_options(override, known)):
            raise ConfigError(*catalogue.mistakes(loader(), config_name, typed))
        typed = meant(config_name, typed)
        arguments = [str(override.input_line) for override in typed]
        whole = compose(config_name, arguments, typed)
        HydraConfig.instance().set_config(whole)
        cfg = recipe_of(whole)
        cfg.name = cfg.name  # asks Hydra what is chosen, which nobody answers later
        return Composed(cfg, chosen_options(whole.hydra.runtime.choices, cfg), arguments)


@contextmanager
def found_by_hydra(config_name: str, config_path: str | Path | None = None) -> Iterator[None]:
    """Hydra as it is while a command line runs, for those who have none: `loader` finds what there is to choose.

    Args:
        config_name: The primary config.
        config_path: A config folder of the user's own, whose groups stand before the catalogue's.
    """
    GlobalHydra.instance().clear()
    initialize(conf_folder() if config_path is None else Path(config_path).resolve(), None, config_name)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = None
        GlobalHydra.instance().clear()


def initialize(folder: Path, config_dir: str | None, job_name: str) -> None:
    """Hydra with the search path that its own main would make.

    Args:
        folder: Of the primary config.
        config_dir: What stands before it, of --config-dir.
        job_name: What Hydra calls the job.
    """
    search_path = create_config_search_path(str(folder))
    if config_dir:
        path = f"file://{Path(config_dir).resolve()}"
        search_path.prepend(provider="command-line", path=path, anchor=SearchPathQuery(provider="schema"))
    Hydra.create_main_hydra2(task_name=job_name, config_search_path=search_path)


def loader() -> Any:
    """Hydra's config loader, which knows the search path."""
    return GlobalHydra.instance().config_loader()


def compose(config_name: str, arguments: list[str], typed: list[Override]) -> DictConfig:
    """The composed config with its hydra node.

    Args:
        config_name: The primary config.
        arguments: The overrides of the command line.
        typed: The same, parsed.

    Raises:
        ConfigError: With every mistake that keeps it from composing.
    """
    try:
        return loader().load_configuration(config_name, arguments, RunMode.RUN)  # type: ignore[no-any-return]
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        explained = list(catalogue.mistakes(loader(), config_name, typed))
        raise CommandLineError(*(explained or [catalogue.file_mistake(error, loader(), typed)])) from None
    except RecursionError:
        raise ConfigError(
            f"`{config_name}.yaml` must not lead back to itself in its defaults list. To build on tunelab's own "
            f"{config_name}.yaml, give yours another name, such as my_{config_name}.yaml, and say it to "
            f'tunelab.main(config_name="my_{config_name}").'
        ) from None


def meant(config_name: str, typed: list[Override], recorded: list[Override] | None = None) -> list[Override]:
    """The overrides of a command line, each written to the key that it sets: optimizer.lr=0.5 as lr=0.5.

    Args:
        config_name: The primary config.
        typed: The command line, parsed.
        recorded: Those of the run that it resumes, which stand before them.

    Raises:
        ConfigError: If one thing is given two values by two names.
    """

    def raw_of(arguments: list[str]) -> dict[str, Any]:
        before = [str(o.input_line) for o in recorded or () if "." not in o.key_or_group]
        cfg = loader().load_configuration(config_name, [*before, *arguments], RunMode.RUN)
        return plain(recipe_of(cfg), resolve=False)

    try:
        return without_aliases(typed, catalogue.groups(loader()), raw_of)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, RecursionError):
        return typed  # what keeps it from composing is said where all of it is composed
