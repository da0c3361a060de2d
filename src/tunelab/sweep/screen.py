"""What is seen of a search while it runs: a live table in a terminal, otherwise a line per finished trial."""

from __future__ import annotations

import logging
from types import TracebackType

from tunelab.sweep.plan import Plan
from tunelab.sweep.trials import Claim, Trials

log = logging.getLogger("tunelab")


class Screen:
    def __init__(self, plan: Plan, trials: Trials) -> None:
        self.plan, self.trials = plan, trials

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def began(self, claim: Claim) -> None:
        pass

    def reported(self, claim: Claim, epoch: int, value: float) -> None:
        pass

    def ended(self, claim: Claim, state: str, value: float | None, cause: str = "") -> None:
        log.info("trial %d %s %s %s %s", claim.number, claim.values, state, value, cause)

    def refresh(self) -> None:
        pass
