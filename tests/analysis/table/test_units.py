"""What the caller says of a foreign table: units, weights, further variables. Nothing
is guessed.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.table.runs import Runs, load_runs


def _load(units: dict[str, str] | None = None, **columns: list) -> Runs:
    """Three runs with `columns` in place of the usual ones."""
    frame = pd.DataFrame(
        {"N": [1e6, 2e6, 4e6], "D": [1e8, 1e8, 2e8], "loss": [3.0, 2.9, 2.8], **columns}
    )
    return load_runs(frame, units=units)


@pytest.mark.parametrize(
    ("name", "unit", "factor"),
    [
        ("N", "ones", 1.0),
        ("N", "thousands", 1e3),
        ("N", "millions", 1e6),
        ("D", "billions", 1e9),
        ("D", "trillions", 1e12),
        ("C", "flops", 1.0),
        ("C", "petaflops", 1e15),
        ("C", "exaflops", 1e18),
        ("C", "zettaflops", 1e21),
        ("C", "petaflop_days", 8.64e19),
        ("budget", "petaflop_days", 8.64e19),
        ("loss", "nats", 1.0),
        ("loss", "bits", np.log(2)),
    ],
)
def test_a_unit_multiplies_the_column_and_is_recorded(
    name: str, unit: str, factor: float
) -> None:
    raw = [3.0, 2.9, 2.8]
    runs = _load({name: unit}, **{name: raw})
    assert runs.table[name].to_numpy() == pytest.approx(
        np.array(raw) * factor, rel=1e-15
    )
    assert runs.columns[name] == f"{name} [{unit}]"
    assert runs.units == {name: unit}


def test_what_is_computed_follows_from_converted_numbers() -> None:
    runs = _load(
        {"N": "millions", "D": "billions"}, N=[1.0, 2.0, 4.0], D=[0.1, 0.1, 0.2]
    )
    assert runs.table["C"].to_numpy() == pytest.approx([6e14, 1.2e15, 4.8e15])
    assert runs.columns["C"] == "6*N*D"


def test_perplexity_and_its_standard_error_become_nats() -> None:
    runs = _load(
        {"loss": "perplexity"}, loss=[20.0, 10.0, 0.5], loss_se=[0.2, np.nan, 0.1]
    )
    assert runs.table["loss"].to_numpy() == pytest.approx([np.log(20), np.log(10)])
    assert runs.table["loss_se"].iloc[0] == pytest.approx(0.01)
    assert runs.reasons() == [(2, "loss is 0.5 perplexity, which is -0.693147")]
    bits = _load({"loss": "bits"}, loss_se=[0.1, 0.1, 0.1])
    assert bits.table["loss_se"].iloc[0] == pytest.approx(0.1 * np.log(2))


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"N": "milions"}, r"N='milions' is no unit of N; did you mean millions"),
        ({"C": "petaflop_day"}, r"'C' is no column that was read"),
        (
            {"loss": "bans"},
            r"loss='bans' is no unit of loss; use one of: nats, bits, perplexity|did "
            r"you mean",
        ),
        ({"los": "bits"}, r"'los' is no column that was read; did you mean loss"),
        ({"n": "millions"}, r"'n' is no column that was read; did you mean N"),
        ({"loss_se": "bits"}, r"loss_se is in the unit of the loss"),
        ({"D": "flops"}, r"D='flops' is no unit of D"),
    ],
)
def test_an_unknown_unit_or_name_is_an_error_that_names_the_nearest(
    units: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _load(units)


def test_small_numbers_are_warned_about_and_left_alone() -> None:
    small = _load(N=[70.0, 160.0, 410.0], D=[1.0, 2.0, 3.0])
    assert list(small.table["N"]) == [70.0, 160.0, 410.0]
    assert [note[:40] for note in small.notes] == [
        "N looks as if it were in millions or bil",
        "D looks as if it were in millions or bil",
    ]
    assert "units={'N': 'millions'}" in small.notes[0]
    assert (
        _load(
            {"N": "ones", "D": "ones"}, N=[70.0, 160.0, 410.0], D=[1.0, 2.0, 3.0]
        ).notes
        == ()
    )
    assert _load().notes == ()


def test_a_weight_is_read_only_by_name_and_must_be_positive() -> None:
    frame = pd.DataFrame(
        {"N": [1e6] * 5, "D": [1e8] * 5, "loss": [3.0, 2.9, 2.8, 2.7, 2.6]}
    )
    frame["w"] = [1.0, 0.0, np.inf, np.nan, 2.0]
    runs = load_runs(frame, weight="w")
    assert list(runs.table["weight"]) == [1.0, 2.0]
    assert runs.columns["weight"] == "w"
    assert runs.reasons() == [
        (1, "w is 0; it must be positive"),
        (2, "w is infinite"),
        (3, "w is missing"),
    ]
    plain = load_runs(frame.rename(columns={"w": "weight"}))
    assert "weight" not in plain.columns
    assert len(plain) == 5


def test_further_variables_are_columns_under_their_own_names() -> None:
    frame = pd.DataFrame({"N": [1e6] * 3, "D": [1e8] * 3, "loss": [3.0, 2.9, 2.8]})
    frame = frame.assign(
        unique_tokens=[1e7, 1e8, -1.0],
        precision=["16", "eight", "4"],
        U=["a", "b", "c"],
    )
    runs = load_runs(frame, U="unique_tokens", bits="precision", S=None)
    assert list(runs.table["U"]) == [1e7]
    assert list(runs.table["bits"]) == [16.0]
    assert list(runs.columns) == ["N", "D", "C", "loss", "U", "bits"]
    assert runs.columns["U"] == "unique_tokens"
    assert runs.reasons() == [
        (1, "precision is 'eight', not a number"),
        (2, "unique_tokens is -1; it must be positive"),
    ]
    assert "U" not in load_runs(frame).columns
    millions = load_runs(frame, U="unique_tokens", units={"U": "millions"})
    assert list(millions.table["U"]) == [1e13, 1e14]
    with pytest.raises(
        ValueError, match=r"no column 'uniq_tokens'.*nearest columns: unique_tokens"
    ):
        load_runs(frame, U="uniq_tokens")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("status", "rows are judged"),
        ("n", "did you mean N="),
        ("trunks", "did you mean trunk="),
        ("Unit", "units="),
    ],
)
def test_a_variable_named_as_by_a_slip_is_an_error(name: str, message: str) -> None:
    frame = pd.DataFrame({"N": [1e6], "D": [1e8], "loss": [3.0]})
    with pytest.raises(ValueError, match=message):
        load_runs(frame, **{name: "N"})


def test_the_response_may_be_another_than_a_loss() -> None:
    frame = pd.DataFrame({"N": [1e6], "D": [1e8], "top1_error": [0.4], "loss": [3.0]})
    runs = load_runs(frame, loss="top1_error")
    assert list(runs.table["loss"]) == [0.4]
    assert runs.columns["loss"] == "top1_error"
