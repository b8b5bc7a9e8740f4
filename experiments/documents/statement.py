"""A claim, the rule that decides it, and what was found: plain objects, no experiment.

Rules answer True, False or None (the interval contains the bound). This is three-valued
logic: a scale too small to decide gives the verdict that it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from experiments.documents.evidence import Evidence

SUPPORTED = "supported"
REFUTED = "refuted"
UNDECIDED = "undecided at this scale"
NOT_TESTABLE = "not testable here"


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; the interval of an exact number has no width."""

    value: float
    low: float
    high: float

    def above(self, bound: float) -> bool | None:
        """Whether the number exceeds the bound; None where the interval contains it."""
        if self.low > bound:
            return True
        if self.high < bound:
            return False
        return None

    def below(self, bound: float) -> bool | None:
        """Whether the number is less than the bound; None where the interval contains
        it.
        """
        return negate_answer(self.above(bound))

    def within(self, low: float, high: float) -> bool | None:
        """Whether the number lies between two bounds; None where the interval contains
        one of them.
        """
        return all_hold(self.above(low), self.below(high))

    @property
    def is_exact(self) -> bool:
        """Whether the interval has no width."""
        return self.low == self.high

    @property
    def interval(self) -> str:
        """The interval's ends, or "exact"."""
        if self.is_exact:
            return "exact"
        return f"{self.low:.3g} to {self.high:.3g}"

    @property
    def text(self) -> str:
        """The number with three digits; an exact one with four, a count with all."""
        if not self.is_exact:
            return f"{self.value:.3g}"
        if self.value >= 1000:
            return f"{self.value:,.0f}"
        return f"{self.value:.4g}"

    def __str__(self) -> str:
        if self.is_exact:
            return self.text
        return f"{self.text} [{self.low:.3g}, {self.high:.3g}]"


Numbers = Mapping[str, Estimate]
"""The numbers that a rule reads, by name."""

Row = dict[str, str]
"""A row of a table of text, by column."""


def make_exact(value: float) -> Estimate:
    """A number without an interval."""
    return Estimate(float(value), float(value), float(value))


def negate_answer(answer: bool | None) -> bool | None:
    """Not; unknown stays unknown."""
    return None if answer is None else not answer


def all_hold(*answers: bool | None) -> bool | None:
    """Whether all hold: one False decides; else one None leaves it open."""
    if any(answer is False for answer in answers):
        return False
    if None in answers:
        return None
    return True


def any_holds(*answers: bool | None) -> bool | None:
    """Whether any holds: one True decides; else one None leaves it open."""
    if any(answer is True for answer in answers):
        return True
    if None in answers:
        return None
    return False


def name_verdict(answer: bool | None) -> str:
    """The verdict of a rule's answer."""
    return {True: SUPPORTED, False: REFUTED, None: UNDECIDED}[answer]


@dataclass(frozen=True, eq=False)
class Finding:
    """What an experiment found.

    Attributes:
        numbers: all that the rule reads, by name; the summary shows the first.
        remark: how they were measured, and the limits of that.
        figure: the figure; None where a table shows everything.
        caption: what the figure shows.
        table: rows of text, for figures of few numbers.
    """

    numbers: dict[str, Estimate]
    remark: str
    figure: Figure | None = None
    caption: str = ""
    table: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Claim:
    """One claim of the documents.

    Attributes:
        id: `S` and a number.
        documents: the letters of the documents that make it, as in
            `experiments.documents.DOCUMENTS`.
        short: the claim in a few words, for the table of verdicts.
        statement: the claim in a sentence.
        rule: what decides, in words.
        decide: the same rule in code, from the numbers to the verdict.
        change: what would change the verdict.
        experiment: measures the numbers.
        needs: the grids of runs that the experiment reads.
    """

    id: str
    documents: str
    short: str
    statement: str
    rule: str
    decide: Callable[[Numbers], str]
    change: str
    experiment: Callable[[Evidence], Finding]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """A claim with its finding and the verdict that its rule gives."""

    claim: Claim
    finding: Finding
    seconds: float

    @property
    def verdict(self) -> str:
        """By the claim's rule from the finding's numbers."""
        return self.claim.decide(self.finding.numbers)

    @property
    def headline(self) -> str:
        """The first number, its name and its interval."""
        name, number = next(iter(self.finding.numbers.items()))
        return f"{name} {number}"
