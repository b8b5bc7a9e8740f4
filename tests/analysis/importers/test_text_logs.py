"""Text logs: each format reads its own lines, and a long log needs little memory."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import pytest

import analysis
from analysis.importers.text_logs import LOG_FORMATS


@pytest.mark.parametrize("name", LOG_FORMATS)
def test_each_pattern_reads_its_own_sample_and_no_other(name: str) -> None:
    found = LOG_FORMATS[name]
    assert len(found.patterns) == len(found.samples)
    metrics: set[str] = set()
    for i, pattern in enumerate(found.patterns):
        matches = [re.search(pattern, sample) for sample in found.samples]
        assert [match is not None for match in matches] == [
            j == i for j in range(len(matches))
        ]
        match = matches[i]
        assert match is not None
        assert match["step"].isdigit()
        metrics |= set(match.groupdict()) - {"step", "samples", "lr"}
    assert metrics == set(found.metrics)


EXPECTED = {
    "nanogpt": [
        {"step": 100, "loss": 3.2104},
        {"step": 500, "train_loss": 2.9871, "val_loss": 3.0012},
    ],
    "nanochat": [{"step": 10, "loss": 9.123456}, {"step": 250, "val_bpb": 1.2345}],
    "megatron": [
        {"step": 100, "samples": 25600, "lr": 1.5e-4, "loss": 6.54321},
        {"step": 1000, "val_loss": 3.123456},
    ],
    "torchtitan": [{"step": 10, "loss": 7.1234, "val_loss": 7.1021}],
}


@pytest.mark.parametrize("name", LOG_FORMATS)
def test_a_format_gives_its_numbers(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run_w64.log"
    lines = [f"\x1b[32m{line}\x1b[0m" for line in LOG_FORMATS[name].samples]
    path.write_text("\n".join(["launching", *lines, "done"]))
    table = analysis.from_text_log(path, name, names="run_w{width}", keep="all")
    assert set(table["width"]) == {64}
    assert set(table["trunk_id"]) == {"run_w64"}
    rows = table.drop(columns=["run_id", "trunk_id", "width"]).to_dict("records")
    known = [{k: v for k, v in row.items() if v == v} for row in rows]
    assert known == EXPECTED[name]


def test_a_folder_of_logs_is_a_row_each(tmp_path: Path) -> None:
    for width, loss in ((64, 3.5), (128, 3.0)):
        (tmp_path / f"w{width}.log").write_text(
            f"step 0: train loss 9.0, val loss 2.0\nstep 10: train loss {loss}, val "
            f"loss {loss}\niter 11: loss nan, time 1ms\n"
        )
    (tmp_path / "notes.txt").write_text("nothing\n")
    options = {"names": "w{width}", "metric": "val_loss"}
    table = analysis.from_text_log(tmp_path, "nanogpt", **options)
    assert list(table["run_id"]) == ["notes", "w128", "w64"]
    assert list(table["val_loss"][1:]) == [3.0, 3.5]
    assert table["status"].to_list()[0] == "'notes' does not match 'w{width}'"
    plain = analysis.from_text_log(tmp_path, "nanogpt", metric="val_loss")
    assert plain["status"].to_list()[0] == "no line of notes.txt is of the format"
    (tmp_path / "w256.log").write_text("")
    empty = analysis.from_text_log(tmp_path, "nanogpt", **options)
    assert empty.set_index("run_id").loc["w256", "width"] == 256
    (tmp_path / "w256.log").unlink()
    lowest = analysis.from_text_log(
        tmp_path, "nanogpt", metric="val_loss", keep="lowest"
    )
    assert list(lowest["step"][1:]) == [0, 0]
    with pytest.raises(ValueError, match=r"it has loss and train_loss and val_loss"):
        analysis.from_text_log(tmp_path, "nanogpt")


def test_the_test_set_is_no_validation_set(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    lines = [
        f" validation loss at iteration {text} | lm loss value: {loss}E+00 | lm loss PPL"
        for text, loss in [
            ("5", 3.5),
            ("9 on validation set", 3.0),
            ("9 on test set", 2),
        ]
    ]
    path.write_text("\n".join(lines))
    table = analysis.from_text_log(path, "megatron", keep="all")
    assert list(table["val_loss"]) == [3.5, 3.0]


def test_a_number_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    whole = "step 1: train loss 4.0, val loss 4.5\n"
    path.write_text(whole + "step 2: train loss 3.0, val loss 3.1")
    (row,) = analysis.from_text_log(path, "nanogpt", metric="val_loss").to_dict(
        "records"
    )
    assert (row["step"], row["val_loss"]) == (1, 4.5)
    path.write_text(whole + "step 2: train loss 3.0, val loss 3,1\n")
    (row,) = analysis.from_text_log(path, "nanogpt", metric="val_loss").to_dict(
        "records"
    )
    assert row["step"] == 1
    path.write_text("loss 3.5 \n")
    (row,) = analysis.from_text_log(path, r"loss (?P<loss>\S+)\s*$").to_dict("records")
    assert row["loss"] == 3.5


def test_a_regular_expression_is_a_format(tmp_path: Path) -> None:
    path = tmp_path / "a.out"
    path.write_text("at 1,000 tokens: 3.5\nat 2,000 tokens: 3.25\nat 3,000 tokens: 3.")
    pattern = r"at (?P<tokens>[0-9,]+) tokens: (?P<nll>[0-9]\.[0-9]+)"
    (row,) = analysis.from_text_log(path, pattern).to_dict("records")
    assert row == {"run_id": "a", "tokens": 2000, "nll": 3.25}
    table = analysis.from_text_log(path, pattern, keep="all")
    assert list(table["tokens"]) == [1000, 2000]


def test_a_step_that_was_printed_twice_counts_as_printed_last(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(
        "".join(f"iter {i}: loss {x}\n" for i, x in [(1, 4), (2, 3), (1, 5)])
    )
    table = analysis.from_text_log(path, "nanogpt", keep="all").sort_values("step")
    assert list(table["loss"]) == [5, 3]


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("nanogtp", {}, "did you mean nanogpt"),
        ("(?P<loss>", {}, "is no regular expression"),
        ("(?P<step>x)", {}, "names no loss"),
        ("(?P<status>x)", {}, "status is a column of its own"),
        ("nanogpt", {"metric": "los"}, "did you mean loss"),
        ("nanogpt", {"keep": "first"}, "keep='first'"),
    ],
)
def test_a_wrong_argument_is_an_error_that_names_it(
    tmp_path: Path, format: str, options: dict[str, str], message: str
) -> None:
    (tmp_path / "a.log").write_text("iter 1: loss 3\n")
    with pytest.raises(ValueError, match=message):
        analysis.from_text_log(tmp_path / "a.log", format, **options)
    with pytest.raises(FileNotFoundError, match="a folder of logs"):
        analysis.from_text_log(tmp_path / "absent", "nanogpt")


@pytest.mark.parametrize("chatter", ["x" * 1_000_000, "a line of chatter\n" * 50_000])
def test_a_long_log_needs_little_memory(tmp_path: Path, chatter: str) -> None:
    path = tmp_path / "long.log"
    with path.open("w") as file:
        for i in range(5_000):
            file.write(f"iter {i}: loss 3.5, time 1ms\n")
        file.write(chatter)
    tracemalloc.start()
    table = analysis.from_text_log(path, "nanogpt")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert list(table["step"]) == [4_999]
    assert peak < path.stat().st_size / 4
