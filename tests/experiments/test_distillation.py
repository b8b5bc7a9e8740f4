"""The multipliers of tables made to have them are found, and a loss that the text alone
does not enclose gives a bound.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.distillation import (
    Arm,
    Distillation,
    describe_answers,
    format_multiplier,
    name_arm,
    plan_distilled,
    plan_teachers,
    plan_text,
    plot_multipliers,
    run_experiment,
)
from experiments.distillation_multipliers import (
    TEXT,
    Multiplier,
    count_students_to_break_even,
    find_flops,
    measure_multipliers,
    pair_runs,
)

TOKENS = np.array([1e5, 2e5, 4e5, 8e5, 1.6e6, 3.2e6])
BUDGETS = TOKENS[1:4]
FLOPS_PER_TOKEN = 6e4
TEACHER_SHARE = 0.5
"""FLOPs of the teacher's forward passes over those of the student."""
TEACHER_TRAINING = 3e11


def compute_loss(flops: np.ndarray, luck: float) -> np.ndarray:
    """A power law, on which interpolation in logarithms is exact."""
    return 8 * np.exp(luck) * flops**-0.06


def make_runs(
    multiplier: float,
    noise: float = 0.0,
    widths: int = 3,
    seeds: int = 2,
    draw: int = 0,
) -> pd.DataFrame:
    """The text alone, and an arm with the loss of the text alone at `multiplier` times
    its FLOPs.

    Args:
        multiplier: of the student's own FLOPs.
        noise: standard deviation of the log multiplier of a trunk.
        widths: their number.
        seeds: their number.
        draw: seed of the noise.
    """
    rng = np.random.default_rng(draw)
    tables = []
    for width in range(widths):
        for seed in range(seeds):
            luck = 0.01 * rng.standard_normal()
            own = multiplier * np.exp(noise * rng.standard_normal())
            flops = FLOPS_PER_TOKEN * (1 + width) * TOKENS
            text = pd.DataFrame({"arm": TEXT, "tokens": TOKENS, "flops": flops})
            text["loss"] = compute_loss(flops, luck)
            text[["teacher_flops", "teacher_training_flops"]] = 0.0
            taught: pd.DataFrame = text.loc[text["tokens"].isin(BUDGETS.tolist())]
            taught = taught.assign(
                arm="taught",
                loss=compute_loss(own * taught["flops"].to_numpy(), luck),
                teacher_flops=TEACHER_SHARE * taught["flops"],
                teacher_training_flops=TEACHER_TRAINING,
            )
            for table in (text, taught):
                tables.append(table.assign(width=16 * (1 + width), seed=seed))
    return pd.concat(tables, ignore_index=True)


def measure(runs: pd.DataFrame, sharing: int = 3) -> list[Multiplier]:
    return measure_multipliers(pair_runs(runs), sharing)


@pytest.mark.parametrize("multiplier", [0.6, 1.0, 2.0])
def test_an_arm_like_the_text_at_some_multiple_of_its_flops_has_that_multiplier(
    multiplier: float,
) -> None:
    rows = measure(make_runs(multiplier))
    own = [row for row in rows if row.counted == "student"]
    assert len(own) == 3 * len(BUDGETS)
    for row in own:
        assert row.multiplier == pytest.approx(multiplier)
        assert row.bound == "none"


def test_the_flops_of_the_teacher_divide_the_multiplier() -> None:
    for row in measure(make_runs(2.0), sharing=4):
        student = FLOPS_PER_TOKEN * (row.width / 16) * row.tokens
        forward = 1 + TEACHER_SHARE
        training = forward + TEACHER_TRAINING / 4 / student
        factor = {"student": 1.0, "forward": forward, "training": training}
        assert row.cost == pytest.approx(factor[row.counted] * student)
        assert row.multiplier == pytest.approx(2 / factor[row.counted])


def test_as_many_students_as_break_even_bring_the_multiplier_to_one() -> None:
    runs = make_runs(2.0)
    for cell in count_students_to_break_even(pair_runs(runs)):
        # The cost is a sum, so a fraction of a student has a meaning.
        saved = FLOPS_PER_TOKEN * (cell.width / 16) * cell.tokens
        saved *= 2 - (1 + TEACHER_SHARE)
        assert cell.students == pytest.approx(TEACHER_TRAINING / saved)
    for cell in count_students_to_break_even(pair_runs(make_runs(1.4))):
        assert np.isinf(cell.students)


@pytest.mark.parametrize(
    ("multiplier", "bound"), [(64.0, "at least"), (1e-3, "at most")]
)
def test_a_loss_beyond_the_text_is_a_bound(multiplier: float, bound: str) -> None:
    runs = make_runs(multiplier)
    end = TOKENS[-1] if bound == "at least" else TOKENS[0]
    rows = [row for row in measure(runs) if row.counted == "student"]
    for row in rows:
        assert row.bound == bound
        assert row.multiplier == pytest.approx(end / row.tokens)
        sign = ">=" if bound == "at least" else "<="
        assert format_multiplier(row).startswith(sign)
    opposite = {"at least": "at most", "at most": "at least"}[bound]
    for cell in count_students_to_break_even(pair_runs(runs)):
        assert cell.bound == opposite


