"""Files of a sweep's folder: written whole or not at all, and read with suspicion.

A folder of runs may come from anywhere, and several processes write to it. A file is
therefore replaced or created atomically. Only a plain file of moderate size is read,
and its JSON must be strict: no NaN, and no key twice.
"""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scaling.config import ConfigError

MAX_BYTES = 2**20
"""Limit for a result or a configuration, which have one or two thousand bytes."""

# Errors of file systems without hard links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)

# Opens a file without following a link and without waiting for the writer of a pipe.
_PLAIN = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)


class StoreError(RuntimeError):
    """A run directory that cannot be read; the message names the file and the fix."""


# --- writing ----------------------------------------------------------------------


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all; it survives a loss of power once this returns."""
    with replace_file(path) as aside:
        aside.write_text(text)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A path to write to, whose file then takes the place of `path` in one step.

    If the body raises, `path` is left as it was.

    Yields:
        A name in the same folder, which no other process uses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _make_temporary_path(path)
    try:
        yield aside
        _sync_path(aside, os.O_RDWR)
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise
    _sync_path(path.parent, os.O_RDONLY)


def open_empty_folder(folder: str | Path) -> Path:
    """Create a folder to write something new into.

    Raises:
        ConfigError: it holds something, or it is a file.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(f"{folder}: it is not an empty folder; name a new one")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def create_file(path: Path, text: str) -> bool:
    """Write a file whole if none has its name.

    Returns:
        Whether this call created the file. If several processes try at once, one
        succeeds, over NFS too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _make_temporary_path(path)
    try:
        _write_durably(aside, text, "x")
        try:
            os.link(aside, path)
        except FileExistsError:
            # Two links mean that the server made ours and its answer was lost.
            return os.stat(aside).st_nlink == 2
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with suppress(FileExistsError):
                _write_durably(path, text, "x")
                return True
            return False
        _sync_path(path.parent, os.O_RDONLY)
        return True
    finally:
        with suppress(OSError):
            aside.unlink()


def append_durably(path: Path, text: str) -> None:
    """Append to a file; the text survives a loss of power once this returns."""
    _write_durably(path, text, "a")


def _make_temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def _write_durably(path: Path, text: str, mode: str) -> None:
    with open(path, mode) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_path(path: Path, flags: int) -> None:
    """Make the content of a file, or the names in a folder, survive a loss of power."""
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- reading ----------------------------------------------------------------------


def replace_unprintable(text: str) -> str:
    """Replace every character that cannot be shown.

    These are control characters and single halves of surrogate pairs.
    """
    if text.isprintable():
        return text
    shown = (c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return "".join(shown)


def read_plain_file(path: str | Path, limit: int = MAX_BYTES) -> bytes:
    """The content of a small plain file.

    Links are not followed, and a pipe or a device, which may never end, is not read.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is not a plain file, or has more than `limit` bytes.
    """
    handle = os.open(path, _PLAIN)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("it is not a plain file")
        pieces = []
        left = limit + 1
        while left:
            piece = os.read(handle, left)
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
    finally:
        os.close(handle)
    if not left:
        raise ValueError(f"it has more than {limit:,} bytes")
    return b"".join(pieces)
