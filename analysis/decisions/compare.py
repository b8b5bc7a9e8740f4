"""Two recipes compared at their own optima: how much compute one saves over the other,
and how that scales.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.decisions.allocate import counted_flops_per_token
from analysis.decisions.frontier import (
    FlopsPerToken,
    Frontier,
    Params,
    compute_interval,
    make_frontier,
    make_single_draw,
)
from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit
from analysis.fitting.fit import fit as fit_law
from analysis.laws.library import Law
from analysis.table.runs import Runs, load_runs

RunTable = Runs | pd.DataFrame | Fit  # a fit stands for the runs that it was made from
FlopsOption = FlopsPerToken | str | None  # N -> FLOPs per token, "counted", or 6 N

# Canonical columns that must mean the same in both tables.
SHARED_COLUMNS = ("N", "D", "C", "loss")
# Columns whose values must agree, and what is not comparable where they do not.
SHARED_VALUES = {
    "tokenizer": "losses per token",
    "source": "losses on held-out data",
    "vocab": "losses per token",
}
INSIDE_SWEEP = 1.0001  # C over a sweep's largest C, up to which it counts as inside


@dataclass(frozen=True, eq=False)
class Side:
    """One recipe: its fit, its bootstrap, and the frontier of its law."""

    fit: Fit
    boot: Bootstrap
    frontier: Frontier

    @property
    def point(self) -> Params:
        """The fitted parameters as one draw, [1] each."""
        return make_single_draw(self.fit.params)

    @property
    def largest(self) -> float:
        """The largest fitted C, FLOPs."""
        return float(self.fit.compute.max())

    def first_draws(self, count: int) -> Params:
        """The first bootstrap draws, [count] each."""
        return {name: values[:count] for name, values in self.boot.draws.items()}

    def read_quantity(self, name: str) -> float:
        """The fitted value of a parameter or derived quantity."""
        return float(self.fit.params.get(name, self.fit.derived().get(name, np.nan)))


@dataclass(frozen=True, eq=False)
class Comparison:
    """Recipe b compared with recipe a.

    Attributes:
        a: the recipe that b is compared with.
        b: the recipe that may be better.
        table: one row per budget, see `at`.
        exponents: one row per quantity of both laws: the irreducible loss, the
            exponents, and the quantities derived from them. Columns: quantity, value_a,
            value_b, difference (b - a), low, high, and differs (the interval excludes
            0). Coefficients such as A are left out, because their unit depends on the
            exponent. At level 0.90, one in ten quantities that are equal is expected
            to differ.
        slope: (value, low, high) of d ln m / d ln C over the budgets inside both
            sweeps.
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
        """Compare at other budgets, FLOPs.

        Returns:
            One row per budget with the columns:

            - C, FLOPs.
            - loss_a, loss_b: at the optimum of each, nats per token.
            - multiplier, with its interval low and high.
            - reach: C over the smaller of the two sweeps' largest C. Above 1, at least
              one law is extrapolated.
            - loss_a_low, loss_a_high, loss_b_low, loss_b_high: intervals of the losses.
            - beyond_floor: the share of draws in which b's loss is at or below a's
              irreducible loss.
        """
        return _tabulate_budgets(self.a, self.b, np.asarray(budgets), self.level)

    def __str__(self) -> str:
        columns = ["C", "loss_a", "loss_b", "multiplier", "low", "high", "reach"]
        formats = dict.fromkeys(columns, "{:.4f}")
        formats["C"] = "{:.3g}"
        formats["reach"] = "{:.3g}"
        for name in ("multiplier", "low", "high"):
            formats[name] = "{:.4g}"
        writers = {name: form.format for name, form in formats.items()}
        percent = f"{100 * self.level:g} %"
        lines = [
            self.verdict,
            "",
            f"compute multiplier: C that a needs for b's loss, over b's C ({percent} "
            "intervals; reach > 1: beyond a sweep)",
            self.table.loc[:, columns].to_string(index=False, formatters=writers),
            "",
            f"quantities of the law, b - a ({percent} intervals)",
            self.exponents.to_string(index=False, float_format="{:.4g}".format),
        ]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


