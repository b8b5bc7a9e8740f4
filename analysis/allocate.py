"""Compute-optimal allocation: how large a model, on how many tokens, for a given number of FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.fit import Fit
from analysis.law import Law
from analysis.uncertainty import Bootstrap, quantiles

FlopsPerToken = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Allocation:
    """The best use of C FLOPs under a fitted law.

    Attributes:
        C: FLOPs. N, D: parameters and tokens that minimise the loss. loss: predicted there, nats per token.
        valley: (smallest, largest) N whose loss, at the same C, is within 0.1 % of the best.
        relation: what ties N and D to C.
        reach: C over the largest C that was fitted; above 1 the law is extrapolated.
        intervals: "N", "D", "loss" -> (low, high) at `level`; empty without a bootstrap.
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

    def __str__(self) -> str:
        def part(name: str, value: float) -> str:
            ends = self.intervals.get(name)
            return f"{name} {value:.4g}" + (f" [{ends[0]:.4g}, {ends[1]:.4g}]" if ends else "")

        return (
            f"{self.C:.3g} FLOPs ({self.relation}): {part('N', self.N)}, {part('D', self.D)}, "
            f"{part('loss', self.loss)}; {self.D / self.N:.3g} tokens per parameter; "
            f"N from {self.valley[0]:.3g} to {self.valley[1]:.3g} is within 0.1 % of the best loss; "
            f"{self.reach:.3g} times the largest fitted C"
        )


def allocate(
    fit: Fit,
    C: float,
    boot: Bootstrap | None = None,
    flops_per_token: FlopsPerToken | None = None,
    level: float = 0.90,
) -> Allocation:
    """N* and D* that minimise the fitted loss at C FLOPs.

    Args:
        C: training FLOPs.
        boot: gives the intervals; every draw is allocated anew.
        flops_per_token: N -> training FLOPs per token, on arrays and increasing in N; 6 N when left out.

    Raises:
        ValueError: C not positive, or a law that is not one of N and D, or that has no optimum.
    """
    if not (np.isfinite(C) and C > 0):
        raise ValueError(f"C is {C!r} FLOPs; it must be positive and finite")
    if set(fit.law.variables) != {"N", "D"}:
        raise ValueError(
            f"law {fit.law.name!r} is a function of {', '.join(fit.law.variables)}; allocating compute "
            "needs a law of N and D, such as 'chinchilla'"
        )
    per_token = flops_per_token or (lambda n: 6 * n)
    ends = _range(C, per_token)
    N = float(_optimum(fit.law, {k: np.array([v]) for k, v in fit.params.items()}, C, flops_per_token, ends)[0])
    if not ends[0] * 1.001 < N < ends[1] / 1.001:
        raise ValueError(
            f"at {C:g} FLOPs the fitted loss has no minimum between N = {ends[0]:.3g} and {ends[1]:.3g} "
            f"(parameters {fit.params}): the fit does not trade N against D"
        )
    D = C / float(per_token(np.asarray(N)))
    loss = fit.predict(N=N, D=D)
    largest = fit.data["C"] if "C" in fit.data else 6 * fit.data["N"] * fit.data["D"]
    intervals: dict[str, tuple[float, float]] = {}
    if boot is not None:
        Ns = _optimum(boot.law, boot.draws, C, flops_per_token, ends)
        Ds = C / per_token(Ns)
        for name, values in (("N", Ns), ("D", Ds), ("loss", boot.law.predict(boot.draws, N=Ns, D=Ds))):
            low, high = quantiles(values, level)
            intervals[name] = (float(low), float(high))
    valley = _valley(lambda n: fit.predict(N=n, D=C / per_token(np.asarray(n))), N, 1.001 * loss, ends)
    relation = "C = 6 N D" if flops_per_token is None else "given FLOPs per token"
    return Allocation(float(C), N, D, loss, valley, relation, float(C / largest.max()), level, intervals)


def optimum_table(
    fit: Fit,
    budgets: Sequence[float],
    boot: Bootstrap | None = None,
    flops_per_token: FlopsPerToken | None = None,
    level: float = 0.90,
) -> pd.DataFrame:
    """One row per budget: C, N, D, tokens_per_parameter, loss, valley_low, valley_high, reach; with a bootstrap also
    N_low, N_high, D_low, D_high, loss_low, loss_high."""
    rows = []
    for C in budgets:
        best = allocate(fit, C, boot, flops_per_token, level)
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
        for name, (low, high) in best.intervals.items():
            row |= {f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def counted_flops_per_token(fit: Fit) -> FlopsPerToken | None:
    """N -> training FLOPs per token as counted in the fitted runs; None where C is 6 N D (to 0.1 %) or unknown.

    C / (6 N D) at each size (the median of its runs) is interpolated in ln N and held constant beyond the sizes.
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


def _range(C: float, per_token: FlopsPerToken) -> tuple[float, float]:
    """(1, N) with N the size at which C buys one token."""
    low, high = 0.0, np.log(C)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if float(per_token(np.asarray(np.exp(middle)))) < C else (low, middle)
    if not high > 0:
        raise ValueError(f"{C:g} FLOPs do not buy one token of a model of one parameter")
    return 1.0, float(np.exp(high))


def _optimum(
    law: Law,
    params: Mapping[str, np.ndarray],
    C: float,
    flops_per_token: FlopsPerToken | None,
    ends: tuple[float, float],
) -> np.ndarray:
    """[R] N that minimises the law at C for each draw."""
    if law.name == "chinchilla" and flops_per_token is None:
        return np.clip(_closed_form(params, C), *ends)
    per_token = flops_per_token or (lambda n: 6 * n)
    columns = {k: np.asarray(v)[:, None] for k, v in params.items()}
    rows = len(next(iter(columns.values())))
    low, high = (np.full(rows, np.log(end)) for end in ends)
    for _ in range(12):  # each narrows the bracket 32-fold
        grid = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 65)
        N = np.exp(grid)
        best = np.argmin(law.predict(columns, N=N, D=C / per_token(N)), axis=1)
        low = grid[np.arange(rows), np.maximum(best - 1, 0)]
        high = grid[np.arange(rows), np.minimum(best + 1, 64)]
    return np.exp((low + high) / 2)


def _closed_form(params: Mapping[str, np.ndarray], C: float) -> np.ndarray:
    """N* = (alpha A / (beta B))^(1/(alpha+beta)) (C/6)^a (Hoffmann et al. 2022, equation 4)."""
    A, B, alpha, beta = (np.asarray(params[k], float) for k in ("A", "B", "alpha", "beta"))
    with np.errstate(divide="ignore"):
        ln_G = (np.log(alpha * A) - np.log(beta * B)) / (alpha + beta)
    return np.exp(np.clip(ln_G + beta / (alpha + beta) * np.log(C / 6), -700, 700))


def _valley(loss: Callable[[Any], Any], N: float, limit: float, ends: tuple[float, float]) -> tuple[float, float]:
    """N on either side of the optimum where the loss reaches the limit, by bisection in ln N."""
    found = []
    for end in ends:
        inside, outside = np.log(N), np.log(end)
        if loss(float(np.exp(outside))) <= limit:
            found.append(float(end))
            continue
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if loss(float(np.exp(middle))) <= limit else (inside, middle)
        found.append(float(np.exp(inside)))
    return found[0], found[1]
