"""Which law: every candidate on the same rows, by information criteria and by what it
predicts of rows held out.

A criterion says how well a law describes the runs for its parameters; it says nothing
of larger runs. Hold-outs by the largest C, by the largest N and by the last tokens of
each curve ask that. Where the two disagree and the law is wanted for extrapolation, the
hold-outs are the ones to follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.special

from analysis.fitting.fit import Fit
from analysis.fitting.fit import fit as fit_law
from analysis.hoffmann.envelope import curve_labels, size_labels
from analysis.hoffmann.isoflop import grouped
from analysis.laws.library import Law, get_law
from analysis.table.runs import Runs, load_runs

Frame = Any  # a DataFrame, whose columns type checkers cannot follow
SHARE = 0.2  # of the rows that a hold-out keeps at least
EXACT = 1e-15  # rms residual below which a fit counts as exact, so that its likelihood stays finite


def information(fit: Fit) -> dict[str, float]:
    """AIC (Akaike 1974), AICc (Hurvich & Tsai 1989) and BIC (Schwarz 1978) of a fit,
    with k and n.

    The likelihood is that of log-loss residuals r with the density that the objective
    belongs to, f(r) = exp(-rho(r) / s) / Z(s): the normal one for least squares,
    Laplace's for lad, and for huber its least informative one (Huber 1964), normal
    within delta and Laplace's beyond. The objective's optimum is the maximum of that
    likelihood whatever s, and s is set to its own maximum, so that it counts as a
    parameter: k = free parameters + 1.
    Laws compare only on the same rows, objective and delta. Rows of one trunk are not
    independent: n then overstates what is known, and every criterion favours large laws
    too much. AICc is infinite when n - k - 1 <= 0.

    Raises:
        ValueError: an objective with no density here.
    """
    k, n = len(fit.free) + 1, len(fit.residuals)
    deviance = _deviance(fit.residuals, fit.protocol.objective, fit.protocol.delta)
    aic = deviance + 2 * k
    aicc = aic + 2 * k * (k + 1) / (n - k - 1) if n - k - 1 > 0 else np.inf
    return {
        "aic": aic,
        "aicc": float(aicc),
        "bic": deviance + k * float(np.log(n)),
        "k": k,
        "n": n,
    }


def _deviance(r: np.ndarray, objective: str, delta: float | None) -> float:
    """-2 log likelihood of residuals r [n] at its best scale."""
    n, size = len(r), np.abs(r)
    if objective == "least_squares":
        return float(n * (np.log(2 * np.pi * max(np.mean(r**2), EXACT**2)) + 1))
    if objective == "lad":
        return float(2 * n * (np.log(2 * max(np.mean(size), EXACT)) + 1))
    if objective != "huber" or delta is None:
        raise ValueError(
            f"objective {objective!r} has no likelihood here; fit with 'huber', 'least_squares' or 'lad'"
        )
    inner = np.minimum(size, delta)
    mean = max(float(np.mean(inner * (size - inner / 2))), EXACT * min(EXACT, delta))

    def half(ln_s: float) -> float:  # per row; Z = integral of exp(-rho / s)
        s = np.exp(ln_s)
        inside = np.log(
            np.sqrt(2 * np.pi * s) * scipy.special.erf(delta / np.sqrt(2 * s))
        )
        beyond = np.log(2 * s / delta) - delta**2 / (2 * s)
        return float(mean / s + np.logaddexp(inside, beyond))

    # The best s is the mean rho for Laplace's density and twice it for the normal one.
    ends = (np.log(mean) - 0.5, np.log(mean) + 1.5)
    best: Any = scipy.optimize.minimize_scalar(half, bounds=ends, method="bounded")
    return 2 * n * float(best.fun)


def attempt(runs: Runs, law: str | Law, **options: Any) -> Fit | str:
    """The fit, or why it was refused."""
    try:
        return fit_law(runs, law, **options)
    except ValueError as error:
        return str(error)


def as_laws(laws: str | Law | Sequence[str | Law]) -> list[Law]:
    """One law or several, by name or themselves.

    Raises:
        ValueError: no law, an unknown name, or one law twice.
    """
    found = [get_law(law) for law in ([laws] if isinstance(laws, str | Law) else laws)]
    names = [law.name for law in found]
    if not found or len(set(names)) < len(names):
        raise ValueError(f"laws is {names!r}; give one or more laws, each once")
    return found


def log_errors(fit: Fit, table: Frame) -> np.ndarray:
    """[n] log predicted - log measured loss (or the law's other target) at the rows of
    a table.
    """
    points = {v: table[v].to_numpy(float) for v in fit.law.variables}
    return np.log(np.asarray(fit.predict(**points), float)) - np.log(
        table[fit.law.target].to_numpy(float)
    )


def budget_labels(table: Frame, tolerance: float) -> tuple[np.ndarray, str]:
    """([n] budget of each row in FLOPs, NaN for rows of none; how rows were assigned)."""
    groups, how, _ = grouped(table.assign(position=np.arange(len(table))), tolerance)
    labels = np.full(len(table), np.nan)
    labels[groups["position"].to_numpy(int)] = groups["group"].to_numpy(float)
    return labels, how


@dataclass(frozen=True, eq=False)
class Selection:
    """Laws fitted to the same rows.

    Attributes:
        table: one row per law that could be fitted, by AICc: law, k, objective, aic,
        aicc, bic, delta (AICc less
            the lowest), weight (Akaike's, of AICc), certified, then per hold-out the
            rms error of log loss there,
            and holdout: root mean square over the hold-outs, NaN unless the law was
            fitted for all of them.
        holdouts: one row per law and hold-out: law, holdout, held (rows), rms, bias
        (mean signed error of log loss).
        refused: law, what ("all rows" or a hold-out) and reason of every fit that was
        refused.
        fits: law -> its fit to all rows.
        notes: hold-outs that these rows do not allow, and what limits the criteria.
    """

    table: pd.DataFrame
    holdouts: pd.DataFrame
    refused: pd.DataFrame
    fits: dict[str, Fit]
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> dict[str, str | None]:
        """The law with the lowest "aicc", "bic" and "holdout"; None where no law has
        one.
        """
        return {by: self._lowest(by) for by in ("aicc", "bic", "holdout")}

    @property
    def disagreement(self) -> str:
        """What to make of it when BIC and the hold-outs prefer different laws; "" when
        they do not.
        """
        bic, held = self.best["bic"], self.best["holdout"]
        if bic is None or held is None or bic == held:
            return ""
        return (
            f"BIC prefers {bic!r} and the hold-outs {held!r}: {bic!r} describes these runs best for its parameters, "
            f"{held!r} predicts larger ones best; extrapolate with the second"
        )

    def _lowest(self, by: str) -> str | None:
        known: Frame = self.table[np.isfinite(self.table[by].to_numpy(float))]
        return str(known.loc[known[by].idxmin(), "law"]) if len(known) else None

    def __str__(self) -> str:
        names = list(dict.fromkeys(self.holdouts["holdout"]))
        head = f"{'law':<20} {'k':>2} {'objective':>11} {'AICc':>9} {'delta':>7} {'BIC':>9} {'weight':>7}"
        lines = [head + "".join(f" {name:>11}" for name in names)]
        for row in self.table.to_dict("records"):
            line = f"{row['law']:<20} {row['k']:>2} {row['objective']:>11.5g} {row['aicc']:>9.1f} {row['delta']:>7.1f}"
            line += f" {row['bic']:>9.1f} {row['weight']:>7.3f}"
            shown = [
                f"{row[name]:.2%}" if np.isfinite(row[name]) else "refused"
                for name in names
            ]
            lines.append(line + "".join(f" {text:>11}" for text in shown))
        lines += [f"best by {by}: {law or 'none'}" for by, law in self.best.items()]
        lines += [self.disagreement] if self.disagreement else []
        lines += [
            f"refused: {row['law']}, {row['what']}: {row['reason']}"
            for row in self.refused.to_dict("records")
        ]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def select(
    runs: Runs | pd.DataFrame,
    laws: Sequence[str | Law],
    *,
    share: float = SHARE,
    time: str | None = None,
    tolerance: float = 0.10,
    **fit_options: Any,
) -> Selection:
    """Fit every law to the same rows, and again without those of each hold-out, which
    it then predicts.

    Hold-outs: `largest_C`, the largest budgets (groups of C within `tolerance` where
    the table names none); `largest_N`, the largest sizes; `last`, the largest D of each
    trunk or size, or the largest of the column `time` over all rows. Whole groups are
    held out, largest first, until they make `share` of the rows.

    Args:
        fit_options: objective, delta, fixed, ... of every fit, see `fit`.

    Raises:
        ValueError: no law, an unknown one, a bad share or time, or every law is
        refused.
    """
    runs = runs if isinstance(runs, Runs) else load_runs(runs)
    found = as_laws(laws)
    masks, notes = holdout_masks(runs, share, time, tolerance)
    fits: dict[str, Fit] = {}
    refused: list[dict[str, Any]] = []
    held: list[dict[str, Any]] = []
    for law in found:
        whole = attempt(runs, law, **fit_options)
        if isinstance(whole, str):
            refused.append({"law": law.name, "what": "all rows", "reason": whole})
            continue
        fits[law.name] = whole
        for name, mask in masks.items():
            score = _score(runs, mask, name, law, fit_options)
            (refused if "reason" in score else held).append({"law": law.name, **score})
    if not fits:
        raise ValueError(
            "every law was refused: "
            + "; ".join(f"{row['law']}: {row['reason']}" for row in refused)
        )
    if any(
        "trunk" in f.data and len(set(f.data["trunk"])) < len(f.residuals)
        for f in fits.values()
    ):
        notes.append(
            "rows of one trunk are not independent: the criteria favour large laws too much here"
        )
    long = pd.DataFrame(
        held, columns=pd.Index(["law", "holdout", "held", "rms", "bias"])
    )
    missed = pd.DataFrame(refused, columns=pd.Index(["law", "what", "reason"]))
    return Selection(_table(fits, long, list(masks)), long, missed, fits, tuple(notes))


def _score(
    runs: Runs, mask: np.ndarray, name: str, law: Law, options: dict[str, Any]
) -> dict[str, Any]:
    """A law's errors on the rows of a hold-out, or what was refused and why."""
    rest = attempt(runs.exclude(mask, f"held out ({name})"), law, **options)
    if isinstance(rest, str):
        return {"what": name, "reason": rest}
    error = log_errors(rest, runs.table[mask])
    rms = float(np.sqrt(np.mean(error**2)))
    return {
        "holdout": name,
        "held": int(mask.sum()),
        "rms": rms,
        "bias": float(error.mean()),
    }


def holdout_masks(
    runs: Runs, share: float, time: str | None, tolerance: float
) -> tuple[dict[str, np.ndarray], list[str]]:
    """(name -> [n] mask of the rows that a hold-out keeps from the fit, why a hold-out
    is missing).

    Raises:
        ValueError: share outside (0, 1), or no column `time` of numbers.
    """
    if not 0 < share < 1:
        raise ValueError(
            f"share is {share!r}; it is the part of the rows held out, between 0 and 1, such as 0.2"
        )
    table: Frame = runs.table
    values: dict[str, np.ndarray] = {}
    if "C" in table:
        labels, _ = budget_labels(table, tolerance)
        values["largest_C"] = np.where(
            np.isfinite(labels), labels, table["C"].to_numpy(float)
        )
    if "N" in table:
        values["largest_N"] = size_labels(table["N"].to_numpy(float)).astype(float)
    if time is not None:
        if time not in table or not pd.api.types.is_numeric_dtype(table[time]):
            raise ValueError(
                f"time = {time!r} is no column of numbers of {runs.source}; name one, such as 'D'"
            )
        values["last"] = table[time].to_numpy(float)
    masks = {name: _top(column, share) for name, column in values.items()}
    if time is None and "D" in table:
        masks["last"] = _last(table, share)
    kept: dict[str, np.ndarray] = {}
    notes = []
    for name, mask in masks.items():
        same = next(
            (other for other, m in kept.items() if np.array_equal(m, mask)), None
        )
        if mask.all() or not mask.any():
            notes.append(
                f"no hold-out {name}: it would keep {'all rows' if mask.all() else 'no row'}"
            )
        elif same:
            notes.append(f"no hold-out {name}: it would keep the same rows as {same}")
        else:
            kept[name] = mask
    return kept, notes


def _top(values: np.ndarray, share: float) -> np.ndarray:
    """[n] mask of the largest values: whole groups of equal ones, until they make
    `share` of the rows.
    """
    ordered = np.sort(values)
    return values >= ordered[len(values) - int(np.ceil(share * len(values)))]


def _last(table: Frame, share: float) -> np.ndarray:
    """[n] mask of the largest D of each curve of two rows or more."""
    curves = curve_labels(table)[0] if "N" in table else np.zeros(len(table), int)
    mask = np.zeros(len(table), bool)
    D = table["D"].to_numpy(float)
    for curve in np.unique(curves.astype(str)):
        rows = np.flatnonzero(curves.astype(str) == curve)
        mask[rows] = _top(D[rows], share) & (D[rows] > D[rows].min())
    return mask


def _table(fits: dict[str, Fit], holdouts: Frame, names: list[str]) -> pd.DataFrame:
    rows = []
    for name, found in fits.items():
        criteria = information(found)
        rows.append(
            {
                "law": name,
                "k": int(criteria["k"]),
                "objective": found.objective,
                **{
                    criterion: criteria[criterion]
                    for criterion in ("aic", "aicc", "bic")
                },
                "certified": found.certificate.ok,
            }
        )
    table: Frame = pd.DataFrame(rows)
    finite = np.where(np.isfinite(table["aicc"]), table["aicc"], np.inf)
    lowest = finite.min() if np.isfinite(finite).any() else 0.0
    table.insert(6, "delta", finite - lowest)
    weight = np.exp(-0.5 * table["delta"])  # Akaike 1978
    table.insert(7, "weight", weight / max(weight.sum(), 1e-300))
    for name in names:
        rms = holdouts[holdouts["holdout"] == name].set_index("law")["rms"]
        table[name] = table["law"].map(rms).astype(float)
    squares = table[names].to_numpy(float) ** 2
    table["holdout"] = np.sqrt(squares.mean(axis=1)) if names else np.nan
    return table.sort_values("aicc", kind="stable", ignore_index=True)
