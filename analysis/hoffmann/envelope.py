"""Approach 1 of Hoffmann et al. 2022 (arXiv:2203.15556, section 3.1): the lower
envelope of the training curves.

A curve is the loss of one model size against compute. At each of many C the size with
the least loss is the best one there; power laws N* = G_N C^a and D* = G_D C^b go
through them. Curves are never continued beyond their own ends, and a C whose best size
is the smallest or the largest of those that have reached it is left out: a size that
was not trained might have been better.

Shapes: K curves, G values of C, R replicates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

from analysis.fitting.bootstrap import draw_unit_counts
from analysis.fitting.fit import name_trunks
from analysis.hoffmann.isoflop import PowerLaws, fit_lines, format_size
from analysis.table.runs import Runs, load_runs

SAME_SIZE = 1.01
"""Neighboring N that are closer than this factor are one model size."""

MIN_SIZES = 3
"""With fewer sizes the best one is always the smallest or the largest."""

FEW_CURVES = 8
"""Below it many resampled sets of curves miss sizes."""

MAX_CELLS = 2**23
"""Replicates times curves times C that are held at once."""

SMALLEST = "the smallest size there is best: a smaller one might be better"
LARGEST = "the largest size there is best: a larger one might be better"
FEW = f"fewer than {MIN_SIZES} sizes have a curve there"


@dataclass(frozen=True, eq=False)
class Envelope(PowerLaws):
    """Approach 1; its exponents are NaN where fewer than two sizes are best anywhere
    inside the grid.

    Attributes:
        points: one row per C: C (FLOPs); N, D and loss (nats per token) of the best
            size there; n_sizes (sizes that have reached C); used; reason (why not used,
            or "").
        runs: the rows that lie on a curve, with the column `curve`.
        n_curves: number of curves, which the bootstrap resamples.
        unit: what a curve is, "trunk" or "size".
        notes: what limits the result.
    """

    approach: ClassVar[str] = "approach 1"
    points: pd.DataFrame
    runs: pd.DataFrame
    n_curves: int
    unit: str
    notes: tuple[str, ...] = ()

    @property
    def excluded(self) -> dict[str, int]:
        """Reason -> how many values of C were left out for it."""
        is_used = self.points["used"].to_numpy(bool)
        counts = self.points["reason"].loc[~is_used].value_counts()
        return {str(reason): int(count) for reason, count in counts.items()}

    @property
    def winners(self) -> np.ndarray:
        """The distinct sizes that are best at some C that was used."""
        is_used = self.points["used"].to_numpy(bool)
        return np.unique(self.points["N"].to_numpy(float)[is_used])

    def refit(self, loss: np.ndarray) -> dict[str, float]:
        """a, b, ln_G_N and ln_G_D when the rows of `runs` have the losses [n] instead
        of their own.

        Only values of C that were used count, so that the two results differ by their
        losses alone.
        """
        ln_C = np.log(self.points["C"].to_numpy(float))
        curves = _Curves.of(self.runs.assign(loss=loss), ln_C)
        winner, is_used = curves.find_best(np.ones((1, len(curves.ln_N)), bool))
        is_used = is_used & self.points["used"].to_numpy(bool)[None]
        lines = curves.fit_power_laws(winner, is_used)
        return {name: float(values[0]) for name, values in lines.items()}

    def __str__(self) -> str:
        n_used = int(self.points["used"].to_numpy(bool).sum())
        lines = [
            f"approach 1, {self.n_curves} curves (one per {self.unit}), "
            f"{n_used} of {len(self.points)} values of C: "
            + self.exponents_text(self.unit)
        ]
        if n_used:
            sizes = ", ".join(format_size(N) for N in self.winners)
            lines.append(f"  best sizes: {sizes}")
        for reason, count in self.excluded.items():
            lines.append(f"  {count} values of C left out: {reason}")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def training_envelope(
    runs: Runs | pd.DataFrame,
    *,
    points: int = 1500,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Envelope:
    """Approach 1 on a run table with N, D, C and loss.

    A curve joins the rows of one trunk; rows that are alone on theirs (or name none)
    are joined by size. Between its own rows a curve's loss and ln D are straight in
    ln C; rows of one curve at the same C are averaged. The bootstrap resamples whole
    curves. The losses in the middle of a schedule, before its decay, lie above those of
    runs that were cooled down there: give rows at the end of a decay.

    Args:
        runs: a run table; a DataFrame is read by `load_runs` with its default columns.
        points: number of values of C, spaced evenly in ln C from the first row of any
            curve to the last (1500 in the paper).
        n_bootstrap: number of bootstrap replicates.
        seed: of the bootstrap.

    Raises:
        ValueError: a column is missing, points < 2, or fewer than 3 sizes have a curve
            of 2 rows or more.
    """
    if points < 2:
        raise ValueError(
            f"points is {points!r}; approach 1 needs at least 2 values of C "
            "(1500 in the paper)"
        )
    runs = runs if isinstance(runs, Runs) else load_runs(runs)
    table, unit = _select_curve_rows(runs)
    ln_C = np.log(table["C"].to_numpy(float))
    curves = _Curves.of(table, np.linspace(ln_C.min(), ln_C.max(), points))
    winner, is_used = curves.find_best(np.ones((1, len(curves.ln_N)), bool))
    lines = curves.fit_power_laws(winner, is_used)
    exponents = {name: float(values[0]) for name, values in lines.items()}
    draws = _draw_power_laws(curves, n_bootstrap, seed)
    has_power_law = np.isfinite(draws["a"])
    return Envelope(
        **exponents,
        draws={name: values[has_power_law] for name, values in draws.items()},
        lost=n_bootstrap - int(has_power_law.sum()),
        points=curves.tabulate_points(winner[0], is_used[0]),
        runs=table,
        n_curves=len(curves.ln_N),
        unit=unit,
        notes=_explain_limits(curves, exponents["a"], winner[is_used]),
    )


def label_sizes(N: np.ndarray) -> np.ndarray:
    """[n] rank of each row's model size; sizes within 1 % of the next are one."""
    order = np.argsort(N, kind="stable")
    steps = np.diff(np.log(N[order]), prepend=np.log(N[order[:1]]))
    is_new_size = steps > np.log(SAME_SIZE)
    labels = np.empty(len(N), int)
    labels[order] = np.cumsum(is_new_size)
    return labels


