"""What the distillation experiment computes: the FLOPs that a student needs on the text
alone for the loss of its distilled run, over those of that run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.fitting.student import compute_quantile

Bound = Literal["none", "at least", "at most", "unknown"]
Counted = Literal["student", "forward", "training"]
COUNTED: dict[Counted, str] = {
    "student": "the student's own FLOPs",
    "forward": "the teacher's forward passes too",
    "training": "the teacher's training too",
}
"""What the FLOPs of a distilled run hold, each way with all of the ways before."""
TEXT = "text"
"""The name of the arm without a teacher."""
LEVEL = 0.90


class Reached(NamedTuple):
    """The FLOPs at which a loss is reached.

    Attributes:
        flops: the FLOPs.
        bound: whether they are only known to be at least, or at most, so many.
    """

    flops: float
    bound: Bound


def find_flops(
    flops: Float[np.ndarray, " n"], losses: Float[np.ndarray, " n"], loss: float
) -> Reached:
    """The FLOPs at which a curve of losses reaches a loss, interpolated linearly in log
    loss and log FLOPs; a bound where the loss lies outside of the curve.

    A run that is no better than one of fewer FLOPs does not lower the curve.

    Args:
        flops: of the runs of the curve, ascending.
        losses: of these runs.
        loss: to be reached.
    """
    best = np.minimum.accumulate(losses)
    if loss < best[-1]:
        return Reached(float(flops[-1]), "at least")
    if loss > best[0]:
        return Reached(float(flops[0]), "at most")
    # np.interp wants ascending abscissas, and losses descend.
    log_flops = np.interp(-np.log(loss), -np.log(best), np.log(flops))
    return Reached(float(np.exp(log_flops)), "none")


class Pair(NamedTuple):
    """A distilled run beside the text alone at the same width and seed.

    Attributes:
        arm: its teacher and weight, in words.
        width: of the student.
        tokens: that the student was trained on.
        seed: of the student.
        loss: of the distilled run.
        text_loss: of the text alone on as many tokens.
        flops: of the student's training.
        teacher_flops: of the teacher's forward passes.
        teacher_training_flops: of the teacher's own training.
        reached: the FLOPs at which the text alone reaches `loss`.
    """

    arm: str
    width: int
    tokens: int
    seed: int
    loss: float
    text_loss: float
    flops: float
    teacher_flops: float
    teacher_training_flops: float
    reached: Reached

    @property
    def log_multiplier(self) -> float:
        """Of the student's own FLOPs."""
        return float(np.log(self.reached.flops / self.flops))

    def count_cost(self, counted: Counted, sharing: int) -> float:
        """The FLOPs of the distilled run.

        Args:
            counted: in which way.
            sharing: number of students that the teacher's training is divided by.
        """
        cost = self.flops
        if counted != "student":
            cost += self.teacher_flops
        if counted == "training":
            cost += self.teacher_training_flops / sharing
        return cost


def pair_runs(runs: pd.DataFrame) -> list[Pair]:
    """The finished distilled runs, each beside the text alone.

    Args:
        runs: rows with arm, width, tokens, seed, loss, flops, teacher_flops and
            teacher_training_flops; every distilled run has one on the text alone with
            as many tokens.
    """
    finished: pd.DataFrame = runs.loc[runs["loss"].notna()]
    is_text = finished["arm"] == TEXT
    text = finished.loc[is_text].sort_values("flops")
    curves = dict(list(text.groupby(["width", "seed"])))
    pairs = []
    for run in finished.loc[~is_text].to_dict("records"):
        curve = curves[run["width"], run["seed"]]
        losses = curve["loss"].to_numpy(float)
        (beside,) = losses[curve["tokens"].to_numpy() == run["tokens"]]
        pair = Pair(
            arm=run["arm"],
            width=int(run["width"]),
            tokens=int(run["tokens"]),
            seed=int(run["seed"]),
            loss=float(run["loss"]),
            text_loss=float(beside),
            flops=float(run["flops"]),
            teacher_flops=float(run["teacher_flops"]),
            teacher_training_flops=float(run["teacher_training_flops"]),
            reached=find_flops(curve["flops"].to_numpy(float), losses, run["loss"]),
        )
        pairs.append(pair)
    return pairs


