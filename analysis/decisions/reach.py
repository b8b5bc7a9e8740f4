"""How far a decision lies outside the runs that the law was fitted to.

    reach = measure_reach(fit, C=1e15, N=2e6, D=4e7)
    reach.check()  # warns beyond 10 times, raises beyond 100 times
    print(reach)

A law that fits its runs well may still be wrong far from them: Kaplan et al. 2020
(arXiv:2001.08361) found compute-optimal sizes that grow as C^0.73, Hoffmann et al. 2022
(arXiv:2203.15556), with larger runs, C^0.5. The factors tell a reader how much of an
answer is evidence. `Fit.predict` is the plain function of the law and checks nothing; the
functions that decide, and the command line, do.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.fitting.result import FitResult

WARN_BEYOND = 10.0
"""Factor outside the fitted range beyond which a decision warns."""

REFUSE_BEYOND = 100.0
"""Factor outside the fitted range beyond which a decision is refused."""

EDGE = 1.01
"""A factor up to this counts as inside: budgets are rarely met to the last FLOP."""

RATIO = "D/N"


class ExtrapolationError(ValueError):
    """The answer lies more than 100 times outside the fitted range of a variable."""


class ExtrapolationWarning(UserWarning):
    """The answer lies more than 10 times outside the fitted range of a variable."""


@dataclass(frozen=True)
class FittedRange:
    """A value beside the fitted range of its variable.

    Attributes:
        value: of the variable where something is predicted.
        smallest: of the fitted runs.
        largest: of the fitted runs.
    """

    value: float
    smallest: float
    largest: float

    @property
    def factor(self) -> float:
        """How many times the value lies above the largest or below the smallest fitted
        one; 1 between them.
        """
        above = self.value / self.largest
        below = self.smallest / self.value
        return max(above, below, 1.0)

    @property
    def is_inside(self) -> bool:
        """Whether the value lies between the fitted ones, to within 1 %."""
        return self.factor <= EDGE

    def describe(self, name: str) -> str:
        """Words for a value outside, such as "C is 8 times the largest fitted (2e+12)"."""
        if self.value > self.largest:
            return (
                f"{name} is {self.factor:.3g} times the largest fitted "
                f"({self.largest:.3g})"
            )
        return (
            f"{name} is {self.factor:.3g} times below the smallest fitted "
            f"({self.smallest:.3g})"
        )


@dataclass(frozen=True)
class Reach:
    """By what factors a point leaves the fitted range of each variable.

    Attributes:
        ranges: variable (C, N, D, D/N, and others of the law) -> the point's value
            beside the fitted ones. A variable that is unknown for the point or for the
            runs is left out.
    """

    ranges: dict[str, FittedRange]

    @property
    def factors(self) -> dict[str, float]:
        """Factor outside the fitted range by variable; 1 inside."""
        return {name: fitted.factor for name, fitted in self.ranges.items()}

    @property
    def largest(self) -> float:
        """The largest factor; 1 where nothing leaves its range."""
        return max([1.0, *self.factors.values()])

    @property
    def is_inside(self) -> bool:
        """Whether every variable lies between its fitted values, to within 1 %."""
        return all(fitted.is_inside for fitted in self.ranges.values())

    @property
    def is_far(self) -> bool:
        """Whether a factor exceeds 10, so that a decision warns."""
        return self.largest > WARN_BEYOND

    @property
    def is_refused(self) -> bool:
        """Whether a factor exceeds 100, so that a decision must be asked for."""
        return self.largest > REFUSE_BEYOND

    def check(self, extrapolate: bool = False, stacklevel: int = 2) -> None:
        """Warn beyond 10 times and refuse beyond 100 times, unless `extrapolate`.

        Args:
            extrapolate: the caller asked for the extrapolation: neither happens.
            stacklevel: of the warning, as for `warnings.warn`.

        Raises:
            ExtrapolationError: a factor exceeds 100.
        """
        if extrapolate:
            return
        if self.is_refused:
            raise ExtrapolationError(
                f"{self._describe_outside()}: more than {REFUSE_BEYOND:g} times outside "
                f"the fitted runs, where no run supports the law; {self._name_fix()}"
            )
        if self.is_far:
            warnings.warn(str(self), ExtrapolationWarning, stacklevel=stacklevel + 1)

    def to_record(self) -> dict[str, object]:
        """Plain data for JSON: factors, the largest, whether it is far or was refused
        unless asked for, and the words.
        """
        return {
            "factors": self.factors,
            "largest": self.largest,
            "warning": self.is_far,
            "beyond_limit": self.is_refused,
            "text": str(self),
        }

    def __str__(self) -> str:
        if not self.ranges:
            return (
                "the runs have neither C, N nor D: how far this lies outside is unknown"
            )
        if self.is_inside:
            return f"within the fitted range of {_join_names(list(self.ranges))}"
        text = f"extrapolated: {self._describe_outside()}"
        inside = [name for name, fitted in self.ranges.items() if fitted.is_inside]
        if inside:
            verb = "is" if len(inside) == 1 else "are"
            text += f"; {_join_names(inside)} {verb} within the fitted range"
        if self.is_refused:
            return (
                f"WARNING, {text}; beyond {REFUSE_BEYOND:g} times, answered only because "
                "extrapolation was asked for"
            )
        if self.is_far:
            return f"WARNING, {text}; beyond {WARN_BEYOND:g} times"
        return text

    def _describe_outside(self) -> str:
        outside = []
        for name, fitted in self.ranges.items():
            if not fitted.is_inside:
                outside.append(fitted.describe(name))
        return ", ".join(outside)

    def _name_fix(self) -> str:
        """How to get an answer: a nearer target, larger runs, or asking for it."""
        name = max(self.factors, key=lambda name: self.factors[name])
        fitted = self.ranges[name]
        low = fitted.smallest / REFUSE_BEYOND
        high = fitted.largest * REFUSE_BEYOND
        return (
            f"ask for {name} between {low:.3g} and {high:.3g}, fit runs nearer to the "
            "target, or give extrapolate=True (--extrapolate on the command line)"
        )


def measure_reach(
    fit: FitResult,
    *,
    C: float | None = None,
    N: float | None = None,
    D: float | None = None,
    **others: float,
) -> Reach:
    """By what factors a point leaves the fitted range of C, N, D and D/N.

    Args:
        fit: whose runs are the evidence.
        C: training FLOPs of the point, None if unknown. Inference does not count.
        N: parameters, None if unknown.
        D: training tokens, None if unknown. With N it gives D/N.
        others: values of the law's further variables.
    """
    point = {"C": C, "N": N, "D": D, RATIO: None, **others}
    if N is not None and D is not None:
        point[RATIO] = D / N
    fitted = _collect_fitted(fit)
    ranges = {}
    for name, value in point.items():
        if value is None or name not in fitted:
            continue
        known = fitted[name]
        ranges[name] = FittedRange(float(value), float(known.min()), float(known.max()))
    return Reach(ranges)


def measure_furthest(fit: FitResult, points: Mapping[str, np.ndarray]) -> Reach:
    """By what factors the runs at some points leave the fitted ranges: of each variable
    the run that lies furthest outside.

    Args:
        fit: whose runs are the evidence.
        points: values of C, N, D and the law's further variables, as far as they are
            known, [n] each.
    """
    furthest: dict[str, FittedRange] = {}
    for values in zip(*points.values(), strict=True):
        point = dict(zip(points, map(float, values), strict=True))
        for name, fitted in measure_reach(fit, **point).ranges.items():
            if name not in furthest or fitted.factor > furthest[name].factor:
                furthest[name] = fitted
    return Reach(furthest)


def _collect_fitted(fit: FitResult) -> dict[str, np.ndarray]:
    """[n] values of each variable in the fitted runs, C and D/N included if known."""
    names = dict.fromkeys(("N", "D", *fit.law.variables))
    fitted = {name: fit.data[name] for name in names if name in fit.data}
    if "C" in fit.data or {"N", "D"} <= set(fitted):
        fitted["C"] = fit.compute
    if {"N", "D"} <= set(fitted):
        fitted[RATIO] = fitted["D"] / fitted["N"]
    finite = {}
    for name, values in fitted.items():
        known = values[np.isfinite(values) & (values > 0)]
        if len(known):
            finite[name] = known
    return finite


def _join_names(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}"
