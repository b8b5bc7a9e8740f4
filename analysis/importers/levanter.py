"""Runs of Levanter, and so of marin, from their files tracker_metrics.jsonl.

Levanter writes such a file beside the checkpoints of a run. With its W&B tracker the file
holds one object with the run's `config` and `summary`; with its JSON logger a line for
each event, whose `metrics` are what was logged then.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.importers.base import (
    Importer,
    NamePattern,
    Row,
    TableBuilder,
    check_path,
    flatten_values,
    join_parts,
    name_run,
)
from analysis.table.readers import JsonObject, parse_json_line

_FILE = "tracker_metrics.jsonl"


def from_levanter(path: str | Path, names: str | None = None) -> pd.DataFrame:
    """Runs of Levanter below a folder: one row per run.

    The columns are run_id, which is the run's folder; the fields of the name; what was
    logged, such as parameter_count (with embeddings), throughput/total_tokens,
    throughput/total_gflops (in gigaflops) and eval/<set>/loss (in nats per token), with
    the last value of each; the run's config, nested names joined by dots; and `status`
    if a run cannot be used, with the reason. Nothing is renamed: say which evaluation is
    the loss, and `units={"C": "gigaflops"}`, when you load the table.

    Args:
        path: a tracker_metrics.jsonl, or a folder with such files below it.
        names: pattern of the runs' ids, such as "isoflop-{budget}-N{params}-B{batch}-{}".

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: there is no tracker_metrics.jsonl, the pattern is wrong, or no run
            can be used.
    """
    root = check_path(path, "a tracker_metrics.jsonl or the folder of the runs")
    pattern = None if names is None else NamePattern("names", names)
    files = [root] if root.is_file() else sorted(root.rglob(_FILE))
    if not files:
        raise ValueError(
            f"{root}: no {_FILE} in it or below it; give the folder of the checkpoints"
        )
    table = TableBuilder(str(root))
    for file in files:
        folder = file.parent
        run_id = name_run(folder, folder if root.is_file() else root)
        own: Row = {"run_id": run_id}
        fields: Row = {}
        try:
            fields = fields if pattern is None else pattern.read(run_id)
            logged, config = _read_run(file)
        except (ValueError, OSError, RecursionError) as error:
            table.reject(own | fields, str(error))
            continue
        table.add(join_parts(own, name=fields, logged=logged, config=config))
    return table.build()


def _read_run(path: Path) -> tuple[Row, Row]:
    """(the last value of all that was logged, the config) of one run.

    Raises:
        ValueError: the file holds neither a summary nor metrics.
    """
    logged: Row = {}
    config: Row = {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            # A log of the cluster has a prefix before the object.
            found = parse_json_line(line[max(line.find("{"), 0) :])
            if found is None:
                continue
            logged |= _flatten_part(found, "summary")
            logged |= _flatten_part(found, "metrics")
            config |= _flatten_part(found, "config")
    if not logged:
        raise ValueError(f"{path.name} has no summary and no metrics of Levanter")
    return logged, config


def _flatten_part(found: JsonObject, name: str) -> Row:
    """One part of an object as a row, without values that were not logged."""
    part = found.get(name)
    if not isinstance(part, dict):
        return {}
    flat = flatten_values(part)
    return {key: value for key, value in flat.items() if value is not None}


IMPORTER = Importer(
    name="levanter",
    reads="tracker_metrics.jsonl of Levanter and marin, one or a folder of runs",
    read=from_levanter,
)
