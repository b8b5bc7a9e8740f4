"""The best hyper-parameters of each cell of a table, and how they move with size.

    found = analysis.optimum("runs.csv", over="lr", by="width")
    print(found)

The runs of a cell have one size (and one number of tokens, or whatever `by` names). Their
log losses are fitted by a quadratic in the logarithms of what was tuned,

    ln loss = a + b.u + u.Q.u / 2,  u = ln(value / best value tried),

whose minimum is the optimum. Values further from the best one than a factor of `span` are
left out, since a loss is no parabola so far away, and Huber's weights take the others
less seriously the further they lie off. All cells share one scale of the noise. Intervals
hold 90 % of the minima of quadratics that are drawn from the fit; a quadratic that opens
downwards has its minimum beyond the tried values, so that a cell which does not determine
its optimum has an interval without an end.

The optima of the cells whose best value is inside the tried ones are then fitted by a
power law of `by`. A cell counts by its interval and by the scatter of all cells about the
law (DerSimonian & Laird 1986).

Shapes: n rows of a cell, O hyper-parameters, P = 1 + O + O (O + 1) / 2 coefficients, R
draws, K cells, B variables of `by`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.fitting.student import compute_quantile
from analysis.table.readers import parse_numbers
from analysis.table.runs import Runs, load_runs

LEVEL = 0.90
SPAN = 5.0
"""Two factors of two on either side of the best value, and a little."""
SAME = 1e-3
"""Values whose logarithms differ by less are one value."""

_NORMAL = 1.6449
"""Standard deviations from the middle of a normal distribution to the end of its 90 %."""
_HUBER = 1.345
_ROUNDS = 20
_DRAWS = 4000
_LARGEST_FACTOR = 1.25
"""An optimum that moves by less over all sizes is said to stay."""


@dataclass(frozen=True)
class Optimum:
    """The best hyper-parameters of each cell, and their laws.

    Attributes:
        over: what was tuned.
        by: what a cell is of.
        cells: one row per cell: the columns of `by`; rows; for each of `over` its
            optimum, its 90 % interval as `<over>_low` and `<over>_high`, and the best
            value tried as `<over>_tried`; loss, at the optimum; status, "inside",
            "at the edge" where the best value tried is the lowest or the highest, or
            the reason why there is no optimum.
        laws: one row per pair of `over` and `by`: the exponent of the optimum with its
            90 % interval; empty if the cells do not determine it.
        verdicts: of each of `over`, whether its optimum moves.
        scatter: standard deviation of the log loss about the quadratics; NaN if no cell
            has a row more than coefficients.
        runs: the rows that were read, with those rejected and their reasons.
        notes: what limits the answer.
    """

    over: tuple[str, ...]
    by: tuple[str, ...]
    cells: pd.DataFrame
    laws: pd.DataFrame
    verdicts: dict[str, str]
    scatter: float
    runs: Runs
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"optimal {', '.join(self.over)} by {', '.join(self.by)}:"]
        for row in self.cells.to_dict("records"):
            cell = ", ".join(f"{name} {row[name]:g}" for name in self.by)
            lines.append(f"  {cell}: {self._describe_cell(row)}")
        for row in self.laws.to_dict("records"):
            lines.append(
                f"{row['over']} ~ {row['by']}^{row['exponent']:.3f}, 90 % "
                f"[{row['low']:.3f}, {row['high']:.3f}]"
            )
        lines += [f"{name}: {verdict}" for name, verdict in self.verdicts.items()]
        rejected = self.runs.reasons()
        lines += [f"row {row} was left out: {reason}" for row, reason in rejected]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _describe_cell(self, row: dict) -> str:
        if np.isnan(row[self.over[0]]):
            return row["status"]
        found = []
        for name in self.over:
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            found.append(f"{name} {row[name]:.4g} [{low:.4g}, {high:.4g}]")
        text = f"{', '.join(found)}; loss {row['loss']:.4g}"
        return text if row["status"] == "inside" else f"{text}; {row['status']}"


def optimum(
    table: Runs | pd.DataFrame | str | Path,
    over: str | Sequence[str] = "lr",
    by: str | Sequence[str] = ("N", "D"),
    span: float = SPAN,
) -> Optimum:
    """Find the best hyper-parameters of each cell, and whether they move with size.

    Args:
        table: a run table; a path or a DataFrame is read by `load_runs` with its
            default columns.
        over: columns of what was tuned, of positive numbers, as "lr" or ("lr",
            "batch_tokens").
        by: columns that make a cell, of positive numbers.
        span: largest factor between a value and the best one of its cell. Values beyond
            are left out, but for the neighbors of the best one.

    Raises:
        ValueError: a column is missing or no positive number, a name is given twice, or
            `span` is not above 1.
    """
    over = (over,) if isinstance(over, str) else tuple(over)
    by = (by,) if isinstance(by, str) else tuple(by)
    names = (*over, *by)
    if not over or not by or len(set(names)) < len(names):
        raise ValueError(
            f"over is {over!r} and by is {by!r}; name one column or more in each, and "
            "none twice"
        )
    if not span > 1:
        raise ValueError(f"span is {span!r}; give a factor above 1, such as {SPAN:g}")
    runs = table if isinstance(table, Runs) else load_runs(table)
    runs.require((*names, "loss"), "optimum")
    for name in names:
        _check_positive(runs, name)
    cells = _list_cells(runs.table, over, by, span)
    noise = _Noise(_estimate_scatter(cells), _count_freedom(cells))
    frame = pd.DataFrame([_summarize_cell(cell, noise, over, by) for cell in cells])
    laws = pd.concat([_fit_laws(frame, name, by) for name in over], ignore_index=True)
    verdicts = {name: _judge(frame, laws, name, by) for name in over}
    return Optimum(
        over=over,
        by=by,
        cells=frame,
        laws=laws,
        verdicts=verdicts,
        scatter=noise.scatter,
        runs=runs,
        notes=_list_notes(frame, noise),
    )


def _check_positive(runs: Runs, name: str) -> None:
    values = parse_numbers(runs.table.loc[:, name]).to_numpy(float)
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        value = runs.table[name].to_list()[bad[0]]
        row = runs.table["source_row"].to_list()[bad[0]]
        raise ValueError(
            f"{name} is {value!r} in row {row} of {runs.source}; "
            f"optimum takes logarithms of {name}: give positive numbers, or leave the "
            "row out"
        )


class _Noise(NamedTuple):
    """What all cells share.

    Attributes:
        scatter: standard deviation of the log loss about the quadratics; NaN if no cell
            has a row more than coefficients.
        freedom: rows that the quadratics do not use up.
    """

    scatter: float
    freedom: int


# --- one cell -------------------------------------------------------------------------


class _Cell(NamedTuple):
    """The runs of one cell, and the quadratic through them.

    Attributes:
        key: values of `by`, [B].
        best: values of `over` of the best run, [O].
        at_edge: whether one of them is the lowest or highest that was tried.
        u: ln(value / best) of the rows that are fitted, [n, O].
        y: log loss of these rows, [n].
        weight: of the rows, [n].
        coefficients: [P]; empty if the rows do not determine them.
    """

    key: Float[np.ndarray, " B"]
    best: Float[np.ndarray, " O"]
    at_edge: bool
    u: Float[np.ndarray, "n O"]
    y: Float[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]
    coefficients: Float[np.ndarray, " P"]


def _list_cells(
    table: pd.DataFrame, over: tuple[str, ...], by: tuple[str, ...], span: float
) -> list[_Cell]:
    """The cells in the order of `by`, with Huber's weights of a common scale."""
    keys = [np.round(np.log(table[name].to_numpy(float)) / SAME) for name in by]
    cells = []
    for _, group in table.groupby(keys):
        values = np.log(group[list(over)].to_numpy(float))
        losses = np.log(group["loss"].to_numpy(float))
        key = group[list(by)].to_numpy(float).mean(axis=0)
        cells.append(_make_cell(key, values, losses, span))
    for _ in range(_ROUNDS):
        scatter = _estimate_scatter(cells)
        if not scatter > 0:
            break
        cells = [_reweight_cell(cell, scatter) for cell in cells]
    return cells


