"""Laws of text in files: the field, the encoding, and what cannot be used."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import io
import json
import random
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.config import ConfigError, DataConfig
from scaling.data import (
    DataError,
    InvalidTextWarning,
    load_dataset,
    load_tokenizer,
    name_stream,
)
from scaling.data.sources import TEXT_SOURCES as SOURCES
from scaling.data.sources import Source, open_source, register_source
from scaling.data.text import delimited
from scaling.data.text.formats import FORMATS, TextFormat
from scaling.data.text.reading import Reading

WORDS = ("loss", "width", "naïve", "token", "Größe", "a,b", 'say "no"', "\n", "x\r\ny")


@pytest.fixture
def texts() -> list[str]:
    rng = random.Random(0)
    return [f"{i}: " + " ".join(rng.choices(WORDS, k=40)) for i in range(300)]


def read(path: Path, **reading: str) -> list[str]:
    return list(open_source(str(path), Reading(**reading)).documents())


def read_with_counts(path: Path, **reading: str) -> tuple[list[str], Source]:
    source = open_source(str(path), Reading(**reading))
    return list(source.documents()), source


def format_csv(
    texts: Sequence[str], name: str = "text", delimiter: str = ",", end: str = "\r\n"
) -> str:
    file = io.StringIO(newline="")
    # Otherwise a carriage return would not be quoted in a file of newlines.
    quoting: Any = csv.QUOTE_NONNUMERIC
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerow(["id", name, "author"])
    writer.writerows([i, text, "né"] for i, text in enumerate(texts))
    return file.getvalue()


def format_jsonl(texts: Sequence[str], name: str = "text") -> str:
    records = ({"id": i, name: text} for i, text in enumerate(texts))
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    return "".join(lines)


def write_corpus(path: Path, texts: Sequence[str], name: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(format_jsonl(texts, name).encode())
    return path


def configure(source: Path | str, **changes: Any) -> DataConfig:
    return DataConfig(**{"source": str(source), "heldout_fraction": 0.1, **changes})


# --- tables as text -------------------------------------------------------------------


@given(
    cells=st.lists(
        st.text(st.sampled_from('ab,;"\t\n\r é\0'), max_size=12), min_size=1, max_size=9
    ),
    end=st.sampled_from(["\n", "\r\n"]),
    kind=st.sampled_from([",", "\t"]),
)
@settings(deadline=None, max_examples=80)
def test_a_table_holds_the_texts_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str], end: str, kind: str
) -> None:
    suffix = ".csv" if kind == "," else ".tsv"
    path = tmp_path_factory.mktemp("table") / f"a{suffix}"
    path.write_bytes(format_csv(cells, "text", kind, end).encode())
    assert read(path) == cells


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_table_is_a_source_of_text_like_any_other(
    tmp_path: Path, texts: list[str], suffix: str
) -> None:
    path = tmp_path / "table" / f"a{suffix}"
    path.parent.mkdir()
    content = format_csv(texts, delimiter="," if suffix == ".csv" else "\t").encode()
    path.write_bytes(b"\xef\xbb\xbf" + content)
    expected = load_dataset(configure(write_corpus(tmp_path / "a.jsonl", texts)))
    assert load_dataset(configure(path)).fingerprint == expected.fingerprint
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / f"a{suffix}.gz").write_bytes(gzip.compress(content))
    assert load_dataset(configure(packed)).fingerprint == expected.fingerprint
    (packed / f"a{suffix}.gz").unlink()
    zipped = pa.compress(content, codec="zstd", asbytes=True)
    (packed / f"a{suffix}.zst").write_bytes(zipped)
    assert load_dataset(configure(packed)).fingerprint == expected.fingerprint


def test_a_table_is_read_row_by_row(tmp_path: Path) -> None:
    """What stands behind a row is not read before it."""
    path = tmp_path / "a.csv"
    row = '1,"' + "word " * 200 + '\n"\n'
    path.write_text("id,text\n" + row * 1000 + "torn")
    documents = open_source(str(path)).documents()
    assert next(documents).startswith("word")
    with pytest.raises(DataError, match=r"a.csv, line 2002: has 1 fields, .* has 2"):
        for _ in documents:
            pass


def test_a_long_field_is_read_and_the_limit_of_others_stays(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    text = "word " * limit
    (tmp_path / "a.csv").write_text(format_csv([text, "short"]))
    documents = open_source(str(tmp_path / "a.csv")).documents()
    assert next(documents) == text
    assert csv.field_size_limit() == limit


def test_a_quote_that_is_left_open_does_not_swallow_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "LONGEST_ROW", 1000)
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,"open\n' + "2,word\n" * 2000)
    with pytest.raises(DataError, match=r"a.csv, line 2: .*is a quote left open\?"):
        read(path)
    documents, source = read_with_counts(path, invalid="skip")
    assert set(documents) == {"word"} and len(documents) > 1800
    assert source.invalid.sum_counts().documents == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,text\n1,one\n2,two, three\n", r"line 3: has 3 fields, the header has 2"),
        ('id,text\n1,"a\nb"\n2,"x"y\n', r"line 4: not valid CSV"),
        ('id,text\n1,"a\n', r"line 2: not valid CSV \(unexpected end of data\)"),
        ("id,body\n1,one\n", r"line 1: needs a column 'text'; found id, body; .*field"),
        ("text,text\n1,one\n", r"line 1: has 2 columns 'text'"),
        ("id;text\n1;one\n", r"found id;text; separate the columns by commas"),
    ],
)
def test_a_broken_table_names_the_line_and_the_fix(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read(path)


def test_names_of_columns_are_in_the_encoding_too(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text,Größe\none,2\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8 \(line 1: byte 0xf6\)"):
        read(path)
    for reading in ({"invalid": "skip"}, {"encoding": "latin-1"}):
        assert read(path, **reading) == ["one"]


def test_a_table_without_rows_holds_no_text(tmp_path: Path) -> None:
    for content in ("", "\n", "id,text\n"):
        (tmp_path / "a.csv").write_text(content)
        assert read(tmp_path / "a.csv") == []


def test_a_table_beside_other_text_need_not_hold_any(
    tmp_path: Path, texts: list[str]
) -> None:
    """As before such tables were read; the user is told, once."""
    plain = load_dataset(configure(write_corpus(tmp_path / "a" / "a.jsonl", texts)))
    folder = write_corpus(tmp_path / "b" / "a.jsonl", texts).parent
    (folder / "speakers.csv").write_bytes("id,speaker\n1,né\n".encode("latin-1"))
    (folder / "empty.tsv").write_text("")
    (folder / "broken.csv").write_text('"a"b\n')
    with pytest.warns(InvalidTextWarning, match=r"speakers.csv: not read \(line 1: "):
        beside = load_dataset(configure(folder))
    assert beside.fingerprint == plain.fingerprint
    assert beside.describe_invalid() == {}
    assert load_dataset(configure(folder)).fingerprint == plain.fingerprint
    with pytest.raises(DataError, match="needs a column 'body'"):
        read(folder / "speakers.csv", field="body", encoding="latin-1")
    (folder / "a.jsonl").unlink()
    (folder / "broken.csv").unlink()
    with pytest.raises(DataError, match="needs a column 'text'; found id, speaker"):
        read(folder)


# --- the field ------------------------------------------------------------------------


def write_formats(folder: Path, texts: Sequence[str], name: str) -> list[Path]:
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(format_jsonl(texts, name).encode())
    (folder / "a.csv").write_bytes(format_csv(texts, name).encode())
    (folder / "a.tsv").write_bytes(format_csv(texts, name, "\t").encode())
    pd.DataFrame({name: texts}).to_parquet(folder / "a.parquet")
    return sorted(folder.iterdir())


def test_the_field_names_the_text_in_every_format(
    tmp_path: Path, texts: list[str]
) -> None:
    usual = write_formats(tmp_path / "usual", texts, "text")
    other = write_formats(tmp_path / "other", texts, "content")
    for first, second in zip(usual, other, strict=True):
        assert read(first) == read(second, field="content") == texts
        with pytest.raises(DataError) as caught:
            read(second)
        message = str(caught.value)
        assert str(second) in message and "found " in message
        assert "'text'" in message and "--data.field" in message
        assert "content" in message
    one = load_dataset(configure(tmp_path / "usual"))
    two = load_dataset(configure(tmp_path / "other", field="content"))
    assert one.fingerprint == two.fingerprint


def test_two_fields_of_one_file_never_share_a_stream(
    tmp_path: Path, texts: list[str]
) -> None:
    path = tmp_path / "a.jsonl"
    records = ({"text": text, "title": f"title {text}"} for text in texts)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    text, title = configure(path), configure(path, field="title")
    assert name_stream(text) != name_stream(title)
    for _ in range(2):  # read, then from the index
        one, two = load_dataset(text), load_dataset(title)
        assert one.fingerprint != two.fingerprint
        assert b"title" in bytes(two.train.astype(np.uint8))
        assert b"title" not in bytes(one.train.astype(np.uint8))


# --- the encoding ---------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-be"])
def test_the_encoding_decides_how_bytes_are_read(
    tmp_path: Path, texts: list[str], encoding: str
) -> None:
    expected = load_dataset(configure(write_corpus(tmp_path / "a.jsonl", texts)))
    contents = {
        "a.jsonl": format_jsonl(texts),
        "a.csv": format_csv(texts),
        "a.txt": "<|endoftext|>".join(texts),
    }
    for name, content in contents.items():
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_bytes(content.encode(encoding))
        config = configure(folder, encoding=encoding)
        for tokenizer in ("bytes", "bpe:300"):
            found = load_dataset(dataclasses.replace(config, tokenizer=tokenizer))
            assert found.text_fingerprint == expected.text_fingerprint
        trained = dataclasses.replace(config, tokenizer="bpe:300")
        text = load_tokenizer(trained).decode(load_dataset(trained).heldout)
        assert "naïve" in text and "Größe" in text


def test_two_names_of_an_encoding_are_one_configuration(tmp_path: Path) -> None:
    names = ("latin-1", "latin1", "ISO-8859-1", "L1")
    assert len({DataConfig(str(tmp_path), encoding=name) for name in names}) == 1
    names = ("utf-8", "UTF8", "utf-8-sig", "U8")
    assert {DataConfig(encoding=name) for name in names} == {DataConfig()}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "latn-1",
            r"data.encoding = 'latn-1': unknown encoding; did you mean 'latin-1'",
        ),
        ("hex", r"data.encoding = 'hex': unknown encoding"),
        ("", r"data.encoding = ''"),
        ("a\0b", r"data.encoding = "),
        ("no such", r"unknown encoding; use utf-8, utf-16, latin-1"),
    ],
)
def test_an_unknown_encoding_names_the_nearest(value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(encoding=value)


def test_wrong_values_name_the_field() -> None:
    with pytest.raises(ConfigError, match=r"data.invalid = 'ignore': choose one of"):
        DataConfig(invalid="ignore")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"data.field = ''"):
        DataConfig(field="")


# --- what cannot be used --------------------------------------------------------------

BAD = b"na\xefve \xe2\x82 caf\xe9"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_skip_leaves_out_the_line_alone(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    before, after = b'{"text": "', b'"}'
    if suffix != ".jsonl":
        before = after = b'"'
    header = b"" if suffix == ".jsonl" else b"text\n"
    lines = [before + text + after for text in (b"one", BAD, "zwö".encode(), BAD)]
    path.write_bytes(header + b"\n".join(lines) + b"\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read(path)
    documents, source = read_with_counts(path, invalid="skip")
    assert documents == ["one", "zwö"]
    (counts,) = source.invalid.files.values()
    assert (counts.documents, counts.characters) == (2, 0)
    assert counts.bytes == 2 * (len(lines[1]) + 1)
    number = 2 + len(header.splitlines())
    assert counts.first == f"line {number}: byte 0xef"
    documents, source = read_with_counts(path, invalid="replace")
    replaced = BAD.decode("utf-8", "replace")
    assert documents == ["one", replaced, "zwö", replaced]
    assert source.invalid.sum_counts().characters == 6
    assert source.invalid.sum_counts().documents == 0


@given(
    st.binary(max_size=60), st.sampled_from(["utf-8", "utf-16-le", "ascii", "cp1252"])
)
@settings(deadline=None, max_examples=150)
def test_replace_is_what_python_replaces(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, encoding: str
) -> None:
    path = tmp_path_factory.mktemp("txt") / "a.txt"
    path.write_bytes(content)
    expected = content.removeprefix(b"\xef\xbb\xbf") if encoding == "utf-8" else content
    found = read(path, encoding=encoding, invalid="replace")
    assert "".join(found) == expected.decode(encoding, "replace")


def test_replace_equals_the_file_that_was_replaced_before(tmp_path: Path) -> None:
    """And the cuts of a long file stand where they would stand in it."""
    rng = random.Random(0)
    pieces = [b"word ", b"\n\n", BAD, "größe ".encode(), b"\xf0\x9f\x98 "]
    content = b"".join(rng.choices(pieces, k=400_000))
    assert len(content) > 2**21
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    (tmp_path / "b.txt").write_bytes(content.decode("utf-8", "replace").encode())
    documents, source = read_with_counts(path, invalid="replace")
    assert documents == read(tmp_path / "b.txt")
    text = content.decode("utf-8", "replace")
    assert source.invalid.sum_counts().characters == text.count(
        "\N{REPLACEMENT CHARACTER}"
    )


def test_skip_leaves_out_documents_of_a_text_file(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    good, bad = b"one<|endoftext|>two", BAD
    (folder / "a.txt").write_bytes(good + b"<|endoftext|>" + bad)
    (folder / "b.txt").write_bytes(bad)
    with pytest.raises(DataError, match="2 of 2 files are not UTF-8"):
        read(folder)
    documents, source = read_with_counts(folder, invalid="skip")
    assert documents == ["one", "two"]
    assert source.invalid.files[str(folder / "a.txt")].first == "document 3: byte 0xef"
    assert source.invalid.sum_counts().documents == 2
    assert source.invalid.sum_counts().bytes == 2 * len(bad)


def test_skip_leaves_out_malformed_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = ['{"text": "one"}', "{", '{"body": "x"}', '{"text": 1}', '["x"]', "null"]
    path.write_text("\n".join([*lines, '{"text": "two"}', ""]))
    documents, source = read_with_counts(path, invalid="skip")
    assert documents == ["one", "two"]
    counts = source.invalid.sum_counts()
    assert counts.documents == 5
    assert counts.bytes == sum(len(line) + 1 for line in lines[1:])
    with pytest.raises(DataError, match=r"a.jsonl, line 2: not valid JSON"):
        read(path, invalid="replace")
    table = tmp_path / "a.csv"
    table.write_text('id,text\n1,one\n2\n3,"x"y\n4,two\n5,a,b\n')
    documents, source = read_with_counts(table, invalid="skip")
    assert documents == ["one", "two"]
    assert source.invalid.sum_counts().documents == 3
    assert source.invalid.sum_counts().bytes == len('2\n3,"x"y\n5,a,b\n')


def test_a_last_line_without_an_end_may_be_torn_and_is_counted(tmp_path: Path) -> None:
    """It is left out by default, as in earlier versions, whatever is wrong with it."""
    path = tmp_path / "a.jsonl"
    for torn in (b'{"text": "a\xff"}', b'{"text": "gr\xc3', b'{"te'):
        path.write_bytes(b'{"text": "one"}\n' + torn)
        for invalid in ("error", "skip"):
            documents, source = read_with_counts(path, invalid=invalid)
            assert documents == ["one"]
            counts = source.invalid.sum_counts()
            assert (counts.documents, counts.bytes) == (1, len(torn))
    path.write_bytes(b'{"text": "one"}\n{"text": "a\xff"}')
    assert read(path, invalid="replace") == ["one", "a\N{REPLACEMENT CHARACTER}"]


def test_skip_leaves_out_a_table_without_the_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,body\n1,x\n")
    pd.DataFrame({"body": ["x"]}).to_parquet(tmp_path / "b.parquet")
    pd.DataFrame({"text": [1]}).to_parquet(tmp_path / "c.parquet")
    (tmp_path / "d.csv").write_text("text\none\n")
    (tmp_path / "a.csv").rename(tmp_path / "a.tsv")
    (tmp_path / "a.tsv").write_text("id\tbody\n1\tx\n")
    config = configure(tmp_path, field="content", invalid="skip")
    with pytest.raises(DataError, match=r"there is no text in it; 4 documents"):
        load_dataset(config)
    documents, source = read_with_counts(tmp_path, invalid="skip")
    assert documents == ["one"]
    assert set(source.invalid.files) == {
        str(tmp_path / name) for name in ("a.tsv", "b.parquet", "c.parquet")
    }


def test_strings_of_parquet_that_are_not_utf_8(tmp_path: Path) -> None:
    values = pa.array([b"one", BAD, None, "zwö".encode(), b""], pa.binary())
    column = values.view(pa.string())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": column}), path)
    with pytest.raises(DataError, match=r"not UTF-8 \(row 2: byte 0xef\)"):
        read(path)
    documents, source = read_with_counts(path, invalid="skip")
    assert documents == ["one", "zwö"]
    assert source.invalid.sum_counts().bytes == len(BAD)
    documents, source = read_with_counts(path, invalid="replace")
    assert documents == ["one", BAD.decode("utf-8", "replace"), "zwö"]
    assert source.invalid.sum_counts().characters == 3


def test_strings_that_repeat_are_read(tmp_path: Path) -> None:
    values = pa.array(["one", "two", "one"]).dictionary_encode()
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ["one", "two", "one"]


def test_a_file_that_was_cut_off_is_an_error_however_it_is_read(tmp_path: Path) -> None:
    for suffix, content in ((".csv", format_csv), (".jsonl", format_jsonl)):
        rng = random.Random(0)
        texts = [str(rng.random()) for _ in range(500)]
        path = tmp_path / f"a{suffix}.gz"
        path.write_bytes(gzip.compress(content(texts).encode())[:-30])
        for invalid in ("error", "skip", "replace"):
            with pytest.raises(DataError, match=r"not a whole .gz file"):
                read(path, invalid=invalid)


def write_some_bad(path: Path, texts: Sequence[str], every: int) -> Path:
    """Lines of which some hold bytes that are not UTF-8, in other fields than the text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, text in enumerate(texts):
        bad = BAD if i % every == 0 else b""
        record = json.dumps({"text": text, "by": "BAD"}, ensure_ascii=False).encode()
        lines.append(record.replace(b"BAD", bad) + b"\n")
    path.write_bytes(b"".join(lines))
    return path


