"""What a diagnosis says: a finding in words, what shows it, how sure it is, and what to try."""

from __future__ import annotations

from dataclasses import dataclass

LIKELY = 0.6
"""Of a certainty: below it a finding is but perhaps so."""


@dataclass(frozen=True)
class Verdict:
    """Something that is wrong with a run.

    Args:
        name: Of the fault, such as lr_too_high.
        finding: What is wrong, a sentence.
        evidence: The numbers and steps that show it.
        certainty: How sure that is, in [0, 1].
        overrides: What to try, as it would be typed; none where no override mends it.
        advice: What to do in words.
        measure: A whole line to type that measures what would mend it; empty if no tool does.
    """

    name: str
    finding: str
    evidence: str
    certainty: float
    overrides: tuple[str, ...] = ()
    advice: str = ""
    measure: str = ""

    @property
    def certainty_in_words(self) -> str:
        """Sure, likely or perhaps."""
        return "sure" if self.certainty >= 0.9 else "likely" if self.certainty >= LIKELY else "perhaps"