def group_into_cells(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """The seeds of each arm, width and token budget, the arms in the order in which
    they come first.
    """
    arms = list(dict.fromkeys(pair.arm for pair in pairs))
    cells: dict[tuple[int, int, int], list[Pair]] = {}
    for pair in pairs:
        key = (arms.index(pair.arm), pair.width, pair.tokens)
        cells.setdefault(key, []).append(pair)
    return [cells[key] for key in sorted(cells)]


def combine_bounds(cell: Sequence[Pair]) -> Bound:
    """What is known about the mean over seeds of the FLOPs that the text needs: nothing
    where the seeds bound it from both sides.
    """
    found: set[Bound] = {pair.reached.bound for pair in cell}
    bounds = found - {"none"}
    if len(bounds) > 1:
        return "unknown"
    return bounds.pop() if bounds else "none"


def pool_margin(cells: Sequence[Sequence[Pair]]) -> float:
    """Half-width of the 90 % interval of one seed's log multiplier, from the scatter
    between seeds in the cells of one arm; NaN where no cell has two seeds.

    It is Student's t. Budgets of one trunk share its luck, so that only the widths add
    degrees of freedom.
    """
    variances = []
    freedom: dict[int, int] = {}
    for cell in cells:
        if len(cell) > 1 and combine_bounds(cell) == "none":
            logs = [pair.log_multiplier for pair in cell]
            variances.append(np.var(logs, ddof=1))
            width = cell[0].width
            freedom[width] = max(freedom.get(width, 0), len(cell) - 1)
    if not variances:
        return float("nan")
    quantile = compute_quantile(sum(freedom.values()), LEVEL)
    return float(quantile * np.sqrt(np.mean(variances)))


class Multiplier(NamedTuple):
    """The compute multiplier of an arm at one width and token budget, FLOPs counted in
    one way: a row of the table.

    Attributes:
        arm: teacher and weight, in words.
        width: of the student.
        tokens: that the student was trained on.
        counted: which FLOPs of the distilled run.
        seeds: their number.
        loss: of the distilled runs, mean over seeds.
        text_loss: of the text alone on as many tokens.
        cost: FLOPs of a distilled run.
        multiplier: geometric mean over seeds.
        low: lower end of its 90 % interval.
        high: upper end.
        bound: of the multiplier; the interval is open where it is one.
        verdict: "saves", "costs" or "open".
    """

    arm: str
    width: int
    tokens: int
    counted: Counted
    seeds: int
    loss: float
    text_loss: float
    cost: float
    multiplier: float
    low: float
    high: float
    bound: Bound
    verdict: str


def measure_multipliers(pairs: Sequence[Pair], sharing: int) -> list[Multiplier]:
    """The multiplier of each arm, width and token budget, FLOPs counted in each way.

    Args:
        pairs: the distilled runs.
        sharing: number of students that a teacher's training is divided by.
    """
    cells = group_into_cells(pairs)
    rows = []
    for cell in cells:
        same_arm = [other for other in cells if other[0].arm == cell[0].arm]
        margin = pool_margin(same_arm) / np.sqrt(len(cell))
        for counted in COUNTED:
            rows.append(measure_cell(cell, counted, sharing, margin))
    return rows


def measure_cell(
    cell: Sequence[Pair], counted: Counted, sharing: int, margin: float
) -> Multiplier:
    """The multiplier of one cell.

    Args:
        cell: its seeds.
        counted: how FLOPs are counted.
        sharing: number of students that the teacher's training is divided by.
        margin: half-width of the interval of the mean log multiplier.
    """
    first = cell[0]
    bound = combine_bounds(cell)
    cost = first.count_cost(counted, sharing)
    multiplier = np.nan if bound == "unknown" else average_text_flops(cell) / cost
    low = 0.0 if bound == "at most" else multiplier * np.exp(-margin)
    high = np.inf if bound == "at least" else multiplier * np.exp(margin)
    return Multiplier(
        arm=first.arm,
        width=first.width,
        tokens=first.tokens,
        counted=counted,
        seeds=len(cell),
        loss=float(np.mean([pair.loss for pair in cell])),
        text_loss=float(np.mean([pair.text_loss for pair in cell])),
        cost=cost,
        multiplier=float(multiplier),
        low=float(low),
        high=float(high),
        bound=bound,
        verdict=judge_interval(float(low), float(high)),
    )


def average_text_flops(cell: Sequence[Pair]) -> float:
    """Geometric mean over seeds of the FLOPs that the text needs."""
    return float(np.exp(np.mean([np.log(pair.reached.flops) for pair in cell])))


def judge_interval(low: float, high: float) -> str:
    """Whether a teacher saves FLOPs or costs some, by the interval of a multiplier."""
    if low > 1:
        return "saves"
    if high < 1:
        return "costs"
    return "open"


class BreakEven(NamedTuple):
    """How many students a teacher must have so that its training costs no more than it
    saves.

    Attributes:
        arm: teacher and weight, in words.
        width: of the students.
        tokens: that each student is trained on.
        students: their number; infinite where a student saves nothing.
        bound: of this number.
    """

    arm: str
    width: int
    tokens: int
    students: float
    bound: Bound


def count_students_to_break_even(pairs: Sequence[Pair]) -> list[BreakEven]:
    """For each arm, width and token budget.

    Where the text needs at least so many FLOPs, the students are at most so many, and
    unknown if that is no saving.
    """
    opposite: dict[Bound, Bound] = {"at least": "at most", "at most": "at least"}
    rows = []
    for cell in group_into_cells(pairs):
        first = cell[0]
        bound = combine_bounds(cell)
        saved = average_text_flops(cell) - first.count_cost("forward", 1)
        students = first.teacher_training_flops / saved if saved > 0 else np.inf
        if bound == "at least" and saved <= 0:
            bound = "unknown"
        row = BreakEven(
            arm=first.arm,
            width=first.width,
            tokens=first.tokens,
            students=float("nan") if bound == "unknown" else float(students),
            bound=opposite.get(bound, bound),
        )
        rows.append(row)
    return rows
