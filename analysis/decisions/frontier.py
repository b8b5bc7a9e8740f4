"""The compute-optimal frontier of a law, for many draws of its parameters at once.

A frontier answers two questions: the lowest loss that C FLOPs buy, and the fewest FLOPs
that buy a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.fitting.bootstrap import quantiles
from analysis.laws.base import ClosedFormFrontier, Law

FlopsPerToken = Callable[[np.ndarray], np.ndarray]
Params = Mapping[str, np.ndarray]  # parameter -> [R], one value per draw

MOST_FLOPS = 1e60  # a loss that needs more counts as unreachable
GRID = 65  # sizes of the first, coarse search
GOLDEN = (np.sqrt(5) - 1) / 2


@dataclass(frozen=True, eq=False)
class Problem:
    """How C FLOPs may be divided between N and D.

    With f(N) training FLOPs per token, training costs f(N) D and serving T tokens costs
    T f(N) / 3, the forward
    pass alone: with f = 6 N this is C = 6 N D + 2 N T (Sardana et al. 2024,
    arXiv:2401.00448, equation 2).

    Attributes:
        flops_per_token: f, on arrays and increasing in N; 6 N when None.
        served_tokens: T. max_tokens: the most tokens there are to train on; None for no
        limit.
        at: values of the law's variables other than N and D.
    """

    law: Law
    flops_per_token: FlopsPerToken | None = None
    served_tokens: float = 0.0
    max_tokens: float | None = None
    at: Mapping[str, Any] = field(default_factory=dict)

    def per_token(self, N: Any) -> Any:
        """Training FLOPs per token of models of N parameters, of N's shape."""
        N = np.asarray(N, float)
        return 6 * N if self.flops_per_token is None else self.flops_per_token(N)

    def tokens(self, N: Any, C: Any) -> Any:
        """D that C FLOPs leave after serving, between 1 and `max_tokens`; N and C
        broadcast.
        """
        most = np.inf if self.max_tokens is None else self.max_tokens
        return np.clip(C / self.per_token(N) - self.served_tokens / 3, 1.0, most)

    def flops(self, N: Any, D: Any) -> tuple[Any, Any]:
        """(training, inference) FLOPs."""
        per_token = self.per_token(N)
        return per_token * D, per_token * self.served_tokens / 3

    def loss(self, params: Params, N: Any, D: Any) -> np.ndarray:
        """Loss in nats per token; parameters, N and D broadcast."""
        return self.law.predict(params, N=N, D=D, **self.at)

    def log_sizes(self, C: Any) -> tuple[Any, Any]:
        """(ln of one parameter, ln of the N at which C leaves one token), of C's shape.

        Raises:
            ValueError: C does not buy one token of a model of one parameter.
        """
        C = np.asarray(C, float)
        each = C / (1 + self.served_tokens / 3)  # FLOPs per token at that N
        low, high = np.zeros_like(C), np.log(np.maximum(C, 1.0))
        if self.flops_per_token is None:
            high = np.log(each / 6)
        else:
            for _ in range(60):
                middle = (low + high) / 2
                affordable = self.per_token(np.exp(middle)) < each
                low, high = (
                    np.where(affordable, middle, low),
                    np.where(affordable, high, middle),
                )
        if not np.all(high > 1e-9):
            served = (
                f" after serving {self.served_tokens:g} tokens"
                if self.served_tokens
                else ""
            )
            raise ValueError(
                f"{np.min(C):g} FLOPs do not buy one token of a model of one parameter{served}; raise C"
            )
        return np.zeros_like(C), high

    def optimum(self, params: Params, C: Any, steps: int = 56) -> np.ndarray:
        """[R] N that minimises the loss at C FLOPs, a number or [R]; `steps` of golden
        section after a coarse grid.
        """
        rows = len(next(iter(params.values())))
        C = np.broadcast_to(np.asarray(C, float), (rows,))
        low, high = self.log_sizes(C)
        closed_form = self._closed_form()
        if closed_form is not None:
            N = np.clip(closed_form.size(params, C), np.exp(low), np.exp(high))
            return (
                N
                if self.max_tokens is None
                else np.maximum(N, C / (6 * self.max_tokens))
            )
        columns = {k: np.asarray(v)[:, None] for k, v in params.items()}
        grid = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, GRID)
        N = np.exp(grid)
        best = np.argmin(self.loss(columns, N, self.tokens(N, C[:, None])), axis=1)
        row = np.arange(rows)
        low, high = (
            grid[row, np.maximum(best - 1, 0)],
            grid[row, np.minimum(best + 1, GRID - 1)],
        )

        def at_size(log_size: np.ndarray) -> np.ndarray:
            N = np.exp(log_size)
            return self.loss(params, N, self.tokens(N, C))

        return np.exp(golden_section(at_size, low, high, steps))

    def best_loss(self, params: Params, C: Any, N: float | None = None) -> np.ndarray:
        """[R] lowest loss at C FLOPs, a number or [R], over all sizes or at size N
        alone.
        """
        sizes = self.optimum(params, C, steps=40) if N is None else np.asarray(N, float)
        return self.loss(params, sizes, self.tokens(sizes, C))

    def least_flops(
        self, params: Params, loss: Any, N: float | None = None
    ) -> np.ndarray:
        """[R] fewest FLOPs, serving included, that reach the loss, a number or [R]; inf
        where it is out of reach.
        """
        positive = all(np.all(np.asarray(params.get(k, 0.0)) > 0) for k in ("A", "B"))
        closed_form = self._closed_form()
        if N is None and self.max_tokens is None and positive and closed_form:
            return closed_form.flops(params, loss)
        first = (
            float(self.per_token(1.0 if N is None else N))
            * (1 + self.served_tokens / 3)
            * 1.0001
        )
        return invert(
            lambda C: self.best_loss(params, C, N),
            loss,
            len(next(iter(params.values()))),
            first,
        )

    def _closed_form(self) -> ClosedFormFrontier | None:
        """The law's frontier in closed form, where C = 6 N D."""
        if self.flops_per_token is None and not self.served_tokens:
            return self.law.frontier
        return None