def test_the_fingerprint_is_that_of_the_documents_that_are_used(
    tmp_path: Path, texts: list[str]
) -> None:
    bad = write_some_bad(tmp_path / "bad.jsonl", texts, every=3)
    kept = [text for i, text in enumerate(texts) if i % 3]
    clean = load_dataset(configure(write_corpus(tmp_path / "clean.jsonl", kept)))
    config = configure(bad, invalid="skip")
    with pytest.raises(DataError, match="not UTF-8"):
        load_dataset(configure(bad))
    with pytest.warns(InvalidTextWarning, match=r"100 documents \(.* bytes\) left out"):
        skipped = load_dataset(config)
    assert skipped.fingerprint == clean.fingerprint
    assert skipped.describe_invalid()["skipped_documents"] == 100
    assert clean.describe_invalid() == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_dataset(config)  # from the index: it is said once, and kept
        assert (
            load_dataset(configure(tmp_path / "clean.jsonl")).describe_invalid() == {}
        )
    assert again.describe_invalid() == skipped.describe_invalid()
    write_some_bad(bad, texts, every=2)
    with pytest.warns(InvalidTextWarning, match="150 documents"):
        fewer = load_dataset(config)
    assert fewer.fingerprint != skipped.fingerprint
    replaced = load_dataset(dataclasses.replace(config, invalid="replace"))
    assert replaced.fingerprint not in (fewer.fingerprint, skipped.fingerprint)


