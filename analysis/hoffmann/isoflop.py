"""Approach 2 of Hoffmann et al. 2022 (arXiv:2203.15556, section 3.2): IsoFLOP
parabolas.

Per budget the loss is a parabola in ln N; its vertex is N*, and D* follows from the
tokens of that budget's runs. Power laws N* = G_N C^a and D* = G_D C^b go through the
vertices. The parabola is biased where sizes are spread widely or off-centre:
`analysis.hoffmann.comparison` sets it beside approaches 1 and 3 and estimates the bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from analysis.fitting.bootstrap import draw_unit_counts, find_central_interval
from analysis.fitting.fit import name_trunks
from analysis.table.runs import Runs, load_runs

MIN_SIZES = 4  # three sizes always lie on a parabola: nothing would be left to check it


@dataclass(frozen=True, eq=False)
class PowerLaws:
    """N* = G_N C^a and D* = G_D C^b with their bootstrap draws: what approaches 1 and 2
    end in.

    Attributes:
        a, b: exponents of N*(C) and D*(C); NaN where the runs do not give them.
        ln_G_N, ln_G_D: logs of the factors; N in parameters, D in tokens, C in FLOPs.
        draws: bootstrap draws of "a", "b", "ln_G_N", "ln_G_D", [R] each; replicates
        that lost the power law
            are left out and counted in `lost`.
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
        low, high = (
            find_central_interval(draws, level) if len(draws) else (np.nan, np.nan)
        )
        return float(low), float(high)

    def optimum(self, C: Any) -> tuple[Any, Any]:
        """(N*, D*) at C FLOPs by the two power laws."""
        ln_C = np.log(np.asarray(C, float))
        return np.exp(self.ln_G_N + self.a * ln_C), np.exp(self.ln_G_D + self.b * ln_C)

    def optimum_interval(
        self, C: Any, level: float = 0.90
    ) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """((N low, N high), (D low, D high)) at C FLOPs; NaN when there are no draws."""
        ln_C = np.log(np.asarray(C, float))
        if not len(self.draws["a"]):
            unknown = (np.full_like(ln_C, np.nan), np.full_like(ln_C, np.nan))
            return unknown, unknown
        curves = [
            self.draws[g].reshape(-1, *(1,) * ln_C.ndim)
            + np.multiply.outer(self.draws[e], ln_C)
            for g, e in (("ln_G_N", "a"), ("ln_G_D", "b"))
        ]
        n, d = (
            tuple(np.exp(q) for q in find_central_interval(curve, level))
            for curve in curves
        )
        return n, d  # type: ignore[return-value]

    def exponents_text(self, unit: str) -> str:
        """The exponents with their 90 % intervals, in words."""
        (a0, a1), (b0, b1) = self.interval("a"), self.interval("b")
        return f"a = {self.a:.3f} [{a0:.3f}, {a1:.3f}], b = {self.b:.3f} [{b0:.3f}, {b1:.3f}] (90 %, {unit}s)"