@dataclass(frozen=True, eq=False)
class ComputeLaw:
    """A law of C itself, which is its own frontier. `at`: values of its other
    variables.
    """

    law: Law
    at: Mapping[str, Any] = field(default_factory=dict)

    def best_loss(self, params: Params, C: Any) -> np.ndarray:
        """[R] loss at C FLOPs, a number or [R]."""
        return self.law.predict(params, C=C, **self.at)

    def least_flops(self, params: Params, loss: Any) -> np.ndarray:
        """[R] fewest FLOPs that reach the loss, a number or [R]; inf where it is out of
        reach.
        """
        return invert(
            lambda C: self.best_loss(params, C),
            loss,
            len(next(iter(params.values()))),
            1.0,
        )


Frontier = Problem | ComputeLaw  # both have best_loss and least_flops


def frontier(
    law: Law,
    flops_per_token: FlopsPerToken | None = None,
    at: Mapping[str, Any] | None = None,
) -> Frontier:
    """The frontier of a law of N and D, or of a law of C.

    Raises:
        ValueError: the law is of neither kind, or `at` does not name exactly its other
        variables.
    """
    if {"N", "D"} <= set(law.variables):
        return Problem(law, flops_per_token, at=other_variables(law, ("N", "D"), at))
    if "C" in law.variables and "N" not in law.variables and "D" not in law.variables:
        return ComputeLaw(law, other_variables(law, ("C",), at))
    raise ValueError(
        f"law {law.name!r} is a function of {', '.join(law.variables)}; a frontier in compute needs a law of "
        "N and D, such as 'chinchilla', or one of C"
    )


