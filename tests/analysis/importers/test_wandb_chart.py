"""Charts of W&B: every series is a row or has a reason, and nothing is chosen silently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import analysis

CHART = (
    '"Step","d2_w64 - val_loss","d2_w64 - val_loss__MIN","d2_w64 - val_loss__MAX",'
    '"d4_w128 - val_loss","d4_w128 - val_loss__MIN","d4_w128 - val_loss__MAX"\n'
    '"0","5.5","5.5","5.5","5.25","5.25","5.25"\n'
    '"100","4.0","4.0","4.0","3.5","3.5","3.5"\n'
    '"200","4.25","4.25","4.25","","",""\n'
)


def write(folder: Path, text: str, name: str = "chart.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_chart_becomes_one_row_per_run_with_the_fields_of_its_name(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, CHART)
    table = analysis.from_wandb_chart(path, series="d{depth}_w{width}")
    assert table.to_dict("records") == [
        {"run_id": "d2_w64", "step": 200, "val_loss": 4.25, "depth": 2, "width": 64},
        {"run_id": "d4_w128", "step": 100, "val_loss": 3.5, "depth": 4, "width": 128},
    ]
    lowest = analysis.from_wandb_chart(path, keep="lowest")
    assert list(lowest["val_loss"]) == [4.0, 3.5]
    every = analysis.from_wandb_chart(path, keep="all")
    assert list(every["step"]) == [0, 100, 200, 0, 100]
    assert list(every["trunk_id"]) == list(every["run_id"])


def test_a_run_that_diverged_stays_so(tmp_path: Path) -> None:
    path = write(tmp_path, "tokens,a - loss,b - loss\n1e6,3.0,3.0\n2e6,NaN,2.5\n")
    table = analysis.from_wandb_chart(path)
    assert list(table["tokens"]) == [2e6, 2e6]
    assert np.isnan(table["loss"].to_list()[0])
    assert list(analysis.from_wandb_chart(path, keep="lowest")["loss"]) == [3.0, 2.5]
    runs = analysis.load_runs(table.assign(N=1e6))
    assert runs.reasons() == [(0, "loss is missing")]


def test_no_series_is_dropped_without_its_reason(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "Step,w1 - loss,big - loss,w2 - loss,w3 - loss,w3 - loss,w4 - loss\n"
        "1,3.0,3.0,,3.0,3.0,oops\n",
    )
    table = analysis.from_wandb_chart(path, series="w{width}")
    assert list(table["run_id"]) == ["w1", "big", "w2", "w3", "w3", "w4"]
    assert list(table["status"]) == [
        "finished",
        "'big' does not match 'w{width}'",
        "no value of loss",
        "2 series are named 'w3'",
        "2 series are named 'w3'",
        "loss is 'oops', not a number",
    ]
    runs = analysis.load_runs(table, N="width", D="step")
    assert len(runs) == 1
    assert "'big' does not match" in runs.reasons()[0][1]


def test_a_mapping_says_what_a_run_is(tmp_path: Path) -> None:
    path = write(tmp_path, CHART)
    sizes = write(
        tmp_path,
        'run;N;D;lr\nd2_w64;"1.000.000";1e8;0,001\nd9_w9;2.000.000;1e8;0,002\n',
        "sizes.csv",
    )
    table = analysis.from_wandb_chart(path, mapping=sizes)
    assert table["N"].to_list()[0] == 1e6 and table["lr"].to_list()[0] == 0.001
    assert list(table["run_id"]) == ["d2_w64", "d4_w128", "d9_w9"]
    assert list(table["status"]) == [
        "finished",
        "sizes.csv has no run 'd4_w128'",
        "chart.csv has no series 'd9_w9'",
    ]
    runs = analysis.load_runs(table, loss="val_loss")
    assert list(runs.table["N"]) == [1e6]


def test_a_mark_decides_what_a_mapping_says(tmp_path: Path) -> None:
    path = write(tmp_path, CHART)
    sizes = write(tmp_path, 'run,N\nd2_w64,"1,234"\n', "sizes.csv")
    with pytest.raises(ValueError, match=r"sizes\.csv: N is '1,234'.*--thousands"):
        analysis.from_wandb_chart(path, mapping=sizes)
    table = analysis.from_wandb_chart(path, mapping=sizes, thousands=",")
    assert table["N"].to_list()[0] == 1234


def test_two_metrics_are_asked_for_by_name(tmp_path: Path) -> None:
    text = "Step,a - x - loss,a - x - acc,a - x - _step\n1,3.0,0.5,1\n2,2.5,,2\n"
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=r"holds acc and loss; say .*metric='acc'"):
        analysis.from_wandb_chart(path)
    table = analysis.from_wandb_chart(path, metric="loss")
    assert table.to_dict("records") == [{"run_id": "a - x", "step": 2, "loss": 2.5}]
    with pytest.raises(ValueError, match="no metric 'los'; did you mean loss"):
        analysis.from_wandb_chart(path, metric="los")


def test_points_of_several_values_keep_their_range(tmp_path: Path) -> None:
    text = "Step,g - loss,g - loss__MIN,g - loss__MAX\n1,3.0,2.5,3.5\n"
    (row,) = analysis.from_wandb_chart(write(tmp_path, text)).to_dict("records")
    assert (row["loss_min"], row["loss"], row["loss_max"]) == (2.5, 3.0, 3.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"series": "{run_id}"}, "run_id is a column of its own"),
        ({"series": "{a}{b}"}, "two fields follow each other"),
        ({"series": "{a}_{a}"}, "stands there twice"),
        ({"series": "{a"}, "series='{a'"),
        ({"series": "{a.b}"}, "is no field"),
        ({"series": "x"}, "has no field"),
        ({"series": "{val_loss}_{b}"}, "nothing can be used"),
        ({"series": "d{val_loss}_w{width}"}, "both a column of the chart and a field"),
        ({"keep": "best"}, "keep='best'"),
        ({"series": "{a}", "mapping": "b"}, "give one of them"),
    ],
)
def test_a_wrong_argument_is_an_error_that_names_it(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        analysis.from_wandb_chart(write(tmp_path, CHART), **options)


@pytest.mark.parametrize("text", ["", "N,D,loss\n1,2,3\n", "Step\n1\n"])
def test_another_table_is_no_chart(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="is no chart of W&B"):
        analysis.from_wandb_chart(write(tmp_path, text))
    with pytest.raises(FileNotFoundError, match="the CSV that W&B exported"):
        analysis.from_wandb_chart(tmp_path / "absent.csv")


@pytest.mark.parametrize("header", ["status,a - loss", "loss,a - loss"])
def test_columns_that_are_called_alike_are_an_error(
    tmp_path: Path, header: str
) -> None:
    path = write(tmp_path, f"{header}\n1,3.0\n")
    with pytest.raises(ValueError, match="names a column of the chart and another one"):
        analysis.from_wandb_chart(path)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ("model,N\na,1\n", "one column must be called run"),
        ("run,N\na,1\na,2\n", "run 'a' stands there twice"),
        ("run,step\na,1\n", "step is a column of the chart's table"),
    ],
)
def test_a_wrong_mapping_is_an_error(tmp_path: Path, sizes: str, message: str) -> None:
    path = write(tmp_path, CHART)
    with pytest.raises(ValueError, match=message):
        analysis.from_wandb_chart(path, mapping=write(tmp_path, sizes, "sizes.csv"))
