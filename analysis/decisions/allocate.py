"""Compute-optimal allocation: which model size, on how many tokens.

The question is asked for a number of FLOPs, or for a loss to reach.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from analysis.decisions.frontier import (
    AllocationProblem,
    FlopsPerToken,
    Params,
    compute_interval,
    count_draws,
    make_single_draw,
    read_other_variables,
)
from analysis.decisions.reach import FittedRange, Reach, measure_reach
from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit

Bound = Literal["", "upper", "lower"]


@dataclass(frozen=True)
class Allocation:
    """The best use of C FLOPs under a fitted law, or the cheapest way to a loss.

    Attributes:
        C: FLOPs of training and inference together.
        N: number of parameters of the best model, or the number that was given.
        D: number of training tokens.
        loss: predicted at N and D, nats per token.
        near_optimal_range: (smallest, largest) N whose loss, at the same C, is within
            0.1 % of the best; (N, N) if N was given.
        relation: the formula that ties N and D to C.
        extrapolation_factor: training FLOPs over the largest C that was fitted; above 1
            the law is extrapolated.
        level: of the intervals.
        intervals: "N", "D", "loss" -> (low, high), and "C" if the loss was given. A
            quantity that was given has no interval. An end is inf if the draws beyond
            it cannot reach the loss. Empty without a bootstrap.
        training_flops: the part of C spent on training.
        inference_flops: the part of C spent on inference. The two parts add up to less
            than C if the tokens run out.
        data_limited: whether D is all the tokens that exist.
        notes: what else a reader should know.
        outside: by what factors training C, N, D and D/N leave the fitted range.
        bound: "upper" if the optimum lies below the smallest fitted size, which is
            then an upper bound of the best N and all that the runs show; "lower" if it
            lies above the largest; "" if it lies between them or N was given.
    """

    C: float
    N: float
    D: float
    loss: float
    near_optimal_range: tuple[float, float]
    relation: str
    extrapolation_factor: float
    level: float = 0.90
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    training_flops: float = float("nan")
    inference_flops: float = 0.0
    data_limited: bool = False
    notes: tuple[str, ...] = ()
    outside: Reach = field(default_factory=lambda: Reach({}))
    bound: Bound = ""

    @property
    def valley(self) -> tuple[float, float]:
        """The old name of `near_optimal_range`."""
        return self.near_optimal_range

    @property
    def reach(self) -> float:
        """The old name of `extrapolation_factor`."""
        return self.extrapolation_factor

    def __str__(self) -> str:
        total = f"{self.C:.3g}{self._interval_text('C', '.3g')} FLOPs ({self.relation})"
        parts = [
            f"{name} {getattr(self, name):.4g}{self._interval_text(name, '.4g')}"
            for name in ("N", "D", "loss")
        ]
        sentences = [
            f"{total}: {', '.join(parts)}",
            f"{self.D / self.N:.3g} tokens per parameter",
        ]
        if self.inference_flops:
            sentences.append(
                f"training {self.training_flops:.3g} FLOPs, inference "
                f"{self.inference_flops:.3g}"
            )
        low, high = self.near_optimal_range
        if low < high:
            sentences.append(
                f"N from {low:.3g} to {high:.3g} is within 0.1 % of the best loss"
            )
        lines = [str(self.outside)]
        if self.bound:
            lines.append(self.describe_bound())
        lines.append("; ".join([*sentences, *self.notes]))
        return "\n".join(lines)

    def describe_bound(self) -> str:
        """Say that an optimum outside the fitted sizes is a bound; "" inside them."""
        if not self.bound:
            return ""
        sizes = self.outside.ranges["N"]
        if self.bound == "upper":
            return (
                f"a bound, not an optimum: the best N lies below every fitted size, so "
                f"the runs show only that it is at most {sizes.smallest:.4g}"
            )
        return (
            f"a bound, not an optimum: the best N lies above every fitted size, so the "
            f"runs show only that it is at least {sizes.largest:.4g}"
        )

    def _interval_text(self, name: str, form: str) -> str:
        """The interval as text: [low, high], or nothing where there is none."""
        if name not in self.intervals:
            return ""
        low, high = self.intervals[name]
        return f" [{low:{form}}, {high:{form}}]"


class _Question(NamedTuple):
    """What `allocate` is asked: C or the loss is given, and perhaps N."""

    C: float | None
    loss: float | None
    N: float | None


class _Solution(NamedTuple):
    """The answer in every draw, [R] each; inf in a draw that cannot reach the loss."""

    C: np.ndarray
    N: np.ndarray
    D: np.ndarray


@dataclass(frozen=True)
class _Optimum:
    """The answer for the fitted parameters; the fields are those of `Allocation`."""

    C: float
    N: float
    D: float
    loss: float
    near_optimal_range: tuple[float, float]


def allocate(
    fit: Fit,
    C: float | None = None,
    boot: Bootstrap | None = None,
    flops_per_token: FlopsPerToken | None = None,
    level: float = 0.90,
    *,
    inference_tokens: float = 0.0,
    max_tokens: float | None = None,
    N: float | None = None,
    loss: float | None = None,
    at: Mapping[str, float] | None = None,
    served_tokens: float | None = None,
    extrapolate: bool = False,
) -> Allocation:
    """The N and D that minimize the fitted loss at C FLOPs.

    If a loss is given in place of C, the answer is the N and D that reach it with the
    fewest FLOPs. With T = `inference_tokens` and f(N) training FLOPs per token, the
    FLOPs are f(N) D + T f(N) / 3: inference on a token costs the forward pass, a third
    of training on it (Sardana et al. 2024, arXiv:2401.00448, equations 2 and 3).

    Args:
        fit: of a law of N and D.
        C: FLOPs, of training and inference together.
        boot: gives the intervals; every draw gets an allocation of its own.
        flops_per_token: N -> training FLOPs per token, on arrays and increasing in N;
            6 N by default.
        level: of the intervals.
        inference_tokens: tokens that the trained model will process in its life.
        max_tokens: the number of training tokens that exist. FLOPs that cannot be spent
            on them go into a larger model.
        N: the size, if it is given: all other FLOPs go into tokens.
        loss: in place of C, the loss to reach, nats per token.
        at: values of the law's variables besides N and D.
        served_tokens: the old name of `inference_tokens`, deprecated.
        extrapolate: answer wherever the answer lies, without a warning. Otherwise an
            `ExtrapolationWarning` says that training C, N, D or D/N is more than 10
            times outside the fitted runs.

    Raises:
        ExtrapolationError: training C, N, D or D/N of the answer is more than 100 times
            outside the fitted runs, and `extrapolate` is not given.
        ValueError: not exactly one of C and loss is given, an argument is not positive,
            no number of FLOPs reaches the loss, the budget is too small for one token,
            or the law is not one of N and D or has no optimum.
    """
    inference_tokens = _accept_served_tokens(inference_tokens, served_tokens)
    question = _Question(C=C, loss=loss, N=N)
    _check_arguments(question, inference_tokens, max_tokens)
    problem = _make_problem(fit, flops_per_token, inference_tokens, max_tokens, at)
    best = _find_optimum(problem, fit, question)
    training_flops, inference_flops = problem.split_flops(best.N, best.D)
    training_flops = float(training_flops)
    inference_flops = float(inference_flops)
    outside = measure_reach(fit, C=training_flops, N=best.N, D=best.D, **(at or {}))
    outside.check(extrapolate)
    intervals = {}
    if boot is not None:
        intervals = _compute_intervals(problem, boot, question, level)
    unspent = best.C - training_flops - inference_flops
    data_limited = max_tokens is not None and max_tokens * (1 - 1e-6) <= best.D
    notes = []
    if data_limited:
        notes.append(f"the limit of {max_tokens:.4g} tokens binds")
        if unspent > 1e-6 * best.C:
            notes.append(f"{unspent:.3g} FLOPs are left over, because N is given")
    return Allocation(
        C=best.C,
        N=best.N,
        D=best.D,
        loss=best.loss,
        near_optimal_range=best.near_optimal_range,
        relation=_describe_relation(problem),
        extrapolation_factor=training_flops / float(fit.compute.max()),
        level=level,
        intervals=intervals,
        training_flops=training_flops,
        inference_flops=inference_flops,
        data_limited=data_limited,
        notes=tuple(notes),
        outside=outside,
        bound="" if N is not None else _find_bound(outside.ranges["N"]),
    )


def _find_bound(sizes: FittedRange) -> Bound:
    """On which side of the fitted sizes an optimum lies, see `Allocation.bound`."""
    if sizes.is_inside:
        return ""
    return "upper" if sizes.value < sizes.smallest else "lower"


def optimum_table(
    fit: Fit,
    budgets: Sequence[float],
    boot: Bootstrap | None = None,
    flops_per_token: FlopsPerToken | None = None,
    level: float = 0.90,
    *,
    inference_tokens: float = 0.0,
    max_tokens: float | None = None,
    N: float | None = None,
    at: Mapping[str, float] | None = None,
    served_tokens: float | None = None,
    extrapolate: bool = False,
) -> pd.DataFrame:
    """Allocate each of several budgets; the options are those of `allocate`.

    Returns:
        One row per budget: C, N, D, tokens_per_parameter, loss, valley_low and
        valley_high (the near-optimal range), reach (the extrapolation factor),
        outside_N, outside_D and outside_ratio (the factors by which N, D and D/N leave
        the fitted range), bound (see `Allocation.bound`). With a bootstrap also N_low,
        N_high, D_low, D_high, loss_low, loss_high; with inference tokens
        training_flops and inference_flops; with max_tokens data_limited.

    Raises:
        ExtrapolationError: a budget leads more than 100 times outside the fitted runs.
    """
    inference_tokens = _accept_served_tokens(inference_tokens, served_tokens)
    rows = []
    for C in budgets:
        best = allocate(
            fit,
            float(C),
            boot,
            flops_per_token,
            level,
            inference_tokens=inference_tokens,
            max_tokens=max_tokens,
            N=N,
            at=at,
            extrapolate=extrapolate,
        )
        factors = best.outside.factors
        low, high = best.near_optimal_range
        row = {
            "C": best.C,
            "N": best.N,
            "D": best.D,
            "tokens_per_parameter": best.D / best.N,
            "loss": best.loss,
            "valley_low": low,
            "valley_high": high,
            "reach": best.extrapolation_factor,
            "outside_N": factors["N"],
            "outside_D": factors["D"],
            "outside_ratio": factors["D/N"],
            "bound": best.bound,
        }
        if inference_tokens:
            row["training_flops"] = best.training_flops
            row["inference_flops"] = best.inference_flops
        if max_tokens is not None:
            row["data_limited"] = best.data_limited
        for name, (low, high) in best.intervals.items():
            row[f"{name}_low"] = low
            row[f"{name}_high"] = high
        rows.append(row)
    return pd.DataFrame(rows)


def counted_flops_per_token(fit: Fit) -> FlopsPerToken | None:
    """N -> training FLOPs per token as counted in the fitted runs.

    At each size, the median over its runs of C / (6 N D) is taken; it is interpolated
    in ln N and held constant beyond the sizes.

    Returns:
        None where C is unknown, or is 6 N D to within 0.1 %.
    """
    if not {"N", "D", "C"} <= set(fit.data):
        return None
    N = fit.data["N"]
    ratio = fit.data["C"] / (6 * N * fit.data["D"])
    if np.allclose(ratio, 1.0, rtol=0, atol=1e-3):
        return None
    sizes = np.unique(N)
    ratio_at_size = np.array([np.median(ratio[size == N]) for size in sizes])

    def flops_per_token(n: np.ndarray) -> np.ndarray:
        return np.asarray(6 * n * np.interp(np.log(n), np.log(sizes), ratio_at_size))

    return flops_per_token


def _accept_served_tokens(
    inference_tokens: float, served_tokens: float | None
) -> float:
    """The value of `inference_tokens`, which callers may still give by its old name."""
    if served_tokens is None:
        return inference_tokens
    warnings.warn(
        "served_tokens is deprecated; give the same number as inference_tokens",
        DeprecationWarning,
        stacklevel=3,
    )
    return served_tokens


def _check_arguments(
    question: _Question, inference_tokens: float, max_tokens: float | None
) -> None:
    if (question.C is None) == (question.loss is None):
        raise ValueError(
            f"C is {question.C!r} and loss is {question.loss!r}; give one of them: the "
            "FLOPs to spend, or the loss to reach"
        )
    for name, value, unit in (
        ("C", question.C, "FLOPs"),
        ("loss", question.loss, "nats per token"),
        ("N", question.N, "parameters"),
    ):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ValueError(
                f"{name} is {value!r} {unit}; it must be positive and finite"
            )
    if not (np.isfinite(inference_tokens) and inference_tokens >= 0):
        raise ValueError(
            f"inference_tokens is {inference_tokens!r}; it must be finite and not "
            "negative (0 for none)"
        )
    if max_tokens is not None and not max_tokens >= 1:
        raise ValueError(
            f"max_tokens is {max_tokens!r}; it must be at least 1, or None for no limit"
        )


def _make_problem(
    fit: Fit,
    flops_per_token: FlopsPerToken | None,
    inference_tokens: float,
    max_tokens: float | None,
    at: Mapping[str, float] | None,
) -> AllocationProblem:
    if not {"N", "D"} <= set(fit.law.variables):
        raise ValueError(
            f"law {fit.law.name!r} is a function of {', '.join(fit.law.variables)}; "
            "allocating compute needs a law of N and D, such as 'chinchilla'"
        )
    limit = None
    if max_tokens is not None and not np.isinf(max_tokens):
        limit = float(max_tokens)
    return AllocationProblem(
        law=fit.law,
        flops_per_token=flops_per_token,
        inference_tokens=float(inference_tokens),
        max_tokens=limit,
        at=read_other_variables(fit.law, ("N", "D"), at),
    )


def _find_optimum(
    problem: AllocationProblem, fit: Fit, question: _Question
) -> _Optimum:
    """Answer the question for the fitted parameters.

    Raises:
        ValueError: no number of FLOPs reaches the loss, C does not buy one token, or
            the law has no optimum at C.
    """
    params = make_single_draw(fit.params)
    solution = _solve_draws(problem, params, question)
    C = float(solution.C[0])
    N = float(solution.N[0])
    D = float(solution.D[0])
    if not np.isfinite(C):
        raise ValueError(_explain_unreachable_loss(problem, params, question))
    if question.N is None:
        _check_inside_bounds(problem, C, N, fit.params)
    loss = float(problem.predict_loss(params, N, D)[0])
    near_optimal_range = (N, N)
    if question.N is None:
        near_optimal_range = _find_near_optimal_range(
            problem, params, C, N, 1.001 * loss
        )
    return _Optimum(C=C, N=N, D=D, loss=loss, near_optimal_range=near_optimal_range)


def _solve_draws(
    problem: AllocationProblem, params: Params, question: _Question
) -> _Solution:
    """Answer the question in every draw.

    A draw that cannot reach the loss gets C = D = inf, and N = inf unless N was given.

    Raises:
        ValueError: C does not buy one token at the given N.
    """
    C, loss, N = question
    n_draws = count_draws(params)
    total = np.full(n_draws, C, float)
    if loss is not None:
        total = problem.least_flops(params, loss, N)
    is_reached = np.isfinite(total)
    # 1e30 is a placeholder for the draws whose answer is infinite.
    finite_budget = np.where(is_reached, total, 1e30)
    sizes = np.full(n_draws, N, float)
    if N is None:
        sizes = problem.optimal_size(params, finite_budget)
    if N is not None and C is not None:
        per_token = float(problem.training_flops_per_token(N))
        fewest = per_token * (1 + problem.inference_tokens / 3)
        if fewest > C:
            raise ValueError(
                f"{C:g} FLOPs do not pay for one training token and inference on "
                f"{problem.inference_tokens:g} tokens at N = {N:g}, which take "
                f"{fewest:.3g}; raise C, or give a smaller N"
            )
    tokens = problem.affordable_tokens(sizes, finite_budget)
    if N is None:
        sizes = np.where(is_reached, sizes, np.inf)
    return _Solution(C=total, N=sizes, D=np.where(is_reached, tokens, np.inf))


def _compute_intervals(
    problem: AllocationProblem, boot: Bootstrap, question: _Question, level: float
) -> dict[str, tuple[float, float]]:
    """The interval of each of C, N, D and the loss, without those that were given."""

    def solve(params: Params) -> np.ndarray:
        """[S, 4] C, N, D and loss."""
        solution = _solve_draws(problem, params, question)
        loss = problem.predict_loss(params, solution.N, solution.D)
        return np.stack([solution.C, solution.N, solution.D, loss], axis=1)

    asked = ["N"] if question.N is None else []
    if question.loss is not None:
        asked += ["D", "C"]
    else:
        asked += ["D", "loss"] if question.N is None else ["loss"]
    names = ["C", "N", "D", "loss"]
    columns = boot.evaluate(solve, logarithmic=True).T
    values = dict(zip(names, columns, strict=True))
    return {name: compute_interval(values[name], level) for name in asked}


def _explain_unreachable_loss(
    problem: AllocationProblem, params: Params, question: _Question
) -> str:
    """Say why no number of FLOPs reaches the loss."""
    lowest = float(problem.best_loss(params, 1e60, question.N)[0])
    constraints = []
    if question.N is not None:
        constraints.append(f"N = {question.N:g}")
    if problem.max_tokens is not None:
        constraints.append(f"{problem.max_tokens:g} tokens")
    where = f" with {' and '.join(constraints)}" if constraints else ""
    irreducible = ""
    if problem.law.floor is not None:
        value = float(params[problem.law.floor][0])
        irreducible = f", {problem.law.floor} = {value:.6g}"
    return (
        f"loss is {question.loss!r} nats per token, which no number of FLOPs reaches: "
        f"the fitted loss falls to {lowest:.6g}{where}{irreducible}; ask for a loss "
        "above that"
    )


def _check_inside_bounds(
    problem: AllocationProblem, C: float, N: float, params: Mapping[str, float]
) -> None:
    """Raise if the optimum lies at an end of the searched sizes: it is then none."""
    low, high = (float(np.exp(bound)) for bound in problem.log_size_bounds(C))
    if not low * 1.001 < N < high / 1.001:
        raise ValueError(
            f"at {C:g} FLOPs the fitted loss has no minimum between N = {low:.3g} and "
            f"{high:.3g} (parameters {dict(params)}): the fit does not trade N against "
            "D; fit runs that vary both"
        )


def _describe_relation(problem: AllocationProblem) -> str:
    tokens = problem.inference_tokens
    if problem.flops_per_token is None:
        if tokens:
            return f"C = 6 N D + 2 N T, T = {tokens:.3g} inference tokens"
        return "C = 6 N D"
    if tokens:
        return (
            f"given FLOPs per token, a third of them for each of {tokens:.3g} "
            "inference tokens"
        )
    return "given FLOPs per token"


def _find_near_optimal_range(
    problem: AllocationProblem, params: Params, C: float, N: float, limit: float
) -> tuple[float, float]:
    """The N below and above the optimum at which the loss reaches the limit."""

    def is_within(log_size: float) -> bool:
        size = float(np.exp(log_size))
        tokens = problem.affordable_tokens(size, C)
        return float(problem.predict_loss(params, size, tokens)[0]) <= limit

    smallest, largest = problem.log_size_bounds(C)
    optimum = float(np.log(N))
    return (
        _bisect_range_end(is_within, optimum, float(smallest)),
        _bisect_range_end(is_within, optimum, float(largest)),
    )


def _bisect_range_end(
    is_within: Callable[[float], bool], inside: float, outside: float
) -> float:
    """The N furthest from `inside` towards `outside` that is within the limit.

    `inside` and `outside` are ln N.
    """
    if is_within(outside):
        return float(np.exp(outside))
    for _ in range(60):
        middle = (inside + outside) / 2
        if is_within(middle):
            inside = middle
        else:
            outside = middle
    return float(np.exp(inside))
