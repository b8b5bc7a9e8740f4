"""Laws of cache entries: complete or absent, and the first of several writers wins."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from scaling.data.cache import entry_key, is_sound, publish_entry, read_json


def fill(folder: Path) -> dict[str, Any]:
    (folder / "data.bin").write_bytes(b"12345678")
    return {"answer": 42}


def refuse(folder: Path) -> dict[str, Any]:
    raise AssertionError(f"{folder} was filled again")


def test_an_entry_is_filled_once(tmp_path: Path) -> None:
    entry = publish_entry(tmp_path / "new", "key", fill)
    assert is_sound(entry) and read_json(entry / "meta.json")["answer"] == 42
    assert publish_entry(tmp_path / "new", "key", refuse) == entry


def test_the_loser_of_a_race_keeps_the_winners_entry(tmp_path: Path) -> None:
    def overtaken(folder: Path) -> dict[str, Any]:
        publish_entry(tmp_path, "key", fill)  # another process finishes first
        (folder / "data.bin").write_bytes(b"late")
        return {"answer": 0}

    entry = publish_entry(tmp_path, "key", overtaken)
    assert (entry / "data.bin").read_bytes() == b"12345678"
    assert list(tmp_path.iterdir()) == [entry]


def test_a_damaged_entry_makes_way(tmp_path: Path) -> None:
    entry = publish_entry(tmp_path, "key", fill)
    (entry / "data.bin").write_bytes(b"123")
    assert not is_sound(entry)
    assert publish_entry(tmp_path, "key", fill) == entry and is_sound(entry)
    assert list(tmp_path.iterdir()) == [entry]


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "data.bin").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish_entry(tmp_path, "key", fail)
    assert list(tmp_path.iterdir()) == []


def test_folders_of_killed_writers_are_removed_but_not_those_of_living_ones(
    tmp_path: Path,
) -> None:
    dead, alive = tmp_path / ".key.dead", tmp_path / ".key.alive"
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "data.bin").touch()
    long_ago = time.time() - 10**6
    os.utime(dead, (long_ago, long_ago))
    publish_entry(tmp_path, "key", fill)
    assert not dead.exists() and alive.exists()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        publish_entry(tmp_path / "file" / "cache", "key", fill)


def test_keys_depend_on_every_part() -> None:
    keys = {
        entry_key(*parts)
        for parts in (("a", 0.1), ("a", 0.2), ("b", 0.1), ("a",), ("a", "0.1"))
    }
    assert len(keys) == 5 and entry_key("a", 0.1) in keys