class _Multiplier(NamedTuple):
    """The compute multiplier at one budget and the losses that it follows from, [R]."""

    loss_a: np.ndarray
    loss_b: np.ndarray
    value: np.ndarray


def compare(
    runs_a: RunTable,
    runs_b: RunTable,
    law: str | Law = "chinchilla",
    *,
    budgets: Sequence[float] | np.ndarray | None = None,
    objective: str = "huber",
    delta: float | None = None,
    draws: int = 1000,
    level: float = 0.90,
    seed: int = 0,
    flops_per_token: FlopsOption | tuple[FlopsOption, FlopsOption] = None,
    at: Mapping[str, float] | None = None,
    **fit_options: Any,
) -> Comparison:
    """Compare two recipes (optimizer, architecture, data), each fitted to its own
    sweep.

    The compute multiplier at C is m(C) = C_a / C, where C_a is the C at which recipe
    a's optimum reaches the loss that b reaches at its own optimum with C FLOPs. Above
    1, b is better. Intervals come from bootstraps of the two sweeps, which are
    independent of each other and are paired draw by draw. In a draw where b's loss lies
    at or below a's irreducible loss, m is infinite, and so may be the end of an
    interval.

    Args:
        runs_a: the run table of recipe a, or a fit, whose own law and objective are
            then kept.
        runs_b: the same of recipe b.
        law: a law of N and D, or one of C.
        objective: as for `fit`.
        delta: as for `fit`.
        budgets: FLOPs. By default six over the range of C that both sweeps hold, and
            ten times the last of them.
        draws: of each bootstrap.
        level: of the intervals.
        seed: of both bootstraps.
        flops_per_token: as for `allocate`, or "counted", as in each sweep's runs
            (`counted_flops_per_token`); a pair if the two recipes differ in it.
        at: values of the law's variables besides N, D and C.
        fit_options: noise, prior, fixed, ... as for `fit`.

    Raises:
        NotIdentifiedError: a sweep does not determine its law.
        ValueError: a law without a frontier in compute, or a budget that is not
            positive.
    """
    options = _pair_flops_options(flops_per_token)
    seeds = np.random.SeedSequence(seed).generate_state(2).tolist()
    sides = []
    for runs, option, side_seed in zip((runs_a, runs_b), options, seeds, strict=True):
        fitted = runs
        if not isinstance(fitted, Fit):
            fitted = fit_law(fitted, law, objective, delta, **fit_options)
        sides.append(_make_side(fitted, option, draws, int(side_seed), at))
    a, b = sides
    C = _check_budgets(_choose_budgets(a, b) if budgets is None else budgets)
    table = _tabulate_budgets(a, b, C, level)
    exponents = _compare_exponents(a, b, level)
    slope = _compute_slope(a, b, C, level)
    notes = [
        *_note_columns(a.fit, b.fit),
        *_note_values(_read_table(runs_a), _read_table(runs_b)),
        *_note_fits(a.fit, b.fit),
        *_note_flops_conventions(a, b, options),
        *_note_multipliers(a, table),
    ]
    for name, side in (("a", a), ("b", b)):
        notes += [f"{name}: {note}" for note in side.boot.notes]
    return Comparison(
        a=a,
        b=b,
        table=table,
        exponents=exponents,
        slope=slope,
        verdict=_write_verdict(table, exponents, slope, level),
        level=level,
        notes=tuple(notes),
    )


def _pair_flops_options(
    flops_per_token: FlopsOption | tuple[FlopsOption, FlopsOption],
) -> tuple[FlopsOption, FlopsOption]:
    """The option for FLOPs per token of a and of b.

    Raises:
        ValueError: a word other than "counted".
    """
    pair = flops_per_token
    if not isinstance(pair, tuple):
        pair = (pair, pair)
    for option in pair:
        if isinstance(option, str) and option != "counted":
            raise ValueError(
                f"flops_per_token is {option!r}; give N -> FLOPs per token, 'counted', "
                "or None for 6 N"
            )
    return pair