@dataclass(frozen=True, eq=False)
class IsoFlop(PowerLaws):
    """Approach 2; its exponents are NaN with fewer than two usable budgets.

    Attributes:
        minima: one row per budget: budget (nominal FLOPs), C (counted FLOPs at the
        vertex), N, D, loss (all
            at the vertex), c0, c1, c2 (loss = c0 + c1 u + c2 u^2 with u = ln N -
            center), center, N_low, N_high (smallest and largest size), n_sizes, used,
            reason (why not used, or "").
        runs: the rows used, with the column `group`, the budget each was counted to.
        grouping: how rows were assigned to budgets.
        unit: what the bootstrap resamples, "trunk" or "row".
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
        _, minima = _parabolas(self.runs.assign(loss=loss))
        both = minima["used"].to_numpy(bool) & self.minima["used"].to_numpy(bool)
        return _power_laws(minima.loc[both])

    def __str__(self) -> str:
        lines = [
            f"approach 2, {np.sum(self.minima['used'])} of {len(self.minima)} budgets ({self.grouping}): "
            + self.exponents_text(self.unit)
        ]
        for row in self.minima.to_dict("records"):
            at = f"N* {size_text(row['N'])}, D* {size_text(row['D'])}, loss {row['loss']:.4f}"
            at = at if row["used"] else f"left out: {row['reason']}"
            lines.append(f"  {row['budget']:.3g} FLOPs, {row['n_sizes']} sizes: {at}")
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def size_text(value: float | int | np.number) -> str:
    """A number of parameters or tokens: 167k, 1.25M, 70B."""
    for power, letter in ((12, "T"), (9, "B"), (6, "M"), (3, "k")):
        if value >= 0.9995 * 10**power:
            return f"{float(f'{value / 10**power:.3g}'):g}{letter}"
    return f"{value:.3g}"


def isoflop(
    runs: Runs | pd.DataFrame,
    *,
    tolerance: float = 0.10,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> IsoFlop:
    """Approach 2 on a run table with N, D, C and loss.

    Rows belong to the `budget` they name; where the table has none, to the group of
    rows whose C lies within `tolerance` of the group's smallest. The power laws use
    counted C at each vertex, not the nominal budget. A budget is left out, with its
    reason, when it has fewer than 4 sizes, no minimum, or one outside its sizes.

    Raises:
        ValueError: a column is missing, or no row belongs to a budget.
    """
    runs = runs if isinstance(runs, Runs) else load_runs(runs)
    missing = [v for v in ("N", "D", "C") if v not in runs.table.columns]
    if missing:
        raise ValueError(
            f"approach 2 needs {', '.join(missing)}, which {runs.source} lacks; name its columns in load_runs"
        )
    table, grouping, notes = grouped(runs.table, tolerance)
    groups, minima = _parabolas(table)
    exponents = _power_laws(minima.loc[minima["used"].to_numpy(bool)])
    if not np.isfinite(exponents["a"]):
        notes.append(
            "a and b need at least two budgets whose minimum lies inside their sizes: train more sizes per budget"
        )
    unit = "trunk" if "trunk" in table.columns else "row"
    names = (
        name_trunks(table.loc[:, "trunk"]) if unit == "trunk" else np.arange(len(table))
    )
    labels = pd.Series(
        np.unique(names.astype(str), return_inverse=True)[1], index=table.index
    )
    draws = _draws(groups, labels, n_bootstrap, seed)
    kept = {name: values[np.isfinite(draws["a"])] for name, values in draws.items()}
    return IsoFlop(
        **exponents,
        draws=kept,
        lost=n_bootstrap - len(kept["a"]),
        minima=minima,
        runs=table,
        grouping=grouping,
        unit=unit,
        notes=tuple(notes),
    )


def grouped(
    table: pd.DataFrame, tolerance: float
) -> tuple[pd.DataFrame, str, list[str]]:
    """(rows with the column `group`: the budget in FLOPs each belongs to, how they were
    assigned, notes).
    """
    has_budget = (
        table["budget"].notna().to_numpy(bool)
        if "budget" in table.columns
        else np.zeros(len(table), bool)
    )
    if has_budget.any():
        named = table.loc[has_budget]
        lost = len(table) - len(named)
        notes = [f"{lost} rows name no budget and are left out"] if lost else []
        return (
            named.assign(group=named["budget"]).reset_index(drop=True),
            "nominal budgets",
            notes,
        )
    ordered = table.sort_values("C", kind="stable").reset_index(drop=True)
    starts: list[float] = []
    for c in ordered["C"]:
        starts.append(
            starts[-1] if starts and c <= starts[-1] * (1 + tolerance) else float(c)
        )
    centre = (
        ordered["C"]
        .groupby(starts)
        .transform(lambda c: float(np.exp(np.log(c).mean())))
    )
    how = f"C within {tolerance:.0%} of the smallest of its group"
    return (
        ordered.assign(group=centre),
        how,
        [f"no budget column: rows grouped by {how}"],
    )


@dataclass(frozen=True, eq=False)
class _Group:
    """The runs of one budget. design [n, 3]: powers of ln N - center."""

    budget: float
    rows: pd.DataFrame
    center: float
    design: np.ndarray

    @classmethod
    def of(cls, budget: float, rows: pd.DataFrame) -> _Group:
        ln_N = np.log(rows["N"].to_numpy(float))
        return cls(
            float(budget),
            rows,
            float(ln_N.mean()),
            np.vander(ln_N - ln_N.mean(), 3, increasing=True),
        )

    @property
    def sizes(self) -> int:
        return len(np.unique(self.rows["N"].to_numpy(float)))

    def minimum(self) -> dict[str, Any]:
        """This budget's row of `IsoFlop.minima`."""
        sizes = self.rows["N"]
        out = {
            "budget": self.budget,
            "C": np.nan,
            "N": np.nan,
            "D": np.nan,
            "loss": np.nan,
            "c0": np.nan,
            "c1": np.nan,
            "c2": np.nan,
            "center": self.center,
            "N_low": sizes.min(),
            "N_high": sizes.max(),
            "n_sizes": self.sizes,
            "used": False,
            "reason": "",
        }
        if self.sizes < MIN_SIZES:
            return out | {
                "reason": f"{self.sizes} sizes; a parabola and its check need {MIN_SIZES}"
            }
        c = np.linalg.lstsq(self.design, self.rows["loss"].to_numpy(float), rcond=None)[
            0
        ]
        out |= {"c0": c[0], "c1": c[1], "c2": c[2]}
        if c[2] <= 0:
            return out | {
                "reason": "the loss has no minimum in ln N (the parabola opens downwards)"
            }
        ln_N = self.center - c[1] / (2 * c[2])
        ln_D, ln_C = self.at(np.array([ln_N]))
        out |= {
            "C": float(np.exp(ln_C[0])),
            "N": float(np.exp(ln_N)),
            "D": float(np.exp(ln_D[0])),
            "loss": c[0] - c[1] ** 2 / (4 * c[2]),
        }
        return out | {"reason": _edge(out), "used": not _edge(out)}

    def at(self, ln_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(ln D, ln C) at ln N along this budget: nearly straight lines through its
        runs, without noise.
        """
        lines = [
            np.polyfit(self.design[:, 1], np.log(self.rows[v].to_numpy(float)), 1)
            for v in ("D", "C")
        ]
        ln_D, ln_C = (np.polyval(line, ln_N - self.center) for line in lines)
        return ln_D, ln_C

    def vertices(self, counts: np.ndarray) -> np.ndarray:
        """[R] ln N of the vertex in replicates with row counts [R, n]; NaN when it is
        not inside the sizes.
        """
        gram = np.einsum(
            "rn,nk,nl->rkl", counts, self.design, self.design, optimize=True
        )
        rhs = np.einsum(
            "rn,nk,n->rk",
            counts,
            self.design,
            self.rows["loss"].to_numpy(float),
            optimize=True,
        )
        distinct = (np.linalg.cond(gram) < 1e12) & np.isfinite(gram).all(axis=(1, 2))
        c = np.linalg.solve(
            np.where(distinct[:, None, None], gram, np.eye(3)), rhs[..., None]
        )[..., 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            u = -c[:, 1] / (2 * c[:, 2])
        inside = (
            (u > self.design[:, 1].min())
            & (u < self.design[:, 1].max())
            & (c[:, 2] > 0)
            & distinct
        )
        return np.where(inside, self.center + u, np.nan)


def _edge(minimum: dict[str, Any]) -> str:
    """Why a minimum outside its sizes is not used; "" inside them."""
    N, low, high = minimum["N"], minimum["N_low"], minimum["N_high"]
    if high <= N:
        why = f"not below the largest size {size_text(high)}: train larger sizes at this budget"
    elif low >= N:
        why = f"not above the smallest size {size_text(low)}: train smaller sizes at this budget"
    else:
        return ""
    return f"minimum at N = {size_text(N)}, {why}"


def _parabolas(table: pd.DataFrame) -> tuple[list[_Group], pd.DataFrame]:
    """The budgets of a table with the column `group`, and one row of `IsoFlop.minima`
    for each.
    """
    budgets = np.unique(table["group"].to_numpy(float))
    groups = [
        _Group.of(budget, table.loc[(table["group"] == budget).to_numpy(bool)])
        for budget in budgets
    ]
    return groups, pd.DataFrame([group.minimum() for group in groups])


def _power_laws(minima: Any) -> dict[str, float]:
    ln_C, ln_N, ln_D = (np.log(np.asarray(minima[v], float)) for v in ("C", "N", "D"))
    draws = fit_lines(ln_C[None], ln_N[None], ln_D[None])
    return {name: float(values[0]) for name, values in draws.items()}


def fit_lines(
    ln_C: np.ndarray, ln_N: np.ndarray, ln_D: np.ndarray
) -> dict[str, np.ndarray]:
    """a, b, ln_G_N, ln_G_D, [R] each: least-squares lines of ln N and ln D on ln C.

    Each is [R, points], with NaN in ln_N where a point is left out; a and b are NaN
    with fewer than two points.
    """
    seen = np.isfinite(ln_N) & np.isfinite(ln_C)
    count = np.maximum(seen.sum(axis=1, keepdims=True), 1)
    x, n, d = (np.where(seen, v, 0.0) for v in (ln_C, ln_N, ln_D))
    mean_x, mean_n, mean_d = (v.sum(axis=1, keepdims=True) / count for v in (x, n, d))
    dx = np.where(seen, x - mean_x, 0.0)
    spread = np.sum(dx**2, axis=1)
    enough = (seen.sum(axis=1) >= 2) & (spread > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (
            np.where(enough, np.sum(dx * v, axis=1) / spread, np.nan) for v in (n, d)
        )
    return {
        "a": a,
        "b": b,
        "ln_G_N": mean_n[:, 0] - a * mean_x[:, 0],
        "ln_G_D": mean_d[:, 0] - b * mean_x[:, 0],
    }


def _draws(
    groups: list[_Group], labels: pd.Series, n: int, seed: int
) -> dict[str, np.ndarray]:
    """[n] bootstrap draws of the power laws; NaN where fewer than two budgets keep a
    minimum inside their sizes.
    """
    counts = draw_unit_counts(np.random.default_rng(seed), n, int(labels.max()) + 1)
    columns: dict[str, list[np.ndarray]] = {"C": [], "N": [], "D": []}
    for group in (g for g in groups if g.sizes >= MIN_SIZES):
        ln_N = group.vertices(counts[:, labels.loc[group.rows.index].to_numpy()])
        ln_D, ln_C = group.at(ln_N)
        for name, values in (("C", ln_C), ("N", ln_N), ("D", ln_D)):
            columns[name].append(values)
    if not columns["C"]:
        return {name: np.full(n, np.nan) for name in ("a", "b", "ln_G_N", "ln_G_D")}
    return fit_lines(*(np.stack(columns[name], axis=1) for name in ("C", "N", "D")))
