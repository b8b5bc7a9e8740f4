"""Does a student that learns from a teacher beat the same student trained on the text
alone at equal FLOPs?

    python -m experiments.distillation --out runs/distillation

Trains the teachers, then students of several widths on several token budgets: on the
text alone, and with a share of each teacher's distribution in the loss (Hinton et al.
2015, arXiv:1503.02531). The budgets of a student are cooldowns from one trunk. A
distilled run differs from the run on the text in its teacher alone: it has the same
initial values, the same windows in the same order, the same learning rate.

The compute multiplier of a distilled run is the FLOPs that the same student needs on the
text alone to reach its loss, over the FLOPs of the distilled run: above 1, the teacher
saves FLOPs. They are counted in three ways: the student's own; with the teacher's forward
passes; and with a share of the teacher's training too, which is divided by the number of
students that the teacher has, one for each width, or `--sharing`. Whether the teacher is
trained for its students alone decides which one to read (Busbridge et al. 2025,
arXiv:2502.08606).

The FLOPs for a loss on the text alone are interpolated linearly in log loss and log FLOPs
between the budgets of the same width and seed, and never extrapolated: a loss that no run
on the text has reached, or that all have passed, gives a bound. Intervals are Student's t
about the mean log multiplier of the seeds, and hold no luck of the teacher, of which
there is one. Writes `runs.csv`, `multipliers.csv`, `distillation.json` and
`distillation.png` below --out.

Expect 25 minutes on two cores that are shared with other work. A teacher that is better
than its student saves FLOPs of the student, about half of them at best; with its forward
passes it hardly does, and with its training it never does for so few students. A weak
teacher helps short runs and holds back long ones. docs/notes/distillation.md has the
numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from analysis.plots.style import (
    BLACK,
    Color,
    make_figure,
    sample_colors,
    save_figure,
    set_log_axis,
    use_style,
)
from experiments.distillation_multipliers import (
    COUNTED,
    TEXT,
    Bound,
    BreakEven,
    Counted,
    Multiplier,
    count_students_to_break_even,
    measure_multipliers,
    pair_runs,
)
from scaling import Plan, PlanConfig, RunConfig, TeacherConfig, make_plan, sweep
from scaling.cli.plan_sweep import find_preset
from scaling.config import read_toml

SHORT: dict[Counted, str] = {
    "student": "Student's FLOPs alone",
    "forward": "With forward passes\nof the teacher",
    "training": "With forward passes and\ntraining of the teacher",
}
"""What the FLOPs of a distilled run hold, short enough for an axis."""
ARM_MARKERS = "osDX*P"
"""None of them is an arrowhead, which marks a bound."""
TEACHER_SEED = 100
"""Of the teachers, so that none starts from the values of a student."""


class Arm(NamedTuple):
    """A way to learn from a teacher.

    Attributes:
        width: of the teacher.
        tokens: that the teacher was trained on.
        weight: of the teacher's distribution in the student's loss.
    """

    width: int
    tokens: int
    weight: float


@dataclass(frozen=True)
class Distillation:
    """What to train.

    Attributes:
        out: folder of the runs and the results.
        widths: of the students.
        tokens: budgets of the students.
        text_tokens: further budgets, of the text alone, so that its losses enclose
            those of the distilled students.
        seeds: of the students.
        arms: width and tokens of a teacher, and the weight of its distribution.
        sharing: number of students that a teacher's training is divided by. Default:
            the number of widths.
        lr_factor: multiple of the preset's learning rate that the students train at.
        preset: gives the model, the data and the recipe.
        workers: processes. Default: one per core on CPU.
    """

    out: Path = Path("runs/distillation")
    widths: tuple[int, ...] = (16, 24, 32)
    tokens: tuple[int, ...] = (262_144, 524_288, 1_048_576, 2_097_152)
    text_tokens: tuple[int, ...] = (131_072, 4_194_304, 8_388_608)
    seeds: tuple[int, ...] = (0, 1)
    arms: tuple[tuple[int, int, float], ...] = (
        (16, 524_288, 0.5),
        (32, 2_097_152, 0.5),
        (64, 4_194_304, 0.5),
        (64, 4_194_304, 1.0),
    )
    sharing: int | None = None
    lr_factor: float = 1.0
    preset: str = "quickstart"
    workers: int | None = None


# --- the runs -------------------------------------------------------------------------


def plan_runs(
    args: Distillation,
    widths: tuple[int, ...],
    tokens: tuple[int, ...],
    seeds: tuple[int, ...],
    lr_factor: float = 1.0,
) -> list[RunConfig]:
    """The preset's recipe at every width, token budget and seed."""
    preset = read_toml(find_preset(args.preset), PlanConfig)
    grid = dataclasses.replace(
        preset,
        budgets=(),
        widths=widths,
        tokens=tokens,
        seeds=seeds,
        largest_budget_seeds=None,
        lr_factors=(lr_factor,),
        min_steps=1,
        min_tokens_per_parameter=0.0,
    )
    return list(make_plan(grid).runs)


