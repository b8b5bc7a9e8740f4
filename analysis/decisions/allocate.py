"""Compute-optimal allocation: how large a model, on how many tokens, for a number of
FLOPs or for a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.decisions.frontier import (
    FlopsPerToken,
    Params,
    Problem,
    interval,
    other_variables,
)
from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.result import Fit


@dataclass(frozen=True)
class Allocation:
    """The best use of C FLOPs under a fitted law, or the cheapest way to a loss.

    Attributes:
        C: FLOPs of training and serving together. N, D: parameters and tokens that
        minimise the loss.
        loss: predicted there, nats per token.
        valley: (smallest, largest) N whose loss, at the same C, is within 0.1 % of the
        best; (N, N) at a given N.
        relation: what ties N and D to C.
        reach: training FLOPs over the largest C that was fitted; above 1 the law is
        extrapolated.
        intervals: "N", "D", "loss" -> (low, high) at `level`, and "C" when the loss was
        given; what was given has
            none. An end is inf where the draws beyond it cannot reach the loss. Empty
            without a bootstrap.
        training_flops, inference_flops: the parts of C; they fall short of it where
        tokens run out.
        data_limited: D is all the tokens there are.
        notes: what else a reader should know.
    """

    C: float
    N: float
    D: float
    loss: float
    valley: tuple[float, float]
    relation: str
    reach: float
    level: float = 0.90
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    training_flops: float = float("nan")
    inference_flops: float = 0.0
    data_limited: bool = False
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        def part(name: str, value: float) -> str:
            ends = self.intervals.get(name)
            return f"{name} {value:.4g}" + (
                f" [{ends[0]:.4g}, {ends[1]:.4g}]" if ends else ""
            )

        low, high = self.valley
        total = f"{self.C:.3g}" + (
            " [{:.3g}, {:.3g}]".format(*self.intervals["C"])
            if "C" in self.intervals
            else ""
        )
        parts = [
            f"{total} FLOPs ({self.relation}): {part('N', self.N)}, {part('D', self.D)}, {part('loss', self.loss)}",
            f"{self.D / self.N:.3g} tokens per parameter",
        ]
        if self.inference_flops:
            parts.append(
                f"training {self.training_flops:.3g} FLOPs, inference {self.inference_flops:.3g}"
            )
        if low < high:
            parts.append(
                f"N from {low:.3g} to {high:.3g} is within 0.1 % of the best loss"
            )
        parts.append(f"{self.reach:.3g} times the largest fitted C")
        return "; ".join([*parts, *self.notes])


def allocate(
    fit: Fit,
    C: float | None = None,
    boot: Bootstrap | None = None,
    flops_per_token: FlopsPerToken | None = None,
    level: float = 0.90,
    *,
    served_tokens: float = 0.0,
    max_tokens: float | None = None,
    N: float | None = None,
    loss: float | None = None,
    at: Mapping[str, float] | None = None,
) -> Allocation:
    """N and D that minimise the fitted loss at C FLOPs, or that reach a loss with the
    fewest FLOPs.

    With T = `served_tokens` and f(N) training FLOPs per token, the FLOPs are f(N) D + T
    f(N) / 3: serving a token costs the forward pass, a third of training on it (Sardana
    et al. 2024, arXiv:2401.00448, equations 2 and 3).

    Args:
        C: FLOPs, of training and serving together.
        boot: gives the intervals; every draw is allocated anew.
        flops_per_token: N -> training FLOPs per token, on arrays and increasing in N; 6
        N when left out.
        served_tokens: tokens that the trained model will process in its life.
        max_tokens: the most tokens there are to train on; what C cannot spend on them
        goes into a larger model.
        N: the size, if it is given: every FLOP left goes into tokens.
        loss: in place of C, the loss to reach, nats per token.
        at: values of the law's variables besides N and D.

    Raises:
        ValueError: not exactly one of C and loss, an argument that is not positive, a
            loss that no number of FLOPs
            reaches, a budget too small for one token, or a law that is not one of N and
            D, or that has no optimum.
    """
    _check(C=C, loss=loss, served_tokens=served_tokens, max_tokens=max_tokens, N=N)
    problem = _problem(fit, flops_per_token, served_tokens, max_tokens, at)
    params = {k: np.array([v], float) for k, v in fit.params.items()}
    total, size, tokens = (float(v[0]) for v in _solve(problem, params, C, N, loss))
    if not np.isfinite(total):
        raise ValueError(_out_of_reach(problem, params, N, loss))
    if N is None:
        _refuse_edge(problem, total, size, fit.params)
    found = float(problem.loss(params, size, tokens)[0])
    intervals = {} if boot is None else _intervals(problem, boot, C, N, loss, level)
    training, inference = (float(part) for part in problem.flops(size, tokens))
    limited = max_tokens is not None and tokens >= max_tokens * (1 - 1e-6)
    return Allocation(
        C=total,
        N=size,
        D=tokens,
        loss=found,
        valley=_valley(problem, params, total, size, 1.001 * found)
        if N is None
        else (size, size),
        relation=_relation(problem),
        reach=training / float(fit.compute.max()),
        level=level,
        intervals=intervals,
        training_flops=training,
        inference_flops=inference,
        data_limited=limited,
        notes=_notes(limited, max_tokens, total - training - inference, total),
    )


def optimum_table(
    fit: Fit,
    budgets: Sequence[float],
    boot: Bootstrap | None = None,
    flops_per_token: FlopsPerToken | None = None,
    level: float = 0.90,
    *,
    served_tokens: float = 0.0,
    max_tokens: float | None = None,
    N: float | None = None,
    at: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """One row per budget: C, N, D, tokens_per_parameter, loss, valley_low, valley_high,
    reach; with a bootstrap also N_low, N_high, D_low, D_high, loss_low, loss_high; with
    served tokens training_flops and inference_flops; with max_tokens data_limited. The
    options are those of `allocate`."""
    options: dict[str, Any] = {
        "served_tokens": served_tokens,
        "max_tokens": max_tokens,
        "N": N,
        "at": at,
    }
    rows = []
    for C in budgets:
        best = allocate(fit, float(C), boot, flops_per_token, level, **options)
        row: dict[str, Any] = {
            "C": best.C,
            "N": best.N,
            "D": best.D,
            "tokens_per_parameter": best.D / best.N,
            "loss": best.loss,
            "valley_low": best.valley[0],
            "valley_high": best.valley[1],
            "reach": best.reach,
        }
        if served_tokens:
            row |= {
                "training_flops": best.training_flops,
                "inference_flops": best.inference_flops,
            }
        if max_tokens is not None:
            row["data_limited"] = best.data_limited
        for name, (low, high) in best.intervals.items():
            row |= {f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def counted_flops_per_token(fit: Fit) -> FlopsPerToken | None:
    """N -> training FLOPs per token as counted in the fitted runs; None where C is 6 N
    D (to 0.1 %) or unknown.

    C / (6 N D) at each size (the median of its runs) is interpolated in ln N and held
    constant beyond the sizes.
    """
    if not {"N", "D", "C"} <= set(fit.data):
        return None
    ratio = fit.data["C"] / (6 * fit.data["N"] * fit.data["D"])
    if np.allclose(ratio, 1.0, rtol=0, atol=1e-3):
        return None
    sizes = np.unique(fit.data["N"])
    at_size = np.array([np.median(ratio[fit.data["N"] == size]) for size in sizes])

    def per_token(n: np.ndarray) -> np.ndarray:
        return np.asarray(6 * n * np.interp(np.log(n), np.log(sizes), at_size))

    return per_token


def _check(
    *,
    C: float | None,
    loss: float | None,
    served_tokens: float,
    max_tokens: float | None,
    N: float | None,
) -> None:
    if (C is None) == (loss is None):
        raise ValueError(
            f"C is {C!r} and loss is {loss!r}; give one of them: the FLOPs to spend, or the loss to reach"
        )
    for name, value, unit in (
        ("C", C, " FLOPs"),
        ("loss", loss, " nats per token"),
        ("N", N, " parameters"),
    ):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ValueError(
                f"{name} is {value!r}{unit}; it must be positive and finite"
            )
    if not (np.isfinite(served_tokens) and served_tokens >= 0):
        raise ValueError(
            f"served_tokens is {served_tokens!r}; it must be finite and not negative (0 for none)"
        )
    if max_tokens is not None and not max_tokens >= 1:
        raise ValueError(
            f"max_tokens is {max_tokens!r}; it must be at least 1, or None for no limit"
        )


def _problem(
    fit: Fit,
    flops_per_token: FlopsPerToken | None,
    served_tokens: float,
    max_tokens: float | None,
    at: Mapping[str, float] | None,
) -> Problem:
    if not {"N", "D"} <= set(fit.law.variables):
        raise ValueError(
            f"law {fit.law.name!r} is a function of {', '.join(fit.law.variables)}; allocating compute "
            "needs a law of N and D, such as 'chinchilla'"
        )
    most = None if max_tokens is None or np.isinf(max_tokens) else float(max_tokens)
    others = other_variables(fit.law, ("N", "D"), at)
    return Problem(fit.law, flops_per_token, float(served_tokens), most, others)


def _solve(
    problem: Problem,
    params: Params,
    C: float | None,
    N: float | None,
    loss: float | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(C, N, D) of every draw, [R] each; all are inf (N unless given) in a draw that
    cannot reach the loss.

    Raises:
        ValueError: C does not buy one token at the given N.
    """
    rows = len(next(iter(params.values())))
    total = (
        np.full(rows, C, float)
        if loss is None
        else problem.least_flops(params, loss, N)
    )
    reached = np.isfinite(total)
    spent = np.where(reached, total, 1e30)
    sizes = np.full(rows, N, float) if N is not None else problem.optimum(params, spent)
    if N is not None and C is not None:
        fewest = float(problem.per_token(N)) * (1 + problem.served_tokens / 3)
        if fewest > C:
            raise ValueError(
                f"{C:g} FLOPs do not pay for one training token and {problem.served_tokens:g} served ones of N = "
                f"{N:g}, which take {fewest:.3g}; raise C, or give a smaller N"
            )
    tokens = problem.tokens(sizes, spent)
    return (
        total,
        sizes if N is not None else np.where(reached, sizes, np.inf),
        np.where(reached, tokens, np.inf),
    )


