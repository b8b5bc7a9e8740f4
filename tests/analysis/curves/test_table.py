"""Curves are read with every rejected row and its reason, and their schedules are what
the rows say.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.curves.schedule import Schedule
from analysis.curves.table import load_curves


def make_table() -> pd.DataFrame:
    steps = np.arange(100, 1001, 100)
    lr = np.where(steps < 600, 1e-3, 2e-4)
    loss = 3.0 + 1.0 / steps
    return pd.DataFrame({"run": "a", "step": steps, "lr": lr, "loss": loss})


def test_the_schedule_warms_up_and_jumps_where_it_is_constant_on_both_sides() -> None:
    schedule = load_curves(make_table()).schedules["a"]
    assert schedule.steps == 1000
    np.testing.assert_allclose(schedule.lr[[0, 50, 100]], [0, 5e-4, 1e-3])
    np.testing.assert_allclose(schedule.lr[[599, 600]], [1e-3, 2e-4])
    assert schedule.warmup_steps == 100


def test_between_rows_of_a_smooth_schedule_the_learning_rate_is_linear() -> None:
    exact = Schedule.cosine(1e-3, 1000, 100, 1e-4)
    steps = np.arange(100, 1001, 20)
    table = pd.DataFrame(
        {"run": "a", "step": steps, "lr": exact.lr[steps], "loss": 3.0}
    )
    found = load_curves(table).schedules["a"]
    # Half a row's share of the curvature: (20 / 900 pi)^2 / 8 of half the range.
    np.testing.assert_allclose(found.lr, exact.lr, atol=3e-7)


def test_the_warm_up_may_end_before_the_first_row() -> None:
    schedule = load_curves(make_table(), warmup_steps=40).schedules["a"]
    np.testing.assert_allclose(schedule.lr[[20, 40, 99]], [5e-4, 1e-3, 1e-3])
    with pytest.raises(ValueError, match=r"run 'a'.*warmup_steps is 300.*step 100"):
        load_curves(make_table(), warmup_steps=300)


def test_a_whole_schedule_may_be_given() -> None:
    given = Schedule.constant(1e-3, 1000)
    curves = load_curves(make_table(), schedules={"a": given})
    assert curves.schedules["a"] is given
    with pytest.raises(ValueError, match=r"ends at step 900.*row at step 1000"):
        load_curves(make_table(), schedules={"a": Schedule.constant(1e-3, 900)})
    with pytest.raises(ValueError, match="no such run"):
        load_curves(make_table(), schedules={"b": given})


def test_tokens_are_divided_by_those_of_a_step() -> None:
    table = make_table()
    table["seen"] = table["step"] * 512
    curves = load_curves(table, tokens="seen", tokens_per_step=512.0)
    assert curves.table["step"].tolist() == make_table()["step"].tolist()
    with pytest.raises(ValueError, match="needs tokens_per_step="):
        load_curves(table, tokens="seen")
    with pytest.raises(ValueError, match="without tokens="):
        load_curves(table, tokens_per_step=512.0)
    with pytest.raises(ValueError, match="give one"):
        load_curves(table, tokens="seen", step="step", tokens_per_step=512.0)


def test_every_rejected_row_has_its_reason() -> None:
    table = make_table().astype({"run": object, "step": object, "loss": object})
    table.loc[0, "run"] = None
    table.loc[1, "step"] = "later"
    table.loc[2, "step"] = 0
    table.loc[3, "lr"] = -1e-3
    table.loc[4, "loss"] = np.inf
    table.loc[5, "loss"] = -1.0
    table.loc[7, "step"] = 700
    table.loc[8, "step"] = 900.5
    curves = load_curves(table)
    assert curves.reasons() == [
        (0, "run is missing"),
        (1, "step is 'later', not a number"),
        (2, "step is 0: a law of curves begins at step 1"),
        (3, "lr is -0.001; a learning rate is not negative"),
        (4, "loss is infinite"),
        (5, "loss is -1; it must be positive"),
        (7, "row 6 has the same run and step (700)"),
        (8, "step is 900.5, which is no whole number of steps"),
    ]
    assert len(curves) == 2
    assert "8 rejected" in str(curves)


def test_a_row_without_a_loss_takes_part_in_the_schedule() -> None:
    table = make_table()
    table.loc[3, "loss"] = np.nan
    table.loc[3, "lr"] = 7e-4
    curves = load_curves(table)
    assert curves.reasons() == [(3, "loss is missing")]
    assert curves.schedules["a"].lr[400] == pytest.approx(7e-4)


def test_a_rising_learning_rate_is_noted() -> None:
    table = make_table()
    table.loc[8:, "lr"] = 9e-4
    (note,) = load_curves(table).notes
    assert "run a: the learning rate rises from 0.0002 to 0.0009 at step 900" in note


def test_a_split_divides_runs() -> None:
    table = pd.concat([make_table(), make_table().assign(run="b")], ignore_index=True)
    table["part"] = np.where(table["run"] == "a", "fit", "test")
    curves = load_curves(table, split="part")
    assert curves.select("test").runs == ("b",)
    with pytest.raises(ValueError, match="choose one of fit, test"):
        curves.select("train")
    with pytest.raises(ValueError, match="has no split"):
        load_curves(table).select("fit")
    with pytest.raises(ValueError, match="no run is called 'c'"):
        curves.get_rows("c")
    table.loc[0, "part"] = "test"
    with pytest.raises(ValueError, match="run 'a' has several values of part"):
        load_curves(table, split="part")


def test_missing_columns_and_empty_tables_are_named() -> None:
    with pytest.raises(ValueError, match=r"no column 'iteration' for step"):
        load_curves(make_table(), step="iteration")
    with pytest.raises(ValueError, match="no usable row left"):
        load_curves(make_table().assign(loss=-1.0))


def test_schedules_name_the_value_and_the_fix() -> None:
    for lr, message in (
        (np.array([1.0]), "has shape"),
        (np.array([0.0, -1.0]), "lr is -1 at step 1"),
        (np.array([0.0, 0.0]), "0 at every step"),
    ):
        with pytest.raises(ValueError, match=message):
            Schedule(lr)
    with pytest.raises(ValueError, match="peak is 0"):
        Schedule.constant(0.0, 10)
    with pytest.raises(ValueError, match="warmup_steps is 10 of 10"):
        Schedule.constant(1.0, 10, 10)
    with pytest.raises(ValueError, match="shape 'cubic' is unknown"):
        Schedule.wsd(1.0, 10, 1, 2, shape="cubic")
    with pytest.raises(ValueError, match="cooldown_steps is 10"):
        Schedule.wsd(1.0, 10, 1, 10)
    with pytest.raises(ValueError, match="end is 2"):
        Schedule.cosine(1.0, 10, 1, 2.0)