def _make_side(
    fit: Fit,
    option: FlopsOption,
    draws: int,
    seed: int,
    at: Mapping[str, float] | None,
) -> Side:
    per_token = option
    if isinstance(per_token, str):
        per_token = counted_flops_per_token(fit)
    boot = fit.bootstrap(draws, seed=seed)
    return Side(fit=fit, boot=boot, frontier=make_frontier(fit.law, per_token, at))


def _choose_budgets(a: Side, b: Side) -> np.ndarray:
    """[7] six budgets over the common range of C, and ten times its end."""
    smallest = [float(side.fit.compute.min()) for side in (a, b)]
    largest = [float(side.fit.compute.max()) for side in (a, b)]
    low = max(smallest)
    high = min(largest)
    if low >= high:  # the sweeps have no C in common
        low = min(smallest)
        high = max(largest)
    return np.append(np.geomspace(low, high, 6), 10 * high)


def _check_budgets(budgets: Sequence[float] | np.ndarray) -> np.ndarray:
    """The budgets in ascending order.

    Raises:
        ValueError: no budget, or one that is not positive and finite.
    """
    C = np.sort(np.asarray(budgets, float))
    is_valid = C.ndim == 1 and len(C) > 0 and np.all(np.isfinite(C) & (C > 0))
    if not is_valid:
        raise ValueError(
            f"budgets is {budgets!r}; give at least one number of FLOPs, all positive "
            "and finite"
        )
    return C


def _compute_multiplier(
    a: Side, b: Side, C: float, of_fits: bool = False
) -> _Multiplier:
    """The multiplier at C in each pair of draws, or of the two fits, where R is 1.

    Raises:
        ValueError: C does not buy one token, so that there is no optimum.
    """
    if of_fits:
        params_a = a.point
        params_b = b.point
    else:
        n_draws = min(len(a.boot), len(b.boot))
        params_a = a.first_draws(n_draws)
        params_b = b.first_draws(n_draws)
    loss_a = a.frontier.best_loss(params_a, C)
    loss_b = b.frontier.best_loss(params_b, C)
    value = a.frontier.least_flops(params_a, loss_b) / C
    return _Multiplier(loss_a, loss_b, value)


def _tabulate_budgets(a: Side, b: Side, C: np.ndarray, level: float) -> pd.DataFrame:
    """The table of `Comparison.at`."""
    return pd.DataFrame([_compute_row(a, b, float(c), level) for c in C])


def _compute_row(a: Side, b: Side, C: float, level: float) -> dict[str, float]:
    """One row of `Comparison.at`."""
    fitted = _compute_multiplier(a, b, C, of_fits=True)
    drawn = _compute_multiplier(a, b, C)
    low, high = compute_interval(drawn.value, level)
    loss_a_low, loss_a_high = compute_interval(drawn.loss_a, level)
    loss_b_low, loss_b_high = compute_interval(drawn.loss_b, level)
    return {
        "C": C,
        "loss_a": float(fitted.loss_a[0]),
        "loss_b": float(fitted.loss_b[0]),
        "multiplier": float(fitted.value[0]),
        "low": low,
        "high": high,
        "reach": C / min(a.largest, b.largest),
        "loss_a_low": loss_a_low,
        "loss_a_high": loss_a_high,
        "loss_b_low": loss_b_low,
        "loss_b_high": loss_b_high,
        "beyond_floor": float(np.isinf(drawn.value).mean()),
    }


def _compare_exponents(a: Side, b: Side, level: float) -> pd.DataFrame:
    """The table of `Comparison.exponents`."""
    n_draws = min(len(a.boot), len(b.boot))
    quantities_of_b = _list_quantities(b.fit)
    rows = []
    for name in _list_quantities(a.fit):
        if name not in quantities_of_b:
            continue
        value_a = a.read_quantity(name)
        value_b = b.read_quantity(name)
        differences = b.boot.values(name)[:n_draws] - a.boot.values(name)[:n_draws]
        low, high = compute_interval(differences, level)
        row = {
            "quantity": name,
            "value_a": value_a,
            "value_b": value_b,
            "difference": value_b - value_a,
            "low": low,
            "high": high,
            "differs": low > 0 or high < 0,
        }
        rows.append(row)
    columns = ["quantity", "value_a", "value_b", "difference", "low", "high", "differs"]
    return pd.DataFrame(rows, columns=columns)


