"""Which law: every candidate on the same rows, by information criteria and by what it
predicts of rows held out.

A criterion says how well a law describes the runs for its parameters; it says nothing
of larger runs. Hold-outs by the largest C, by the largest N and by the last tokens of
each curve ask that. Where the two disagree and the law is wanted for extrapolation, the
hold-outs are the ones to follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.special

from analysis.fitting.effects import Trunks, compute_deviance
from analysis.fitting.fit import Fit
from analysis.fitting.fit import fit as fit_law
from analysis.hoffmann.envelope import label_curves, label_sizes
from analysis.hoffmann.isoflop import group_by_budget
from analysis.laws.library import Law, get_law
from analysis.progress import track_progress
from analysis.table.runs import Runs, load_runs

SHARE = 0.2
"""Share of the rows that a hold-out keeps from the fit, at least."""

EXACT = 1e-15
"""Rms residual below which a fit counts as exact, so that its likelihood is finite."""


class FitOptions(TypedDict, total=False):
    """The options of `analysis.fit` beside the runs and the law."""

    objective: str
    delta: float | None
    effects: str | None
    residual: str
    quantile: float
    noise: str
    prior: Mapping[str, tuple[float, float]] | None
    fixed: Mapping[str, float] | None
    tied: Mapping[str, str] | None
    allow_unidentified: bool


class HeldOutErrors(TypedDict):
    """A law's errors on one hold-out: a row of `Selection.holdouts`."""

    law: str
    holdout: str
    held: int
    rms: float
    bias: float


class RefusedFit(TypedDict):
    """A fit that was refused: a row of `Selection.refused`."""

    law: str
    what: str
    reason: str


def information(fit: Fit) -> dict[str, float]:
    """AIC (Akaike 1974), AICc (Hurvich & Tsai 1989) and BIC (Schwarz 1978) of a fit,
    with k and n.

    The likelihood is that of log-loss residuals r with the density that belongs to the
    objective, f(r) = exp(-rho(r) / s) / Z(s): the normal one for least squares,
    Laplace's for lad, and for huber its least informative one (Huber 1964), normal
    within delta and Laplace's beyond. For every s the objective's optimum maximizes
    that likelihood. The scale s is set to its own maximum, so it counts as a parameter:
    k = free parameters + 1. AICc is infinite when n - k - 1 <= 0.

    For a fit with trunk effects it is the likelihood of normal effects of trunks and
    rows, whose sizes are set to their own maximum: k = free parameters + 2.

    Laws compare only on the same rows, objective, delta and effects. With effects="row"
    rows of one trunk count as independent: n then overstates what is known, and every
    criterion favors large laws too much.

    Returns:
        "aic", "aicc", "bic", "k" and "n" (rows).

    Raises:
        ValueError: an objective with no density here.
    """
    n = len(fit.residuals)
    protocol = fit.protocol
    if protocol.components:
        k = len(fit.free) + 2
        trunks = Trunks.from_names(fit.data["trunk"])
        deviance = compute_deviance(fit.residuals, trunks)
    else:
        k = len(fit.free) + 1
        deviance = _compute_deviance(fit.residuals, protocol.objective, protocol.delta)
    aic = deviance + 2 * k
    aicc = np.inf
    if n - k - 1 > 0:
        aicc = aic + 2 * k * (k + 1) / (n - k - 1)
    return {
        "aic": aic,
        "aicc": float(aicc),
        "bic": deviance + k * float(np.log(n)),
        "k": k,
        "n": n,
    }


def _compute_deviance(r: np.ndarray, objective: str, delta: float | None) -> float:
    """-2 log likelihood of residuals r [n] at its best scale."""
    n = len(r)
    size = np.abs(r)
    if objective == "least_squares":
        return float(n * (np.log(2 * np.pi * max(np.mean(r**2), EXACT**2)) + 1))
    if objective == "lad":
        return float(2 * n * (np.log(2 * max(np.mean(size), EXACT)) + 1))
    if objective != "huber" or delta is None:
        raise ValueError(
            f"objective {objective!r} has no likelihood here; "
            "fit with 'huber', 'least_squares' or 'lad'"
        )
    inner = np.minimum(size, delta)
    mean = max(float(np.mean(inner * (size - inner / 2))), EXACT * min(EXACT, delta))

    def half_deviance(ln_s: float) -> float:
        """Per row, at scale s. Z is the integral of exp(-rho / s)."""
        s = np.exp(ln_s)
        inside = np.log(
            np.sqrt(2 * np.pi * s) * scipy.special.erf(delta / np.sqrt(2 * s))
        )
        beyond = np.log(2 * s / delta) - delta**2 / (2 * s)
        return float(mean / s + np.logaddexp(inside, beyond))

    # The best s is the mean rho for Laplace's density and twice it for the normal one.
    ends = (np.log(mean) - 0.5, np.log(mean) + 1.5)
    best = scipy.optimize.minimize_scalar(half_deviance, bounds=ends, method="bounded")
    assert isinstance(best, scipy.optimize.OptimizeResult)
    return 2 * n * float(best.fun)


