"""What the choice of the law adds to an interval.

    rivals = find_rival_laws(fit, boot)
    print(rivals)
    rivals.predict_interval(N=1e9, D=2e10)

The draws of a fit say what its runs leave open about its parameters, and take its form
for true. Other forms may predict larger runs as well, and disagree further out: the
floor of one law lies below that of another. Every law is fitted without the runs of
largest compute, and predicts them. A law is a rival if its squared errors of log loss
exceed those of the fitted law by at most one standard error of the difference, runs of
one trunk together (the one-standard-error rule of Breiman et al. 1984, section 3.4.3,
applied to paired differences). The interval of several laws is the hull of theirs. It
holds the truth at least as often as that of the right law, if the right law is among
them, which no weighted mixture of the laws ensures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.checking.selection import (
    SHARE,
    FitOptions,
    collect_laws,
    compute_log_errors,
    compute_rms,
    mask_holdouts,
    recover_options,
    recover_runs,
    try_fit,
)
from analysis.decisions.allocate import allocate
from analysis.decisions.frontier import FlopsPerToken
from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit
from analysis.laws.library import Law
from analysis.progress import track_progress
from analysis.table.runs import Runs

CANDIDATES = ("chinchilla", "gadre", "kaplan")
"""Laws of N and D that a sweep can identify. `gadre` is `chinchilla` with one exponent;
`kaplan` has no irreducible loss.
"""

BUDGET_TOLERANCE = 0.10
"""Runs whose C differ by less than this part count as one budget."""

Interval = tuple[float, float]
Row = dict[str, str | float | bool]
"""One row of a table: column -> cell."""


@dataclass(frozen=True, eq=False)
class RivalLaws:
    """The fitted law and the laws that predict larger runs as well.

    Attributes:
        fits: law -> its fit to all rows, the fitted law first.
        boots: law -> the draws of that fit.
        table: one row per candidate. Columns: law, rms (of the errors of log loss of the
            held-out runs; NaN where refused), excess (mean squared error less that of
            the fitted law), standard_error (of the excess), kept, reason (why not, or
            "").
        held: number of runs held out.
    """

    fits: dict[str, Fit]
    boots: dict[str, Bootstrap]
    table: pd.DataFrame
    held: int

    @property
    def names(self) -> list[str]:
        """The laws that are kept, the fitted one first."""
        return list(self.fits)

    def predict(self, **x: float) -> dict[str, float]:
        """The loss by law at N=, D=, ..., nats per token."""
        predictions = {}
        for name, fit in self.fits.items():
            predictions[name] = float(np.asarray(fit.predict(**x)))
        return predictions

    def list_intervals(
        self, *, level: float = 0.90, new_run: bool = False, **x: float
    ) -> dict[str, Interval]:
        """The interval of the loss by law at one point; see `Bootstrap.predict_interval`.

        Raises:
            ValueError: level outside (0, 1), or a new run of a fit that has no degree
                of freedom left.
        """
        intervals = {}
        for name, boot in self.boots.items():
            low, high = boot.predict_interval(level=level, new_run=new_run, **x)
            intervals[name] = (float(np.asarray(low)), float(np.asarray(high)))
        return intervals

    def predict_interval(
        self, *, level: float = 0.90, new_run: bool = False, **x: float
    ) -> Interval:
        """(low, high) loss at one point N=, D=, ...: the hull of the laws' intervals.

        Raises:
            ValueError: level outside (0, 1), or a new run of a fit that has no degree
                of freedom left.
        """
        return find_hull(self.list_intervals(level=level, new_run=new_run, **x))

    def list_allocation_intervals(
        self,
        C: float | None = None,
        flops_per_token: FlopsPerToken | None = None,
        level: float = 0.90,
        *,
        loss: float | None = None,
        N: float | None = None,
        inference_tokens: float = 0.0,
        max_tokens: float | None = None,
        at: Mapping[str, float] | None = None,
    ) -> dict[str, dict[str, Interval]]:
        """The intervals of `allocate` by quantity (N, D, loss, C), each by law.

        A rival that has no optimum there is left out. Nothing is refused here:
        `allocate` of the fitted law does that. The arguments are those of `allocate`.

        Raises:
            ValueError: the fitted law has no such optimum.
        """
        intervals: dict[str, dict[str, Interval]] = {}
        for name, fit in self.fits.items():
            try:
                best = allocate(
                    fit,
                    C,
                    self.boots[name],
                    flops_per_token,
                    level,
                    inference_tokens=inference_tokens,
                    max_tokens=max_tokens,
                    N=N,
                    loss=loss,
                    at=at,
                    extrapolate=True,
                )
            except ValueError:
                if name == self.names[0]:
                    raise
                continue
            for quantity, interval in best.intervals.items():
                intervals.setdefault(quantity, {})[name] = interval
        return intervals

    def __str__(self) -> str:
        fitted = self.names[0]
        if len(self.fits) == 1:
            first = f"no other law predicts the {self.held} held-out runs of largest C "
        else:
            first = (
                f"{', '.join(self.names[1:])} predict the {self.held} held-out runs "
            )
        lines = [f"{first}as well as {fitted} does (one-standard-error rule):"]
        for row in self.table.to_dict("records"):
            error = f"rms error {row['rms']:.2%}"
            verdict = "kept" if row["kept"] else f"left out: {row['reason']}"
            lines.append(f"  {row['law']:<12} {error}, {verdict}")
        return "\n".join(lines)


def find_rival_laws(
    fit: Fit,
    boot: Bootstrap,
    laws: str | Law | Sequence[str | Law] = CANDIDATES,
    *,
    share: float = SHARE,
) -> RivalLaws:
    """The laws that predict the runs of largest compute as well as the fitted law.

    Other laws are fitted with the options of the fit. Of fixed parameters and priors
    only those of the irreducible loss E are kept, since the others mean something else
    in another law.

    Args:
        fit: of a law of N and D for the loss.
        boot: its draws. Other laws get as many by the same method.
        laws: candidates; the fitted law is always one.
        share: the part of the rows held out, at least; between 0 and 1.

    Raises:
        ValueError: a law is not one of N and D for the loss; nothing can be held out;
            or the fitted law cannot be fitted without the held-out runs.
    """
    candidates = collect_laws(laws)
    for law in (fit.law, *candidates):
        _check_law(law)
    runs = recover_runs(fit)
    held = _mask_largest_compute(runs, share)
    rest = runs.exclude(held, "held out (largest C)")
    reference = try_fit(rest, fit.law, **recover_options(fit))
    if isinstance(reference, str):
        raise ValueError(
            f"{fit.law.name} cannot be fitted without the {held.sum()} runs of largest "
            f"C ({reference}), so no law can be held against it; fit more runs"
        )
    held_table = runs.table.loc[held]
    expected = compute_log_errors(reference, held_table)
    fits = {fit.law.name: fit}
    boots = {fit.law.name: boot}
    rows = [_make_row(fit.law.name, expected, expected, held_table, "")]
    for law in track_progress("fits of rival laws", candidates):
        if law.name == fit.law.name:
            continue
        options = _transfer_options(fit, law)
        errors, reason = _hold_out_law(rest, law, options, held_table)
        row = _make_row(law.name, errors, expected, held_table, reason)
        if row["kept"]:
            whole = try_fit(runs, law, **options)
            if isinstance(whole, str):
                row |= {"kept": False, "reason": whole}
            else:
                fits[law.name] = whole
                boots[law.name] = whole.bootstrap(
                    len(boot), seed=boot.seed, unit=boot.unit, method=boot.method
                )
        rows.append(row)
    return RivalLaws(
        fits=fits, boots=boots, table=pd.DataFrame(rows), held=int(held.sum())
    )


def find_hull(intervals: Mapping[str, Interval]) -> Interval:
    """The smallest interval that holds all of them."""
    lows = [low for low, _ in intervals.values()]
    highs = [high for _, high in intervals.values()]
    return min(lows), max(highs)


def _check_law(law: Law) -> None:
    if set(law.variables) != {"N", "D"} or law.target != "loss":
        raise ValueError(
            f"law {law.name!r} gives {law.target} in {', '.join(law.variables)}; other "
            "laws are held against one of N and D for the loss"
        )


def _mask_largest_compute(runs: Runs, share: float) -> np.ndarray:
    """[n] mask of the runs of largest C, whole budgets.

    Raises:
        ValueError: the runs have one budget, or share lies outside (0, 1).
    """
    masks, notes = mask_holdouts(runs, share, None, BUDGET_TOLERANCE)
    if "largest_C" not in masks:
        why = "; ".join(notes) or "the runs have no C"
        raise ValueError(f"no runs of largest C to hold out: {why}")
    return masks["largest_C"]


def _transfer_options(fit: Fit, law: Law) -> FitOptions:
    """The options of the fit that mean the same for another law."""
    options = recover_options(fit)
    protocol = fit.protocol
    fixed: dict[str, float] = {}
    prior: dict[str, Interval] = {}
    floor = law.floor
    if floor is not None and floor == fit.law.floor:
        if floor in protocol.fixed:
            fixed[floor] = protocol.fixed[floor]
        if floor in protocol.prior:
            prior[floor] = protocol.prior[floor]
    options["fixed"] = fixed
    options["prior"] = prior
    options["tied"] = {}
    return options


def _hold_out_law(
    rest: Runs, law: Law, options: FitOptions, held: pd.DataFrame
) -> tuple[Float[np.ndarray, " H"] | None, str]:
    """([H] errors of log loss of the held-out runs, why there are none or "")."""
    found = try_fit(rest, law, **options)
    if isinstance(found, str):
        return None, found
    return compute_log_errors(found, held), ""


def _make_row(
    law: str,
    errors: Float[np.ndarray, " H"] | None,
    expected: Float[np.ndarray, " H"],
    held: pd.DataFrame,
    reason: str,
) -> Row:
    """A row of `RivalLaws.table`.

    Args:
        law: its name.
        errors: of log loss of the held-out runs; None if the law was refused.
        expected: the same of the fitted law.
        held: the held-out runs.
        reason: why the law was refused, or "".
    """
    row: Row = {
        "law": law,
        "rms": np.nan,
        "excess": np.nan,
        "standard_error": np.nan,
        "kept": False,
        "reason": reason,
    }
    if errors is None:
        return row
    difference = errors**2 - expected**2
    excess = float(difference.mean())
    standard_error = _compute_standard_error(difference, held)
    row["rms"] = compute_rms(errors)
    row["excess"] = excess
    row["standard_error"] = standard_error
    row["kept"] = excess <= standard_error
    if not row["kept"]:
        row["reason"] = "its squared errors are larger by more than one standard error"
    return row


def _compute_standard_error(
    values: Float[np.ndarray, " H"], held: pd.DataFrame
) -> float:
    """Standard error of the mean of values whose trunks are independent; 0 of one trunk.

    The sums over trunks are taken as independent (Liang & Zeger 1986), with the factor
    g / (g - 1) for g trunks.
    """
    labels = np.arange(len(values))
    if "trunk" in held.columns:
        names = held["trunk"].astype(str).to_numpy(str)
        labels = np.unique(names, return_inverse=True)[1]
    sums = np.bincount(labels, weights=values - values.mean())
    groups = len(sums)
    if groups < 2:
        return 0.0
    variance = groups / (groups - 1) * np.sum(sums**2)
    return float(np.sqrt(variance)) / len(values)