def test_bounds_from_both_sides_leave_nothing_known() -> None:
    runs = make_runs(64.0, widths=1)
    is_low = (runs["arm"] == "taught") & (runs["seed"] == 1)
    runs.loc[is_low, "loss"] = 9.0
    for row in measure(runs):
        assert row.bound == "unknown" and np.isnan(row.multiplier)
        assert row.verdict == "open"


def test_a_run_of_the_text_that_is_no_better_than_a_shorter_one_does_not_count() -> (
    None
):
    flops = np.array([1.0, 2.0, 4.0, 8.0])
    found = find_flops(flops, np.array([4.0, 2.0, 2.5, 1.0]), 1.5)
    without = find_flops(np.array([1.0, 4.0, 8.0]), np.array([4.0, 2.0, 1.0]), 1.5)
    assert found == without
    assert find_flops(flops, np.array([4.0, 3.0, 2.0, 1.0]), 3.0).flops == 2.0


@pytest.mark.slow
def test_intervals_cover_the_multiplier_as_often_as_they_say() -> None:
    """90 % of them, of 100 tables: within three standard errors of that."""
    covered = []
    for draw in range(100):
        rows = measure(make_runs(1.5, noise=0.1, draw=draw))
        covered.append(rows[0].low < 1.5 < rows[0].high)
    assert abs(np.mean(covered) - 0.90) < 3 * np.sqrt(0.09 / 100)


def test_one_seed_carries_no_interval_and_no_verdict() -> None:
    for row in measure(make_runs(2.0, seeds=1)):
        assert np.isnan(row.low) and np.isnan(row.high)
        assert row.verdict == "open"


def test_the_answer_follows_the_numbers() -> None:
    saves = describe_answers(measure(make_runs(2.0, noise=0.01)))
    assert saves[0].endswith("a teacher saves FLOPs in every cell:")
    assert "saves in 9, costs in 0, open in 0" in saves[1]
    costs = describe_answers(measure(make_runs(0.6, noise=0.01)))
    assert costs[0].endswith("a teacher costs FLOPs in every cell:")
    noisy = describe_answers(measure(make_runs(1.0, noise=0.2)))
    assert noisy[0].endswith("in no cell, and costs some in 0:")


# --- the runs -------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Distillation:
    preset = tmp_path / "tiny.toml"
    preset.write_text(
        """
        tokens = [64]
        widths = [8]
        warmup_fraction = 0.05
        eval_tokens = 1024
        [model]
        depth = 1
        n_heads = 2
        vocab = 16
        context = 16
        [data]
        source = "markov:states=16,branching=2,tokens=40000"
        [optim]
        batch_size = 2
        """
    )
    return Distillation(
        out=tmp_path / "out",
        widths=(8,),
        tokens=(2048, 4096),
        text_tokens=(1024, 8192),
        arms=((16, 8192, 0.5), (16, 8192, 1.0)),
        preset=str(preset),
        workers=0,
    )


def test_a_distilled_run_differs_from_the_text_in_its_teacher_alone(
    tiny: Distillation,
) -> None:
    teachers = plan_teachers(tiny)
    assert len(set(teachers.values())) == 1
    text = [run for run in plan_text(tiny) if run.tokens in tiny.tokens]
    for arm, teacher in teachers.items():
        distilled = plan_distilled(tiny, arm, teacher, tiny.out)
        for run, student in zip(text, distilled, strict=True):
            assert student.teacher is not None
            assert student.teacher.run == teacher.run_id
            assert student.teacher.weight == arm.weight
            assert dataclasses.replace(student, teacher=None) == run
        assert len({run.trunk_id for run in distilled}) == len(tiny.seeds)


@pytest.mark.slow
def test_the_experiment_runs(tiny: Distillation, capsys: pytest.CaptureFixture) -> None:
    tiny = dataclasses.replace(tiny, arms=tiny.arms[1:], tokens=(2048,))
    run_experiment(tiny)
    runs = pd.read_csv(tiny.out / "runs.csv")
    assert len(runs) == 2 * (3 + 1)
    content = json.loads((tiny.out / "distillation.json").read_text())
    assert len(content["multipliers"]) == 3
    (teacher,) = content["teachers"]
    is_text = runs["arm"] == TEXT
    assert (runs.loc[~is_text, "teacher"] == teacher["run_id"]).all()
    assert (runs.loc[~is_text, "teacher_training_flops"] == teacher["flops"]).all()
    assert (runs.loc[is_text, "teacher_training_flops"] == 0).all()
    printed = capsys.readouterr().out
    for line in content["answers"]:
        assert line in printed
    assert name_arm(Arm(*tiny.arms[0])) in printed
    assert (tiny.out / "distillation.png").stat().st_size > 10_000


def test_a_figure_of_bounds_is_drawn() -> None:
    figure = plot_multipliers(measure(make_runs(64.0)))
    assert len(figure.axes) == 9