def _intervals(
    problem: Problem,
    boot: Bootstrap,
    C: float | None,
    N: float | None,
    loss: float | None,
    level: float,
) -> dict[str, tuple[float, float]]:
    """Intervals of what was not given: of C, N, D and the loss."""
    total, sizes, tokens = _solve(problem, boot.draws, C, N, loss)
    values = {} if N is not None else {"N": sizes}
    if loss is not None:
        values |= {"D": tokens, "C": total}
    else:
        values |= {"D": tokens} if N is None else {}
        values["loss"] = problem.loss(boot.draws, sizes, tokens)
    return {name: interval(draws, level) for name, draws in values.items()}


def _out_of_reach(
    problem: Problem, params: Params, N: float | None, loss: float | None
) -> str:
    """Why no number of FLOPs reaches the loss."""
    floor = float(problem.best_loss(params, 1e60, N)[0])
    held = [f"N = {N:g}"] if N is not None else []
    held += [f"{problem.max_tokens:g} tokens"] if problem.max_tokens is not None else []
    where = f" with {' and '.join(held)}" if held else ""
    named = ""
    if problem.law.floor is not None:
        irreducible = float(params[problem.law.floor][0])
        named = f", {problem.law.floor} = {irreducible:.6g}"
    return (
        f"loss is {loss!r} nats per token, which no number of FLOPs reaches: the fitted loss falls to {floor:.6g}"
        f"{where}{named}; ask for a loss above that"
    )