def _make_cell(
    key: Float[np.ndarray, " B"],
    values: Float[np.ndarray, "m O"],
    losses: Float[np.ndarray, " m"],
    span: float,
) -> _Cell:
    """The cell of some runs, from their log values and log losses."""
    best = values[np.argmin(losses)]
    u = values - best
    near = np.ones(len(u), bool)
    at_edge = False
    for column in u.T:
        below, above = column[column < -SAME], column[column > SAME]
        at_edge = at_edge or not (len(below) and len(above))
        # The neighbors of the best value are in, however far they are.
        lowest, highest = -float(np.log(span)), float(np.log(span))
        if len(below):
            lowest = min(lowest, float(below.max()))
        if len(above):
            highest = max(highest, float(above.min()))
        near &= (column >= lowest - SAME) & (column <= highest + SAME)
    kept = u[near]
    cell = _Cell(
        key=key,
        best=np.exp(best),
        at_edge=at_edge,
        u=kept,
        y=losses[near],
        weight=np.ones(len(kept)),
        coefficients=np.empty(0),
    )
    return _fit_quadratic(cell)


def _make_design(u: Float[np.ndarray, "n O"]) -> Float[np.ndarray, "n P"]:
    """The columns 1, u_i, and u_i u_j / 2 with i <= j, twice where i < j."""
    columns = [np.ones(len(u)), *u.T]
    for i in range(u.shape[1]):
        for j in range(i, u.shape[1]):
            columns.append(u[:, i] * u[:, j] * (0.5 if i == j else 1.0))
    return np.stack(columns, axis=1)