def plan_teachers(args: Distillation) -> dict[Arm, RunConfig]:
    """The run that trains the teacher of each arm; arms may share one."""
    teachers = {}
    for arm in itertools.starmap(Arm, args.arms):
        (run,) = plan_runs(args, (arm.width,), (arm.tokens,), (TEACHER_SEED,))
        teachers[arm] = run
    return teachers


def plan_text(args: Distillation) -> list[RunConfig]:
    """The students that learn from the text alone."""
    tokens = tuple(sorted({*args.tokens, *args.text_tokens}))
    return plan_runs(args, args.widths, tokens, args.seeds, args.lr_factor)


def plan_distilled(
    args: Distillation, arm: Arm, teacher: RunConfig, folder: Path
) -> list[RunConfig]:
    """The students of an arm: those of the text, with a teacher."""
    link = TeacherConfig(run=teacher.run_id, folder=str(folder), weight=arm.weight)
    students = [run for run in plan_text(args) if run.tokens in args.tokens]
    return [dataclasses.replace(run, teacher=link) for run in students]


def train_runs(args: Distillation) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train teachers and students; the tables of both, with the name of the arm of each.

    The table of the students has `teacher_training_flops` too, the FLOPs that trained
    the teacher of a row; 0 where there is none.
    """
    folder = args.out / "runs"
    planned = plan_teachers(args)
    unique = tuple(dict.fromkeys(planned.values()))
    teachers = sweep(Plan("teachers", unique), folder, workers=args.workers)
    training = dict(zip(teachers["run_id"], teachers["flops"], strict=True))
    arms = {run.run_id: TEXT for run in plan_text(args)}
    students = plan_text(args)
    for arm, teacher in planned.items():
        distilled = plan_distilled(args, arm, teacher, folder)
        arms.update({run.run_id: name_arm(arm) for run in distilled})
        students += distilled
    runs = sweep(Plan("students", tuple(students)), folder, workers=args.workers)
    runs = runs.set_index("run_id").loc[list(arms)].reset_index()
    runs = runs.assign(
        arm=[arms[run_id] for run_id in runs["run_id"]],
        teacher_training_flops=[training.get(run, 0.0) for run in runs["teacher"]],
    )
    return teachers, runs


def name_arm(arm: Arm) -> str:
    """An arm in words."""
    return f"width {arm.width}, {arm.tokens / 1e6:.2g}M tokens, weight {arm.weight:g}"


# --- what is shown --------------------------------------------------------------------


def format_number(value: float, bound: Bound, form: str = ".2f") -> str:
    """A number with the sign of its bound."""
    if bound == "unknown":
        return "unknown"
    signs = {"none": "", "at least": ">= ", "at most": "<= "}
    return signs[bound] + format(value, form)


def format_multiplier(row: Multiplier) -> str:
    """A multiplier with its interval, unless it is a bound."""
    number = format_number(row.multiplier, row.bound)
    if row.bound != "none" or np.isnan(row.low):
        return number
    return f"{number} [{row.low:.2f}, {row.high:.2f}]"


def format_grid(cells: Sequence[tuple[str, int, int, str]]) -> str:
    """Texts of an arm, a width and a token budget each, a column for each budget."""
    table = pd.DataFrame(cells, columns=["arm", "width", "tokens", "text"])
    arms = list(dict.fromkeys(table["arm"]))
    table["arm"] = pd.Categorical(table["arm"], arms)
    return table.set_index(["arm", "width", "tokens"])["text"].unstack().to_string()


def format_losses(teachers: pd.DataFrame, rows: Sequence[Multiplier]) -> str:
    """The loss of each teacher; of the students on the text alone, and distilled."""
    columns = ["width", "tokens", "loss", "flops"]
    shown = teachers[columns].to_string(index=False, float_format="%.4g")
    cells = []
    for row in rows:
        if row.counted == "student":
            text = f"{row.text_loss:.3f} -> {row.loss:.3f}"
            cells.append((row.arm, row.width, row.tokens, text))
    title = "loss on the text alone -> distilled (nats per token), by tokens"
    return f"teachers\n{shown}\n\n{title}\n{format_grid(cells)}\n"


def format_multipliers(rows: Sequence[Multiplier]) -> str:
    """The multipliers, a table for each way of counting FLOPs."""
    parts = []
    for counted, words in COUNTED.items():
        cells = []
        for row in rows:
            if row.counted == counted:
                text = format_multiplier(row)
                cells.append((row.arm, row.width, row.tokens, text))
        parts.append(f"multiplier, {words}, by tokens\n{format_grid(cells)}\n")
    return "\n".join(parts)


def format_break_even(rows: Sequence[BreakEven]) -> str:
    """How many students a teacher must have."""
    cells = []
    for row in rows:
        text = format_number(row.students, row.bound, ".1f")
        text = "never" if np.isinf(row.students) else text
        cells.append((row.arm, row.width, row.tokens, text))
    title = "students that a teacher must have to break even, by tokens"
    return f"{title}\n{format_grid(cells)}\n"


def describe_answers(rows: Sequence[Multiplier]) -> list[str]:
    """In how many cells each teacher saves FLOPs, for each way of counting these."""
    lines = []
    for counted, words in COUNTED.items():
        own = [row for row in rows if row.counted == counted]
        lines.append(f"Counting {words}, {judge_cells(own)}:")
        for arm in dict.fromkeys(row.arm for row in own):
            same = [row for row in own if row.arm == arm]
            lines.append(f"  {arm}: {describe_arm(same)}")
    return lines


def judge_cells(rows: Sequence[Multiplier]) -> str:
    """One sentence on all cells of one way of counting FLOPs."""
    saves = sum(row.verdict == "saves" for row in rows)
    costs = sum(row.verdict == "costs" for row in rows)
    if saves == len(rows):
        return "a teacher saves FLOPs in every cell"
    if costs == len(rows):
        return "a teacher costs FLOPs in every cell"
    how_many = f"in {saves} of {len(rows)} cells" if saves else "in no cell"
    return f"a teacher saves FLOPs {how_many}, and costs some in {costs}"


def describe_arm(rows: Sequence[Multiplier]) -> str:
    """The verdicts on one arm, and the range of its multipliers."""
    saves = sum(row.verdict == "saves" for row in rows)
    costs = sum(row.verdict == "costs" for row in rows)
    words = f"saves in {saves}, costs in {costs}, open in {len(rows) - saves - costs}"
    known = sorted(
        (row for row in rows if row.bound != "unknown"), key=lambda row: row.multiplier
    )
    if not known:
        return words
    low = format_number(known[0].multiplier, known[0].bound)
    high = format_number(known[-1].multiplier, known[-1].bound)
    return f"{words}; multipliers {low} to {high}"


@use_style
def plot_multipliers(rows: Sequence[Multiplier]) -> Figure:
    """Multiplier against the student's tokens: a row of panels for each way of counting
    FLOPs, a column for each width, a color for each arm.
    """
    widths = sorted({row.width for row in rows})
    arms = list(dict.fromkeys(row.arm for row in rows))
    colors = sample_colors(len(arms))
    figure = make_figure(6.8)
    grid = figure.subplots(
        len(COUNTED), len(widths), sharex=True, sharey="row", squeeze=False
    )
    for panels, counted in zip(grid, COUNTED, strict=True):
        for ax, width in zip(panels, widths, strict=True):
            own = [row for row in rows if row.counted == counted and row.width == width]
            ax.axhline(1.0, color=BLACK, linewidth=0.8, linestyle="--")
            for i, arm in enumerate(arms):
                same = [row for row in own if row.arm == arm]
                # Beside each other, so that intervals do not cover one another.
                shift = 1.06 ** (i - (len(arms) - 1) / 2)
                _draw_arm(ax, same, shift, colors[i], ARM_MARKERS[i % len(ARM_MARKERS)])
            _set_axes(ax, own)
        panels[0].set_ylabel(SHORT[counted])
    for ax, width in zip(grid[0], widths, strict=True):
        ax.set_title(f"Student of width {width}")
    for ax in grid[-1]:
        ax.set_xlabel("Tokens of the student")
    figure.suptitle(
        "Compute multiplier of distillation with its 90 % interval; dashed: text alone",
        fontsize="medium",
    )
    handles, labels = grid[0][0].get_legend_handles_labels()
    title = "Teacher, and weight of its distribution"
    figure.legend(handles, labels, title=title, loc="outside lower center", ncols=2)
    return figure


def _draw_arm(
    ax: Axes, rows: Sequence[Multiplier], shift: float, color: Color, marker: str
) -> None:
    """Draw the multipliers of one arm at one width, with their intervals; an arrowhead
    where the multiplier is a bound.
    """
    signs = {"none": marker, "at least": "^", "at most": "v"}
    known = [row for row in rows if row.bound != "unknown"]
    tokens = [row.tokens * shift for row in known]
    ax.plot(tokens, [row.multiplier for row in known], color=color, linewidth=0.8)
    ax.plot([], [], color=color, marker=marker, markersize=4, label=rows[0].arm)
    for row, x in zip(known, tokens, strict=True):
        if row.bound == "none":
            ax.vlines(x, row.low, row.high, color=color, linewidth=1.4)
        ax.plot(
            x,
            row.multiplier,
            color=color,
            marker=signs[row.bound],
            mfc=color if row.bound == "none" else "white",
            markersize=4,
        )


def _set_axes(ax: Axes, rows: Sequence[Multiplier]) -> None:
    """Logarithmic axes, with a tick at each token budget."""
    set_log_axis(ax, "x", "count")
    set_log_axis(ax, "y", "loss")
    ax.xaxis.set_major_locator(FixedLocator(sorted({row.tokens for row in rows})))
    ax.xaxis.set_minor_locator(NullLocator())


def save_results(
    args: Distillation,
    teachers: pd.DataFrame,
    rows: Sequence[Multiplier],
    break_even: Sequence[BreakEven],
) -> None:
    """Write the tables; in `distillation.json`, what is not finite is null."""
    multipliers = pd.DataFrame(rows)
    multipliers.to_csv(args.out / "multipliers.csv", index=False)
    columns = ["run_id", "width", "tokens", "loss", "flops"]
    tables = {
        "teachers": teachers[columns],
        "multipliers": multipliers,
        "break_even": pd.DataFrame(break_even),
    }
    settings = {**dataclasses.asdict(args), "out": str(args.out)}
    content = {"settings": settings, "answers": describe_answers(rows)}
    for name, table in tables.items():
        content[name] = json.loads(table.to_json(orient="records"))
    text = json.dumps(content, indent=1)
    (args.out / "distillation.json").write_text(f"{text}\n")


def run_experiment(args: Distillation) -> None:
    """Train, compare, print and write."""
    args.out.mkdir(parents=True, exist_ok=True)
    teachers, runs = train_runs(args)
    runs.to_csv(args.out / "runs.csv", index=False)
    pairs = pair_runs(runs)
    sharing = args.sharing or len(args.widths)
    rows = measure_multipliers(pairs, sharing)
    break_even = count_students_to_break_even(pairs)
    print(format_losses(teachers, rows))
    print(format_multipliers(rows))
    print(format_break_even(break_even))
    print(f"A teacher's training is divided by {sharing} students.")
    print("\n".join(describe_answers(rows)))
    save_results(args, teachers, rows, break_even)
    print(save_figure(plot_multipliers(rows), args.out / "distillation.png"))


if __name__ == "__main__":
    run_experiment(tyro.cli(Distillation, description=__doc__))