def _refuse_edge(
    problem: Problem, C: float, N: float, params: Mapping[str, float]
) -> None:
    low, high = (float(np.exp(end)) for end in problem.log_sizes(C))
    if not low * 1.001 < N < high / 1.001:
        raise ValueError(
            f"at {C:g} FLOPs the fitted loss has no minimum between N = {low:.3g} and {high:.3g} "
            f"(parameters {dict(params)}): the fit does not trade N against D"
        )


def _relation(problem: Problem) -> str:
    served = problem.served_tokens
    if problem.flops_per_token is None:
        return "C = 6 N D" + (
            f" + 2 N T, T = {served:.3g} tokens served" if served else ""
        )
    return "given FLOPs per token" + (
        f", a third of them for each of {served:.3g} tokens served" if served else ""
    )


def _notes(
    limited: bool, max_tokens: float | None, unspent: float, C: float
) -> tuple[str, ...]:
    if not limited:
        return ()
    notes = [f"the limit of {max_tokens:.4g} tokens binds"]
    if unspent > 1e-6 * C:
        notes.append(f"{unspent:.3g} FLOPs are left over, as N is given")
    return tuple(notes)


def _valley(
    problem: Problem, params: Params, C: float, N: float, limit: float
) -> tuple[float, float]:
    """N on either side of the optimum where the loss reaches the limit, by bisection in
    ln N.
    """

    def within(log_size: float) -> bool:
        size = float(np.exp(log_size))
        return float(problem.loss(params, size, problem.tokens(size, C))[0]) <= limit

    return _edge(within, np.log(N), problem.log_sizes(C)[0]), _edge(
        within, np.log(N), problem.log_sizes(C)[1]
    )


def _edge(within: Callable[[float], bool], inside: Any, outside: Any) -> float:
    """N furthest from `inside` towards `outside`, both ln N, that is still within the
    limit.
    """
    inside, outside = float(inside), float(outside)
    if within(outside):
        return float(np.exp(outside))
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if within(middle) else (inside, middle)
    return float(np.exp(inside))
