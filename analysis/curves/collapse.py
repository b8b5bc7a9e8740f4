"""Scaling collapse: whether the loss curves of all sizes are one curve.

Compute-optimal runs of one recipe have the same curve once the loss is normalized by its
end (Qiu et al. 2025, arXiv:2507.02119):

    l(x) = (L(x) - E) / (L(1) - E),    x = step / last step,

with E the irreducible loss. A size whose hyper-parameters are set otherwise than those of
the others leaves that curve, often early in training.

Shapes: R runs, K bins of x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.curves.table import Curves

BINS = 24
"""Parts of training in which losses are averaged."""

FIRST = 0.1
"""Earlier parts of training are left out: the curves fall steeply there."""

FEWEST_RUNS = 4
"""Of which one can be told to be off."""

OFF = 3.0
"""A run is off if it is so many times further from the others than they are from each
other, and than its noise."""


@dataclass(frozen=True, eq=False)
class Collapse:
    """How far each run is from the curve of the others.

    Attributes:
        table: one row for each run: run, deviation (root mean square over x of ln l less
            the median of the others), signed (its mean), noise (the deviation that noise
            alone would give), is_off.
        x: [K] middles of the bins.
        normalized: [R, K] l of each run, in the order of the table.
        spread: root mean square over x of the standard deviation of ln l over the runs.
        E: the irreducible loss that was used, nats per token.
        rejected: run and reason of those that took no part.
    """

    table: pd.DataFrame
    x: Float[np.ndarray, " bins"]
    normalized: Float[np.ndarray, "runs bins"]
    spread: float
    E: float
    rejected: pd.DataFrame

    @property
    def off(self) -> tuple[str, ...]:
        """The runs that leave the curve of the others."""
        return tuple(self.table.loc[self.table["is_off"], "run"])

    def __str__(self) -> str:
        lines = [f"{'run':<24} {'deviation':>10} {'signed':>8} {'noise':>8}"]
        for row in self.table.to_dict("records"):
            verdict = "  leaves the curve of the others" if row["is_off"] else ""
            lines.append(
                f"{row['run']:<24.24} {row['deviation']:>10.4f} {row['signed']:>+8.4f} "
                f"{row['noise']:>8.4f}{verdict}"
            )
        lines.append(f"spread over the runs {self.spread:.4f}, with E = {self.E:.4g}")
        for row in self.rejected.to_dict("records"):
            lines.append(f"rejected: {row['run']}: {row['reason']}")
        return "\n".join(lines)


def check_collapse(curves: Curves, E: float, first: float = FIRST) -> Collapse:
    """Compare the normalized loss curves of runs of several sizes.

    The runs should have about the same tokens per parameter and the same shape of
    schedule. A run is off if its deviation is more than three times the median of the
    others' and more than three times its noise.

    Args:
        curves: of one run for each size, all to their ends.
        E: irreducible loss in nats per token, as `fit.params["E"]` of a law of the sizes.
        first: share of training before which losses are left out.

    Raises:
        ValueError: `first` outside [0, 1), fewer than four runs can be used, or E is not
            below every final loss.
    """
    if not 0 <= first < 1:
        raise ValueError(f"first is {first!r}; give a share of training, such as 0.1")
    edges = np.linspace(first, 1.0, BINS + 1)
    names: list[str] = []
    logs: list[np.ndarray] = []
    noises: list[float] = []
    rejected: list[dict[str, str]] = []
    for run in curves.runs:
        try:
            log_loss, noise = _normalize_run(curves, run, E, edges)
        except ValueError as error:
            rejected.append({"run": run, "reason": str(error)})
            continue
        names.append(run)
        logs.append(log_loss)
        noises.append(noise)
    if len(names) < FEWEST_RUNS:
        reasons = "".join(f"; {row['run']}: {row['reason']}" for row in rejected)
        raise ValueError(
            f"{len(names)} runs can be used, and of fewer than {FEWEST_RUNS} none can be "
            f"told to be off: add sizes{reasons}"
        )
    log_losses = np.stack(logs)
    table = _judge_runs(names, log_losses, np.array(noises))
    return Collapse(
        table=table,
        x=(edges[1:] + edges[:-1]) / 2,
        normalized=np.exp(log_losses),
        spread=float(np.sqrt(np.mean(log_losses.var(axis=0, ddof=1)))),
        E=E,
        rejected=pd.DataFrame(rejected, columns=pd.Index(["run", "reason"])),
    )


def _normalize_run(
    curves: Curves, run: str, E: float, edges: np.ndarray
) -> tuple[np.ndarray, float]:
    """([K] ln l in each bin, the root mean square that noise gives it).

    Raises:
        ValueError: the run lacks rows of a part of training, or a loss is not above E.
    """
    rows = curves.get_rows(run)
    x = rows["step"].to_numpy(float) / curves.schedules[run].steps
    loss = rows["loss"].to_numpy(float)
    bins = np.searchsorted(edges, x, side="right") - 1
    bins[x == 1.0] = BINS - 1
    is_used = (bins >= 0) & (bins < BINS)
    counts = np.bincount(bins[is_used], minlength=BINS)
    if not counts.all():
        missing = int(np.argmin(counts))
        raise ValueError(
            f"no loss between {edges[missing]:.0%} and {edges[missing + 1]:.0%} of its "
            f"{curves.schedules[run].steps} steps"
        )
    above = loss[is_used] - E
    if above.min() <= 0:
        raise ValueError(
            f"a loss of {loss[is_used].min():.5g} is not above E = {E:.5g}"
        )
    mean_log = np.bincount(bins[is_used], np.log(above), BINS) / counts
    mean_x = np.bincount(bins[is_used], x[is_used], BINS) / counts
    # Rows of runs that log at other steps lie elsewhere in a bin.
    middles = (edges[1:] + edges[:-1]) / 2
    log_loss = mean_log + np.gradient(mean_log, mean_x) * (middles - mean_x)
    variance = _estimate_noise(np.log(above)) / counts
    # The noise of the last bin is in every other one.
    noise = np.sqrt(np.mean(variance[:-1]) + variance[-1])
    return log_loss - log_loss[-1], float(noise)


def _estimate_noise(values: np.ndarray) -> float:
    """Variance of the noise of neighbors, from second differences, which a straight line
    does not change.
    """
    if len(values) < 3:
        return 0.0
    second = values[:-2] - 2 * values[1:-1] + values[2:]
    return float(np.mean(second**2) / 6)


def _judge_runs(
    names: list[str], log_losses: np.ndarray, noise: np.ndarray
) -> pd.DataFrame:
    """`Collapse.table`."""
    count = len(names)
    deviation = np.empty(count)
    signed = np.empty(count)
    for i in range(count):
        others = np.delete(log_losses, i, axis=0)
        gap = log_losses[i] - np.median(others, axis=0)
        deviation[i] = np.sqrt(np.mean(gap**2))
        signed[i] = gap.mean()
    is_off = np.empty(count, bool)
    for i in range(count):
        usual = np.median(np.delete(deviation, i))
        is_off[i] = deviation[i] > OFF * max(usual, noise[i])
    return pd.DataFrame(
        {
            "run": names,
            "deviation": deviation,
            "signed": signed,
            "noise": noise,
            "is_off": is_off,
        }
    )