def try_fit(runs: Runs, law: str | Law, **options: Unpack[FitOptions]) -> Fit | str:
    """The fit, or why it was refused."""
    try:
        return fit_law(runs, law, **options)
    except ValueError as error:
        return str(error)


def recover_options(fit: Fit) -> FitOptions:
    """The options that make the same fit again."""
    protocol = fit.protocol
    options: FitOptions = {
        "objective": protocol.objective,
        "effects": protocol.effects,
        "residual": protocol.residual,
        "quantile": protocol.quantile,
        "noise": protocol.noise,
        "prior": protocol.prior,
        "fixed": protocol.fixed,
        "tied": protocol.tied,
    }
    if protocol.delta:
        options["delta"] = protocol.delta
    return options


def recover_runs(fit: Fit) -> Runs:
    """The fitted rows as a run table."""
    return load_runs(
        pd.DataFrame(dict(fit.data)),
        weight="weight" if "weight" in fit.data else None,
        loss_se="loss_se" if "loss_se" in fit.data else None,
    )


def collect_laws(laws: str | Law | Sequence[str | Law]) -> list[Law]:
    """One law or several, by name or themselves.

    Raises:
        ValueError: no law, an unknown name, or one law twice.
    """
    given = [laws] if isinstance(laws, str | Law) else laws
    found = [get_law(law) for law in given]
    names = [law.name for law in found]
    if not found or len(set(names)) < len(names):
        raise ValueError(f"laws is {names!r}; give one or more laws, each once")
    return found


def compute_log_errors(fit: Fit, table: pd.DataFrame) -> np.ndarray:
    """[n] log predicted - log measured loss (or the law's other target) at the rows of
    a table.
    """
    points = {name: table[name].to_numpy(float) for name in fit.law.variables}
    predicted = np.asarray(fit.predict(**points), float)
    measured = table[fit.law.target].to_numpy(float)
    return np.log(predicted) - np.log(measured)


def compute_errors(fit: Fit, table: pd.DataFrame) -> np.ndarray:
    """[n] errors at the rows of a table, in the units of the fit's residuals: those of
    `compute_log_errors`, or of raw residuals predicted - measured.
    """
    if fit.protocol.residual == "log":
        return compute_log_errors(fit, table)
    points = {name: table[name].to_numpy(float) for name in fit.law.variables}
    predicted = np.asarray(fit.predict(**points), float)
    return predicted - table[fit.law.target].to_numpy(float)


def compute_rms(values: np.ndarray) -> float:
    """Root mean square; NaN of no values."""
    if not len(values):
        return np.nan
    return float(np.sqrt(np.mean(values**2)))


def label_budgets(table: pd.DataFrame, tolerance: float) -> tuple[np.ndarray, str]:
    """([n] budget of each row in FLOPs, NaN for rows of none; how rows were assigned)."""
    positioned = table.assign(position=np.arange(len(table)))
    budgets = group_by_budget(positioned, tolerance)
    labels = np.full(len(table), np.nan)
    positions = budgets.rows["position"].to_numpy(int)
    labels[positions] = budgets.rows["group"].to_numpy(float)
    return labels, budgets.rule


