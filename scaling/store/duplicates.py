"""Configurations that a folder holds twice, under two run ids.

The folder of a run has the name of its id. An id is meant to stay for good
(`scaling.config.identity`), but if the rule ever changes between two versions, a
folder may hold one configuration under its earlier and under its current id. Both rows
would then count in a fit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from scaling.store.query import MisnamedRun, UnreadableFile, read_config

# Runs of one configuration agree in these columns. Only runs that do are opened, so that
# a folder of 100,000 runs takes no longer than the comparison of its rows.
_KEY = ["width", "depth", "tokens", "batch_tokens", "lr", "seed", "source"]


def find_duplicate_runs(out: Path, table: pd.DataFrame) -> list[tuple[str, ...]]:
    """The run ids of each configuration that stands more than once in a run table.

    Args:
        out: the folder that the runs are in.
        table: some of its run table, with the columns of `store.run_table`.
    """
    alike = table.loc[table.duplicated(subset=_KEY, keep=False), "run_id"]
    return group_duplicates({run_id: find_current_id(out, run_id) for run_id in alike})


def group_duplicates(current_ids: Mapping[str, str]) -> list[tuple[str, ...]]:
    """The folders whose configurations have one current id, where they are several.

    Args:
        current_ids: by the name of each folder, the id that this version gives its
            configuration.
    """
    folders = defaultdict(list)
    for run_id in sorted(current_ids):
        folders[current_ids[run_id]].append(run_id)
    return [tuple(names) for names in folders.values() if len(names) > 1]


def find_current_id(out: Path, run_id: str) -> str:
    """The id that this version gives the configuration in a run's folder; the folder's
    own name where its configuration cannot be read.
    """
    try:
        return read_config(out, run_id).run_id
    except MisnamedRun as error:
        return error.current_id
    except UnreadableFile:
        return run_id


def describe_duplicates(duplicates: Sequence[tuple[str, ...]]) -> str:
    """A sentence that names the runs and says what to do."""
    shown = "; ".join(" and ".join(names) for names in duplicates[:3])
    more = f"; and {len(duplicates) - 3} more" if len(duplicates) > 3 else ""
    count = len(duplicates)
    what = "one configuration" if count == 1 else f"{count} configurations"
    return (
        f"the folder holds {what} twice, under an earlier and the current run id: "
        f"{shown}{more}; each row counts as a run of its own, so move one of the two "
        "folders away"
    )
