"""Two recipes compared at their own optima: how much compute one saves over the other,
and how that scales.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.decisions.allocate import counted_flops_per_token
from analysis.decisions.frontier import (
    Frontier,
    Params,
    compute_interval,
    make_frontier,
)
from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit
from analysis.fitting.fit import fit as fit_law
from analysis.laws.library import Law
from analysis.table.runs import Runs, load_runs

FlopsOf = (
    Any  # None, N -> FLOPs per token, "counted", or a pair of those: of a and of b
)
SAME_COLUMNS = ("N", "D", "C", "loss")
SAME_VALUES = (
    "tokenizer",
    "source",
    "vocab",
)  # columns in which two tables of one loss agree


@dataclass(frozen=True, eq=False)
class Side:
    """One recipe: its fit, its bootstrap, and the frontier of its law."""

    fit: Fit
    boot: Bootstrap
    frontier: Frontier

    @property
    def point(self) -> Params:
        """The fitted parameters as one draw, [1] each."""
        return {
            name: np.array([value], float) for name, value in self.fit.params.items()
        }

    @property
    def largest(self) -> float:
        """The largest fitted C, FLOPs."""
        return float(self.fit.compute.max())


@dataclass(frozen=True, eq=False)
class Comparison:
    """Recipe b held against recipe a.

    Attributes:
        table: one row per budget, see `at`.
        exponents: one row per quantity of both laws (E, the exponents, and what follows
        from them): quantity,
            value_a, value_b, difference (b - a), low, high, differs (the interval
            leaves out 0). Coefficients such as
            A are left out: their unit depends on the exponent. Of quantities that are
            equal, one in ten is said to differ at level 0.90.
        slope: (value, low, high) of d ln m / d ln C over the budgets that both sweeps
        reach.
        verdict: the answer in words.
        level: of all intervals.
        notes: what may make the comparison unfair or its intervals wrong.
    """

    a: Side
    b: Side
    table: pd.DataFrame
    exponents: pd.DataFrame
    slope: tuple[float, float, float]
    verdict: str
    level: float
    notes: tuple[str, ...]

    def at(self, budgets: Sequence[float] | np.ndarray) -> pd.DataFrame:
        """One row per budget.

        Columns: C, FLOPs; loss_a, loss_b at the optimum of each; multiplier with low
        and high; reach, C over the smaller of the two sweeps' largest C (above 1 at
        least one law is extrapolated); then loss_a_low, loss_a_high, loss_b_low,
        loss_b_high and beyond_floor, the share of draws in which b is below a's floor.
        """
        return pd.DataFrame(
            [_row(self.a, self.b, float(C), self.level) for C in budgets]
        )

    def __str__(self) -> str:
        shown: Any = self.table[
            ["C", "loss_a", "loss_b", "multiplier", "low", "high", "reach"]
        ]
        formats = {
            "C": "{:.3g}",
            "multiplier": "{:.4g}",
            "low": "{:.4g}",
            "high": "{:.4g}",
            "reach": "{:.3g}",
        }
        writers = {name: formats.get(name, "{:.4f}").format for name in shown.columns}
        percent = f"{100 * self.level:g} %"
        return "\n".join(
            [
                self.verdict,
                "",
                f"compute multiplier: C that a needs for b's loss, over b's C ({percent} intervals; reach > 1: beyond "
                "a sweep)",
                shown.to_string(index=False, formatters=writers),
                "",
                f"quantities of the law, b - a ({percent} intervals)",
                self.exponents.to_string(index=False, float_format="{:.4g}".format),
                *(f"note: {note}" for note in self.notes),
            ]
        )


def compare(
    runs_a: Runs | pd.DataFrame | Fit,
    runs_b: Runs | pd.DataFrame | Fit,
    law: str | Law = "chinchilla",
    *,
    budgets: Sequence[float] | np.ndarray | None = None,
    objective: str = "huber",
    delta: float = 1e-3,
    draws: int = 1000,
    level: float = 0.90,
    seed: int = 0,
    flops_per_token: FlopsOf = None,
    at: Mapping[str, float] | None = None,
    **fit_options: Any,
) -> Comparison:
    """Compare two recipes (optimiser, architecture, data), each fitted to its own
    sweep.

    The compute multiplier at C is m(C) = C_a / C, where C_a is the C at which recipe
    a's optimum reaches the loss that b reaches at its own optimum with C FLOPs; above
    1, b is better. Intervals come from bootstraps of the two sweeps, independent of
    each other and paired draw by draw. In a draw where b's loss lies at or below a's
    floor E, m is infinite, and so may be the end of an interval.

    Args:
        runs_a, runs_b: run tables, or fits, whose own law and objective are then kept.
        law, objective, delta: as for `fit`; a law of N and D, or one of C.
        budgets: FLOPs; left out, six over the C that both sweeps hold and one at ten
        times the last of them.
        draws: of each bootstrap. seed: of both.
        flops_per_token: as for `allocate`, or "counted": as in each sweep's runs
        (`counted_flops_per_token`); a pair
            when the two recipes differ in it.
        at: values of the law's variables besides N, D, C.
        fit_options: noise, prior, fixed, ... as for `fit`.

    Raises:
        NotIdentifiedError: a sweep does not determine its law.
        ValueError: a law without a frontier in compute, or a budget that is not
            positive.
    """
    per_token = _per_token(flops_per_token)
    seeds = np.random.SeedSequence(seed).generate_state(2).tolist()
    sides = []
    for runs, f, own_seed in zip((runs_a, runs_b), per_token, seeds, strict=True):
        fitted = (
            runs
            if isinstance(runs, Fit)
            else fit_law(runs, law, objective, delta, **fit_options)
        )
        per = counted_flops_per_token(fitted) if isinstance(f, str) else f
        sides.append(
            Side(
                fitted,
                fitted.bootstrap(draws, seed=int(own_seed)),
                make_frontier(fitted.law, per, at),
            )
        )
    a, b = sides
    C = _budgets(a, b) if budgets is None else np.sort(np.asarray(budgets, float))
    if not (C.ndim == 1 and len(C) and np.all(np.isfinite(C) & (C > 0))):
        raise ValueError(
            f"budgets is {budgets!r}; give at least one number of FLOPs, all positive and finite"
        )
    table = pd.DataFrame([_row(a, b, float(c), level) for c in C])
    exponents = _exponents(a, b, level)
    slope = _slope(a, b, C, level)
    notes = (
        *_differences(runs_a, runs_b, a.fit, b.fit),
        *_conventions(a, b, per_token),
        *_remarks(a, b, table),
    )
    verdict = _verdict(a, b, table, exponents, slope, level)
    return Comparison(a, b, table, exponents, slope, verdict, level, notes)


def _per_token(flops_per_token: FlopsOf) -> tuple[Any, Any]:
    """FLOPs per token of a and of b.

    Raises:
        ValueError: a word other than "counted".
    """
    pair = (
        flops_per_token
        if isinstance(flops_per_token, tuple)
        else (flops_per_token, flops_per_token)
    )
    unknown = [f for f in pair if isinstance(f, str) and f != "counted"]
    if unknown:
        raise ValueError(
            f"flops_per_token is {unknown[0]!r}; give N -> FLOPs per token, 'counted', or None for 6 N"
        )
    return pair


def _budgets(a: Side, b: Side) -> np.ndarray:
    """[7] six budgets over the common range of C, and ten times its end."""
    Cs = [side.fit.compute for side in (a, b)]
    low, high = max(C.min() for C in Cs), min(C.max() for C in Cs)
    if low >= high:  # the sweeps have no C in common
        low, high = min(C.min() for C in Cs), max(C.max() for C in Cs)
    return np.append(np.geomspace(low, high, 6), 10 * high)


def _multiplier(
    a: Side, b: Side, C: float, point: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(loss of a, loss of b, m) at C, [R] each: of the paired draws, or of the two
    fits, where R is 1.

    A budget that lies below what one token costs has no optimum; `frontier` refuses it.
    """
    R = 1 if point else min(len(a.boot), len(b.boot))
    of_a, of_b = (
        side.point if point else {k: v[:R] for k, v in side.boot.draws.items()}
        for side in (a, b)
    )
    loss_b = b.frontier.best_loss(of_b, C)
    return (
        a.frontier.best_loss(of_a, C),
        loss_b,
        a.frontier.least_flops(of_a, loss_b) / C,
    )