def other_variables(
    law: Law, solved: tuple[str, ...], at: Mapping[str, Any] | None
) -> dict[str, float]:
    """`at` as floats, once it names every variable of the law besides those solved for.

    Raises:
        ValueError: a variable is missing, unknown, or not positive.
    """
    given = dict(at or {})
    others = [v for v in law.variables if v not in solved]
    for name in others:
        if name not in given:
            raise ValueError(
                f"law {law.name!r} reads {name} as well; give its value, as at={{{name!r}: ...}}"
            )
    for name, value in given.items():
        if name not in others:
            named = ", ".join(others) or "no variable besides " + " and ".join(solved)
            raise ValueError(
                f"at[{name!r}]: law {law.name!r} has {named}; leave {name!r} out"
            )
        if not (np.isfinite(value) and value > 0):
            raise ValueError(
                f"at[{name!r}] is {value!r}; it must be positive and finite"
            )
    return {name: float(value) for name, value in given.items()}


def golden_section(
    value: Callable[[np.ndarray], np.ndarray],
    low: np.ndarray,
    high: np.ndarray,
    steps: int = 56,
) -> np.ndarray:
    """[R] point between low and high, [R] each, where `value` is least (Kiefer 1953);
    it has one minimum there.
    """
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = value(left), value(right)
    for _ in range(steps):
        down = at_left <= at_right  # the minimum lies left of `right`
        low, high = np.where(down, low, left), np.where(down, right, high)
        new = np.where(down, high - GOLDEN * (high - low), low + GOLDEN * (high - low))
        at_new = value(new)
        left, right = np.where(down, new, right), np.where(down, left, new)
        at_left, at_right = (
            np.where(down, at_new, at_right),
            np.where(down, at_left, at_new),
        )
    return (low + high) / 2


def invert(
    best_loss: Callable[[np.ndarray], np.ndarray], loss: Any, rows: int, first: float
) -> np.ndarray:
    """[R] smallest C at or above `first` at which best_loss, falling in C, is at most
    `loss`; inf beyond 10^60.

    By bisection in ln C, then by false position with halved ends (the Illinois rule;
    Dowell & Jarratt 1971). loss is a number or [R].
    """
    low, high = np.full(rows, np.log(first)), np.full(rows, np.log(MOST_FLOPS))
    above, below = best_loss(np.exp(low)) - loss, best_loss(np.exp(high)) - loss
    reached, at_once = below < 0, above <= 0
    kept = np.zeros(rows)  # which end the last step kept: 1 the lower, -1 the upper
    for step in range(24):
        middle = (low + high) / 2
        if step >= 12:  # the bracket is narrow and the loss nearly straight in it
            with np.errstate(divide="ignore", invalid="ignore"):
                straight = low + (high - low) * above / (above - below)
            middle = np.where((straight > low) & (straight < high), straight, middle)
        value = best_loss(np.exp(middle)) - loss
        enough = value <= 0
        above = np.where(enough, np.where(kept > 0, above / 2, above), value)
        below = np.where(enough, value, np.where(kept < 0, below / 2, below))
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        kept = np.where(enough, 1.0, -1.0) if step >= 12 else kept
    nearer = np.where(np.abs(above) < np.abs(below), low, high)
    return np.where(at_once, first, np.where(reached, np.exp(nearer), np.inf))


def interval(draws: np.ndarray, level: float) -> tuple[float, float]:
    """Central interval of draws [R], some of which may be infinite; NaN draws are left
    out.

    Between a finite and an infinite draw there is nothing to interpolate: the outer one
    is taken.

    Raises:
        ValueError: level outside (0, 1), or no draw left.
    """
    kept = draws[~np.isnan(draws)]
    if not len(kept):
        raise ValueError(
            "every bootstrap draw is NaN; no interval can be given: check the fit's certificate"
        )
    if np.all(np.isfinite(kept)):
        low, high = quantiles(kept, level)
        return float(low), float(high)
    quantiles(np.zeros(1), level)  # refuses a bad level
    low = np.quantile(kept, (1 - level) / 2, method="lower")
    high = np.quantile(kept, (1 + level) / 2, method="higher")
    return float(low), float(high)
