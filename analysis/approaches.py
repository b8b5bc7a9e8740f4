"""Approach 2 of Hoffmann et al. 2022 (arXiv:2203.15556, section 3.2): IsoFLOP parabolas; and 2 beside 3 in a table.

Per budget the loss is a parabola in ln N; its vertex is N*, and D* follows from the tokens of that budget's
runs. Power laws N* = G_N C^a and D* = G_D C^b go through the vertices. The parabola is biased where sizes
are spread widely or off-centre: compare with approach 3, the fitted surface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.fit import Fit, trunk_names
from analysis.runs import Runs, load_runs
from analysis.uncertainty import Bootstrap, quantiles, unit_counts

MIN_SIZES = 4  # three sizes always lie on a parabola: nothing would be left to check it


@dataclass(frozen=True, eq=False)
class IsoFlop:
    """Approach 2.

    Attributes:
        minima: one row per budget: budget (nominal FLOPs), C (counted FLOPs at the vertex), N, D, loss (all
            at the vertex), c0, c1, c2 (loss = c0 + c1 u + c2 u^2 with u = ln N - center), center, N_low,
            N_high (smallest and largest size), n_sizes, used, reason (why not used, or "").
        a, b: exponents of N*(C) and D*(C); NaN with fewer than two usable budgets.
        draws: bootstrap draws of "a", "b", "ln_G_N", "ln_G_D", [R] each; replicates that lost the power law
            are left out and counted in `lost`.
        runs: the rows used, with the column `group`, the budget each was counted to.
        grouping: how rows were assigned to budgets.
        unit: what the bootstrap resamples, "trunk" or "row".
    """

    minima: pd.DataFrame
    a: float
    b: float
    ln_G_N: float
    ln_G_D: float
    draws: dict[str, np.ndarray]
    lost: int
    runs: pd.DataFrame
    grouping: str
    unit: str
    notes: tuple[str, ...] = ()

    def interval(self, name: str, level: float = 0.90) -> tuple[float, float]:
        """Percentile interval of "a", "b", "ln_G_N" or "ln_G_D"; NaN when there are no draws.

        Raises:
            ValueError: unknown name.
        """
        if name not in self.draws:
            raise ValueError(f"approach 2 has no {name!r}; it has {', '.join(self.draws)}")
        draws = self.draws[name]
        low, high = quantiles(draws, level) if len(draws) else (np.nan, np.nan)
        return float(low), float(high)

    def optimum(self, C: Any) -> tuple[Any, Any]:
        """(N*, D*) at C FLOPs by the two power laws."""
        ln_C = np.log(np.asarray(C, float))
        return np.exp(self.ln_G_N + self.a * ln_C), np.exp(self.ln_G_D + self.b * ln_C)

    def optimum_interval(self, C: Any, level: float = 0.90) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """((N low, N high), (D low, D high)) at C FLOPs."""
        ln_C = np.log(np.asarray(C, float))
        curves = [
            self.draws[g].reshape(-1, *(1,) * ln_C.ndim) + np.multiply.outer(self.draws[e], ln_C)
            for g, e in (("ln_G_N", "a"), ("ln_G_D", "b"))
        ]
        n, d = (tuple(np.exp(q) for q in quantiles(curve, level)) for curve in curves)
        return n, d  # type: ignore[return-value]

    def __str__(self) -> str:
        (a0, a1), (b0, b1) = self.interval("a"), self.interval("b")
        lines = [
            f"approach 2, {np.sum(self.minima['used'])} of {len(self.minima)} budgets ({self.grouping}): "
            f"a = {self.a:.3f} [{a0:.3f}, {a1:.3f}], b = {self.b:.3f} [{b0:.3f}, {b1:.3f}] (90 %, {self.unit}s)"
        ]
        for row in self.minima.to_dict("records"):
            at = "N* {N:.4g}, D* {D:.4g}, loss {loss:.4f}" if row["used"] else "left out: {reason}"
            lines.append("  {budget:.3g} FLOPs, {n_sizes} sizes: ".format(**row) + at.format(**row))
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def isoflop(runs: Runs | pd.DataFrame, *, tolerance: float = 0.10, n_bootstrap: int = 1000, seed: int = 0) -> IsoFlop:
    """Approach 2 on a run table with N, D, C and loss.

    Rows belong to the `budget` they name; where the table has none, to the group of rows whose C lies within
    `tolerance` of the group's smallest. The power laws use counted C at each vertex, not the nominal budget.
    A budget is left out, with its reason, when it has fewer than 4 sizes, no minimum, or one outside its
    sizes.

    Raises:
        ValueError: a column is missing, or no row belongs to a budget.
    """
    runs = runs if isinstance(runs, Runs) else load_runs(runs)
    missing = [v for v in ("N", "D", "C") if v not in runs.table.columns]
    if missing:
        raise ValueError(
            f"approach 2 needs {', '.join(missing)}, which {runs.source} lacks; name its columns in load_runs"
        )
    table, grouping, notes = _grouped(runs.table, tolerance)
    groups = [
        _Group.of(budget, table.loc[(table["group"] == budget).to_numpy(bool)])
        for budget in np.unique(table["group"].to_numpy(float))
    ]
    minima = pd.DataFrame([group.minimum() for group in groups])
    exponents = _power_laws(minima.loc[minima["used"].to_numpy(bool)])
    if not np.isfinite(exponents["a"]):
        notes.append(
            "a and b need at least two budgets whose minimum lies inside their sizes: train more sizes per budget"
        )
    unit = "trunk" if "trunk" in table.columns else "row"
    names = trunk_names(table.loc[:, "trunk"]) if unit == "trunk" else np.arange(len(table))
    labels = pd.Series(np.unique(names.astype(str), return_inverse=True)[1], index=table.index)
    draws = _draws(groups, labels, n_bootstrap, seed)
    kept = {name: values[np.isfinite(draws["a"])] for name, values in draws.items()}
    return IsoFlop(
        minima,
        exponents["a"],
        exponents["b"],
        exponents["ln_G_N"],
        exponents["ln_G_D"],
        kept,
        n_bootstrap - len(kept["a"]),
        table,
        grouping,
        unit,
        tuple(notes),
    )


def compare_approaches(iso: IsoFlop, fit: Fit, boot: Bootstrap | None = None, level: float = 0.90) -> pd.DataFrame:
    """Exponents of N*(C) and D*(C) by approach 2 and approach 3, one row each, with intervals.

    Raises:
        ValueError: the fitted law has no exponents a and b.
    """
    exponents = fit.derived()
    if not {"a", "b"} <= set(exponents):
        raise ValueError(f"law {fit.law.name!r} has no exponents a and b; fit law='chinchilla' for approach 3")
    two: dict[str, Any] = {"approach": "2, IsoFLOP parabolas", "rows": len(iso.runs)}
    three: dict[str, Any] = {"approach": f"3, {fit.law.name} surface", "rows": fit.protocol.n_rows}
    for name in ("a", "b"):
        two |= dict(
            zip(
                (name, f"{name}_low", f"{name}_high"),
                (getattr(iso, name), *iso.interval(name, level)),
                strict=True,
            )
        )
        ends = boot.interval(name, level) if boot is not None else (np.nan, np.nan)
        three |= dict(zip((name, f"{name}_low", f"{name}_high"), (exponents[name], *ends), strict=True))
    return pd.DataFrame([two, three])


def _grouped(table: pd.DataFrame, tolerance: float) -> tuple[pd.DataFrame, str, list[str]]:
    has_budget = table["budget"].notna().to_numpy(bool) if "budget" in table.columns else np.zeros(len(table), bool)
    if has_budget.any():
        named = table.loc[has_budget]
        lost = len(table) - len(named)
        notes = [f"{lost} rows name no budget and are left out"] if lost else []
        return named.assign(group=named["budget"]).reset_index(drop=True), "nominal budgets", notes
    ordered = table.sort_values("C", kind="stable").reset_index(drop=True)
    starts: list[float] = []
    for c in ordered["C"]:
        starts.append(starts[-1] if starts and c <= starts[-1] * (1 + tolerance) else float(c))
    centre = ordered["C"].groupby(starts).transform(lambda c: float(np.exp(np.log(c).mean())))
    how = f"C within {tolerance:.0%} of the smallest of its group"
    return ordered.assign(group=centre), how, [f"no budget column: rows grouped by {how}"]


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
        return cls(float(budget), rows, float(ln_N.mean()), np.vander(ln_N - ln_N.mean(), 3, increasing=True))

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
            return out | {"reason": f"{self.sizes} sizes; a parabola and its check need {MIN_SIZES}"}
        c = np.linalg.lstsq(self.design, self.rows["loss"].to_numpy(float), rcond=None)[0]
        out |= {"c0": c[0], "c1": c[1], "c2": c[2]}
        if c[2] <= 0:
            return out | {"reason": "the loss has no minimum in ln N (the parabola opens downwards)"}
        ln_N = self.center - c[1] / (2 * c[2])
        ln_D, ln_C = self.at(np.array([ln_N]))
        out |= {
            "C": float(np.exp(ln_C[0])),
            "N": float(np.exp(ln_N)),
            "D": float(np.exp(ln_D[0])),
            "loss": c[0] - c[1] ** 2 / (4 * c[2]),
        }
        if out["N"] >= out["N_high"]:
            return out | {
                "reason": f"minimum at N = {out['N']:.3g}, not below the largest size {out['N_high']:.3g}: "
                "train larger sizes at this budget"
            }
        if out["N"] <= out["N_low"]:
            return out | {
                "reason": f"minimum at N = {out['N']:.3g}, not above the smallest size {out['N_low']:.3g}: "
                "train smaller sizes at this budget"
            }
        return out | {"used": True}

    def at(self, ln_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(ln D, ln C) at ln N along this budget: nearly straight lines through its runs, without noise."""
        lines = [np.polyfit(self.design[:, 1], np.log(self.rows[v].to_numpy(float)), 1) for v in ("D", "C")]
        ln_D, ln_C = (np.polyval(line, ln_N - self.center) for line in lines)
        return ln_D, ln_C

    def vertices(self, counts: np.ndarray) -> np.ndarray:
        """[R] ln N of the vertex in replicates with row counts [R, n]; NaN when it is not inside the sizes."""
        gram = np.einsum("rn,nk,nl->rkl", counts, self.design, self.design, optimize=True)
        rhs = np.einsum("rn,nk,n->rk", counts, self.design, self.rows["loss"].to_numpy(float), optimize=True)
        distinct = (np.linalg.cond(gram) < 1e12) & np.isfinite(gram).all(axis=(1, 2))
        c = np.linalg.solve(np.where(distinct[:, None, None], gram, np.eye(3)), rhs[..., None])[..., 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            u = -c[:, 1] / (2 * c[:, 2])
        inside = (u > self.design[:, 1].min()) & (u < self.design[:, 1].max()) & (c[:, 2] > 0) & distinct
        return np.where(inside, self.center + u, np.nan)


def _power_laws(minima: Any) -> dict[str, float]:
    ln_C, ln_N, ln_D = (np.log(np.asarray(minima[v], float)) for v in ("C", "N", "D"))
    draws = _lines(ln_C[None], ln_N[None], ln_D[None])
    return {name: float(values[0]) for name, values in draws.items()}


def _lines(ln_C: np.ndarray, ln_N: np.ndarray, ln_D: np.ndarray) -> dict[str, np.ndarray]:
    """Least-squares lines of ln N and ln D on ln C, [R, budgets] each with NaN where a budget is left out."""
    seen = np.isfinite(ln_N) & np.isfinite(ln_C)
    count = np.maximum(seen.sum(axis=1, keepdims=True), 1)
    x, n, d = (np.where(seen, v, 0.0) for v in (ln_C, ln_N, ln_D))
    mean_x, mean_n, mean_d = (v.sum(axis=1, keepdims=True) / count for v in (x, n, d))
    dx = np.where(seen, x - mean_x, 0.0)
    spread = np.sum(dx**2, axis=1)
    enough = (seen.sum(axis=1) >= 2) & (spread > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (np.where(enough, np.sum(dx * v, axis=1) / spread, np.nan) for v in (n, d))
    return {
        "a": a,
        "b": b,
        "ln_G_N": mean_n[:, 0] - a * mean_x[:, 0],
        "ln_G_D": mean_d[:, 0] - b * mean_x[:, 0],
    }


def _draws(groups: list[_Group], labels: pd.Series, n: int, seed: int) -> dict[str, np.ndarray]:
    """[n] bootstrap draws of the power laws; NaN where fewer than two budgets keep a minimum inside their sizes."""
    counts = unit_counts(np.random.default_rng(seed), n, int(labels.max()) + 1)
    columns: dict[str, list[np.ndarray]] = {"C": [], "N": [], "D": []}
    for group in (g for g in groups if g.sizes >= MIN_SIZES):
        ln_N = group.vertices(counts[:, labels.loc[group.rows.index].to_numpy()])
        ln_D, ln_C = group.at(ln_N)
        for name, values in (("C", ln_C), ("N", ln_N), ("D", ln_D)):
            columns[name].append(values)
    if not columns["C"]:
        return {name: np.full(n, np.nan) for name in ("a", "b", "ln_G_N", "ln_G_D")}
    return _lines(*(np.stack(columns[name], axis=1) for name in ("C", "N", "D")))