def label_curves(table: pd.DataFrame) -> tuple[np.ndarray, str]:
    """([n] name of the curve each row lies on, what a curve is: "trunk" or "size").

    A row's curve is that of its trunk and size if it has 2 rows or more, else that of
    its size.
    """
    sizes = pd.Series(label_sizes(table["N"].to_numpy(float)).astype(str))
    if "trunk" not in table.columns:
        return sizes.to_numpy(object), "size"
    trunks = pd.Series(name_trunks(table.loc[:, "trunk"]).astype(str))
    of_trunk = sizes + " of trunk " + trunks
    is_shared = of_trunk.duplicated(keep=False).to_numpy(bool)
    labels = np.where(is_shared, of_trunk, sizes).astype(object)
    return labels, "trunk" if is_shared.any() else "size"


def _select_curve_rows(runs: Runs) -> tuple[pd.DataFrame, str]:
    """(the rows that lie on a curve of at least two values of C, with the column
    `curve`; what a curve is).
    """
    runs.require(("N", "D", "C", "loss"), "approach 1")
    labels, unit = label_curves(runs.table)
    table = runs.table.assign(curve=labels)
    n_values = table["C"].groupby(labels).transform("nunique").to_numpy()
    table = table.loc[n_values > 1].reset_index(drop=True)
    n_sizes = len(np.unique(label_sizes(table["N"].to_numpy(float))))
    if n_sizes < MIN_SIZES:
        raise ValueError(
            f"approach 1 needs {MIN_SIZES} sizes or more with 2 rows or more each, at "
            f"different C; {runs.source} has {n_sizes}: train each size for several "
            "token counts, or use approach 2 or 3"
        )
    return table, unit


@dataclass(frozen=True, eq=False)
class _Curve:
    """One of `_Curves`."""

    ln_N: float
    size: int
    ln_D: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True, eq=False)