@dataclass(frozen=True, eq=False)
class Selection:
    """Laws fitted to the same rows.

    Attributes:
        table: one row per law that could be fitted, sorted by AICc. Columns: law; k;
            objective; aic; aicc; bic; delta (AICc less the lowest); weight (Akaike's,
            of AICc); certified; per hold-out the rms error there, see `compute_errors`;
            and holdout, the root mean square over the hold-outs, NaN unless the law was
            fitted for all of them.
        holdouts: one row per law and hold-out: law, holdout, held (rows), rms, bias
            (mean signed error).
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
            f"BIC prefers {bic!r} and the hold-outs {held!r}: {bic!r} describes these "
            f"runs best for its parameters, {held!r} predicts larger ones best; "
            "extrapolate with the second"
        )

    def _lowest(self, by: str) -> str | None:
        values = self.table[by].to_numpy(float)
        if not np.isfinite(values).any():
            return None
        lowest = np.nanargmin(values)
        return str(self.table["law"].iloc[lowest])

    def __str__(self) -> str:
        names = list(dict.fromkeys(self.holdouts["holdout"]))
        head = (
            f"{'law':<20} {'k':>2} {'objective':>11} {'AICc':>9} {'delta':>7} "
            f"{'BIC':>9} {'weight':>7}"
        )
        lines = [head + "".join(f" {name:>11}" for name in names)]
        for row in self.table.to_dict("records"):
            line = (
                f"{row['law']:<20} {row['k']:>2} {row['objective']:>11.5g} "
                f"{row['aicc']:>9.1f} {row['delta']:>7.1f} "
                f"{row['bic']:>9.1f} {row['weight']:>7.3f}"
            )
            for name in names:
                rms = row[name]
                shown = f"{rms:.2%}" if np.isfinite(rms) else "refused"
                line += f" {shown:>11}"
            lines.append(line)
        for by, law in self.best.items():
            lines.append(f"best by {by}: {law or 'none'}")
        if self.disagreement:
            lines.append(self.disagreement)
        for row in self.refused.to_dict("records"):
            lines.append(f"refused: {row['law']}, {row['what']}: {row['reason']}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def select(
    runs: Runs | pd.DataFrame,
    laws: Sequence[str | Law],
    *,
    share: float = SHARE,
    time: str | None = None,
    tolerance: float = 0.10,
    **fit_options: Unpack[FitOptions],
) -> Selection:
    """Fit every law to the same rows, and again without those of each hold-out, which
    it then predicts.

    The hold-outs are

    - `largest_C`: the largest budgets (groups of C within `tolerance` where the table
      names none);
    - `largest_N`: the largest sizes;
    - `last`: the largest D of each trunk or size, or the largest of the column `time`
      over all rows;
    - `lowest_loss`: for laws that read the loss alone, the lowest losses.

    Whole groups are held out, largest first, until they make `share` of the rows.

    Args:
        runs: a run table; a DataFrame is read by `load_runs` with its default columns.
        laws: laws, by name or themselves.
        share: the part of the rows held out, between 0 and 1.
        time: column of numbers that orders the rows in time.
        tolerance: of grouping C, see above.
        fit_options: objective, delta, fixed, ... of every fit, see `fit`.

    Raises:
        ValueError: no law, an unknown one, laws of several quantities, a bad share or
            time, or every law is refused.
    """
    runs = runs if isinstance(runs, Runs) else load_runs(runs)
    candidates = collect_laws(laws)
    targets = {law.target for law in candidates}
    if len(targets) > 1:
        told = ", ".join(f"{law.name} predicts {law.target}" for law in candidates)
        raise ValueError(f"laws of one quantity can be compared; {told}")
    by_loss = all(law.variables == ("loss",) for law in candidates)
    masks, notes = mask_holdouts(runs, share, time, tolerance, by_loss)
    fits: dict[str, Fit] = {}
    refused: list[RefusedFit] = []
    scores: list[HeldOutErrors] = []
    for law in track_progress("fits of each law", candidates):
        whole = try_fit(runs, law, **fit_options)
        if isinstance(whole, str):
            refused.append({"law": law.name, "what": "all rows", "reason": whole})
            continue
        fits[law.name] = whole
        for name, mask in masks.items():
            rest = runs.exclude(mask, f"held out ({name})")
            refit = try_fit(rest, law, **fit_options)
            if isinstance(refit, str):
                refused.append({"law": law.name, "what": name, "reason": refit})
                continue
            error = compute_errors(refit, runs.table.loc[mask])
            scores.append(
                {
                    "law": law.name,
                    "holdout": name,
                    "held": int(mask.sum()),
                    "rms": compute_rms(error),
                    "bias": float(error.mean()),
                }
            )
    if not fits:
        reasons = [f"{row['law']}: {row['reason']}" for row in refused]
        raise ValueError(f"every law was refused: {'; '.join(reasons)}")
    if any(_has_shared_trunk(fit) for fit in fits.values()):
        notes.append(
            "rows of one trunk are not independent: the criteria favor large laws too "
            "much here"
        )
    score_columns = list(HeldOutErrors.__annotations__)
    holdouts = pd.DataFrame(scores, columns=pd.Index(score_columns))
    refused_columns = list(RefusedFit.__annotations__)
    return Selection(
        table=_tabulate_fits(fits, holdouts, list(masks)),
        holdouts=holdouts,
        refused=pd.DataFrame(refused, columns=pd.Index(refused_columns)),
        fits=fits,
        notes=tuple(notes),
    )


def _has_shared_trunk(fit: Fit) -> bool:
    """Whether two fitted rows are of one trunk."""
    return "trunk" in fit.data and len(set(fit.data["trunk"])) < len(fit.residuals)


def mask_holdouts(
    runs: Runs, share: float, time: str | None, tolerance: float, by_loss: bool = False
) -> tuple[dict[str, np.ndarray], list[str]]:
    """(name -> [n] mask of the rows that a hold-out keeps from the fit, why a hold-out
    is missing).

    Args:
        runs: the table.
        share: the part of the rows held out.
        time: column of numbers that orders the rows in time, see `select`.
        tolerance: of grouping C.
        by_loss: whether the rows of lowest loss are a hold-out, too.

    Raises:
        ValueError: share outside (0, 1), or no column `time` of numbers.
    """
    if not 0 < share < 1:
        raise ValueError(
            f"share is {share!r}; it is the part of the rows held out, between 0 and 1, "
            "such as 0.2"
        )
    table = runs.table
    masks: dict[str, np.ndarray] = {}
    if "C" in table:
        budgets, _ = label_budgets(table, tolerance)
        C = table["C"].to_numpy(float)
        of_budget = np.where(np.isfinite(budgets), budgets, C)
        masks["largest_C"] = _mask_largest(of_budget, share)
    if "N" in table:
        sizes = label_sizes(table["N"].to_numpy(float))
        masks["largest_N"] = _mask_largest(sizes.astype(float), share)
    if time is not None:
        if time not in table or not pd.api.types.is_numeric_dtype(table[time]):
            raise ValueError(
                f"time = {time!r} is no column of numbers of {runs.source}; name one, "
                "such as 'D'"
            )
        masks["last"] = _mask_largest(table[time].to_numpy(float), share)
    elif "D" in table:
        masks["last"] = _mask_last_tokens(table, share)
    if by_loss:
        masks["lowest_loss"] = _mask_largest(-table["loss"].to_numpy(float), share)
    kept: dict[str, np.ndarray] = {}
    notes: list[str] = []
    for name, mask in masks.items():
        same = [other for other in kept if np.array_equal(kept[other], mask)]
        if mask.all():
            notes.append(f"no hold-out {name}: it would keep all rows")
        elif not mask.any():
            notes.append(f"no hold-out {name}: it would keep no row")
        elif same:
            notes.append(
                f"no hold-out {name}: it would keep the same rows as {same[0]}"
            )
        else:
            kept[name] = mask
    return kept, notes


def _mask_largest(values: np.ndarray, share: float) -> np.ndarray:
    """[n] mask of the largest values: whole groups of equal ones, until they make
    `share` of the rows.
    """
    n_held = int(np.ceil(share * len(values)))
    smallest_held = np.sort(values)[len(values) - n_held]
    return values >= smallest_held


def _mask_last_tokens(table: pd.DataFrame, share: float) -> np.ndarray:
    """[n] mask of the largest D of each curve of two rows or more."""
    curves = np.zeros(len(table), int).astype(str)
    if "N" in table:
        curves = label_curves(table)[0].astype(str)
    mask = np.zeros(len(table), bool)
    D = table["D"].to_numpy(float)
    for curve in np.unique(curves):
        rows = np.flatnonzero(curves == curve)
        mask[rows] = _mask_largest(D[rows], share) & (D[rows] > D[rows].min())
    return mask


def _tabulate_fits(
    fits: dict[str, Fit], holdouts: pd.DataFrame, names: list[str]
) -> pd.DataFrame:
    """`Selection.table`.

    Args:
        fits: law -> its fit to all rows.
        holdouts: `Selection.holdouts`.
        names: of the hold-outs.
    """
    criteria = [information(fit) for fit in fits.values()]
    aicc = np.array([each["aicc"] for each in criteria])
    lowest = 0.0
    if np.isfinite(aicc).any():
        lowest = aicc[np.isfinite(aicc)].min()
    delta = pd.Series(np.where(np.isfinite(aicc), aicc, np.inf) - lowest)
    weight = np.exp(-0.5 * delta)  # Akaike 1978
    table = pd.DataFrame(
        {
            "law": list(fits),
            "k": [int(each["k"]) for each in criteria],
            "objective": [fit.objective for fit in fits.values()],
            "aic": [each["aic"] for each in criteria],
            "aicc": aicc,
            "bic": [each["bic"] for each in criteria],
            "delta": delta,
            "weight": weight / max(weight.sum(), 1e-300),
            "certified": [fit.certificate.ok for fit in fits.values()],
        }
    )
    for name in names:
        of_holdout = holdouts.loc[(holdouts["holdout"] == name).to_numpy(bool)]
        rms = dict(zip(of_holdout["law"], of_holdout["rms"], strict=True))
        table[name] = [rms.get(law, np.nan) for law in fits]
    table["holdout"] = np.nan
    if names:
        squares = table[names].to_numpy(float) ** 2
        table["holdout"] = np.sqrt(squares.mean(axis=1))
    return table.sort_values("aicc", kind="stable", ignore_index=True)