def _row(a: Side, b: Side, C: float, level: float) -> dict[str, float]:
    """One row of `Comparison.at`."""
    loss_a, loss_b, m = (float(value[0]) for value in _multiplier(a, b, C, point=True))
    draws_a, draws_b, draws_m = _multiplier(a, b, C)
    low, high = compute_interval(draws_m, level)
    row = {
        "C": C,
        "loss_a": loss_a,
        "loss_b": loss_b,
        "multiplier": m,
        "low": low,
        "high": high,
    }
    row["reach"] = C / min(a.largest, b.largest)
    for name, draws in (("loss_a", draws_a), ("loss_b", draws_b)):
        row[f"{name}_low"], row[f"{name}_high"] = compute_interval(draws, level)
    return row | {"beyond_floor": float(np.isinf(draws_m).mean())}


def _exponents(a: Side, b: Side, level: float) -> pd.DataFrame:
    """The table of `Comparison.exponents`."""
    R = min(len(a.boot), len(b.boot))
    rows = []
    for name in _quantities(a.fit):
        if name not in _quantities(b.fit):
            continue
        values = [
            float(side.fit.params.get(name, side.fit.derived().get(name, np.nan)))
            for side in (a, b)
        ]
        low, high = compute_interval(
            b.boot.values(name)[:R] - a.boot.values(name)[:R], level
        )
        row = {
            "quantity": name,
            "value_a": values[0],
            "value_b": values[1],
            "difference": values[1] - values[0],
        }
        rows.append(
            row | {"low": low, "high": high, "differs": bool(low > 0 or high < 0)}
        )
    columns = ["quantity", "value_a", "value_b", "difference", "low", "high", "differs"]
    return pd.DataFrame(rows, columns=columns)


