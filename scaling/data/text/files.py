"""The text files of a folder, read one after the other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from scaling.data.errors import DataError
from scaling.data.text.formats import get_format, is_text_file, list_text_suffixes
from scaling.data.text.invalid import SHOWN_FILES, InvalidText
from scaling.data.text.reading import (
    DEFAULT_READING,
    Reading,
    TextFile,
    UndecodableError,
    suggest_encoding,
)


def find_text_files(path: Path) -> list[Path]:
    """The file itself, or the text files below a folder in sorted order.

    Raises:
        DataError: the folder holds no text file.
    """
    if path.is_file():
        return [path]
    files = filter(is_text_file, path.rglob("*"))
    found = sorted(file for file in files if file.is_file())
    if not found:
        suffixes = ", ".join(list_text_suffixes())
        raise DataError(
            f"data.source = {str(path)!r}: the folder holds no text; "
            f"put {suffixes} files into it, or name another folder"
        )
    return found


def read_all_documents(
    paths: Sequence[Path],
    reading: Reading,
    invalid: InvalidText,
    cut: bool = False,
) -> Iterator[str]:
    """The documents of several files, one file after the other.

    Args:
        paths: as `find_text_files` gives them.
        reading: how they are read.
        invalid: where it is counted what cannot be used.
        cut: whether .txt files are cut into many documents.

    Raises:
        DataError: a file cannot be read as its suffix says. Of files that are not in
            their encoding the message names all.
    """
    for number, file in enumerate(_list_files(paths, reading, invalid, cut)):
        try:
            yield from read_documents(file)
        except UndecodableError as error:
            following = _list_files(paths, reading, InvalidText(), cut)[number + 1 :]
            others = _find_undecodable(following)
            if not others:
                raise
            found = [error, *others]
            raise _describe_undecodable(found, reading, len(paths)) from None


def read_documents(file: TextFile) -> Iterator[str]:
    """The documents of one file.

    Raises:
        DataError: the file cannot be read as its suffix says.
    """
    return get_format(file.path).read(file)


def _list_files(
    paths: Sequence[Path], reading: Reading, invalid: InvalidText, cut: bool
) -> list[TextFile]:
    # Before such tables were read, they could lie in a folder of text unseen.
    is_as_before = reading.field == DEFAULT_READING.field
    has_others = not all(get_format(path).may_lie_beside for path in paths)
    files = []
    for path in paths:
        may_lack = is_as_before and has_others and get_format(path).may_lie_beside
        files.append(TextFile(path, reading, invalid, cut, may_lack))
    return files


def _find_undecodable(files: Iterable[TextFile]) -> list[UndecodableError]:
    """What is wrong with each file that is not in its encoding."""
    found = []
    for file in files:
        try:
            for _ in read_documents(file):
                pass
        except UndecodableError as error:
            found.append(error)
        except DataError:
            continue  # it is named when it is read
    return found


def _describe_undecodable(
    errors: Sequence[UndecodableError], reading: Reading, files: int
) -> DataError:
    shown = [f"{error.path} ({error.reason})" for error in errors[:SHOWN_FILES]]
    if len(errors) > SHOWN_FILES:
        shown.append(f"and {len(errors) - SHOWN_FILES} more")
    return DataError(
        f"{len(errors)} of {files:,} files are not {reading.encoding.upper()}: "
        f"{', '.join(shown)}; {suggest_encoding('them')}"
    )


def describe_state(files: Iterable[Path]) -> str:
    """Name, size and times of each file, as one string.

    No program can change the content of a file and keep its ctime.
    """
    states = []
    for file in files:
        stat = file.stat()
        times = [stat.st_mtime_ns, stat.st_ctime_ns]
        states.append([str(file.resolve()), stat.st_size, *times, stat.st_ino])
    return json.dumps(states)
