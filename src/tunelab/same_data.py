"""Whether the data that a run reads again is what it was: what differs is said, and nothing is scored in silence."""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from tunelab.errors import ConfigError
from tunelab.folder import RunFolder
from tunelab.hashing import Passing
from tunelab.members import Comparison, Members, kept
from tunelab.record import differences, fingerprints
from tunelab.spec import DataSpec

log = logging.getLogger("tunelab")

NOT_COMPARED = "This run has no record of its examples: whether the data is still the same could not be compared."

WORDS = ["refuse", "unseen", "ignore"]
"""What `changed` may be: what is done where the data is not what it was."""


def latest_record(run: RunFolder) -> dict[str, Any]:
    """How a run was last taken up: its record with what its resumes have changed."""
    record = run.record
    for resume in record.get("resumes", []):
        record = record | resume
    return record


def changes(run: RunFolder, cfg: DictConfig) -> list[str]:
    """A phrase for each file or folder that is not what it was: `data.path 90 bytes, crc32 … → 95 bytes, crc32 …`."""
    before, now = latest_record(run).get("data"), fingerprints(cfg.data)
    return differences({"data": before}, {"data": now}) if before else []


def compared(run: RunFolder, data: Any, now: Members | None = None) -> Comparison | None:
    """The examples of now beside those of a run; None if it kept none, or the data does not say which it has.

    Args:
        run: The run.
        data: Its data module, set up.
        now: Its examples, if they were noted as they passed.
    """
    before = kept(run.path)
    if now is None and hasattr(data, "members"):
        now = data.members()
    return None if before is None or now is None else Comparison(before, now, list(getattr(data, "strange", [])))


def require_same(
    cfg: DictConfig, data: Any, again: Callable[[], Any], resumed: Path | None, repeated: Path | None
) -> None:
    """Reads the data of a run that is taken up again or repeated, by that run's own spec, and refuses another.

    Args:
        cfg: Its recipe.
        data: Its data module, not yet set up.
        again: Makes another like it, for one that has to be read to know which examples it has.
        resumed: The folder of the run that is taken up again, if it is.
        repeated: That of the one that is repeated, if it is.

    Raises:
        ConfigError: If it is not what it was, with what differs.
    """
    before = resumed or repeated
    if before is None:
        return
    run = RunFolder(before)
    if hasattr(data, "members"):
        spec = run.path / "data_spec.json"
        if spec.is_file():
            data.known = DataSpec.from_json(json.loads(spec.read_text(encoding="utf-8")))
        data.prepare_data()
        data.setup("fit")
        found = compared(run, data)
    else:
        found = compared(run, data, _validation(again()) if kept(run.path) else {})
        if (
            found is not None
            and found.differing
            and Comparison(found.kept, _validation(again())).now_sums != found.now_sums
        ):
            log.warning("Its validation examples are others each time they are read, and could not be compared.")
            found = None
    told = [phrase for phrase in changes(run, cfg) if not _only_touched(phrase)]
    if found is not None and found.now_sums:
        if not found.differing:
            if not hasattr(data, "members"):
                log.info("Its data module does not say which examples it has: only those of val could be compared.")
            return
        told.append(found.told(found.differing[0]))
    elif not latest_record(run).get("data"):
        log.warning("%s", NOT_COMPARED)
    if told:
        key = "resume" if resumed else "repeat"
        raise ConfigError(
            f"`{key}` must have the data that the run was trained on, but that has changed: {'; '.join(told)}. "
            f"Put it back as it was, or train anew on what it is now: {run.command()}"
        )


def _validation(data: Any) -> Members:
    """The validation examples of a data module that does not say which it has; none if they are no examples.

    What is random in the run draws the same as without.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # what its code may use
    try:
        passing = Passing()
        data.prepare_data()
        data.setup("fit")
        loader = data.val_dataloader()
        for batch in loader if loader is not None else ():
            passing.add(batch)
        found = passing.members()
        return {} if found is None else {"val": found}
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def settle(
    run: RunFolder, cfg: DictConfig, data: Any, part: str, changed: str, now: Members | None = None
) -> list[str]:
    """Lets a part of a run's data be scored if it is what it was, or else as the user has said.

    Args:
        run: The run.
        cfg: Its recipe.
        data: Its data module, set up; its part is put together anew for `unseen`.
        part: The part to be scored, test or val.
        changed: One of `WORDS`.
        now: The examples, if they were noted as they passed.

    Returns:
        What the user has to know of it, a sentence each.

    Raises:
        ConfigError: If it is not what it was, with what differs.
    """
    found = compared(run, data, now)
    if found is None or part in found.uncompared:
        return _settle_by_files(run, cfg, changed)
    if part not in found.differing:
        others = " and ".join(found.differing)
        return [f"Of this run's data {others} has changed, but not its {part} examples."] if others else []
    files = changes(run, cfg)
    told = "; ".join([*files, found.told(part)])
    if changed == "ignore":
        return [f"The data is not what this run had: {told}. The {part} part is scored as it is dealt now."]
    if part != "test" or found.kept.members is None or not hasattr(data, "put_together"):
        raise ConfigError(_refusal(told, "changed=ignore to score what the part is now"))
    chosen = found.unseen()
    count = sum(map(len, chosen.values()))
    if changed == "unseen" and count:
        data.put_together(part, chosen)
        return [f"The data is not what this run had: {told}. Scored are the {count:,} examples that it has not met."]
    if not count:
        raise ConfigError(
            _refusal(f"{told}; the model has met all of them", "changed=ignore to score them all the same")
        )
    raise ConfigError(_refusal(told, f"changed=unseen to score the {count:,} examples that the model has not met"))


def _settle_by_files(run: RunFolder, cfg: DictConfig, changed: str) -> list[str]:
    """The same where examples cannot be compared, by what is known of the files."""
    before = latest_record(run).get("data")
    found = changes(run, cfg)
    surely = [phrase for phrase in found if not _only_touched(phrase)]
    if surely and changed != "ignore":
        told = f"{'; '.join(surely)}; which examples trained the model is not recorded, and some may be scored"
        raise ConfigError(_refusal(told, "changed=ignore to score what the part is now"))
    if surely:
        return [f"The data is not what this run had: {'; '.join(surely)}. Examples that trained it may be scored."]
    if before and not found:
        return []
    return [NOT_COMPARED]


def _only_touched(phrase: str) -> bool:
    """Whether what is known by size and time alone has only another time, as a copy has."""
    was, _, is_now = (re.sub(r",? (newest )?of \d{4}-\S+", " (by time)", side) for side in phrase.partition(" → "))
    return "(by time)" in was and was.split(" ", 1)[1] == is_now


def _refusal(told: str, instead: str) -> str:
    return (
        f"`run` must have the data that it was trained on, but that has changed: {told}. Put it back as it was, name "
        f"where it is now by data.path=<path>, or type {instead}."
    )
