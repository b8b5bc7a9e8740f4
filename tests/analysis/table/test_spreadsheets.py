"""Tables as spreadsheets write them: what is unambiguous is read and said, what is not
is an error, and what programs write is read as it stands.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from analysis.table.number_marks import read_number
from analysis.table.runs import Runs, load_runs


def load_text(
    folder: Path, text: str, name: str = "runs.csv", encoding: str = "utf-8", **options
) -> Runs:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return load_runs(path, **options)


@pytest.mark.parametrize(
    ("text", "decimal", "number"),
    [
        ("1,234", ".", 1234.0),
        ("1,234", ",", 1.234),
        ("1.234.567,5", ",", 1234567.5),
        ("1.234.567,5", ".", None),
        ("1 000 000", ".", 1e6),
        ("1\N{NARROW NO-BREAK SPACE}000", ",", 1000.0),
        ("1'000'000.5", ".", 1000000.5),
        ("0,125", ".", None),
        ("0,125", ",", 0.125),
        ("1,23,456", ".", None),
        ("12,34", ".", None),
        ("3,2e5", ",", 3.2e5),
        ("1,234e5", ".", None),
        ("1,000 000", ".", None),
        ("\N{MINUS SIGN}5", ".", -5.0),
        ("45 %", ".", 0.45),
        ("1e9", ".", 1e9),
        ("5,", ",", None),
        (",5", ",", None),
        ("", ".", None),
        ("%", ".", None),
        ("2,4,8", ",", None),
        ("many", ",", None),
    ],
)
def test_a_text_is_a_number_under_a_mark_or_none(
    text: str, decimal: str, number: float | None
) -> None:
    assert read_number(text, decimal) == number


@pytest.mark.parametrize(
    ("name", "separator", "shown"),
    [
        ("runs.csv", ";", "';'"),
        ("runs.csv", "\t", "tab"),
        ("runs.tsv", "\t", "tab"),
        ("runs.txt", ";", "';'"),
    ],
)
def test_separators_and_decimal_commas_are_found_and_said(
    tmp_path: Path, name: str, separator: str, shown: str
) -> None:
    lines = ["N;D;loss;lr", "1000000;1,5e8;3,21;0,001", "2000000;2e8;3,0;0,002"]
    text = "\n".join(lines).replace(";", separator)
    runs = load_text(tmp_path, text, name)
    assert list(runs.table["loss"]) == [3.21, 3.0]
    assert list(runs.table["D"]) == [1.5e8, 2e8]
    # The mark of the file explains a column that was not asked for.
    assert list(runs.table["lr"]) == [0.001, 0.002]
    assert runs.notes[:2] == (
        f"columns are separated by {shown}",
        "numbers were read as written: D: '1,5e8' is 150000000; loss: '3,21' is 3.21",
    )


@pytest.mark.parametrize(
    "written", ["100,000,000", "100 000 000", "100.000.000", "100'000'000"]
)
def test_grouped_thousands_are_numbers(tmp_path: Path, written: str) -> None:
    text = f'N,D,loss\n"{written}",1e9,3.25\n2000000,1e9,3.5\n'
    runs = load_text(tmp_path, text)
    assert list(runs.table["N"]) == [1e8, 2e6]
    assert runs.notes == (
        f"numbers were read as written: N: {written!r} is 100000000",
        *runs.notes[1:],
    )


@pytest.mark.parametrize(
    ("text", "cell", "mark"),
    [
        ('N,D,loss\n"1,234",1e9,3.2\n"2,345",1e9,3.1\n', "1,234", ","),
        ("N;D;loss\n1000000;1e9;3,125\n", "3,125", ","),
        ("N;D;loss\n1000000;1e9;3.125\n", "3.125", "."),
        ('N,D,loss\n1.234,1e9,"3,2"\n2.345,1e9,"3,1"\n', "1.234", "."),
    ],
)
def test_what_could_be_two_numbers_is_an_error_that_names_the_option(
    tmp_path: Path, text: str, cell: str, mark: str
) -> None:
    with pytest.raises(ValueError, match=r"runs\.csv: (N|loss) is") as error:
        load_text(tmp_path, text)
    assert repr(cell) in str(error.value)
    assert f"thousands={mark!r} or decimal={mark!r}" in str(error.value)


def test_options_decide(tmp_path: Path) -> None:
    text = 'N,D,loss\n"1,234",1e9,3\n"2,345",1e9,2\n'
    assert list(load_text(tmp_path, text, thousands=",").table["N"]) == [1234, 2345]
    assert list(load_text(tmp_path, text, decimal=".").table["N"]) == [1234, 2345]
    assert list(load_text(tmp_path, text, decimal=",").table["N"]) == [1.234, 2.345]
    text = "N|D|loss\n1e6|1e9|3.125\n"
    assert len(load_text(tmp_path, text, separator="|", decimal=".")) == 1
    tabs = text.replace("|", "\t")
    assert len(load_text(tmp_path, tabs, separator="tab", decimal=".")) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decimal": ";"}, "decimal=';' is no decimal mark; give"),
        ({"thousands": "x"}, "thousands='x' separates no thousands"),
        ({"decimal": ",", "thousands": ","}, "are one mark"),
        ({"separator": ",,"}, "separator=',,' separates no columns"),
        ({"separator": "1"}, "separator='1' separates no columns"),
        ({"decimal": ","}, r"loss is '3\.25', which is no number with decimal=','"),
        ({"decimals": ","}, "did you mean decimal="),
    ],
)
def test_an_option_that_cannot_be_is_an_error(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_text(tmp_path, "N,D,loss\n1e6,1e9,3.25\n", **options)


def test_options_of_text_files_are_for_text_files() -> None:
    frame = pd.DataFrame({"N": [1e6], "D": [1e9], "loss": [3.0]})
    with pytest.raises(ValueError, match=r"decimal=',': DataFrame is no \.csv"):
        load_runs(frame, decimal=",")


def test_an_ambiguous_cell_beside_plain_numbers_costs_its_row(tmp_path: Path) -> None:
    runs = load_text(tmp_path, 'N,D,loss\n"1,234",1e9,3.2\n5000,1e9,3.1\n')
    assert list(runs.table["N"]) == [5000]
    assert runs.reasons() == [(0, "N is '1,234', not a number")]
    assert "1234 or 1.234" in runs.notes[0]
    assert "--decimal" in runs.notes[0]


def test_percentages_are_shares(tmp_path: Path) -> None:
    runs = load_text(tmp_path, "N,D,error\n1e6,1e9,45%\n2e6,1e9,43.5 %\n", loss="error")
    assert list(runs.table["loss"]) == [0.45, 0.435]
    assert "error: '45%' is 0.45" in runs.notes[0]
    mixed = load_text(tmp_path, "N,D,error\n1e6,1e9,45%\n2e6,1e9,0.435\n", loss="error")
    assert mixed.reasons() == [(0, "error is '45%', not a number")]


@pytest.mark.parametrize(
    ("header", "canonical", "unit"),
    [
        ("Params (M)", "N", "millions"),
        ("Params [1e6]", "N", "millions"),
        ("Params (M params)", "N", "millions"),
        ("Tokens [B]", "D", "billions"),
        ("Tokens (billions of tokens)", "D", "billions"),
        ("Tokens (tokens)", "D", "ones"),
        ("Loss (nats per token)", "loss", "nats"),
        ("Compute (PFLOP-days)", "C", "petaflop_days"),
        ("Compute [EFLOPs]", "C", "exaflops"),
        ("Compute (GFLOPs)", "C", "gigaflops"),
        ("Loss (nats/token)", "loss", "nats"),
        ("Loss [bits]", "loss", "bits"),
        ("Val (ppl)", "loss", "perplexity"),
    ],
)
def test_a_unit_in_a_header_is_used_and_said(
    tmp_path: Path, header: str, canonical: str, unit: str
) -> None:
    text = f"{header},x\n4,1\n5,1\n"
    runs = load_text(tmp_path, text, **{canonical: header})
    frame = pd.DataFrame({header: [4, 5], "x": [1, 1]})
    stated = load_runs(frame, units={canonical: unit}, **{canonical: header})
    assert list(runs.table[canonical]) == list(stated.table[canonical])
    assert runs.units == {canonical: unit}
    assert f"{header} is in {unit}, as its header says" in runs.notes
    # The name without its unit is enough, and the same unit may be stated.
    short = header.split(" ")[0]
    same = load_text(tmp_path, text, units={canonical: unit}, **{canonical: short})
    assert list(same.table[canonical]) == list(runs.table[canonical])


@pytest.mark.parametrize(
    "header",
    [
        "Params (total)",
        "Params (1)",
        "Params (m)",
        "Loss (bits/byte)",
        "FLOPs (TFLOP/s)",
    ],
)
def test_what_is_no_unit_is_part_of_the_name(tmp_path: Path, header: str) -> None:
    for canonical in ("N", "C", "loss"):
        runs = load_text(tmp_path, f"{header},x\n4,1\n", **{canonical: header})
        assert runs.units == {}
        assert list(runs.table[canonical]) == [4.0]


def test_a_stated_unit_that_differs_is_an_error_that_names_both(tmp_path: Path) -> None:
    text = "Params (M),loss\n70,3\n"
    with pytest.raises(
        ValueError, match=r"N='billions', but the header of 'Params \(M\)' says 'M'"
    ):
        load_text(tmp_path, text, N="Params (M)", units={"N": "billions"})
    text = "loss (bits),se (nats)\n3,0.1\n"
    with pytest.raises(ValueError, match=r"'se \(nats\)' is in nats and the loss in b"):
        load_text(tmp_path, text, loss="loss (bits)", loss_se="se (nats)")


def test_a_row_of_units_is_no_run(tmp_path: Path) -> None:
    text = "run,Params,Tokens,Loss\n,M,B,nats\na,70,1.5,3.2\nb,160,2.5,3.1\n"
    names = {"N": "Params", "D": "Tokens", "loss": "Loss"}
    runs = load_text(tmp_path, text, **names)
    assert list(runs.table["N"]) == [7e7, 1.6e8]
    assert runs.columns["D"] == "Tokens [billions]"
    # Rows keep the numbers that they have in the file.
    assert list(runs.table["source_row"]) == [1, 2]
    assert "row 0 holds units: Params M, Tokens B, Loss nats" in runs.notes
    with pytest.raises(ValueError, match="N='ones', but the header of 'Params' says"):
        load_text(tmp_path, text, units={"N": "ones"}, **names)
    both = text.replace("Params", "Params (B)")
    with pytest.raises(ValueError, match=r"its name says 'B' and the row below says"):
        load_text(tmp_path, both, N="Params (B)")


def test_a_header_of_two_lines_is_joined(tmp_path: Path) -> None:
    text = (
        "Model,,Data,,Result\n"
        'Name,"Params\n(M)",Name,Tokens (B),\n'
        "a,70,x,1.5,3.2\nb,160,x,2.5,3.1\n"
    )
    runs = load_text(tmp_path, text, N="Params\n(M)", D="Tokens (B)", loss="Result")
    assert list(runs.table["N"]) == [7e7, 1.6e8]
    assert list(runs.table["Model Name"]) == ["a", "b"]
    assert list(runs.table["Data Name"]) == ["x", "x"]
    assert list(runs.table["loss"]) == [3.2, 3.1]
    assert "the header has two lines, of which the first groups columns" in runs.notes


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom"]
)
def test_byte_order_marks_are_read(tmp_path: Path, encoding: str) -> None:
    text = "N,D,loss,größe\n1e6,1e9,3.25,ä\n"
    if encoding.endswith("-bom"):
        text = "\ufeff" + text
        encoding = encoding.removesuffix("-bom")
    runs = load_text(tmp_path, text, encoding=encoding)
    assert list(runs.table["größe"]) == ["ä"]
    assert ("the file is UTF-16" in runs.notes) == encoding.startswith("utf-16")


def test_the_separator_line_of_excel_is_obeyed(tmp_path: Path) -> None:
    runs = load_text(tmp_path, "sep=;\r\nN;D;loss\r\n1e6;2e8;3,5\r\n")
    assert list(runs.table["loss"]) == [3.5]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("N D loss\n1 2 3\n", "a.txt", r"a\.txt: neither .* say separator="),
        ("a;b,c\n1;2,3\n", "a.txt", r"a\.txt: , and ; each fit|; and , each fit"),
        ("größe,N\n1,2\n", "a.csv", r"a\.csv is not a readable .*save it as UTF-8"),
    ],
)
def test_a_file_whose_layout_is_unclear_is_an_error(
    tmp_path: Path, text: str, name: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_text(tmp_path, text, name, encoding="latin-1", N="N")


@pytest.mark.parametrize(
    "text",
    [
        "N,D,loss\n1.234,2.345,3.456\n1.234,2.345,3.125\n",
        "N,D,loss,gpus,note\n1e6,1e8,3.0,\"0,1\",\"3,25\"\n2e6,1e8,2.9,\"2,3\",x;y\n",
        ",N,D,loss\n0,1e6,1e8,3.0\n1,2e6,1e8,2.9\n",
        "N,D,loss\n1e6,1e8,3.0\n2e6,1e8\n\n4e6,1e8,n/a\n",
        "N,D,loss,,\n1e6,1e8,3.0,,\n2e6,1e8,inf,,\n",
        "N,D,loss\n1e6,1e8,3.0\n2e6,1e8,many\n4e6,1e8,\"1,2\"\n4e6,1e8,2.5\n",
        "run;id,N,D,loss\na;b,1e6,1e8,3.0\na;c,2e6,1e8,2.9\n",
        "\ufeffN,D,loss\n1e6,1e8,3.0\n",
        "N,D,loss\r1e6,1e8,3.0\r2e6,1e8,2.9\r",
        "N,D,loss,unit\n1e6,1e8,3.0,M\n2e6,1e8,2.9,B\n",
        'N,D,loss\n"1000000"," 1e8 ",3.0\n',
        "N,D\n1e6,1e9\n2e6,1e9\n",
        "N,D,seed\n1e6,1e9,1\n2e6,1e9,1\n",
        ",state,N\na,crashed,\nb,finished,1e6\n",
        "state,N,,\ncrashed,,,\nfinished,1e6,,\n",
        "Params (M),N,D,loss\n70,7e7,1e9,3.0\n",
    ],
)  # fmt: skip
def test_what_programs_write_is_read_as_pandas_reads_it(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text, encoding="utf-8", newline="")
    from_file = load_runs(path)
    from_frame = load_runs(pd.read_csv(path, low_memory=False))
    pd.testing.assert_frame_equal(from_file.table, from_frame.table)
    pd.testing.assert_frame_equal(from_file.rejected, from_frame.rejected)
    assert from_file.columns == from_frame.columns
    assert set(from_frame.notes) <= set(from_file.notes)


@settings(deadline=None, max_examples=100)
@given(
    rows=st.lists(
        st.tuples(
            st.floats(1e-3, 1e15),
            st.floats(1e-3, 1e4),
            st.text(alphabet="aM1,;.\t\n \"'%B", max_size=6),
        ),
        min_size=1,
        max_size=5,
    ),
    note=st.sampled_from(["note", "note (M)", "a;b", "a,b", "", "M"]),
    decimals=st.sampled_from([None, 3]),
    index=st.booleans(),
)
def test_what_pandas_writes_is_read_as_pandas_reads_it(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[float, float, str]],
    note: str,
    decimals: int | None,
    index: bool,
) -> None:
    frame = pd.DataFrame(rows, columns=pd.Index(["N", "loss", note]))
    if decimals is not None:
        frame = frame.round(decimals)
    path = tmp_path_factory.mktemp("plain") / "runs.csv"
    frame.to_csv(path, index=index)
    try:
        expected = load_runs(pd.read_csv(path, low_memory=False))
    except ValueError:
        return
    found = load_runs(path)
    pd.testing.assert_frame_equal(found.table, expected.table)
    pd.testing.assert_frame_equal(found.rejected, expected.rejected)
    assert found.columns == expected.columns
    assert found.notes == expected.notes


def write_number(value: float, decimals: int, decimal: str, thousands: str) -> str:
    text = f"{value:,.{decimals}f}"
    return text.translate(str.maketrans({",": thousands, ".": decimal}))


@settings(deadline=None, max_examples=150)
@given(
    values=st.lists(
        st.tuples(st.integers(1, 10**12), st.floats(0.5, 5000)), min_size=1, max_size=4
    ),
    decimals=st.integers(0, 5),
    separator=st.sampled_from(",;\t"),
    marks=st.sampled_from([".,", ",.", ". ", ", ", ".'", ",'", (".", ""), (",", "")]),
)
def test_no_number_is_read_wrong(
    tmp_path_factory: pytest.TempPathFactory,
    values: list[tuple[int, float]],
    decimals: int,
    separator: str,
    marks: tuple[str, str],
) -> None:
    """Whatever the style, a file gives the numbers that were written, or an error, or
    a rejected row; except where a program would have written other ones so.
    """
    decimal, thousands = marks
    lines = ["N|loss"]
    for size, loss in values:
        written = write_number(loss, decimals, decimal, thousands)
        lines.append(f"{write_number(size, 0, decimal, thousands)}|{written}")
    cells = ['"' + line.replace("|", f'"{separator}"') + '"' for line in lines]
    # "1.234" in a file with commas is 1.234, as it always was.
    is_program_style = separator == "," and thousands == "."
    assume(not is_program_style)
    path = tmp_path_factory.mktemp("styles") / "runs.csv"
    path.write_text("\n".join(cells))
    try:
        runs = load_runs(path)
    except ValueError as error:
        assert "runs.csv" in str(error)
        return
    for row, N, loss in zip(
        runs.table["source_row"], runs.table["N"], runs.table["loss"], strict=True
    ):
        assert math.isclose(N, values[row][0])
        assert np.isclose(loss, round(values[row][1], decimals), atol=10**-decimals)


def test_a_frame_is_read_by_its_whole_names_without_their_units() -> None:
    frame = pd.DataFrame({"Params (M)": [70.0], "loss": [3.0]})
    assert list(load_runs(frame, N="Params (M)").table["N"]) == [70.0]
    with pytest.raises(ValueError, match=r"no column 'Params'.*columns: Params \(M\)"):
        load_runs(frame, N="Params")