def _quantities(fit: Fit) -> list[str]:
    """E, the exponents and the derived quantities, those held fixed left out."""
    names = [name for name in fit.law.linear if name == fit.law.floor] + [
        entry.name for entry in fit.law.nonlinear
    ]
    return [name for name in names if name not in fit.protocol.fixed] + [
        name for name, _ in fit.law.derived
    ]


def _slope(a: Side, b: Side, C: np.ndarray, level: float) -> tuple[float, float, float]:
    """(value, low, high) of ln m's slope in ln C from the first to the last budget
    within both sweeps.

    With fewer than two budgets there, over all budgets; NaN where there is one. A draw
    in which m turns infinite on the way counts as an infinite slope; one in which it is
    infinite at both ends counts as no slope at all (NaN).
    """
    reached = C[min(a.largest, b.largest) * 1.0001 >= C]
    ends = reached if len(reached) > 1 else C
    if ends[0] == ends[-1]:
        return float("nan"), float("nan"), float("nan")
    span = np.log(ends[-1] / ends[0])

    def slopes(point: bool) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            first, last = (
                np.log(_multiplier(a, b, float(c), point)[2])
                for c in (ends[0], ends[-1])
            )
            return (last - first) / span

    drawn = slopes(point=False)
    if np.all(np.isnan(drawn)):
        return float(slopes(point=True)[0]), float("nan"), float("nan")
    return float(slopes(point=True)[0]), *compute_interval(drawn, level)


def _verdict(
    a: Side,
    b: Side,
    table: pd.DataFrame,
    exponents: pd.DataFrame,
    slope: tuple[float, float, float],
    level: float,
) -> str:
    """The largest budget within both sweeps, the exponents, and the trend of the
    multiplier, in words.
    """
    reached: Any = table[table["reach"] <= 1.0001]
    row = (reached.iloc[-1] if len(reached) else table.iloc[0]).to_dict()
    m, low, high = row["multiplier"], row["low"], row["high"]
    where = f"at {row['C']:.3g} FLOPs" + ("" if len(reached) else " (beyond a sweep)")
    clear = "" if low > 1 or high < 1 else "; the two cannot be told apart there"
    share = (
        f"b needs {_inverse(m)} of a's compute {where}, {100 * level:g} % interval [{_inverse(high)}, "
        f"{_inverse(low)}] (multiplier {m:.3g} [{low:.3g}, {high:.3g}]){clear}"
    )
    named: list[str] = exponents.loc[
        exponents["differs"].astype(bool), "quantity"
    ].tolist()
    differ = (
        f"{', '.join(named)} differ"
        if len(named) > 1
        else f"{named[0]} differs"
        if named
        else ""
    )
    exponent = differ or "the exponents cannot be told apart"
    return f"{share}; {exponent}; {_trend(slope)}"


