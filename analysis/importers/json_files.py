"""Runs as JSON: a folder of one file each, or a ledger of one line each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from analysis.importers.base import (
    Importer,
    NamePattern,
    Row,
    TableBuilder,
    check_keep,
    check_path,
    flatten_values,
    is_lower,
    join_parts,
    list_names,
)
from analysis.table.readers import JsonObject, parse_json_line


def from_json_folder(
    folder: str | Path,
    names: str | None = None,
    explode: str | Sequence[str] | None = None,
    metric: str = "loss",
    keep: str = "all",
) -> pd.DataFrame:
    """Runs of a folder that holds one JSON object each: one row per file.

    The columns are run_id, which is the file's path without suffix; the fields of the
    name; the object's values, nested ones with dots in their names; and `status` if a
    row cannot be used, with the reason. Other structures become JSON text.

    Args:
        folder: its .json files and those of the folders below it are read.
        names: pattern of the files' names, such as "{width}_{depth}_{steps}.json": a
            field is a number, with ":s" text; {} is anything.
        explode: fields that hold lists, see `from_json_lines`.
        metric: what is lowest or last of the lists.
        keep: which values of the lists, see `from_json_lines`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no .json file, the pattern is wrong, or no file can be
            used.
    """
    root = check_path(folder, "the folder of JSON files")
    fields = _check_explode(explode, metric, keep)
    pattern = None if names is None else NamePattern("names", names)
    table = TableBuilder(str(root))
    files = sorted(path for path in root.rglob("*.json") if path.is_file())
    if not files:
        raise ValueError(f"{root}: no .json file in it; give the folder of the files")
    for path in files:
        own: Row = {"run_id": path.relative_to(root).with_suffix("").as_posix()}
        named: Row = {}
        try:
            named = named if pattern is None else pattern.read(path.name)
            values = flatten_lists(_read_object(path), fields)
        except (ValueError, OSError, RecursionError) as error:
            table.reject(own | named, str(error))
            continue
        _add_exploded(table, own, named, values, fields, metric, keep)
    return table.build()


def from_json_lines(
    path: str | Path,
    explode: str | Sequence[str] | None = None,
    metric: str = "loss",
    keep: str = "all",
) -> pd.DataFrame:
    """Runs of a ledger of JSON lines, in which a line may hold lists of values.

    Lists of one length become rows: `explode=("lr", "loss")` makes one row per pair.
    Rows of one line have run_id "<run>/<position>" and one trunk_id, that of the line if
    it has one, since nothing says that they are independent. A line whose lists have
    several lengths, or that has only some of them, is rejected with the reason in
    `status`; one that has numbers in the place of all lists stays one row.

    Args:
        path: a .jsonl. A line's own `run_id` names its run; else its number does.
        explode: fields that hold lists.
        metric: the field that `keep` looks at.
        keep: "all" values of the lists, the "last", or that with the "lowest" metric.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an argument is wrong, or no line can be used.
    """
    file = check_path(path, "a .jsonl file")
    fields = _check_explode(explode, metric, keep)
    table = TableBuilder(str(file))
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            own: Row = {"run_id": f"line-{number}"}
            found = parse_json_line(line)
            if found is None:
                table.reject(own, "line is not a JSON object (torn write?)")
                continue
            own["run_id"] = str(found.pop("run_id", own["run_id"]))
            try:
                values = flatten_lists(found, fields)
            except (ValueError, RecursionError):
                table.reject(own, "its values are nested too deeply")
                continue
            _add_exploded(table, own, {}, values, fields, metric, keep)
    return table.build()


def flatten_lists(values: JsonObject, fields: Sequence[str]) -> Row:
    """Nested values as one row, in which the named fields stay lists.

    Raises:
        ValueError: a field is no list of plain values.
    """
    flat = flatten_values(values)
    for name in fields:
        text = flat.get(name)
        if isinstance(text, str) and text.startswith("["):
            flat[name] = json.loads(text)
    return flat


def _check_explode(
    explode: str | Sequence[str] | None, metric: str, keep: str
) -> list[str]:
    fields = list_names(explode)
    check_keep(keep)
    if keep == "lowest" and metric not in fields:
        raise ValueError(
            f"keep='lowest' looks at metric={metric!r}, which is not in explode="
            f"{tuple(fields)}; name it in both (--metric, --explode)"
        )
    return fields


def _read_object(path: Path) -> JsonObject:
    """The JSON object of a file.

    Raises:
        ValueError: it holds none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON: {error!s:.80}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return found


def _add_exploded(
    table: TableBuilder,
    own: Row,
    named: Row,
    values: Row,
    fields: Sequence[str],
    metric: str,
    keep: str,
) -> None:
    """Add the rows of one object, with its lists spread over them."""
    row = join_parts(own, name=named, values=values)
    lists: dict[str, list[object]] = {}
    for name in fields:
        value = row.get(name)
        if isinstance(value, list):
            lists[name] = value
    absent = [name for name in fields if name not in row]
    if absent:
        table.reject(row, f"it has no {absent[0]}")
        return
    if not lists:
        table.add(row)
        return
    rest = {name: value for name, value in row.items() if name not in fields}
    problem = _find_problem(fields, lists)
    if problem:
        table.reject(rest, problem)
        return
    for i in _select_positions(lists, metric, keep):
        identity: Row = {}
        if keep == "all":
            run_id = str(own["run_id"])
            trunk_id = rest.get("trunk_id", run_id)
            identity = {"run_id": f"{run_id}/{i}", "trunk_id": trunk_id}
        spread = {name: values[i] for name, values in lists.items()}
        table.add({**rest, **identity, **spread})


def _find_problem(fields: Sequence[str], lists: Mapping[str, Sequence[object]]) -> str:
    """Why the lists of one object are no rows; "" if they are."""
    lengths = {name: len(values) for name, values in lists.items()}
    told = ", ".join(f"{name} {length}" for name, length in lengths.items())
    for name in fields:
        if name not in lists:
            return f"{name} is no list, but others are: {told} values"
    if len(set(lengths.values())) > 1:
        return f"the lists differ in length: {told} values"
    if 0 in lengths.values():
        return "the lists are empty"
    return ""


def _select_positions(
    lists: Mapping[str, Sequence[object]], metric: str, keep: str
) -> Sequence[int]:
    """The positions of the lists that become rows."""
    positions = range(len(next(iter(lists.values()))))
    if keep == "all":
        return positions
    if keep == "last":
        return positions[-1:]
    best = 0
    for i, value in enumerate(lists[metric]):
        if is_lower(value, lists[metric][best]):
            best = i
    return [best]


FOLDER_IMPORTER = Importer(
    name="json-folder",
    reads="a folder of one JSON file a run",
    read=from_json_folder,
)
LINES_IMPORTER = Importer(
    name="json-lines",
    reads="a ledger of JSON lines, in which fields may be lists",
    read=from_json_lines,
)