def test_readings_never_share_the_index(tmp_path: Path) -> None:
    """However they are read first, each of several readings gives its own documents."""
    path = tmp_path / "a.txt"
    text = "\n\n".join(f"{i} größe " + "word " * 1000 for i in range(40))
    path.write_bytes(text.encode("latin-1"))
    readings = [
        {"invalid": "replace"},
        {"encoding": "latin-1"},
        {"encoding": "cp1252"},
        {"encoding": "cp437"},
        {"encoding": "latin-1", "invalid": "replace"},
        {"encoding": "latin-1", "field": "body"},
    ]
    streams, found = set(), []
    for reading in readings * 2:
        config = configure(path, **reading)
        streams.add(name_stream(config))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InvalidTextWarning)
            found.append(load_dataset(config).fingerprint)
    assert len(streams) == len(readings)
    assert found[: len(readings)] == found[len(readings) :]
    replaced, latin, windows, dos, *rest = found[: len(readings)]
    assert latin == windows == rest[0] == rest[1]
    assert len({replaced, latin, dos}) == 3


# --- sources that are no files --------------------------------------------------------

CHANGES = [{"field": "content"}, {"encoding": "latin-1"}, {"invalid": "skip"}]


@pytest.fixture
def named_source() -> Iterator[str]:
    @register_source("named")
    def open_named(options: str) -> Source:
        del options
        return Source(lambda: iter(["a text"]), lambda: "1")

    yield "named"
    del SOURCES["named"]


