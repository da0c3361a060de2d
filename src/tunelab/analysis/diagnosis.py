"""What is wrong with a run, in words: every rule asked, causes before their consequences. No torch."""

from __future__ import annotations

from tunelab.analysis.evidence import Evidence
from tunelab.analysis.verdict import Verdict

__all__ = ["Verdict", "diagnose"]


def diagnose(evidence: Evidence) -> list[Verdict]:
    """What is wrong with a run.

    Args:
        evidence: What it recorded.

    Returns:
        The main finding first; none for a healthy run.
    """
    return [verdict for verdict in (_diverged(evidence),) if verdict is not None]


def _diverged(evidence: Evidence) -> Verdict | None:
    if evidence.result.get("status") != "diverged":
        return None
    lr = evidence.recipe.get("lr")
    return Verdict(
        "diverged",
        "The run diverged.",
        str(evidence.result.get("message", "")),
        1.0,
        (f"lr={lr / 10:g}",) if isinstance(lr, float) else (),
        "Take smaller steps.",
    )