def _fit_quadratic(cell: _Cell) -> _Cell:
    design = _make_design(cell.u)
    # Equal values are one value: seeds do not determine a curvature.
    places = np.unique(np.round(cell.u / SAME), axis=0)
    if np.linalg.matrix_rank(_make_design(places * SAME), tol=1e-9) < design.shape[1]:
        return cell._replace(coefficients=np.empty(0))
    root = np.sqrt(cell.weight)
    coefficients = np.linalg.lstsq(design * root[:, None], cell.y * root)[0]
    return cell._replace(coefficients=coefficients)


def _compute_residuals(cell: _Cell) -> Float[np.ndarray, " n"]:
    if not len(cell.coefficients):
        return np.zeros(len(cell.y))
    return cell.y - _make_design(cell.u) @ cell.coefficients


def _reweight_cell(cell: _Cell, scatter: float) -> _Cell:
    size = np.abs(_compute_residuals(cell)) / (_HUBER * scatter)
    return _fit_quadratic(cell._replace(weight=1.0 / np.maximum(size, 1.0)))


def _count_freedom(cells: Sequence[_Cell]) -> int:
    """Rows that the quadratics do not use up."""
    fitted = [cell for cell in cells if len(cell.coefficients)]
    return sum(len(cell.y) - len(cell.coefficients) for cell in fitted)


def _estimate_scatter(cells: Sequence[_Cell]) -> float:
    """The standard deviation of the log loss about all quadratics; NaN if no row tells."""
    freedom = _count_freedom(cells)
    if freedom == 0:
        return float("nan")
    total = sum(
        float(cell.weight @ np.square(_compute_residuals(cell))) for cell in cells
    )
    return float(np.sqrt(total / freedom))


