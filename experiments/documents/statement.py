"""A claim, the rule that decides it, and what was found: plain objects, no experiment.

Rules answer True, False or None (the interval straddles the bound): three-valued logic,
so that a scale too small to decide is said to be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

SUPPORTED, REFUTED = "supported", "refuted"
NOT_TESTABLE, UNDECIDED, PENDING = (
    "not testable here",
    "undecided at this scale",
    "pending",
)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; an exact one has both ends equal to it."""

    value: float
    low: float
    high: float

    def above(self, bound: float) -> bool | None:
        """Whether the number exceeds the bound; None where the interval contains it."""
        return True if self.low > bound else False if self.high < bound else None

    def below(self, bound: float) -> bool | None:
        """Whether the number is less than the bound; None where the interval contains
        it.
        """
        return negate(self.above(bound))

    def within(self, low: float, high: float) -> bool | None:
        """Whether the number lies between two bounds; None where the interval contains
        one of them.
        """
        return all_hold(self.above(low), self.below(high))

    @property
    def interval(self) -> str:
        """The interval's ends, "exact" where they are equal."""
        return (
            "exact" if self.low == self.high else f"{self.low:.3g} to {self.high:.3g}"
        )

    @property
    def text(self) -> str:
        """The number: counts to the last digit, others to three or four."""
        if self.low == self.high:
            return f"{self.value:,.0f}" if self.value >= 1000 else f"{self.value:.4g}"
        return f"{self.value:.3g}"

    def __str__(self) -> str:
        return (
            self.text
            if self.low == self.high
            else f"{self.text} [{self.low:.3g}, {self.high:.3g}]"
        )


Numbers = Mapping[str, Estimate]
Row = dict[str, str]


def make_exact(value: float) -> Estimate:
    """A number without an interval."""
    return Estimate(float(value), float(value), float(value))


def negate(answer: bool | None) -> bool | None:
    """Not; unknown stays unknown."""
    return None if answer is None else not answer


def all_hold(*answers: bool | None) -> bool | None:
    """All of them: one False decides, else one None leaves it open."""
    return (
        False if any(a is False for a in answers) else None if None in answers else True
    )


def any_holds(*answers: bool | None) -> bool | None:
    """Any of them: one True decides, else one None leaves it open."""
    return negate(all_hold(*(negate(a) for a in answers)))


def name_verdict(answer: bool | None) -> str:
    """The verdict of a rule's answer."""
    return {True: SUPPORTED, False: REFUTED, None: UNDECIDED}[answer]


@dataclass(frozen=True, eq=False)
class Finding:
    """What an experiment found.

    Attributes:
        numbers: all that the rule reads, by name; the first is the one that the summary
        shows.
        remark: what a reader must know to read them: the setting, and its limits.
        figure: drawn; None where a table says it all. caption: what is in it.
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
        documents: the letters of those that make it.
        rule: what decides, in words; `decide` is the same in code.
        change: what would change the verdict.
        needs: the grids of runs that its experiment reads.
    """

    id: str
    documents: str
    short: str
    statement: str
    rule: str
    decide: Callable[[Numbers], str]
    change: str
    experiment: Callable[[Any], Finding]
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
