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
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from analysis.fitting.bootstrap import draw_unit_counts
from analysis.fitting.fit import name_trunks
from analysis.hoffmann.isoflop import PowerLaws, fit_lines, size_text
from analysis.table.runs import Runs, load_runs

Frame = Any  # a DataFrame, whose columns type checkers cannot follow

SAME_SIZE = 1.01  # neighbouring N closer than this factor are one model size
MIN_SIZES = 3  # with fewer the best size is always the smallest or the largest
FEW_CURVES = 8  # below it many resampled sets of curves miss sizes
MAX_CELLS = 2**23  # replicates x curves x C held at once

SMALLEST = "the smallest size there is best: a smaller one might be better"
LARGEST = "the largest size there is best: a larger one might be better"
FEW = f"fewer than {MIN_SIZES} sizes have a curve there"


@dataclass(frozen=True, eq=False)
class Envelope(PowerLaws):
    """Approach 1; its exponents are NaN where fewer than two sizes are best anywhere
    inside the grid.

    Attributes:
        points: one row per C: C (FLOPs), N, D, loss (nats per token) of the best size
        there, n_sizes (sizes that
            have reached C), used, reason (why not used, or "").
        runs: the rows that lie on a curve, with the column `curve`.
        n_curves: curves, which the bootstrap resamples. unit: what a curve is, "trunk"
        or "size".
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
        out: Frame = self.points.loc[~self.points["used"].to_numpy(bool), "reason"]
        return {str(why): int(count) for why, count in out.value_counts().items()}

    @property
    def winners(self) -> np.ndarray:
        """The distinct sizes that are best at some C that was used."""
        return np.unique(
            self.points.loc[self.points["used"].to_numpy(bool), "N"].to_numpy(float)
        )

    def refit(self, loss: np.ndarray) -> dict[str, float]:
        """a, b, ln_G_N and ln_G_D when the rows of `runs` have the losses [n] instead
        of their own.

        Only values of C that were used count, so that the two results differ by their
        losses alone.
        """
        curves = _Curves.of(
            self.runs.assign(loss=loss), np.log(self.points["C"].to_numpy(float))
        )
        winner, used = curves.best(np.ones((1, len(curves.ln_N)), bool))
        used = used & self.points["used"].to_numpy(bool)[None]
        return {
            name: float(values[0])
            for name, values in curves.power_laws(winner, used).items()
        }

    def __str__(self) -> str:
        used = int(self.points["used"].to_numpy(bool).sum())
        lines = [
            f"approach 1, {self.n_curves} curves (one per {self.unit}), {used} of {len(self.points)} values of C: "
            + self.exponents_text(self.unit)
        ]
        if used:
            lines.append(
                f"  best sizes: {', '.join(size_text(n) for n in self.winners)}"
            )
        lines += [
            f"  {count} values of C left out: {why}"
            for why, count in self.excluded.items()
        ]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def training_envelope(
    runs: Runs | pd.DataFrame,
    *,
    points: int = 1500,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Envelope:
    """Approach 1 on a run table with N, D, C and loss.

    A curve joins the rows of one trunk; rows that are alone on theirs (or name none)
    are joined by size. Between its own rows a curve is straight in ln C (ln D too);
    rows of one curve at the same C are averaged. Whole curves
    are resampled. Intermediate losses of a schedule that was not cooled down lie above
    those of runs that were: use cooled rows.

    Args:
        points: values of C, spaced evenly in ln C from the first row of any curve to
        the last (1500 in the paper).

    Raises:
        ValueError: a column is missing, points < 2, or fewer than 3 sizes have a curve
        of 2 rows or more.
    """
    if points < 2:
        raise ValueError(
            f"points is {points!r}; approach 1 needs at least 2 values of C (1500 in the paper)"
        )
    table, unit = _on_curves(runs if isinstance(runs, Runs) else load_runs(runs))
    ln_C = np.log(table["C"].to_numpy(float))
    curves = _Curves.of(table, np.linspace(ln_C.min(), ln_C.max(), points))
    winner, used = curves.best(np.ones((1, len(curves.ln_N)), bool))
    exponents = {
        name: float(values[0])
        for name, values in curves.power_laws(winner, used).items()
    }
    draws = _draws(curves, n_bootstrap, seed)
    kept = {name: values[np.isfinite(draws["a"])] for name, values in draws.items()}
    return Envelope(
        **exponents,
        draws=kept,
        lost=n_bootstrap - len(kept["a"]),
        points=curves.table(winner[0], used[0]),
        runs=table,
        n_curves=len(curves.ln_N),
        unit=unit,
        notes=_notes(curves, exponents["a"], winner[used], unit),
    )


def size_labels(N: np.ndarray) -> np.ndarray:
    """[n] rank of each row's model size; sizes within 1 % of the next are one."""
    order = np.argsort(N, kind="stable")
    steps = np.diff(np.log(N[order]), prepend=np.log(N[order[:1]])) > np.log(SAME_SIZE)
    labels = np.empty(len(N), int)
    labels[order] = np.cumsum(steps)
    return labels


