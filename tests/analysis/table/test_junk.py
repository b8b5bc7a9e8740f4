"""Whatever a table holds, `load_runs` either accepts finite positive rows or says what
is wrong.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.table.runs import Runs, load_runs

TEXT_NAMES = (
    "trunk",
    "seed",
    "run_id",
    "status",
    "diverged",
    "undercooled",
    "schedule",
    "vocab",
    "State",
)
NUMBER_NAMES = (
    "N",
    "D",
    "C",
    "loss",
    "loss_se",
    "budget",
    "w",
    "u",
    "warmup_tokens",
    "cooldown_fraction",
)
NAMES = (*NUMBER_NAMES, *TEXT_NAMES, "source_row", "row", "reason", 7)
GOOD = st.floats(1e-3, 1e12)
CELLS = st.one_of(
    GOOD,
    GOOD,
    GOOD,
    st.sampled_from(
        [
            0,
            -1,
            True,
            np.nan,
            np.inf,
            None,
            pd.NA,
            pd.NaT,
            "",
            "1e9",
            "nan",
            "finished",
            b"1",
            1j,
            10**400,
        ]
    ),
    st.floats(),
    st.integers(-(2**70), 2**70),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.datetimes(),
)
DTYPES = st.sampled_from(
    [
        None,
        None,
        None,
        "object",
        "string",
        "category",
        "Float64",
        "Int64",
        "float32",
        "bool",
    ]
)
UNITS = {
    "N": "millions",
    "D": "billions",
    "C": "petaflop_days",
    "loss": "perplexity",
    "U": "thousands",
}


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    """A table of up to 6 rows, mostly with N, D and loss; at times two columns have one
    name, or there is no row.
    """
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=12))
    if draw(st.integers(0, 5)):
        names = [*dict.fromkeys((*names, "N", "D", "loss"))]
    if not draw(st.integers(0, 9)):
        names = names + names[:1]
    rows = draw(st.sampled_from([0, 1, 2, 3, 4, 6]))
    return pd.DataFrame(
        {i: _column(draw, name, rows) for i, name in enumerate(names)}
    ).set_axis(names, axis=1)


def _column(draw: st.DrawFn, name: str | int, rows: int) -> pd.Series:
    usual = {"status": st.just("finished"), "diverged": st.just(False)}.get(
        str(name), GOOD
    )
    start = draw(st.lists(usual, min_size=rows, max_size=rows))
    junk = draw(st.lists(CELLS, max_size=draw(st.sampled_from([0, 1, rows]))))
    column = pd.Series([*junk, *start][:rows], dtype=object)
    try:
        return column.astype(draw(DTYPES) or object)
    except (TypeError, ValueError, OverflowError, RuntimeWarning):
        return column


def _check(runs: Runs) -> None:
    for name in (set(runs.columns) | {"N", "D", "C", "loss"}) & set(
        runs.table.columns
    ) - {"trunk", "seed", "budget"}:
        values = runs.table[name].to_numpy(float)
        known = values[~np.isnan(values)] if name == "loss_se" else values
        assert np.all((known > 0) & np.isfinite(known)), name
    assert len(runs) > 0
    str(runs)


@settings(deadline=None, max_examples=60)
@given(table=tables(), data=st.data())
def test_junk_is_refused_with_a_reason_and_never_breaks(
    table: pd.DataFrame, data: st.DataObject
) -> None:
    before = table.copy(deep=True)
    present = [
        name for name in ("w", "u", "N", "loss", "run_id") if name in table.columns
    ] or ["none"]
    named = data.draw(
        st.dictionaries(
            st.sampled_from(["weight", "U", "trunk"]), st.sampled_from(present)
        )
    )
    units = (
        {n: u for n, u in UNITS.items() if n in table.columns or n in named}
        if data.draw(st.booleans())
        else {}
    )
    try:
        runs = load_runs(table, units=units, **named)
    except (ValueError, FileNotFoundError) as error:
        assert str(error)
    else:
        _check(runs)
        assert len(runs) + len(runs.rejected) == len(table)
    pd.testing.assert_frame_equal(table, before)


@settings(deadline=None, max_examples=40)
@given(
    data=st.one_of(
        st.binary(max_size=60),
        st.text(alphabet="N,Dlos\n\"019.e-{}[]: ", max_size=80).map(lambda t: ("N,D,loss\n" + t).encode()),
    ),
    suffix=st.sampled_from([".csv", ".jsonl", ".parquet"]),
)  # fmt: skip
def test_junk_in_a_file_is_an_error_that_names_it(
    tmp_path_factory, data: bytes, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("junk") / f"runs{suffix}"
    path.write_bytes(data)
    try:
        _check(load_runs(path))
    except ValueError as error:
        assert path.name in str(error)


def test_fields_without_a_column_are_an_error_not_a_shift(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("N,D,loss\n1e6,1e8,3.0,\n2e6,1e8,2.9,\n")
    with pytest.raises(
        ValueError,
        match=r"a\.csv: its lines hold more fields than its first line names columns",
    ):
        load_runs(tmp_path / "a.csv")


def test_ids_of_a_csv_stay_text(tmp_path) -> None:
    (tmp_path / "a.csv").write_text(
        "N,D,loss,who,run_id\n1e6,1e8,3.0,1e5,007\n2e6,1e8,2.9,100000,2e999\n"
    )
    runs = load_runs(tmp_path / "a.csv", trunk="who")
    assert list(runs.table["trunk"]) == ["1e5", "100000"]
    assert list(runs.table["run_id"]) == ["007", "2e999"]
