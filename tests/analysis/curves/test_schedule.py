"""Schedules and what laws read of them, by hand: a few steps, one drop, each shape of the
cooldown at its middle and its ends.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.curves.features import (
    RATIO,
    SINGLE_AGES,
    compute_features,
    make_age_edges,
    make_warmup_edges,
)
from analysis.curves.schedule import Rise, Schedule, find_jumps


def test_the_warm_up_rises_from_zero_to_the_peak() -> None:
    schedule = Schedule.constant(2.0, 6, 4)
    assert schedule.lr.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert (schedule.steps, schedule.peak, schedule.warmup_steps) == (6, 2.0, 4)
    assert Schedule.constant(2.0, 3).lr.tolist() == [2.0] * 4
    assert Schedule.constant(2.0, 3).warmup_steps == 0
    assert Schedule.constant(1.0, 3, 1).lr.tolist() == [0.0, 1.0, 1.0, 1.0]
    assert Schedule(np.array([0.0, 1.0])).steps == 1
    assert Schedule(np.arange(5.0)).warmup_steps == 4


def test_a_rise_is_one_after_the_warm_up() -> None:
    assert Schedule.wsd(1.0, 10, 3, 4).find_rise() is None
    assert Schedule(np.array([0.0, 1.0, 2.0, 1.0, 1.0, 3.0])).find_rise() == Rise(
        step=5, before=1.0, after=3.0
    )
    assert Schedule(np.array([2.0, 2.0, 3.0])).find_rise() == Rise(2, 2.0, 3.0)
    twice = Schedule(np.array([4.0, 3.0, 1.0, 2.0, 1.0, 5.0]))
    assert twice.find_rise() == Rise(3, 1.0, 2.0)


def test_without_a_warm_up_the_peak_is_there_from_the_first_step() -> None:
    assert Schedule.constant(1.0, 4).lr[:2].tolist() == [1.0, 1.0]
    assert Schedule.cosine(1.0, 4).lr[0] == 1.0
    assert Schedule.cosine(1.0, 4).lr[2] == pytest.approx(0.5)
    assert Schedule.wsd(1.0, 4, cooldown_steps=4).lr[:2].tolist() == [1.0, 0.75]


def test_a_cosine_is_half_way_down_in_the_middle() -> None:
    lr = Schedule.cosine(1.0, 12, 4, 0.2).lr
    assert lr[:5].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert lr[[6, 8, 10, 12]] == pytest.approx(
        [0.6 + 0.4 * math.sqrt(0.5), 0.6, 0.6 - 0.4 * math.sqrt(0.5), 0.2]
    )
    assert Schedule.cosine(1.0, 12, 4).lr[-1] == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(
    ("shape", "end", "quarter", "middle", "last"),
    [
        ("linear", 0.0, 0.75, 0.5, 0.0),
        ("linear", 0.2, 0.8, 0.6, 0.2),
        ("sqrt", 0.0, 0.5, 1 - math.sqrt(0.5), 0.0),
        ("sqrt", 0.2, 0.6, 1 - 0.8 * math.sqrt(0.5), 0.2),
        ("exponential", 0.0625, 0.5, 0.25, 0.0625),
        ("exponential", 0.0, 0.1**0.25, 0.1**0.5, 0.1),
    ],
)
def test_a_cooldown_takes_the_last_steps(
    shape: str, end: float, quarter: float, middle: float, last: float
) -> None:
    lr = Schedule.wsd(2.0, 10, 2, 4, 2.0 * end, shape).lr / 2.0
    assert lr[:7].tolist() == [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert lr[[7, 8, 10]] == pytest.approx([quarter, middle, last])


def test_a_cooldown_may_have_no_step_or_all_after_the_warm_up() -> None:
    constant = Schedule.constant(1.0, 10, 2).lr.tolist()
    assert Schedule.wsd(1.0, 10, 2).lr.tolist() == constant
    assert Schedule.wsd(1.0, 10, 2, 8, 1.0).lr.tolist() == constant
    assert Schedule.wsd(1.0, 10, 2, 8).lr[3] == pytest.approx(7 / 8)


def test_what_is_no_schedule_is_refused() -> None:
    for lr in (np.ones((2, 2)), np.array([1.0, np.nan]), np.array([1.0, np.inf])):
        with pytest.raises(ValueError, match="give"):
            Schedule(lr)
    for peak in (np.inf, np.nan, -1.0):
        with pytest.raises(ValueError, match="peak is"):
            Schedule.constant(peak, 10)
    for warmup in (-1, 10, 11):
        with pytest.raises(ValueError, match="warmup_steps is"):
            Schedule.constant(1.0, 10, warmup)
    for end in (-0.1, 1.1):
        with pytest.raises(ValueError, match="end is"):
            Schedule.wsd(1.0, 10, 2, 4, end)
    for cooldown in (-1, 9):
        with pytest.raises(ValueError, match="cooldown_steps is"):
            Schedule.wsd(1.0, 10, 2, cooldown)
    with pytest.raises(ValueError, match="read-only"):
        Schedule.constant(1.0, 10).lr[0] = 1.0


def test_rows_before_the_first_are_the_warm_up() -> None:
    step, lr = np.array([4, 6, 8]), np.array([1.0, 2.0, 1.0])
    filled = [1.5, 2.0, 1.5, 1.0]
    expected = {
        None: [0.0, 0.25, 0.5, 0.75, 1.0],
        4: [0.0, 0.25, 0.5, 0.75, 1.0],
        2: [0.0, 0.5, 1.0, 1.0, 1.0],
        1: [0.0, 1.0, 1.0, 1.0, 1.0],
        0: [1.0, 1.0, 1.0, 1.0, 1.0],
    }
    for warmup, start in expected.items():
        found = Schedule.from_rows(step, lr, warmup)
        assert found.lr.tolist() == start + filled, warmup
    assert Schedule.from_rows(np.array([1]), np.array([3.0])).lr.tolist() == [0.0, 3.0]
    for warmup in (-1, 5):
        with pytest.raises(ValueError, match="warmup_steps is"):
            Schedule.from_rows(step, lr, warmup)
    for steps in ([], [0, 1, 2], [1, 1, 2], [1, 3, 2]):
        with pytest.raises(ValueError, match="step must rise"):
            Schedule.from_rows(np.array(steps), np.ones(len(steps)))


def test_a_jump_is_constant_on_both_sides() -> None:
    assert find_jumps(np.array([1.0, 1.0, 2.0, 2.0])) == [2]
    assert find_jumps(np.array([1.0, 1.0, 2.0, 2.0, 5.0, 5.0, 5.0])) == [2, 4]
    for lr in ([1.0, 2.0, 2.0], [1.0, 1.0, 2.0], [1.0, 1.0, 2.0, 3.0, 3.0]):
        assert find_jumps(np.array(lr)) == []
    step = np.array([2, 4, 7, 8])
    jumping = Schedule.from_rows(step, np.array([1.0, 1.0, 2.0, 2.0]), 0)
    assert jumping.lr.tolist() == [1.0] * 7 + [2.0, 2.0]
    sloping = Schedule.from_rows(step, np.array([1.0, 1.0, 2.5, 3.0]), 0)
    assert sloping.lr.tolist() == [1.0] * 5 + [1.5, 2.0, 2.5, 3.0]


def test_of_one_drop_laws_read_its_age_and_the_sum_since() -> None:
    """0.5 from step 3 on, seen at step 2, at the drop, and two steps later."""
    schedule = Schedule(np.array([1.0, 1.0, 1.0, 0.5, 0.5, 0.5]))
    found = compute_features(schedule, np.array([2, 3, 5]))
    assert found["S1"].tolist() == [2.0, 2.5, 3.5]
    drop = found["drop"]
    assert drop.sum(axis=1).tolist() == [0.0, 0.5, 0.5]
    for row, age, since in ((1, 1.0, 0.5), (2, 3.0, 1.5)):
        (group,) = np.flatnonzero(drop[row])
        assert found["age"][row, group] == age
        assert found["S"][row, group] == since
        assert found["log_lr"][row, group] == math.log(0.5)
    is_empty = drop == 0
    for name, value in (("age", 1.0), ("S", 1.0), ("log_lr", 0.0)):
        assert np.all(found[name][is_empty] == value)


@pytest.mark.parametrize("warmup", ["rises", "peak"])
def test_all_drops_are_the_fall_since_the_start(warmup: str) -> None:
    schedule = Schedule.wsd(1.0, 400, 50, 150, 0.1)
    steps = np.array([1, 20, 50, 51, 100, 250, 300, 400])
    found = compute_features(schedule, steps, warmup)
    lr = np.array(schedule.lr)
    if warmup == "peak":
        lr[:50] = 1.0
    np.testing.assert_allclose(found["drop"].sum(axis=1), lr[0] - lr[steps], atol=1e-12)
    expected = [lr[1 : step + 1].sum() for step in steps]
    np.testing.assert_allclose(found["S1"], expected, rtol=1e-12)
    if warmup == "peak":
        assert np.all(found["drop"] >= 0)


def test_where_the_learning_rate_is_zero_its_logarithm_is_that_of_a_small_share() -> (
    None
):
    schedule = Schedule(np.array([2.0, 2.0, 0.0]))
    found = compute_features(schedule, np.array([2]))
    (group,) = np.flatnonzero(found["drop"][0])
    assert found["log_lr"][0, group] == pytest.approx(math.log(2e-9))


def test_steps_of_a_schedule_begin_at_one() -> None:
    schedule = Schedule.constant(1.0, 10)
    assert compute_features(schedule, np.array([1, 10]))["S1"].tolist() == [1.0, 10.0]
    assert len(compute_features(schedule, np.array([], int))["S1"]) == 0
    for step in (0, 11):
        with pytest.raises(ValueError, match="the schedule has steps 1 to 10"):
            compute_features(schedule, np.array([step]))


def test_the_longest_run_decides_the_number_of_groups() -> None:
    short, long = Schedule.constant(1.0, 50), Schedule.constant(1.0, 900)
    one = np.array([1])
    assert (
        compute_features(short, one, longest=900)["drop"].shape
        == compute_features(long, one)["drop"].shape
        != compute_features(short, one)["drop"].shape
    )


def test_the_youngest_drops_have_a_group_each() -> None:
    lr = np.concatenate([np.ones(10), np.linspace(1.0, 0.5, 11)])
    found = compute_features(Schedule(lr), np.array([20]))
    ages = found["age"][0, found["drop"][0] > 0]
    assert ages[: -SINGLE_AGES - 1 : -1] == pytest.approx(range(1, SINGLE_AGES + 1))


@pytest.mark.parametrize("longest", [1, 4, 5, 6, 100, 10_000])
def test_ages_of_a_group_are_close(longest: int) -> None:
    edges = make_age_edges(longest)
    assert edges[: SINGLE_AGES + 1].tolist() == list(range(1, SINGLE_AGES + 2))
    first, after = edges[:-1], edges[1:]
    assert np.all((after == first + 1) | (after <= RATIO * first))
    # No more groups than needed: the next whole age would be too old.
    assert np.all((after == first + 1) | (after + 1 > RATIO * first))
    assert edges[-1] > longest
    assert len(edges) == SINGLE_AGES + 1 or edges[-2] <= longest


def test_groups_of_the_warm_up_are_shorter_towards_its_end() -> None:
    edges = make_warmup_edges(1000)
    assert (edges[0], edges[-1], len(edges)) == (0, 1000, 17)
    assert np.all(np.diff(edges, 2) <= 1)  # whole steps: up to rounding
    # An eighth of the warm-up is left in the middle group.
    assert edges[8] == 875
    assert make_warmup_edges(0).tolist() == [0] * 17