@pytest.mark.parametrize("change", CHANGES)
def test_sources_that_are_no_files_refuse_how_files_are_read(
    tmp_path: Path, change: dict[str, str], named_source: str
) -> None:
    (name,) = change
    sources = ["code", "sotu", f"hf:{tmp_path}", "markov:states=8", "task:addition"]
    for source in [*sources, named_source, "mixture:code=0.5,sotu=0.5"]:
        with pytest.raises(DataError, match=f"data.{name} = .* is no path"):
            load_dataset(DataConfig(source, **change))
    if name == "field":
        with pytest.raises(DataError, match=r"hf:NAME:column="):
            load_dataset(DataConfig(f"hf:{tmp_path}", field="content"))


@pytest.mark.parametrize("stage", ["", ",@4e3,{one}=1"])
def test_a_mixture_reads_its_files_as_it_says(
    tmp_path: Path, texts: list[str], stage: str, named_source: str
) -> None:
    one = write_corpus(tmp_path / "one.jsonl", texts[:200], "content")
    two = tmp_path / "two.csv"
    rows = format_csv(texts[200:], "content").encode() + b"9,caf\xe9,x\r\n"
    two.write_bytes(rows)
    source = f"mixture:{one}=0.5,{two}=0.5" + stage.format(one=one)
    with pytest.raises(DataError, match="needs a field 'text'"):
        load_dataset(configure(source))
    config = configure(source, field="content", invalid="skip")
    with pytest.warns(InvalidTextWarning, match="two.csv: 1 left out"):
        mixed = load_dataset(config)
    alone = [
        load_dataset(configure(path, field="content", invalid="skip"))
        for path in (one, two)
    ]
    parts = [part.digest for part in mixed.parts]
    assert parts == [dataset.fingerprint for dataset in alone]
    assert mixed.describe_invalid()["skipped_documents"] == 1
    assert name_stream(config) != name_stream(configure(source, field="content"))


