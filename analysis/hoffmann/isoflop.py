"""Approach 2 of Hoffmann et al. 2022 (arXiv:2203.15556, section 3.2): IsoFLOP
parabolas.

Per budget the loss is a parabola in ln N; its vertex is N*, and D* follows from the
tokens of that budget's runs. Power laws N* = G_N C^a and D* = G_D C^b go through the
vertices. The parabola is biased where sizes are spread widely or off-center:
`analysis.hoffmann.comparison` sets it beside approaches 1 and 3 and estimates the bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pandas as pd

from analysis.fitting.bootstrap import draw_unit_counts, find_central_interval
from analysis.fitting.fit import name_trunks
from analysis.fitting.large_tables import MAX_GROUPS, pool_units
from analysis.progress import show_progress
from analysis.table.runs import Runs, load_runs

Values = np.ndarray | np.floating
"""An array, or one number where the query was one number."""

Query = float | int | np.number | np.ndarray | pd.Series | Sequence[float | int]
"""One number or several, as a caller may write them."""

TOLERANCE = 0.10
"""Rows belong to one budget while their C exceeds its smallest by up to this share."""

MIN_SIZES = 4
"""Sizes that a budget needs. Three always lie on a parabola, so that nothing would be
left to check it."""

BLOCK = 32
"""Budgets that are resampled together."""

FAR = 10.0
"""Factor beyond the sizes from which a minimum is not given as a number."""

MAX_CONDITION = 1e12
"""Condition number of the normal equations from which a parabola is not determined."""


@dataclass(frozen=True, eq=False)
class PowerLaws:
    """N* = G_N C^a and D* = G_D C^b with their bootstrap draws, the result of
    approaches 1 and 2.

    Attributes:
        a: exponent of N*(C); NaN where the runs do not give it.
        b: exponent of D*(C); NaN where the runs do not give it.
        ln_G_N: log of the factor G_N, with N in parameters and C in FLOPs.
        ln_G_D: log of the factor G_D, with D in tokens and C in FLOPs.
        draws: bootstrap draws [R] of "a", "b", "ln_G_N" and "ln_G_D", without the
            replicates that have no power law.
        lost: number of replicates that have no power law.
    """

    approach: ClassVar[str]
    a: float
    b: float
    ln_G_N: float
    ln_G_D: float
    draws: dict[str, np.ndarray]
    lost: int

    def interval(self, name: str, level: float = 0.90) -> tuple[float, float]:
        """Percentile interval of "a", "b", "ln_G_N" or "ln_G_D"; NaN when there are no
        draws.

        Raises:
            ValueError: unknown name.
        """
        if name not in self.draws:
            raise ValueError(
                f"{self.approach} has no {name!r}; it has {', '.join(self.draws)}"
            )
        draws = self.draws[name]
        if not len(draws):
            return np.nan, np.nan
        low, high = find_central_interval(draws, level)
        return float(low), float(high)

    def optimum(self, C: Query) -> tuple[Values, Values]:
        """(N*, D*) at C FLOPs by the two power laws."""
        ln_C = np.log(np.asarray(C, float))
        N = np.exp(self.ln_G_N + self.a * ln_C)
        D = np.exp(self.ln_G_D + self.b * ln_C)
        return N, D

    def optimum_interval(
        self, C: Query, level: float = 0.90
    ) -> tuple[tuple[Values, Values], tuple[Values, Values]]:
        """((N low, N high), (D low, D high)) at C FLOPs; NaN when there are no draws."""
        ln_C = np.log(np.asarray(C, float))
        of_N = self._power_law_interval("ln_G_N", "a", ln_C, level)
        of_D = self._power_law_interval("ln_G_D", "b", ln_C, level)
        return of_N, of_D

    def _power_law_interval(
        self, factor: str, exponent: str, ln_C: Values, level: float
    ) -> tuple[Values, Values]:
        if not len(self.draws[exponent]):
            return np.full_like(ln_C, np.nan), np.full_like(ln_C, np.nan)
        intercept = self.draws[factor].reshape(-1, *(1,) * ln_C.ndim)
        curves = intercept + np.multiply.outer(self.draws[exponent], ln_C)
        low, high = find_central_interval(curves, level)
        return np.exp(low), np.exp(high)

    def exponents_text(self, unit: str) -> str:
        """The exponents with their 90 % intervals, in words.

        Args:
            unit: what the bootstrap resamples.
        """
        a_low, a_high = self.interval("a")
        b_low, b_high = self.interval("b")
        return (
            f"a = {self.a:.3f} [{a_low:.3f}, {a_high:.3f}], "
            f"b = {self.b:.3f} [{b_low:.3f}, {b_high:.3f}] (90 %, {unit}s)"
        )


@dataclass(frozen=True, eq=False)
class IsoFlop(PowerLaws):
    """Approach 2; its exponents are NaN with fewer than two usable budgets.

    Attributes:
        minima: one row per budget, with the columns of `Minimum`.
        runs: the rows used, with the column `group`, the budget each was counted to.
        grouping: how rows were assigned to budgets.
        unit: what the bootstrap resamples, "trunk" or "row".
        notes: what limits the result.
    """

    approach: ClassVar[str] = "approach 2"
    minima: pd.DataFrame
    runs: pd.DataFrame
    grouping: str
    unit: str
    notes: tuple[str, ...] = ()

    def refit(self, loss: np.ndarray) -> dict[str, float]:
        """a, b, ln_G_N and ln_G_D when the rows of `runs` have the losses [n] instead
        of their own.

        Only budgets that were used count, so that the two results differ by their
        losses alone; NaN when fewer than two of them keep a minimum inside their sizes.
        """
        _, minima = _fit_parabolas(self.runs.assign(loss=loss))
        is_used = minima["used"].to_numpy(bool) & self.minima["used"].to_numpy(bool)
        return _fit_power_laws(minima.loc[is_used])

    def __str__(self) -> str:
        lines = [
            f"approach 2, {np.sum(self.minima['used'])} of {len(self.minima)} budgets "
            f"({self.grouping}): {self.exponents_text(self.unit)}"
        ]
        for row in self.minima.to_dict("records"):
            if row["used"]:
                result = (
                    f"N* {format_size(row['N'])}, D* {format_size(row['D'])}, "
                    f"loss {row['loss']:.4f}"
                )
            else:
                result = f"left out: {row['reason']}"
            lines.append(
                f"  {row['budget']:.3g} FLOPs, {row['n_sizes']} sizes: {result}"
            )
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """The minimum of one budget's parabola: a row of `IsoFlop.minima`.

    Attributes:
        budget: nominal FLOPs.
        C: counted FLOPs at the vertex.
        N: parameters at the vertex.
        D: tokens at the vertex.
        loss: loss at the vertex.
        c0: coefficient of loss = c0 + c1 u + c2 u^2 with u = ln N - center.
        c1: coefficient of u.
        c2: coefficient of u^2.
        center: mean of ln N.
        N_low: smallest size.
        N_high: largest size.
        n_sizes: number of distinct sizes.
        used: whether the power laws go through this minimum.
        reason: why not, or "".
    """

    budget: float
    C: float = np.nan
    N: float = np.nan
    D: float = np.nan
    loss: float = np.nan
    c0: float = np.nan
    c1: float = np.nan
    c2: float = np.nan
    center: float
    N_low: float
    N_high: float
    n_sizes: int
    used: bool = False
    reason: str = ""


@dataclass(frozen=True, eq=False)
class BudgetGroups:
    """Rows by the budget they belong to.

    Attributes:
        rows: the rows that belong to a budget, with the column `group`: its FLOPs.
        rule: how rows were assigned to budgets.
        notes: what a reader should know of it.
    """

    rows: pd.DataFrame
    rule: str
    notes: tuple[str, ...] = ()


def format_size(value: float | int | np.number) -> str:
    """A number of parameters or tokens: 167k, 1.25M, 70B."""
    for power, letter in ((12, "T"), (9, "B"), (6, "M"), (3, "k")):
        if value >= 0.9995 * 10**power:
            return f"{float(f'{value / 10**power:.3g}'):g}{letter}"
    return f"{value:.3g}"


def isoflop(
    runs: Runs | pd.DataFrame,
    *,
    tolerance: float = TOLERANCE,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> IsoFlop:
    """Approach 2 on a run table with N, D, C and loss.

    The power laws use the counted C at each vertex, not the nominal budget. A budget is
    left out, with its reason, when it has fewer than 4 sizes, no minimum, or one
    outside its sizes.

    Args:
        runs: a run table; a DataFrame is read by `load_runs` with its default columns.
        tolerance: where the table names no budget, rows whose C exceeds the smallest of
            a group by up to this share belong to that group.
        n_bootstrap: number of bootstrap replicates.
        seed: of the bootstrap.

    Raises:
        ValueError: a column is missing, or no row belongs to a budget.
    """
    runs = runs if isinstance(runs, Runs) else load_runs(runs)
    runs.require(("N", "D", "C", "loss"), "approach 2")
    budgets = group_by_budget(runs.table, tolerance)
    table = budgets.rows
    groups, minima = _fit_parabolas(table)
    exponents = _fit_power_laws(minima.loc[minima["used"].to_numpy(bool)])
    notes = list(budgets.notes)
    if not np.isfinite(exponents["a"]):
        notes.append(
            "a and b need at least two budgets whose minimum lies inside their sizes: "
            "train more sizes per budget"
        )
    if "trunk" in table.columns:
        unit = "trunk"
        names = name_trunks(table.loc[:, "trunk"])
    else:
        unit = "row"
        names = np.arange(len(table))
    _, unit_of_row = np.unique(names.astype(str), return_inverse=True)
    draws = _draw_power_laws(
        groups, pd.Series(unit_of_row, index=table.index), n_bootstrap, seed
    )
    has_power_law = np.isfinite(draws["a"])
    return IsoFlop(
        **exponents,
        draws={name: values[has_power_law] for name, values in draws.items()},
        lost=n_bootstrap - int(has_power_law.sum()),
        minima=minima,
        runs=table,
        grouping=budgets.rule,
        unit=unit,
        notes=tuple(notes),
    )


def group_by_budget(table: pd.DataFrame, tolerance: float) -> BudgetGroups:
    """The rows by the budget that they name; where no row names one, by their C.

    Args:
        table: rows with C.
        tolerance: rows belong to one group while their C exceeds the group's smallest
            by up to this share. The group's FLOPs are the geometric mean of its C.
    """
    has_budget = np.zeros(len(table), bool)
    if "budget" in table.columns:
        has_budget = table["budget"].notna().to_numpy(bool)
    if has_budget.any():
        named = table.loc[has_budget]
        n_lost = len(table) - len(named)
        notes = ()
        if n_lost:
            notes = (f"{n_lost} rows name no budget and are left out",)
        rows = named.assign(group=named["budget"]).reset_index(drop=True)
        return BudgetGroups(rows=rows, rule="nominal budgets", notes=notes)
    ordered = table.sort_values("C", kind="stable").reset_index(drop=True)
    smallest: list[float] = []  # of each row's group
    for C in ordered["C"].to_numpy(float).tolist():
        if smallest and smallest[-1] * (1 + tolerance) >= C:
            smallest.append(smallest[-1])
        else:
            smallest.append(C)
    budgets = ordered["C"].groupby(smallest).transform(_geometric_mean)
    rule = f"C within {tolerance:.0%} of the smallest of its group"
    return BudgetGroups(
        rows=ordered.assign(group=budgets),
        rule=rule,
        notes=(f"no budget column: rows grouped by {rule}",),
    )


def _geometric_mean(values: pd.Series) -> float:
    return float(np.exp(np.log(values).mean()))


@dataclass(frozen=True, eq=False)
class _Group:
    """The runs of one budget.

    Attributes:
        budget: FLOPs.
        rows: the runs.
        center: mean of ln N.
        design: [n, 3] powers 0, 1 and 2 of ln N - center.
    """

    budget: float
    rows: pd.DataFrame
    center: float
    design: np.ndarray

    @classmethod
    def of(cls, budget: float, rows: pd.DataFrame) -> _Group:
        ln_N = np.log(rows["N"].to_numpy(float))
        center = ln_N.mean()
        design = np.vander(ln_N - center, 3, increasing=True)
        return cls(budget=float(budget), rows=rows, center=float(center), design=design)

    @property
    def loss(self) -> np.ndarray:
        return self.rows["loss"].to_numpy(float)

    @property
    def n_sizes(self) -> int:
        return len(np.unique(self.rows["N"].to_numpy(float)))

    def find_minimum(self) -> Minimum:
        sizes = self.rows["N"].to_numpy(float)
        found = Minimum(
            budget=self.budget,
            center=self.center,
            N_low=float(sizes.min()),
            N_high=float(sizes.max()),
            n_sizes=self.n_sizes,
        )
        if self.n_sizes < MIN_SIZES:
            reason = f"{self.n_sizes} sizes; a parabola and its check need {MIN_SIZES}"
            return replace(found, reason=reason)
        coefficients, *_ = np.linalg.lstsq(self.design, self.loss, rcond=None)
        c0, c1, c2 = coefficients.tolist()
        found = replace(found, c0=c0, c1=c1, c2=c2)
        if c2 <= 0:
            reason = "the loss has no minimum in ln N (the parabola opens downwards)"
            return replace(found, reason=reason)
        ln_N = self.center - c1 / (2 * c2)
        ln_D, ln_C = self.follow_budget(np.array([ln_N]))
        found = replace(
            found,
            C=float(np.exp(ln_C[0])),
            N=float(np.exp(ln_N)),
            D=float(np.exp(ln_D[0])),
            loss=c0 - c1**2 / (4 * c2),
        )
        reason = _explain_edge(found)
        return replace(found, reason=reason, used=not reason)

    def follow_budget(self, ln_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(ln D, ln C) at ln N along this budget, by straight lines through its runs:
        along a budget both are nearly straight and without noise.
        """
        u = self.design[:, 1]
        D_line = np.polyfit(u, np.log(self.rows["D"].to_numpy(float)), 1)
        C_line = np.polyfit(u, np.log(self.rows["C"].to_numpy(float)), 1)
        ln_D = np.polyval(D_line, ln_N - self.center)
        ln_C = np.polyval(C_line, ln_N - self.center)
        return ln_D, ln_C

    def sum_by_unit(self, units: np.ndarray, n_units: int) -> np.ndarray:
        """[U, 8] what each unit adds to the normal equations: the powers 0 to 4 of
        ln N - center, and the products of the design with the loss.

        Args:
            units: [n] the unit of each row.
            n_units: U.
        """
        powers = self.design[:, 1:2] ** np.arange(5)
        products = np.concatenate([powers, self.design * self.loss[:, None]], axis=1)
        sums = [np.bincount(units, column, n_units) for column in products.T]
        return np.stack(sums, axis=1)

    def find_minima(self, totals: np.ndarray) -> np.ndarray:
        """[R] ln N of the vertex in replicates; NaN where it is not inside the sizes.

        Args:
            totals: [R, 8] sums over the units of each replicate.
        """
        exponent = np.add.outer(np.arange(3), np.arange(3))
        gram, right = totals[:, exponent], totals[:, 5:]
        size = np.abs(np.linalg.eigvalsh(gram))
        is_determined = size.max(axis=1) < MAX_CONDITION * size.min(axis=1)
        solvable = np.where(is_determined[:, None, None], gram, np.eye(3))
        c = np.linalg.solve(solvable, right[..., None])[..., 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            u = -c[:, 1] / (2 * c[:, 2])
        of_sizes = self.design[:, 1]
        is_inside = (u > of_sizes.min()) & (u < of_sizes.max())
        is_minimum = (c[:, 2] > 0) & is_determined
        return np.where(is_inside & is_minimum, self.center + u, np.nan)


def _explain_edge(minimum: Minimum) -> str:
    """Why a minimum outside its sizes is not used; "" inside them. One far outside is a
    parabola's and no model's: its number says nothing.
    """
    size, smallest, largest = minimum.N, minimum.N_low, minimum.N_high
    if size <= smallest:
        factor = smallest / size
        near, far = "not above", "far below"
        edge = f"the smallest size {format_size(smallest)}: train smaller sizes"
    elif size >= largest:
        factor = size / largest
        near, far = "not below", "far above"
        edge = f"the largest size {format_size(largest)}: train larger sizes"
    else:
        return ""
    if factor > FAR:
        return f"minimum {far} {edge} at this budget"
    return f"minimum at N = {format_size(size)}, {near} {edge} at this budget"


def _fit_parabolas(table: pd.DataFrame) -> tuple[list[_Group], pd.DataFrame]:
    """(the budgets of a table with the column `group`, their `IsoFlop.minima`)."""
    budget_of_row = table["group"].to_numpy(float)
    groups = [
        _Group.of(float(budget), table.loc[budget_of_row == budget])
        for budget in np.unique(budget_of_row)
    ]
    return groups, pd.DataFrame([group.find_minimum() for group in groups])


def _fit_power_laws(minima: pd.DataFrame) -> dict[str, float]:
    """a, b, ln_G_N and ln_G_D through the minima."""
    lines = fit_lines(
        ln_C=np.log(minima["C"].to_numpy(float))[None],
        ln_N=np.log(minima["N"].to_numpy(float))[None],
        ln_D=np.log(minima["D"].to_numpy(float))[None],
    )
    return {name: float(values[0]) for name, values in lines.items()}


def fit_lines(
    ln_C: np.ndarray, ln_N: np.ndarray, ln_D: np.ndarray
) -> dict[str, np.ndarray]:
    """a, b, ln_G_N, ln_G_D, [R] each: least-squares lines of ln N and ln D on ln C.

    Each argument is [R, points], with NaN in ln_N where a point is left out. a and b
    are NaN with fewer than two points.
    """
    is_point = np.isfinite(ln_N) & np.isfinite(ln_C)
    n_points = is_point.sum(axis=1)
    count = np.maximum(n_points[:, None], 1)
    x = np.where(is_point, ln_C, 0.0)
    N = np.where(is_point, ln_N, 0.0)
    D = np.where(is_point, ln_D, 0.0)
    x_mean = x.sum(axis=1, keepdims=True) / count
    N_mean = N.sum(axis=1, keepdims=True) / count
    D_mean = D.sum(axis=1, keepdims=True) / count
    dx = np.where(is_point, x - x_mean, 0.0)
    spread = np.sum(dx**2, axis=1)
    is_determined = (n_points >= 2) & (spread > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        a = np.where(is_determined, np.sum(dx * N, axis=1) / spread, np.nan)
        b = np.where(is_determined, np.sum(dx * D, axis=1) / spread, np.nan)
    return {
        "a": a,
        "b": b,
        "ln_G_N": N_mean[:, 0] - a * x_mean[:, 0],
        "ln_G_D": D_mean[:, 0] - b * x_mean[:, 0],
    }


def _draw_power_laws(
    groups: list[_Group], unit_of_row: pd.Series, n: int, seed: int
) -> dict[str, np.ndarray]:
    """[n] bootstrap draws of the power laws; NaN where fewer than two budgets keep a
    minimum inside their sizes.
    """
    rng = np.random.default_rng(seed)
    pooled = pool_units(rng, unit_of_row.to_numpy(), MAX_GROUPS)
    unit_of_row = pd.Series(pooled, index=unit_of_row.index)
    counts = draw_unit_counts(rng, n, int(pooled.max()) + 1)
    n_units = counts.shape[1]
    usable = [group for group in groups if group.n_sizes >= MIN_SIZES]
    ln_C: list[np.ndarray] = []
    ln_N: list[np.ndarray] = []
    ln_D: list[np.ndarray] = []
    with show_progress("resampling of budgets", len(usable)) as progress:
        for start in range(0, len(usable), BLOCK):
            block = usable[start : start + BLOCK]
            units = [unit_of_row.loc[group.rows.index].to_numpy() for group in block]
            sums = [
                group.sum_by_unit(own, n_units)
                for group, own in zip(block, units, strict=True)
            ]
            # One product for many budgets: the counts are the larger factor.
            totals = np.split(counts @ np.concatenate(sums, axis=1), len(block), axis=1)
            for group, total in zip(block, totals, strict=True):
                minimum = group.find_minima(total)
                D, C = group.follow_budget(minimum)
                ln_C.append(C)
                ln_N.append(minimum)
                ln_D.append(D)
                progress.advance()
    if not ln_N:
        return {name: np.full(n, np.nan) for name in ("a", "b", "ln_G_N", "ln_G_D")}
    return fit_lines(
        ln_C=np.stack(ln_C, axis=1),
        ln_N=np.stack(ln_N, axis=1),
        ln_D=np.stack(ln_D, axis=1),
    )