class _Curves:
    """The curves at each C, in order of size.

    Attributes:
        ln_C: [G] the values of C.
        ln_N: [K] of each curve.
        size: [K] rank of each curve's size.
        ln_D: [K, G] along each curve.
        loss: [K, G] along each curve, inf beyond its ends.
    """

    ln_C: np.ndarray
    ln_N: np.ndarray
    size: np.ndarray
    ln_D: np.ndarray
    loss: np.ndarray

    @classmethod
    def of(cls, table: pd.DataFrame, ln_C: np.ndarray) -> _Curves:
        N = table["N"].to_numpy(float)
        logs = np.log(table[["N", "D", "C"]].to_numpy(float))
        rows = pd.DataFrame(
            {
                "curve": table["curve"].to_numpy(),
                "size": label_sizes(N),
                "ln_N": logs[:, 0],
                "ln_D": logs[:, 1],
                "ln_C": logs[:, 2],
                "loss": table["loss"].to_numpy(float),
            }
        )
        found: list[_Curve] = []
        for _, curve in rows.groupby("curve", sort=False):
            mean = curve.drop(columns="curve").groupby("ln_C").mean()
            assert isinstance(mean, pd.DataFrame)
            x = mean.index.to_numpy(float)
            loss = np.interp(ln_C, x, mean["loss"].to_numpy(float))
            is_reached = (ln_C >= x[0] - 1e-12) & (ln_C <= x[-1] + 1e-12)
            found.append(
                _Curve(
                    ln_N=float(mean["ln_N"].to_numpy(float).mean()),
                    size=int(mean["size"].iloc[0]),
                    ln_D=np.interp(ln_C, x, mean["ln_D"].to_numpy(float)),
                    loss=np.where(is_reached, loss, np.inf),
                )
            )
        found.sort(key=lambda curve: (curve.ln_N, curve.size))
        return cls(
            ln_C=ln_C,
            ln_N=np.array([curve.ln_N for curve in found]),
            size=np.array([curve.size for curve in found]),
            ln_D=np.array([curve.ln_D for curve in found]),
            loss=np.array([curve.loss for curve in found]),
        )

    def find_best(self, is_present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([R, G] curve with the least loss, [R, G] whether its size lies between
        others) among the curves that are present [R, K].

        Where no curve has reached C the first is named, and its size lies between none.
        """
        is_reached = np.isfinite(self.loss)
        order = np.argsort(self.loss, axis=0, kind="stable")  # [K, G]
        # The curves rank alike at many values of C, which are computed as one.
        _, first, back = np.unique(
            np.vstack([order, is_reached]),
            axis=1,
            return_index=True,
            return_inverse=True,
        )
        is_reached = is_reached[:, first]
        order = order[:, first]
        is_ranked = np.take_along_axis(is_reached, order, axis=0)
        is_candidate = is_present[:, order] & is_ranked
        winner = order[np.argmax(is_candidate, axis=1), np.arange(len(first))]
        is_there = is_present[:, :, None] & is_reached
        smallest = self.size[np.argmax(is_there, axis=1)]
        last = len(self.size) - 1 - np.argmax(is_there[:, ::-1], axis=1)
        largest = self.size[last]
        size = self.size[winner]
        is_between = (size > smallest) & (size < largest) & is_there.any(axis=1)
        return winner[:, back], is_between[:, back]

    def fit_power_laws(
        self, winner: np.ndarray, is_used: np.ndarray
    ) -> dict[str, np.ndarray]:
        """[R] exponents through the best sizes [R, G] that are used; NaN where fewer
        than two sizes are.
        """
        at = np.arange(len(self.ln_C))
        ln_N = np.where(is_used, self.ln_N[winner], np.nan)
        ln_D = np.where(is_used, self.ln_D[winner, at], np.nan)
        lines = fit_lines(np.broadcast_to(self.ln_C, ln_N.shape), ln_N, ln_D)
        smallest = np.where(is_used, self.size[winner], len(self.size)).min(axis=1)
        largest = np.where(is_used, self.size[winner], -1).max(axis=1)
        has_two_sizes = largest > smallest
        return {
            name: np.where(has_two_sizes, values, np.nan)
            for name, values in lines.items()
        }

    def tabulate_points(self, winner: np.ndarray, is_used: np.ndarray) -> pd.DataFrame:
        """`Envelope.points` of one replicate; both arguments are [G]."""
        at = np.arange(len(self.ln_C))
        is_reached = np.isfinite(self.loss)
        n_sizes = np.array(
            [len(np.unique(self.size[reached])) for reached in is_reached.T]
        )
        smallest = self.size[np.argmax(is_reached, axis=0)]
        edge = np.where(self.size[winner] == smallest, SMALLEST, LARGEST)
        reason = np.where(n_sizes < MIN_SIZES, FEW, edge)
        is_known = n_sizes > 0
        return pd.DataFrame(
            {
                "C": np.exp(self.ln_C),
                "N": np.where(is_known, np.exp(self.ln_N[winner]), np.nan),
                "D": np.where(is_known, np.exp(self.ln_D[winner, at]), np.nan),
                "loss": np.where(is_known, self.loss[winner, at], np.nan),
                "n_sizes": n_sizes,
                "used": is_used,
                "reason": np.where(is_used, "", reason).astype(object),
            }
        )


def _draw_power_laws(curves: _Curves, n: int, seed: int) -> dict[str, np.ndarray]:
    """[n] bootstrap draws of the power laws, curves drawn with replacement (Efron
    1979); NaN where a replicate has none.
    """
    n_curves, n_points = curves.loss.shape
    counts = draw_unit_counts(np.random.default_rng(seed), n, n_curves)
    is_present = counts > 0
    draws = {name: np.full(n, np.nan) for name in ("a", "b", "ln_G_N", "ln_G_D")}
    step = max(1, MAX_CELLS // (n_curves * n_points))
    for start in range(0, n, step):
        block = slice(start, start + step)
        winner, is_used = curves.find_best(is_present[block])
        for name, values in curves.fit_power_laws(winner, is_used).items():
            draws[name][block] = values
    return draws


def _explain_limits(curves: _Curves, a: float, winners: np.ndarray) -> tuple[str, ...]:
    n_best = len(np.unique(curves.size[winners]))
    n_curves = len(curves.ln_N)
    notes = []
    if not np.isfinite(a):
        notes.append(
            "a and b need two sizes or more that are best inside the grid, and there "
            f"are {n_best}: train more sizes, each for more token counts"
        )
    elif n_best < MIN_SIZES:
        notes.append(
            f"only {n_best} sizes are best anywhere inside the grid: the exponents "
            "rest on one step"
        )
    if n_curves < FEW_CURVES:
        notes.append(
            f"only {n_curves} curves: the intervals of approach 1 are rough; "
            "resampling them loses sizes"
        )
    return tuple(notes)
