"""The command line: checks what was typed, lets Hydra compose and launch, runs the job, reports in words."""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import logging
import os
import shlex
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tunelab import catalogue, conf_folder, help_page, instrument, multirun, own_code, project, tools
from tunelab.composing import compose, initialize, loader, meant
from tunelab.config import recipe_of, validate
from tunelab.errors import ConfigError, RunFailed, Terminated, did_you_mean, exit_code, program
from tunelab.folder import RunFolder, claim, no_room
from tunelab.job import COMMAND_VARIABLE, train_job
from tunelab.overrides import (
    CommandLineError,
    quote_path,
    quoted,
    recorded_overrides,
    refuse_blanks,
    refuse_dashes,
)
from tunelab.whitelist import whitelist

log = logging.getLogger("tunelab")

NO_ANSWER = "Interrupted: it has no answer yet, and leaves nothing."

Job = Callable[[DictConfig], Any]
Check = Callable[[DictConfig, list[str]], None]


def main(
    config_path: str | Path | None = None,
    config_name: str = "train",
    *,
    trust: str | Sequence[str] = (),
    tool: str | None = None,
) -> None:
    """Runs the command line of this process. Never returns a traceback for a user's mistake.

    It trains, or runs the tool that is its first word: `python train.py evaluate run=<folder>`.

    Args:
        config_path: The config folder, absolute or relative to the calling file; by default the catalogue itself. A
            folder of the user's own finds the catalogue's groups behind its own.
        config_name: The primary config of a training.
        trust: Packages of the user's own whose classes configs may build.
        tool: The tool to run, where the command line does not say it.
    """
    # Waiting threads spin for microseconds, then sleep. With OpenMP's own limit two runs on two cores took 24 times as
    # long as one; with this one 1.9 times, and a run alone is as fast. Read once, when torch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ[COMMAND_VARIABLE] = shlex.join(sys.argv if not sys.argv[0].endswith(".py") else ["python", *sys.argv])
    folder = conf_folder()
    if config_path is not None:
        caller = Path(inspect.stack()[1].filename)
        folder = (caller.parent / config_path).resolve()
    own_code.trust(*([trust] if isinstance(trust, str) else trust))
    command, check = program(), validate
    job: Job = train_job
    logging.raiseExceptions = False  # what a full disk costs is a line of train.log, not a traceback for it
    try:
        _end_at_sigterm()
        if tool is None and sys.argv[1:2] == ["new"]:
            project.main(sys.argv[2:], command)
            return
        if tool is None and sys.argv[1:] and sys.argv[1] in tools.names():
            tool = sys.argv.pop(1)
            command = f"{command} {tool}"
        if tool is not None and hasattr(tools.load(tool), "as_search") and _becomes_search(folder, tool):
            config_name, tool = "train", None
        if tool is not None:
            config_name, check, job = tool, tools.load(tool).check, instrument.job(tools.load(tool))
        else:
            gc.disable()  # until torch is imported: looking for garbage where there is none took half a second
        _prepare(folder, config_name, check, command, tool)
        launch = hydra.main(config_path=str(folder), config_name=config_name, execution_whitelist=_hydra_whitelist())
        launch(_in_words(job))()
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2 if isinstance(error, CommandLineError) else 1)
    except KeyboardInterrupt as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` sends it twice
        if not {"-m", "--multirun"}.isdisjoint(sys.argv):  # before its search has begun, or in one of a launcher's
            print(f"Interrupted. To go on: {os.environ[COMMAND_VARIABLE]}", file=sys.stderr)
        elif tool is not None:
            print(NO_ANSWER, file=sys.stderr)
        sys.exit(exit_code(stop))
    finally:
        gc.enable()


def _becomes_search(folder: Path, tool: str) -> bool:
    """Rewrites the command line of a tool that measures by a search into that of the search, if it is to be one.

    Args:
        folder: Of the primary config.
        tool: Which has an `as_search`.
    """
    sys.argv[1:] = [quote_path(argument) for argument in sys.argv[1:]]
    flags, options = get_args_parser().parse_known_intermixed_args(sys.argv[1:])
    if flags.help or flags.hydra_help or flags.shell_completion or flags.info:
        return False
    refuse_dashes(sys.argv[1:], options)
    refuse_blanks(flags.overrides)
    if flags.multirun:
        raise CommandLineError(f"`-m` must be left out: {tool} searches by itself.")
    initialize(Path(flags.config_path).resolve() if flags.config_path else folder, flags.config_dir, tool)
    try:
        takes_search, overrides = tools.load(tool).as_search(flags.overrides)
    finally:
        GlobalHydra.instance().clear()
    others = [word for word in sys.argv[1:] if word not in flags.overrides]
    sys.argv[1:] = [*(["-m"] if takes_search else []), *others, *overrides]
    return bool(takes_search)


def _end_at_sigterm() -> None:
    """Makes SIGTERM an exception as Ctrl-C is one, where the system would end this process without a word."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:

        def end(signum: int, frame: FrameType | None) -> None:
            raise Terminated

        signal.signal(signal.SIGTERM, end)


def _in_words(job: Job) -> Job:
    """The job, which says in words what Hydra would print a long traceback for: a mistake, or an error in own code."""

    @functools.wraps(job)
    def run(cfg: DictConfig) -> Any:
        try:
            return job(cfg)
        except SystemExit as stop:  # a mistake that the job has said; perhaps it has closed its log
            if stop.code in (130, 143) and job is not train_job:  # in a fit, where a training says what is left
                print(NO_ANSWER, file=sys.stderr)
            if isinstance(stop.__context__, ConfigError):
                _show_origin(stop.__context__)
            raise
        except (ConfigError, RunFailed) as error:
            print(error, file=sys.stderr)
            _show_origin(error)
        except Exception as error:
            if isinstance(error, OSError) and no_room(error):
                what = error.filename or "on this disk"
                print(f"There is no room to write {what}. Make room, and type it again.", file=sys.stderr)
                sys.exit(1)
            own = own_code.own_traceback(error)
            if not own or "HYDRA_FULL_ERROR" in os.environ:
                raise
            log.error("An error in your own code:\n%s\nFor the whole way there set HYDRA_FULL_ERROR=1.", own)
        sys.exit(1)

    return run


def _show_origin(mistake: Exception) -> None:
    """Where in the user's own code a mistake came from, if it did."""
    if own := own_code.own_traceback(mistake.__cause__):
        print(f"It came from here:\n{own}", file=sys.stderr)


def _hydra_whitelist() -> list[str]:
    return [*whitelist(), "logging.*"]


def _prepare(folder: Path, config_name: str, check: Check, command: str, tool: str | None) -> None:
    """Everything that can be said before torch is imported and a folder is made.

    Rewrites sys.argv where Hydra is to be told more than the user typed.
    """
    sys.argv[1:] = [quote_path(argument) for argument in sys.argv[1:]]
    flags, options = get_args_parser().parse_known_intermixed_args(sys.argv[1:])
    refuse_dashes(sys.argv[1:], options)
    refuse_blanks(flags.overrides)
    if flags.hydra_help or flags.shell_completion or flags.info or flags.experimental_rerun:
        return
    if flags.config_path:
        folder = Path(flags.config_path).resolve()
    if not folder.is_dir():
        raise CommandLineError(f"`config_path` must be a folder, got {folder}.")
    if flags.config_dir and not Path(flags.config_dir).is_dir():
        raise CommandLineError(f"`--config-dir` must be a folder, got {flags.config_dir}, which is none.")
    if tool and flags.multirun:
        raise CommandLineError(f"`-m` must be left out: {tool} is asked of one recipe. Searches are train.py's.")
    claims = tool is None or hasattr(tools.load(tool), "measure")  # which leave a folder of their own
    name = flags.config_name or config_name
    initialize(folder, flags.config_dir, name)
    try:
        overrides = _with_meant_keys(name, _typed_overrides(name, flags.overrides))
        if not flags.help:
            if not flags.multirun:
                multirun.refuse_sweeps(overrides, tool, instrument.lists(tools.load(tool)) if tool else [])
            multirun.refuse_misplaced(overrides, flags.multirun)
        added = recorded_overrides(overrides, flags.multirun, functools.partial(meant, name))
        arguments = [*added, *(o.input_line for o in overrides if not o.is_sweep_override() and o.input_line)]
        if flags.help:
            with contextlib.suppress(
                HydraException, OmegaConfBaseException, YAMLError, ValueError, RecursionError
            ):  # said below
                tools_known = tools.described()
                if tool:
                    print(help_page.of_tool(loader(), name, arguments, command, tools_known[tool]))
                else:
                    print(help_page.of_training(loader(), name, arguments, command, tools_known))
                sys.exit()
        cfg = compose(name, arguments, overrides)
        HydraConfig.instance().set_config(cfg)
        _check_experiment_lr(name, overrides, arguments, cfg)
        if not flags.multirun:
            check(recipe_of(cfg), [o.key_or_group for o in overrides])
        else:  # the jobs of a sweep are checked one by one, as they are composed
            multirun.check(cfg, overrides, loader())
        if flags.cfg and (flags.multirun or (claims and flags.cfg == "job")):
            _show(cfg, flags, name, arguments)
        if claims and not flags.multirun and not flags.cfg:
            added = [*added, f"hydra.run.dir={quoted(_run_folder(cfg, overrides))}"]
    finally:
        HydraConfig.instance().cfg = None
        GlobalHydra.instance().clear()
    sys.argv[1:1] = added


def _show(cfg: DictConfig, flags: Namespace, config_name: str, arguments: list[str]) -> NoReturn:
    """`--cfg`: the recipe of a run, which Hydra's own would print with the keys of a search; with -m, that has them."""
    if flags.cfg != "job":
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        hydra.show_cfg(config_name, arguments, flags.cfg, flags.package, flags.resolve)
        sys.exit()
    recipe = recipe_of(cfg, searched=flags.multirun)
    if flags.resolve:
        OmegaConf.resolve(recipe)
    shown = recipe if flags.package in (None, "_global_") else OmegaConf.select(recipe, flags.package)
    if shown is None:
        raise CommandLineError(f"`--package` must be a key of the recipe, got {flags.package}.")
    print(OmegaConf.to_yaml(shown) if OmegaConf.is_config(shown) else shown, end="" if shown is recipe else "\n")
    sys.exit()


def _typed_overrides(config_name: str, arguments: list[str]) -> list[Override]:
    """The overrides of the command line.

    `group=null` becomes the deletion that Hydra has for it, a pattern the options that it fits, in sys.argv too.
    """
    for word in (a for a in arguments if a.isidentifier()):
        if word in (known_tools := list(tools.described())):
            raise CommandLineError(f"`{word}` must come first, before what it is given: {program()} {word} …")
        if meant := did_you_mean(word, known_tools):
            raise CommandLineError(f"`{word}` must be a tool, or an override of the form key=value.{meant}")
    try:
        overrides = catalogue.parse(arguments)
        known = catalogue.groups(loader())
        for position, override in enumerate(overrides):
            if catalogue.is_group(override, known):
                catalogue.refuse_number(override, known)
                written, value = None, cast(object, override.value())
                if value is None and not override.is_delete():
                    written = f"~{override.key_or_group}"
                elif isinstance(value, Glob) and (fitting := value.filter(known[override.key_or_group])):
                    written = f"{override.get_key_element()}=choice({','.join(fitting)})"
                if written is not None:
                    sys.argv[sys.argv.index(str(override.input_line))] = written
                    overrides[position] = catalogue.parse([written])[0]
    except ConfigError as error:
        raise CommandLineError(*error.mistakes) from None
    if any(sentence for override in overrides for sentence in catalogue.unknown_options(override, known)):
        raise CommandLineError(*catalogue.mistakes(loader(), config_name, overrides))
    return overrides


def _with_meant_keys(config_name: str, overrides: list[Override]) -> list[Override]:
    """The overrides, each of the key that it sets, in sys.argv too: optimizer.lr=0.5 is lr=0.5."""
    resumed = next((o.value() for o in overrides if o.key_or_group == "resume"), None)
    recorded = catalogue.parse(RunFolder.find(str(resumed), "resume").record["overrides"]) if resumed else []
    changed = meant(config_name, overrides, recorded)
    if changed != overrides:
        place = min(sys.argv.index(str(override.input_line)) for override in overrides)
        for override in overrides:
            sys.argv.remove(str(override.input_line))
        sys.argv[place:place] = [str(override.input_line) for override in changed]
    return changed


def _check_experiment_lr(config_name: str, overrides: list[Override], arguments: list[str], cfg: DictConfig) -> None:
    """Refuses an lr that an experiment tuned for another optimizer than the one typed."""
    typed = {o.key_or_group: o for o in overrides}
    chosen = cfg.hydra.runtime.choices.get("experiment")
    experiments = catalogue.chosen(typed["experiment"]) if "experiment" in typed else [chosen] if chosen else []
    if "optimizer" not in typed or "lr" in typed or cfg.get("find_lr") or config_name == "find_lr":
        return
    kept = [a for a in arguments if a.split("=")[0] not in ("optimizer", "experiment")]
    for experiment, optimizer in product(experiments, catalogue.chosen(typed["optimizer"])):
        with_it = [*kept, f"experiment={experiment}"]
        tuned_for = compose(config_name, with_it, overrides).hydra.runtime.choices.optimizer
        lr = compose(config_name, [*with_it, f"optimizer={optimizer}"], overrides).lr
        own_lr = compose(config_name, [*kept, f"optimizer={optimizer}"], overrides).lr
        if tuned_for != optimizer and lr != own_lr:
            raise ConfigError(
                f"`lr` must be given when an experiment's optimizer is changed, got lr={lr:g}, which {experiment} has "
                f"for {tuned_for}. Try lr={own_lr:g}, the own lr of {optimizer}."
            )


def _run_folder(cfg: DictConfig, overrides: list[Override]) -> Path:
    """The folder of this run: that of the resumed one, the one typed, or a new one."""
    if cfg.get("resume"):
        return RunFolder.find(cfg.resume, "resume").path.resolve()
    wanted = Path(cfg.hydra.run.dir).resolve()
    if any(o.key_or_group == "hydra.run.dir" for o in overrides) and wanted.is_dir():
        if any(wanted.iterdir()):
            raise ConfigError(
                f"`hydra.run.dir` must be a new or empty folder, got {wanted}, which has files in it. "
                "Choose another, or continue its run with resume=<folder>."
            )
        return wanted
    return claim(wanted)
