"""How a diagnosis is told: what was found, what shows it, how sure it is and what to type. No torch."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunelab.analysis.evidence import Evidence, read
from tunelab.analysis.rules_of_data import ceiling
from tunelab.analysis.verdict import LIKELY, Verdict
from tunelab.errors import as_typed, counted, training

log = logging.getLogger("tunelab")

HEALTHY = "Nothing is wrong with this run that its curves show."

MEASURES = {"gradient_norm": "gradients", "update_ratio": "updates", "dead_share": "dead units"}
"""What is recorded of each layer, and what it is called."""

Command = Callable[..., str]


def told(verdicts: Sequence[Verdict], evidence: Evidence, command: Command) -> str:
    """A diagnosis in words.

    Args:
        verdicts: The main finding first.
        evidence: What they were found in.
        command: What to type for the run with other overrides, as `RunFolder.command`.
    """
    last = [*([limit] if (limit := ceiling(evidence)) else []), f"Looked at {looked_at(evidence)}."]
    if not verdicts:
        return "\n".join([HEALTHY, *last])
    said = []
    for place, verdict in enumerate(verdicts, 1):
        mark = f"{place}. " if len(verdicts) > 1 else ""
        lines = [f"{mark}{verdict.finding} ({verdict.certainty_in_words})", f"{'seen':9} {verdict.evidence}"]
        if verdict.overrides:
            lines.append(f"{'try':9} {command(*verdict.overrides)}")
        if verdict.measure:
            lines.append(f"{'measure':9} {verdict.measure}")
        if verdict.advice:
            lines.append(f"{'or' if verdict.overrides or verdict.measure else 'try':9} {verdict.advice}")
        said.append("\n   ".join(lines))
    return "\n".join([*said, *last])


def looked_at(evidence: Evidence) -> str:
    """What a run has recorded, and what it has not, in a line."""
    parts = {part: len(evidence.curve(f"{part}/loss")) for part in ("train", "val")}
    there = [f"{part}/loss at {counted(count, 'step')}" for part, count in parts.items() if count]
    missing = [f"{part}/loss" for part, count in parts.items() if not count]
    for measure, name in MEASURES.items():
        if layers := evidence.layers(measure):
            there.append(f"the {name} of {counted(len(layers), 'layer')}")
        else:
            missing.append(name)
    (there if evidence.facts else missing).append("facts.json")
    without = f"; not recorded: {', '.join(missing)}" if missing else ""
    return f"{', '.join(there) or 'what it ended with'}{without}"


def rows(verdicts: Sequence[Verdict], command: Command) -> list[dict[str, Any]]:
    """A diagnosis as a table, a line for each finding; for a healthy run one that says so.

    Args:
        verdicts: The main finding first.
        command: What to type for the run with other overrides.
    """
    if not verdicts:
        return [{"rank": "", "name": "healthy", "finding": HEALTHY}]
    return [
        {
            "rank": place,
            "name": verdict.name,
            "finding": verdict.finding,
            "evidence": verdict.evidence,
            "certainty": round(verdict.certainty, 3),
            "advice": verdict.advice,
            "overrides": shlex.join(verdict.overrides),
            "command": command(*verdict.overrides) if verdict.overrides else verdict.measure,
        }
        for place, verdict in enumerate(verdicts, 1)
    ]


def in_short(folder: Path) -> dict[str, str]:
    """What the end of a run says of it, by what each line is; nothing of a healthy run, or of one to debug.

    Nor what is but perhaps so: that is for who asks.

    A run never fails for it: what goes wrong here is a line of the log.

    Args:
        folder: Of the run, which has ended.
    """
    try:
        from tunelab.analysis.diagnosis import diagnose

        evidence = read(folder)
        if evidence.choices.get("debug"):
            return {}
        if evidence.result.get("status") == "diverged":
            return {"more": more(folder)}  # what it was and what to try has been said
        verdicts = [verdict for verdict in diagnose(evidence) if verdict.certainty >= LIKELY]
        if not verdicts:
            return {}
        first = verdicts[0]
        found = f"{first.finding} ({first.evidence})"
        if first.overrides:
            return {"what to try": f"{shlex.join(first.overrides)}  # {found}", "more": more(folder)}
        measure = {"what to try": first.measure} if first.measure else {}
        return {"what is wrong": found, **measure, "more": more(folder)}
    except Exception as error:
        log.info("This run could not be diagnosed: %s: %s", type(error).__name__, error)
        return {}


def more(folder: Path) -> str:
    """What to type for the whole diagnosis of a run."""
    return f"{training()} diagnose run={shlex.quote(as_typed(folder))}"