def _list_quantities(fit: Fit) -> list[str]:
    """The irreducible loss, the exponents and the derived quantities, without those
    held fixed.
    """
    names = [name for name in fit.law.linear if name == fit.law.floor]
    names += [entry.name for entry in fit.law.nonlinear]
    free = [name for name in names if name not in fit.protocol.fixed]
    return free + [name for name, _ in fit.law.derived]


def _compute_slope(
    a: Side, b: Side, C: np.ndarray, level: float
) -> tuple[float, float, float]:
    """(value, low, high) of the slope of ln m in ln C from the first to the last budget
    inside both sweeps.

    With fewer than two budgets there, the slope is over all budgets, and NaN if there
    is only one. A draw in which m turns infinite on the way counts as an infinite
    slope. A draw in which m is infinite at both ends counts as no slope at all (NaN).
    """
    inside = C[min(a.largest, b.largest) * INSIDE_SWEEP >= C]
    ends = inside if len(inside) > 1 else C
    first = float(ends[0])
    last = float(ends[-1])
    if first == last:
        return float("nan"), float("nan"), float("nan")

    def compute_slopes(of_fits: bool) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            log_first = np.log(_compute_multiplier(a, b, first, of_fits).value)
            log_last = np.log(_compute_multiplier(a, b, last, of_fits).value)
            return (log_last - log_first) / np.log(last / first)

    value = float(compute_slopes(of_fits=True)[0])
    drawn = compute_slopes(of_fits=False)
    if np.all(np.isnan(drawn)):
        return value, float("nan"), float("nan")
    low, high = compute_interval(drawn, level)
    return value, low, high


def _write_verdict(
    table: pd.DataFrame,
    exponents: pd.DataFrame,
    slope: tuple[float, float, float],
    level: float,
) -> str:
    """In words: the multiplier at the largest budget inside both sweeps, the exponents
    that differ, and the trend of the multiplier.
    """
    inside = table.loc[table["reach"] <= INSIDE_SWEEP]
    row = inside.iloc[-1] if len(inside) else table.iloc[0]
    where = f"at {row['C']:.3g} FLOPs"
    if not len(inside):
        where += " (beyond a sweep)"
    multiplier = float(row["multiplier"])
    low = float(row["low"])
    high = float(row["high"])
    clause = ""
    if low <= 1 <= high:
        clause = "; the two cannot be told apart there"
    share = (
        f"b needs {_format_inverse(multiplier)} of a's compute {where}, "
        f"{100 * level:g} % interval [{_format_inverse(high)}, {_format_inverse(low)}] "
        f"(multiplier {multiplier:.3g} [{low:.3g}, {high:.3g}]){clause}"
    )
    different = exponents.loc[exponents["differs"].astype(bool), "quantity"].tolist()
    if len(different) > 1:
        outcome = f"{', '.join(different)} differ"
    elif different:
        outcome = f"{different[0]} differs"
    else:
        outcome = "the exponents cannot be told apart"
    return f"{share}; {outcome}; {_describe_trend(slope)}"


def _describe_trend(slope: tuple[float, float, float]) -> str:
    value, low, high = slope
    numbers = f"d ln m / d ln C = {value:.3g} [{low:.3g}, {high:.3g}]"
    if np.isnan(low):
        return (
            "how the multiplier changes with scale is unknown: it takes two budgets at "
            "which it is finite"
        )
    if low <= 0 <= high:
        return (
            "the multiplier is steady with scale, as far as these runs tell "
            f"({numbers})"
        )
    verb = "grows" if low > 0 else "shrinks"
    return f"the multiplier {verb} with scale ({numbers})"