def _find_minima(
    coefficients: Float[np.ndarray, "R P"], dimensions: int
) -> Float[np.ndarray, "R O"]:
    """u at the minimum of each quadratic; infinite, on the side to which it falls at
    the best value tried, where it has none.
    """
    slopes = coefficients[:, 1 : 1 + dimensions]
    curvature = np.zeros((len(coefficients), dimensions, dimensions))
    place = 1 + dimensions
    for i in range(dimensions):
        for j in range(i, dimensions):
            curvature[:, i, j] = curvature[:, j, i] = coefficients[:, place]
            place += 1
    opens_upwards = np.linalg.eigvalsh(curvature)[:, 0] > 0
    minima = np.where(slopes > 0, -np.inf, np.inf)
    solved = np.linalg.solve(curvature[opens_upwards], slopes[opens_upwards][..., None])
    minima[opens_upwards] = -solved[..., 0]
    return minima


def _draw_minima(cell: _Cell, noise: _Noise) -> Float[np.ndarray, "R O"]:
    """Minima of quadratics that the rows of a cell bear as well."""
    design = _make_design(cell.u) * np.sqrt(cell.weight)[:, None]
    covariance = np.linalg.inv(design.T @ design) * noise.scatter**2
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((_DRAWS, len(covariance)))
    normal = normal @ np.linalg.cholesky(covariance).T
    spread = np.sqrt(noise.freedom / rng.chisquare(noise.freedom, _DRAWS))
    draws = cell.coefficients + normal * spread[:, None]
    return _find_minima(draws, cell.u.shape[1])


def _summarize_cell(
    cell: _Cell, noise: _Noise, over: tuple[str, ...], by: tuple[str, ...]
) -> dict[str, object]:
    """The cell's row of `Optimum.cells`."""
    row: dict[str, object] = dict(zip(by, cell.key, strict=True))
    row["rows"] = len(cell.y)
    for name, tried in zip(over, cell.best, strict=True):
        row |= {name: np.nan, f"{name}_low": np.nan, f"{name}_high": np.nan}
        row[f"{name}_tried"] = tried
    row |= {"loss": np.nan, "status": ""}
    if not len(cell.coefficients):
        needed = _make_design(np.zeros((1, len(over)))).shape[1]
        row["status"] = (
            f"{len(np.unique(np.round(cell.u / SAME), axis=0))} values near the best "
            f"one do not determine a quadratic, which takes {needed} or more"
        )
        return row
    minimum = _find_minima(cell.coefficients[None], len(over))[0]
    if not np.isfinite(minimum).all():
        row["status"] = "the losses have no minimum: the quadratic opens downwards"
        return row
    row["status"] = "at the edge" if cell.at_edge else "inside"
    at_minimum = _make_design(minimum[None]) @ cell.coefficients
    row["loss"] = float(np.exp(at_minimum[0]))
    low, high = np.full(len(over), -np.inf), np.full(len(over), np.inf)
    if noise.freedom:
        draws = _draw_minima(cell, noise)
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(draws, [tail, 1 - tail], axis=0, method="inverted_cdf")
    for i, name in enumerate(over):
        row[name] = cell.best[i] * np.exp(minimum[i])
        row[f"{name}_low"] = cell.best[i] * np.exp(low[i])
        row[f"{name}_high"] = cell.best[i] * np.exp(high[i])
    return row


# --- laws of the optima ---------------------------------------------------------------


def _select_known(cells: pd.DataFrame, name: str) -> pd.DataFrame:
    """The cells whose best value is inside those tried, and whose interval ends."""
    if name not in cells:
        return cells.iloc[:0]
    low, high = cells[f"{name}_low"], cells[f"{name}_high"]
    is_known = (cells["status"] == "inside") & (low > 0) & np.isfinite(high)
    return cells.loc[is_known]