def curve_labels(table: pd.DataFrame) -> tuple[np.ndarray, str]:
    """([n] name of the curve each row lies on, "trunk" or "size"): of its trunk and
    size where that has 2 rows or more, else of its size alone."""
    sizes = pd.Series(size_labels(table["N"].to_numpy(float)).astype(str))
    if "trunk" not in table.columns:
        return sizes.to_numpy(object), "size"
    own = (
        sizes + " of trunk " + pd.Series(name_trunks(table.loc[:, "trunk"]).astype(str))
    )
    shared = own.duplicated(keep=False).to_numpy(bool)
    return np.where(shared, own, sizes).astype(
        object
    ), "trunk" if shared.any() else "size"


def _on_curves(runs: Runs) -> tuple[pd.DataFrame, str]:
    """(the rows that lie on a curve of at least two values of C, with the column
    `curve`; what a curve is).
    """
    missing = [v for v in ("N", "D", "C") if v not in runs.table.columns]
    if missing:
        raise ValueError(
            f"approach 1 needs {', '.join(missing)}, which {runs.source} lacks; name its columns in load_runs"
        )
    labels, unit = curve_labels(runs.table)
    table: Frame = runs.table.assign(curve=labels)
    long = table.groupby("curve")["C"].transform("nunique").to_numpy() > 1
    table = table.loc[long].reset_index(drop=True)
    sizes = int(size_labels(table["N"].to_numpy(float)).max()) + 1 if len(table) else 0
    if sizes < MIN_SIZES:
        raise ValueError(
            f"approach 1 needs {MIN_SIZES} sizes or more with 2 rows or more each, at different C; {runs.source} has "
            f"{sizes}: train each size for several token counts, or use approach 2 or 3"
        )
    return table, unit