def _trend(slope: tuple[float, float, float]) -> str:
    value, low, high = slope
    numbers = f"d ln m / d ln C = {value:.3g} [{low:.3g}, {high:.3g}]"
    if np.isnan(low):
        return "how the multiplier changes with scale is unknown: it takes two budgets at which it is finite"
    if low <= 0 <= high:
        return f"the multiplier is steady with scale, as far as these runs tell ({numbers})"
    return f"the multiplier {'grows' if low > 0 else 'shrinks'} with scale ({numbers})"


def _inverse(m: float) -> str:
    """1/m in words: a factor below 1 as a percentage, inf as 0 %."""
    share = 100 / m if m > 0 else float("inf")
    return f"{share:.3g} %" if share < 1000 else f"{share / 100:.3g} times"


def _differences(runs_a: Any, runs_b: Any, a: Fit, b: Fit) -> list[str]:
    """Notes on columns and recipes that make N, D, C or the loss of the two tables mean
    different things.
    """
    notes = []
    for name in SAME_COLUMNS:
        of_a, of_b = a.protocol.columns.get(name), b.protocol.columns.get(name)
        if of_a != of_b:
            notes.append(
                f"{name} is {of_a or 'absent'} in a and {of_b or 'absent'} in b: name the same column for both when "
                "loading, or part of the difference is one of counting"
            )
    tables = [_table(runs) for runs in (runs_a, runs_b)]
    for name in SAME_VALUES:
        values = [
            set(table[name].dropna().astype(str)) if name in table else set()
            for table in tables
        ]
        if values[0] and values[1] and values[0] != values[1]:
            of_a, of_b = (", ".join(sorted(v)[:3]) for v in values)
            why = {"tokenizer": "losses per token", "vocab": "losses per token"}.get(
                name, "losses on held-out data"
            )
            notes.append(
                f"{name} is {of_a} in a and {of_b} in b: their {why} are not comparable unless measured alike"
            )
    if a.law.name != b.law.name:
        notes.append(f"a was fitted with law {a.law.name!r}, b with {b.law.name!r}")
    if (a.protocol.objective, a.protocol.delta) != (
        b.protocol.objective,
        b.protocol.delta,
    ):
        notes.append(
            f"objectives differ: {a.protocol.objective} in a, {b.protocol.objective} in b"
        )
    return notes


def _table(runs: Runs | pd.DataFrame | Fit) -> Any:
    if isinstance(runs, Fit):
        return pd.DataFrame()
    return runs.table if isinstance(runs, Runs) else load_runs(runs).table


def _conventions(a: Side, b: Side, per_token: tuple[Any, Any]) -> list[str]:
    """Notes on a C in the tables that is not the one the frontier is computed with."""
    return [
        f"the C of {name}'s runs is not 6 N D, with which its frontier is computed: give flops_per_token='counted'"
        for name, side, given in (("a", a, per_token[0]), ("b", b, per_token[1]))
        if given is None
        and {"N", "D"} <= set(side.fit.law.variables)
        and counted_flops_per_token(side.fit) is not None
    ]


def _remarks(a: Side, b: Side, table: pd.DataFrame) -> list[str]:
    """Notes on infinite multipliers, on a's extrapolation, and those of the two
    bootstraps.
    """
    notes = []
    beyond: Any = table[table["beyond_floor"] > 0]
    if len(beyond):
        worst = beyond.loc[beyond["beyond_floor"].idxmax()]
        notes.append(
            f"b's loss lies below a's floor in {100 * worst['beyond_floor']:.3g} % of the draws at {worst['C']:.3g} "
            "FLOPs: the multiplier is infinite there"
        )
    needed: Any = table[
        (table["reach"] <= 1.0001)
        & (table["multiplier"] * table["C"] > 1.0001 * a.largest)
    ]
    if len(needed):
        notes.append(
            f"to match b at {needed['C'].iloc[0]:.3g} FLOPs a needs more than the {a.largest:.3g} of its largest run: "
            "the multiplier rests on a's extrapolated law from there on"
        )
    return notes + [
        f"{name}: {note}"
        for name, side in (("a", a), ("b", b))
        for note in side.boot.notes
    ]