def _fit_laws(cells: pd.DataFrame, name: str, by: tuple[str, ...]) -> pd.DataFrame:
    """Rows of `Optimum.laws`: the exponents of one hyper-parameter.

    By weighted least squares, where a cell's variance is that of its interval and one
    that all share, estimated by moments (DerSimonian & Laird 1986). Intervals are those
    of Student's t, and never narrower than the cells' own scatter about the law (Knapp
    & Hartung 2003).
    """
    columns = pd.Index(["over", "by", "exponent", "low", "high"])
    known = _select_known(cells, name)
    sizes = np.log(known[list(by)].to_numpy(float))
    freedom = len(known) - len(by) - 1
    if freedom < 1:
        return pd.DataFrame(columns=columns)
    design = np.column_stack([np.ones(len(known)), sizes - sizes.mean(axis=0)])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return pd.DataFrame(columns=columns)
    y = np.log(known[name].to_numpy(float))
    high, low = (
        known[f"{name}_high"].to_numpy(float),
        known[f"{name}_low"].to_numpy(float),
    )
    width = np.log(high / low)
    variance = np.square(np.maximum(width / 2 / _NORMAL, 1e-9))
    fixed = _fit_weighted(design, y, 1 / variance)
    excess = fixed.chi_squared - freedom
    weighted = design / variance[:, None]
    taken = np.trace(fixed.covariance @ weighted.T @ weighted)
    shared = max(0.0, excess / float((1 / variance).sum() - taken))
    found = _fit_weighted(design, y, 1 / (variance + shared))
    scale = max(1.0, found.chi_squared / freedom)
    error = np.sqrt(scale * np.diag(found.covariance))
    reach = compute_quantile(freedom, LEVEL) * error
    rows = []
    for i, variable in enumerate(by, start=1):
        exponent = found.coefficients[i]
        ends = (exponent - reach[i], exponent + reach[i])
        rows.append((name, variable, exponent, *ends))
    return pd.DataFrame(rows, columns=columns)


class _WeightedFit(NamedTuple):
    """A line by weighted least squares."""

    coefficients: Float[np.ndarray, " B1"]
    covariance: Float[np.ndarray, "B1 B1"]
    chi_squared: float


def _fit_weighted(
    design: Float[np.ndarray, "K B1"],
    y: Float[np.ndarray, " K"],
    weight: Float[np.ndarray, " K"],
) -> _WeightedFit:
    covariance = np.linalg.inv(design.T @ (design * weight[:, None]))
    coefficients = covariance @ design.T @ (weight * y)
    chi_squared = float(weight @ np.square(y - design @ coefficients))
    return _WeightedFit(coefficients, covariance, chi_squared)


def _judge(
    cells: pd.DataFrame, laws: pd.DataFrame, name: str, by: tuple[str, ...]
) -> str:
    """Whether the optimum of a hyper-parameter moves with each of `by`."""
    known = _select_known(cells, name)
    own = laws.loc[laws["over"] == name]
    if own.empty:
        return (
            f"whether it moves is not known: {len(known)} of {len(cells)} cells "
            f"determine it, and a law of {', '.join(by)} takes {len(by) + 2} that "
            "differ in each"
        )
    found = []
    for row in own.to_dict("records"):
        smallest, largest = known[row["by"]].min(), known[row["by"]].max()
        ratio = np.log(largest / smallest)
        factors = np.exp(ratio * np.array([row["low"], row["exponent"], row["high"]]))
        low, middle, high = np.sort(factors)
        span = f"from {row['by']} {smallest:g} to {largest:g}"
        shown = f"by a factor of {middle:.3g} [{low:.3g}, {high:.3g}] {span}"
        if low > 1 or high < 1:
            found.append(f"moves {shown}")
        elif low > 1 / _LARGEST_FACTOR and high < _LARGEST_FACTOR:
            found.append(f"stays: it moves {shown}")
        else:
            found.append(f"whether it moves is not known: it may {shown}")
    return "; ".join(found)


def _list_notes(cells: pd.DataFrame, noise: _Noise) -> tuple[str, ...]:
    notes = []
    at_edge = cells["status"].tolist().count("at the edge")
    if at_edge:
        notes.append(
            f"in {at_edge} of {len(cells)} cells the best value is the lowest or highest "
            "tried; they are not in the laws"
        )
    if not noise.freedom:
        notes.append(
            "no cell has more rows than its quadratic has coefficients, so that nothing "
            "tells the noise: no interval ends; try more values or seeds"
        )
    return tuple(notes)