# --- one obvious place ----------------------------------------------------------------


def test_a_new_format_is_a_row_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_upper(file: Any) -> Iterator[str]:
        with file.open_text("") as text:
            yield text.read().upper()

    monkeypatch.setitem(FORMATS, ".loud", TextFormat(read_upper))
    (tmp_path / "a.loud").write_text("one")
    (tmp_path / "b.loud.gz").write_bytes(gzip.compress(b"two"))
    assert read(tmp_path) == ["ONE", "TWO"]


# --- as before ------------------------------------------------------------------------


EARLIER = {
    "lines.jsonl": ("d0183bcdd0604d39", "f2e5ba5b771f8600"),
    "marked.txt": ("d0183bcdd0604d39", "f2e5ba5b771f8600"),
    "long.txt": ("f7378df8f2a3da8d", "50f4cc2a40ebe0c1"),
}
"""By file, the beginning of the fingerprint and of the sha256 of all ids, as commit
10f362a computed them."""


@pytest.mark.parametrize("name", list(EARLIER))
def test_defaults_keep_the_streams_of_earlier_versions(
    tmp_path: Path, name: str
) -> None:
    rng = random.Random(1)
    words = ("loss", "width", "naïve", "\u2028", "x\u00a0y", "\r\n\r\n")
    texts = [f"{i} " + " ".join(rng.choices(words, k=60)) for i in range(900)]
    mark = b"\xef\xbb\xbf"
    lines = (
        mark + format_jsonl(texts).encode() + mark + format_jsonl(texts[:9]).encode()
    )
    odd = b'{"text": "a \xed\xa0\xbd\xed\xb0\x80 b"}\n \t\n{"text": "torn \xc3'
    contents = {
        "lines.jsonl": lines + b"\n" + odd,
        "marked.txt": mark + "<|endoftext|>".join(texts).encode(),
        "long.txt": "\r\n\r\n".join(texts * 4).encode(),
    }
    (tmp_path / name).write_bytes(contents[name])
    for source in (tmp_path, tmp_path / name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InvalidTextWarning)
            dataset = load_dataset(configure(source))
        ids = hashlib.sha256(bytes(dataset.train) + bytes(dataset.heldout)).hexdigest()
        assert (dataset.fingerprint[:16], ids[:16]) == EARLIER[name]