@dataclass(frozen=True, eq=False)
class _Curves:
    """ln_C [G]; of each curve: ln_N and size (its rank) [K], in order of size; ln_D and
    loss [K, G], inf beyond its ends."""

    ln_C: np.ndarray
    ln_N: np.ndarray
    size: np.ndarray
    ln_D: np.ndarray
    loss: np.ndarray

    @classmethod
    def of(cls, table: pd.DataFrame, ln_C: np.ndarray) -> _Curves:
        logs = np.log(table[["N", "D", "C"]].to_numpy(float))
        rows: Frame = pd.DataFrame(
            {
                "curve": table["curve"].to_numpy(),
                "size": size_labels(table["N"].to_numpy(float)),
            }
            | {name: logs[:, i] for i, name in enumerate("NDC")}
            | {"loss": table["loss"].to_numpy(float)}
        )
        found = []
        for _, curve in rows.groupby("curve", sort=False):
            mean: Frame = curve.drop(columns="curve").groupby("C").mean()
            x = mean.index.to_numpy(float)
            loss = np.interp(ln_C, x, mean["loss"].to_numpy(float))
            reached = (ln_C >= x[0] - 1e-12) & (ln_C <= x[-1] + 1e-12)
            ln_D = np.interp(ln_C, x, mean["D"].to_numpy(float))
            found.append(
                (
                    float(mean["N"].mean()),
                    int(mean["size"].iloc[0]),
                    ln_D,
                    np.where(reached, loss, np.inf),
                )
            )
        found.sort(key=lambda curve: curve[:2])
        ln_N, size, ln_D, loss = (
            np.array(values) for values in zip(*found, strict=True)
        )
        return cls(ln_C, ln_N, size, ln_D, loss)

    def best(self, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([R, G] curve with the least loss, [R, G] whether its size lies between
        others) among those present [R, K].

        Where no curve has reached C the first is named and not used.
        """
        alive = np.isfinite(self.loss)
        order = np.argsort(self.loss, axis=0, kind="stable")  # [K, G]
        _, first, back = np.unique(
            np.vstack([order, alive]), axis=1, return_index=True, return_inverse=True
        )
        alive, order = (
            alive[:, first],
            order[:, first],
        )  # values of C where the curves rank alike are one
        ranked = present[:, order] & np.take_along_axis(alive, order, axis=0)
        winner = order[np.argmax(ranked, axis=1), np.arange(len(first))]
        there = present[:, :, None] & alive
        smallest = self.size[np.argmax(there, axis=1)]
        largest = self.size[len(self.size) - 1 - np.argmax(there[:, ::-1], axis=1)]
        inside = (
            (self.size[winner] > smallest)
            & (self.size[winner] < largest)
            & there.any(axis=1)
        )
        return winner[:, back], inside[:, back]

    def power_laws(self, winner: np.ndarray, used: np.ndarray) -> dict[str, np.ndarray]:
        """[R] exponents through the best sizes [R, G] that are used; NaN where fewer
        than two sizes are.
        """
        ln_N = np.where(used, self.ln_N[winner], np.nan)
        ln_D = np.where(used, self.ln_D[winner, np.arange(len(self.ln_C))], np.nan)
        lines = fit_lines(np.broadcast_to(self.ln_C, ln_N.shape), ln_N, ln_D)
        first = np.where(used, self.size[winner], len(self.size)).min(axis=1)
        last = np.where(used, self.size[winner], -1).max(axis=1)
        return {
            name: np.where(last > first, values, np.nan)
            for name, values in lines.items()
        }

    def table(self, winner: np.ndarray, used: np.ndarray) -> pd.DataFrame:
        """`Envelope.points` of one replicate: winner and used are [G]."""
        at = np.arange(len(self.ln_C))
        alive = np.isfinite(self.loss)
        sizes = np.array([len(np.unique(self.size[column])) for column in alive.T])
        smallest = self.size[winner] == self.size[np.argmax(alive, axis=0)]
        edge = np.where(sizes < MIN_SIZES, FEW, np.where(smallest, SMALLEST, LARGEST))
        points = {
            "C": np.exp(self.ln_C),
            "N": np.exp(self.ln_N[winner]),
            "D": np.exp(self.ln_D[winner, at]),
            "loss": self.loss[winner, at],
        }
        points = {
            name: np.where((sizes > 0) | (name == "C"), values, np.nan)
            for name, values in points.items()
        }
        return pd.DataFrame(
            points
            | {
                "n_sizes": sizes,
                "used": used,
                "reason": np.where(used, "", edge).astype(object),
            }
        )


def _draws(curves: _Curves, n: int, seed: int) -> dict[str, np.ndarray]:
    """[n] bootstrap draws of the power laws, curves drawn with replacement (Efron
    1979); NaN where one is lost.
    """
    K, G = curves.loss.shape
    present = draw_unit_counts(np.random.default_rng(seed), n, K) > 0
    step = max(1, MAX_CELLS // (K * G))
    blocks = [
        curves.power_laws(*curves.best(present[i : i + step]))
        for i in range(0, n, step)
    ]
    names = ("a", "b", "ln_G_N", "ln_G_D")
    return {
        name: np.concatenate([np.zeros(0), *(block[name] for block in blocks)])
        for name in names
    }


def _notes(
    curves: _Curves, a: float, winners: np.ndarray, unit: str
) -> tuple[str, ...]:
    best, K = len(np.unique(curves.size[winners])), len(curves.ln_N)
    notes = []
    if not np.isfinite(a):
        notes.append(
            f"a and b need two sizes or more that are best inside the grid, and {best} are: train more sizes, each "
            "for more token counts"
        )
    elif best < MIN_SIZES:
        notes.append(
            f"only {best} sizes are best anywhere inside the grid: the exponents rest on one step"
        )
    if K < FEW_CURVES:
        notes.append(
            f"only {K} curves: the intervals of approach 1 are rough; resampling them loses sizes"
        )
    return tuple(notes)
