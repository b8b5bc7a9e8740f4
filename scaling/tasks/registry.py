"""Tasks by name: those of `scaling/tasks/library/`, and files of one's own.

A new task is one file in that folder with a function that returns a `TaskData`,
decorated with `register_task`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from scaling.config import DataConfig
from scaling.config.suggestions import did_you_mean
from scaling.data.errors import DataError
from scaling.tasks.examples import TaskData
from scaling.tasks.files import HELDOUT_FRACTION, read_task
from scaling.tasks.options import TaskOptions, read_options
from scaling.tasks.rows import ROW_SUFFIXES

LIBRARY = "scaling.tasks.library"

OpenTask = Callable[[TaskOptions], TaskData]


class RegisteredTask(NamedTuple):
    """A task that has a name.

    Attributes:
        open_named: returns the task, given its options.
        options: the keys that it knows.
        is_fixed: its examples cannot change while a process runs.
    """

    open_named: OpenTask
    options: tuple[str, ...]
    is_fixed: bool = True


TASKS: dict[str, RegisteredTask] = {}


def register_task(
    name: str, *options: str, is_fixed: bool = True
) -> Callable[[OpenTask], OpenTask]:
    """Decorate a function that opens the task `NAME` or `NAME:key=value,key=value`.

    Args:
        options: the keys that the task knows.
        is_fixed: whether a process may open the task once and keep it. False for a task
            of files that may change meanwhile.
    """

    def register(open_named: OpenTask) -> OpenTask:
        TASKS[name] = RegisteredTask(open_named, options, is_fixed)
        return open_named

    return register


@functools.cache
def load_library() -> None:
    """Import the files of the library, each of which registers its task."""
    library = importlib.import_module(LIBRARY)
    for module in pkgutil.iter_modules(library.__path__):
        importlib.import_module(f"{LIBRARY}.{module.name}")


def list_tasks() -> list[str]:
    """The names of all registered tasks."""
    load_library()
    return sorted(TASKS)


def open_task(spec: str) -> TaskData:
    """The task of a name or of a file.

    Args:
        spec: `NAME`, `NAME:key=value,key=value`, the path of a .jsonl, .csv or .parquet
            file, or `PATH:key=value` with the keys `heldout` (a second file),
            `heldout_fraction` and `metrics` (names joined with +).

    Raises:
        DataError: there is no such task, an option is wrong, or the data cannot be
            used.
    """
    load_library()
    name, _, text = spec.partition(":")
    if name in TASKS:
        entry = TASKS[name]
        open_entry = open_registered_once if entry.is_fixed else open_registered
        return open_entry(entry, text, spec)
    path, text = _part_path(spec)
    if path.suffix in ROW_SUFFIXES or _exists(path):
        return _open_file(path, text, spec)
    hint = did_you_mean(name, sorted(TASKS))
    raise DataError(
        f"task = {spec!r}: unknown task; {hint} or give the path of a "
        f"{', '.join(ROW_SUFFIXES)} file"
    )


def open_registered(entry: RegisteredTask, text: str, spec: str) -> TaskData:
    """The task of a registered name, with the options after its colon."""
    task = entry.open_named(read_options(text, spec, entry.options))
    return dataclasses.replace(task, name=spec)


# A sweep asks for the task of each of its runs, and some take half a minute to parse.
open_registered_once = functools.lru_cache(maxsize=32)(open_registered)


def _part_path(spec: str) -> tuple[Path, str]:
    """The path and the options of `PATH:key=value`."""
    path, colon, text = spec.rpartition(":")
    if not colon or "=" not in text or _exists(Path(spec)):
        path, text = spec, ""
    return Path(path).expanduser(), text


def _exists(path: Path) -> bool:
    """Whether there is such a file or folder; a name that no file can have is none."""
    try:
        return path.expanduser().exists()
    except OSError:
        return False


def _open_file(path: Path, text: str, spec: str) -> TaskData:
    options = read_options(text, spec, ("heldout", "heldout_fraction", "metrics"))
    heldout = options.read_text("heldout", "")
    task = read_task(
        path,
        heldout=Path(heldout).expanduser() if heldout else None,
        heldout_fraction=options.read_fraction("heldout_fraction", HELDOUT_FRACTION),
        metrics=tuple(options.read_text("metrics", "exact_match").split("+")),
    )
    return dataclasses.replace(task, name=spec)


def check_pretraining(task: TaskData, data: DataConfig) -> None:
    """Check that a model was not trained on the documents of held-out examples.

    Args:
        data: what the model was trained on.

    Raises:
        DataError: it was.
    """
    origin = task.origin
    if origin is None or not _name_same_source(origin.source, data.source):
        return
    if data.heldout_fraction < origin.heldout_fraction:
        raise DataError(
            f"task {task.name!r}: holds out {origin.heldout_fraction:g} of the documents "
            f"of {origin.source!r}, and the model was trained on some of these with "
            f"data.heldout_fraction = {data.heldout_fraction:g}; train with at least "
            f"{origin.heldout_fraction:g}, or lower the option heldout_fraction of the "
            "task"
        )


def _name_same_source(one: str, other: str) -> bool:
    if one == other:
        return True
    paths = [Path(one), Path(other)]
    if not all(_exists(path) for path in paths):
        return False
    return paths[0].expanduser().resolve() == paths[1].expanduser().resolve()
