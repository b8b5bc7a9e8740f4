"""Documents in files: .txt, .jsonl and .parquet; the first two compressed, too."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from scaling.data.errors import DataError

TEXT_SUFFIXES = (
    ".txt",
    ".jsonl",
    ".parquet",
    ".txt.gz",
    ".jsonl.gz",
    ".txt.zst",
    ".jsonl.zst",
)
_COMPRESSED = (".gz", ".zst")
END_OF_TEXT = "<|endoftext|>"
"""Ends a document in a .txt file, as in GPT-2 and TinyStories."""
PIECE = 4096
"""Characters of the documents that one long .txt file is cut into, at least."""
LONGEST_PIECE = 16_384
"""Characters of such a document, at most."""
LONG_FILE = 2**20
"""Bytes; longer .txt files of a folder are cut as well."""
SHOWN_FILES = 20
"""How many files of the wrong encoding an error names."""


class NotUtf8Error(DataError):
    """A file that is not UTF-8.

    Attributes:
        path: the file.
        reason: what is wrong in it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path}: not UTF-8 ({reason}); convert it, e.g. with iconv -t UTF-8"
        )
        self.path = path
        self.reason = reason


def get_text_suffix(path: Path) -> str:
    """The suffix of a file with that of its compression, such as ".txt.gz"."""
    if path.suffix in _COMPRESSED:
        return "".join(path.suffixes[-2:])
    return path.suffix


def find_text_files(path: Path) -> list[Path]:
    """The file itself, or the text files below a folder in sorted order.

    Raises:
        DataError: the folder holds no text file.
    """
    if path.is_file():
        return [path]
    files = [file for file in path.rglob("*") if get_text_suffix(file) in TEXT_SUFFIXES]
    found = sorted(file for file in files if file.is_file())
    if not found:
        suffixes = ", ".join(TEXT_SUFFIXES)
        raise DataError(
            f"data.source = {str(path)!r}: the folder holds no text; "
            f"put {suffixes} files into it, or name another folder"
        )
    return found


def read_all_documents(files: Sequence[Path], cut: bool = False) -> Iterator[str]:
    """The documents of several files, one file after the other.

    Args:
        files: as `find_text_files` gives them.
        cut: whether .txt files are cut into many documents.

    Raises:
        DataError: a file cannot be read as its suffix says. Of files that are not UTF-8
            the message names all.
    """
    for number, file in enumerate(files):
        try:
            yield from read_documents(file, cut)
        except NotUtf8Error as error:
            others = _find_other_encodings(files[number + 1 :])
            if not others:
                raise
            raise _describe_other_encodings([error, *others], len(files)) from None


def _find_other_encodings(files: Sequence[Path]) -> list[NotUtf8Error]:
    """What is wrong with each file that is not UTF-8."""
    found = []
    for file in files:
        try:
            for _ in read_documents(file):
                pass
        except NotUtf8Error as error:
            found.append(error)
        except DataError:
            continue  # it is named when it is read
    return found


def _describe_other_encodings(errors: Sequence[NotUtf8Error], files: int) -> DataError:
    shown = [f"{error.path} ({error.reason})" for error in errors[:SHOWN_FILES]]
    if len(errors) > SHOWN_FILES:
        shown.append(f"and {len(errors) - SHOWN_FILES} more")
    return DataError(
        f"{len(errors)} of {files:,} files are not UTF-8: {', '.join(shown)}; convert "
        "them, e.g. with iconv -t UTF-8, or take them out of the folder"
    )


def read_documents(path: Path, cut: bool = False) -> Iterator[str]:
    """The documents of one file.

    Args:
        path: a .txt, .jsonl or .parquet file; the first two may be compressed (.gz,
            .zst).
        cut: whether a .txt file is cut into many documents.

    Raises:
        DataError: the file cannot be read as its suffix says.
    """
    kind = path.with_suffix("").suffix if path.suffix in _COMPRESSED else path.suffix
    if kind == ".txt":
        return read_txt(path, cut or path.stat().st_size > LONG_FILE)
    if kind == ".jsonl":
        return read_jsonl(path)
    return read_parquet(path)