def _format_inverse(multiplier: float) -> str:
    """1/m in words: a factor below ten as a percentage; 0 % for an infinite m."""
    percent = 100 / multiplier if multiplier > 0 else float("inf")
    if percent < 1000:
        return f"{percent:.3g} %"
    return f"{percent / 100:.3g} times"


def _read_table(runs: RunTable) -> pd.DataFrame:
    """The accepted rows; none of a fit."""
    if isinstance(runs, Fit):
        return pd.DataFrame()
    if isinstance(runs, Runs):
        return runs.table
    return load_runs(runs).table


def _note_columns(a: Fit, b: Fit) -> list[str]:
    """Notes on canonical columns that were read from different columns."""
    notes = []
    for name in SHARED_COLUMNS:
        column_a = a.protocol.columns.get(name)
        column_b = b.protocol.columns.get(name)
        if column_a != column_b:
            notes.append(
                f"{name} is {column_a or 'absent'} in a and {column_b or 'absent'} in "
                "b: name the same column for both when loading, or part of the "
                "difference is one of counting"
            )
    return notes


def _note_values(table_a: pd.DataFrame, table_b: pd.DataFrame) -> list[str]:
    """Notes on recipes whose losses are not of the same tokens or data."""

    def list_values(table: pd.DataFrame, name: str) -> list[str]:
        if name not in table.columns:
            return []
        return sorted(set(table[name].dropna().astype(str)))

    notes = []
    for name, measure in SHARED_VALUES.items():
        values_a = list_values(table_a, name)
        values_b = list_values(table_b, name)
        if values_a and values_b and values_a != values_b:
            notes.append(
                f"{name} is {', '.join(values_a[:3])} in a and "
                f"{', '.join(values_b[:3])} in b: their {measure} are not comparable "
                "unless both are measured in the same way"
            )
    return notes


def _note_fits(a: Fit, b: Fit) -> list[str]:
    """Notes on laws and objectives that differ."""
    notes = []
    if a.law.name != b.law.name:
        notes.append(f"a was fitted with law {a.law.name!r}, b with {b.law.name!r}")
    objective_a = (a.protocol.objective, a.protocol.delta)
    objective_b = (b.protocol.objective, b.protocol.delta)
    if objective_a != objective_b:
        notes.append(
            f"objectives differ: {a.protocol.objective} in a, {b.protocol.objective} "
            "in b"
        )
    return notes


def _note_flops_conventions(
    a: Side, b: Side, options: tuple[FlopsOption, FlopsOption]
) -> list[str]:
    """Notes on a C in the tables that is not the C of the frontier."""
    notes = []
    for name, side, option in (("a", a, options[0]), ("b", b, options[1])):
        is_surface = {"N", "D"} <= set(side.fit.law.variables)
        if option is not None or not is_surface:
            continue
        if counted_flops_per_token(side.fit) is not None:
            notes.append(
                f"the C of {name}'s runs is not 6 N D, with which its frontier is "
                "computed: give flops_per_token='counted'"
            )
    return notes


def _note_multipliers(a: Side, table: pd.DataFrame) -> list[str]:
    """Notes on infinite multipliers and on the extrapolation of a's law."""
    notes = []
    worst = table.loc[table["beyond_floor"].idxmax()]
    if worst["beyond_floor"] > 0:
        notes.append(
            f"b's loss lies below a's irreducible loss in "
            f"{100 * worst['beyond_floor']:.3g} % of the draws at {worst['C']:.3g} "
            "FLOPs: the multiplier is infinite there"
        )
    is_inside = table["reach"] <= INSIDE_SWEEP
    flops_of_a = table["multiplier"] * table["C"]
    extrapolated = table.loc[is_inside & (flops_of_a > INSIDE_SWEEP * a.largest)]
    if len(extrapolated):
        notes.append(
            f"to match b at {extrapolated['C'].iloc[0]:.3g} FLOPs a needs more than "
            f"the {a.largest:.3g} of its largest run: the multiplier rests on a's "
            "extrapolated law from there on"
        )
    return notes
