"""One line of the report: a published number beside ours, with a verdict.

A line is `reproduced` when our number, rounded to the printed digits, is the published
one. Where the published number is not the optimum of its own objective, the verdict
says so and the remark gives both objectives.
"""

from __future__ import annotations

from dataclasses import dataclass, field

REPRODUCED = "reproduced"
WITHIN = "within the resampling error"
BETTER = "not the optimum"
ROUNDED = "follows from digits not printed"
ENDS = "the slope between the ends, not the fit"
DIFFERS = "differs"
REJECTED = "rejected, as it must be"
OPEN = "no number published"

_HALF_A_DIGIT = 0.5000001
"""Half a unit of the last printed digit, and a little for binary fractions."""


@dataclass(frozen=True)
class Line:
    """One published number (as printed, "" for none) beside ours."""

    entry: str
    quantity: str
    published: str
    ours: str
    verdict: str
    remark: str = ""


@dataclass
class Entry:
    """A publication and the lines that compare its numbers with ours."""

    name: str
    lines: list[Line] = field(default_factory=list)

    def add_line(
        self,
        quantity: str,
        published: str,
        ours: str,
        verdict: str,
        remark: str = "",
    ) -> None:
        """Add a line whose verdict is known."""
        self.lines.append(
            Line(
                entry=self.name,
                quantity=quantity,
                published=published,
                ours=ours,
                verdict=verdict,
                remark=remark,
            )
        )

    def compare(
        self,
        quantity: str,
        published: str,
        ours: float,
        resampling_error: float = 0.0,
        remark: str = "",
    ) -> None:
        """Add a line whose verdict follows from the two numbers."""
        verdict = judge_number(published, ours, resampling_error)
        shown = format_like_published(published, ours)
        self.add_line(quantity, published, shown, verdict, remark)

    def compare_optima(
        self, quantity: str, published: str, ours: float, objectives: str
    ) -> None:
        """Add a line for a fitted parameter whose objective is known at both values.

        If the numbers differ, the published one is not the optimum, and the remark is
        `objectives`, which gives the objective at the published and at our parameters.
        """
        verdict = judge_number(published, ours)
        remark = ""
        if verdict == DIFFERS:
            verdict = BETTER
            remark = objectives
        shown = format_like_published(published, ours)
        self.add_line(quantity, published, shown, verdict, remark)


def judge_number(published: str, ours: float, resampling_error: float = 0.0) -> str:
    """The verdict on a number.

    Args:
        published: the number as printed.
        ours: the refitted number.
        resampling_error: how far two bootstraps of finite size may lie apart. If only
            this explains the difference, the verdict is `WITHIN`.
    """
    rounding_error = _HALF_A_DIGIT * 10.0 ** -count_decimals(published)
    unexplained = abs(ours - float(published)) - rounding_error
    if unexplained <= 0:
        return REPRODUCED
    if unexplained <= resampling_error:
        return WITHIN
    return DIFFERS


def count_decimals(published: str) -> int:
    """Decimals that a number is printed with; negative in "1.5e2", which has -1."""
    mantissa, _, exponent = published.partition("e")
    _, _, fraction = mantissa.partition(".")
    return len(fraction) - int(exponent or 0)


def format_like_published(published: str, ours: float) -> str:
    """Our number with one digit more than the published one."""
    if abs(float(published)) < 1e-4:
        return f"{ours:.6g}"
    return f"{ours:.{max(count_decimals(published) + 1, 0)}f}"
