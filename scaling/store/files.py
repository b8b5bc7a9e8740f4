"""Files of a sweep's folder: written whole or not at all, read with suspicion.

A folder of runs may come from anywhere, and several processes write to it. A file is
therefore replaced or created atomically, and only a plain file of moderate size is read,
as JSON in the strict sense: no NaN, and no key twice.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

_NO_LINKS = (
    errno.EPERM,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
)  # of file systems without hard links


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all, durable once this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        _write_durably(aside, text, "w")
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise
    _sync_folder(path.parent)


def create_file(path: Path, text: str) -> bool:
    """Write a file whole if there is none of its name: of several processes at once, on
    NFS too, one succeeds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        _write_durably(aside, text, "x")
        try:
            os.link(aside, path)
        except FileExistsError:
            return (
                os.stat(aside).st_nlink == 2
            )  # made by us, though the answer was lost
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with suppress(FileExistsError):
                _write_durably(path, text, "x")
                return True
            return False
        _sync_folder(path.parent)
        return True
    finally:
        with suppress(OSError):
            aside.unlink()


def _write_durably(path: Path, text: str, mode: str) -> None:
    with open(path, mode) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """See that the names in a folder survive a loss of power."""
    there = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(there)
    finally:
        os.close(there)


MAX_BYTES = 2**20  # of a result or a configuration, which have one or two thousand
_PLAIN = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)


class StoreError(RuntimeError):
    """A run directory that cannot be read; the message names the file and the remedy."""


def replace_unprintable(text: str) -> str:
    """Text without what is no character to be seen: control characters, halves of
    surrogate pairs.
    """
    return (
        text
        if text.isprintable()
        else "".join(
            c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text
        )
    )


def read_plain_file(path: str | Path, limit: int = MAX_BYTES) -> bytes:
    """The content of a small plain file: nothing that a link leads to, and nothing that
    never ends.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is something else, or large.
    """
    handle = os.open(path, _PLAIN)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("it is no plain file")
        pieces, left = [], limit + 1
        while left and (piece := os.read(handle, left)):
            pieces.append(piece)
            left -= len(piece)
    finally:
        os.close(handle)
    if not left:
        raise ValueError(f"it has more than {limit:,} bytes")
    return b"".join(pieces)


def parse_json(content: bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is not JSON, nested too deeply, or says one thing twice.
    """
    try:
        return _DECODER.decode(content.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _reject_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"it has {next(name for name in names if names.count(name) > 1)!r:.60} twice"
        )
    return found


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_reject_repeated_keys, parse_constant=_reject_constant
)