def open_bytes(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """The content of a file, decompressed if its suffix says so."""
    if path.suffix == ".gz":
        return gzip.GzipFile(path)
    if path.suffix == ".zst":
        import pyarrow as pa

        stream = pa.input_stream(str(path), compression="zstd")
        return io.BufferedReader(stream)
    return path.open("rb")


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


def read_txt(path: Path, cut: bool) -> Iterator[str]:
    """A text file: one document for each end-of-text marker, or with `cut` many of a
    few thousand characters that end at blank lines.

    Without cutting, a corpus in one file would be one document, of which no part could
    be held out.
    """
    try:
        with (
            open_bytes(path) as raw,
            io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file,
        ):
            if cut:
                yield from cut_text(file.read, LONG_FILE)
            else:
                yield from file.read().split(END_OF_TEXT)
    except UnicodeDecodeError as error:
        raise NotUtf8Error(path, error.reason) from None
    except (EOFError, zlib.error, OSError) as error:
        raise _explain_damage(path, error) from error


def _explain_damage(path: Path, error: Exception) -> Exception:
    """What to raise where a file cannot be read to its end."""
    if path.suffix not in _COMPRESSED or isinstance(error, FileNotFoundError):
        return error
    return DataError(
        f"{path}: not a whole {path.suffix} file ({error}); compress it again"
    )


def cut_text(read: Callable[[int], str], block: int) -> Iterator[str]:
    """Cut a stream of text into documents.

    Joined, with the markers between them, the documents are the stream.

    Args:
        read: returns up to so many further characters, none at the end.
        block: characters to read at a time.
    """
    text = ""
    start = 0
    has_more = True
    while has_more or start < len(text):
        if has_more and len(text) - start < LONGEST_PIECE + len(END_OF_TEXT):
            added = read(block)
            text = text[start:] + added
            start = 0
            has_more = bool(added)
            continue
        end, following = _find_document_end(text, start, is_last=not has_more)
        yield text[start:end]
        start = following


def _find_document_end(text: str, start: int, is_last: bool) -> tuple[int, int]:
    """Where the document that begins at `start` ends, and where the next one begins."""
    marker = text.find(END_OF_TEXT, start, start + LONGEST_PIECE + len(END_OF_TEXT))
    if marker >= 0:
        return marker, marker + len(END_OF_TEXT)
    if is_last and len(text) - start <= PIECE:
        return len(text), len(text)
    for boundary in ("\n\n", "\n", " "):
        at = text.find(boundary, start + PIECE, start + LONGEST_PIECE)
        if at >= 0:
            return at + len(boundary), at + len(boundary)
    end = min(start + LONGEST_PIECE, len(text))
    return end, end


def read_jsonl(path: Path) -> Iterator[str]:
    """Field `text` of each line; a torn last line, whose writer was cut off, is left
    out.
    """
    with open_bytes(path) as file:
        for number, line in enumerate(_read_lines(path, file), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                if isinstance(error, UnicodeDecodeError):
                    reason = f"line {number}: {error.reason}"
                    raise NotUtf8Error(path, reason) from None
                raise DataError(
                    f"{path}, line {number}: not valid JSON ({error}); "
                    "correct or remove the line"
                ) from None
            is_object = isinstance(record, dict)
            if not is_object or not isinstance(record.get("text"), str):
                found = sorted(record) if is_object else type(record).__name__
                raise DataError(
                    f"{path}, line {number}: needs a field 'text' with a string; "
                    f"found {found}"
                )
            yield record["text"]


def _read_lines(path: Path, file: Iterable[bytes]) -> Iterator[bytes]:
    try:
        yield from file
    except (EOFError, zlib.error, OSError) as error:
        raise _explain_damage(path, error) from error


def read_parquet(path: Path) -> Iterator[str]:
    """Column `text`, without empty and missing entries."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "text" not in names:
                found = ", ".join(names)
                raise DataError(f"{path}: needs a column 'text'; found {found}")
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
