"""Cache entries: folders that are complete or absent, whoever writes them and whenever
they are killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from scaling.config.conversion import JsonObject

# Raise it when the same input would give other files: old entries are then left alone.
FORMAT = 1
ABANDONED_SECONDS = (
    86_400  # age at which a temporary folder belongs to a process that was killed
)


def cache_root() -> Path:
    """The environment's SCALING_CACHE, else `scaling` in the user's cache folder."""
    if named := os.environ.get("SCALING_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scaling"


def entry_key(*parts: object) -> str:
    """Name of the entry whose content these parts (plain JSON data) decide."""
    return hashlib.sha256(json.dumps([FORMAT, *parts]).encode()).hexdigest()[:24]


def publish_entry(root: Path, key: str, fill: Callable[[Path], JsonObject]) -> Path:
    """The sound entry of this key: the one that is there, or a new one written aside
    and renamed into place.

    `fill` writes the files into a folder and returns what `meta.json` shall hold.
    Whichever of several processes renames first wins; the others throw their identical
    work away.
    """
    final = root / key
    if is_sound(final):
        return final
    root.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(root)
    aside = _name_aside(root, key)
    aside.mkdir()
    try:
        meta = fill(aside)
        sizes = {path.name: path.stat().st_size for path in aside.iterdir()}
        (aside / "meta.json").write_text(
            json.dumps(meta | {"files": sizes}, indent=1, allow_nan=False)
        )
        for path in (*aside.iterdir(), aside):
            _sync_to_disk(path)
        _move_into_place(aside, final)
        _sync_to_disk(root)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def is_sound(entry: Path) -> bool:
    """Whether an entry is complete: every file is as long as the metadata say."""
    sizes = read_json(entry / "meta.json").get("files")
    try:
        return isinstance(sizes, dict) and all(
            (entry / name).stat().st_size == sizes[name] for name in sizes
        )
    except OSError:
        return False


def _move_into_place(aside: Path, final: Path) -> None:
    """Rename into place, unless a sound entry is there; a damaged one makes way."""
    while not is_sound(final):
        try:
            aside.rename(final)
        except OSError:
            if not final.exists():  # nothing in the way: the folder cannot be written
                raise
            if not is_sound(final):
                final.rename(damaged := _name_aside(final.parent, final.name))
                shutil.rmtree(damaged, ignore_errors=True)


def _name_aside(root: Path, key: str) -> Path:
    return root / f".{key}.{uuid.uuid4().hex}"


def _remove_abandoned(root: Path) -> None:
    for path in root.glob(".*.*"):
        try:
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:  # another process removed it
            continue


def _sync_to_disk(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path) -> JsonObject:
    """A JSON object; empty when the file is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: JsonObject) -> None:
    """Write a small file at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _name_aside(path.parent, path.name)
    aside.write_text(json.dumps(content))
    os.replace(aside, path)
