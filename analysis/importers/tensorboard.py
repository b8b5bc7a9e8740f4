"""Scalars of TensorBoard, one row per run and step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.importers.base import Importer, keep_ids_as_text
from analysis.suggestions import find_near


def from_tensorboard(
    folder: str | Path, scalars: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """Scalars of every run below a folder of TensorBoard: one row per run and step.

    The columns are run_id and trunk_id (the run's folder, relative to `folder`), step,
    and one per scalar, NaN at steps where it was not logged. A run that was restarted
    has some steps twice; the one written last is kept. The torn last record of a file
    is left out.

    Args:
        folder: read with all folders below it. Scalars of TensorFlow 1 and 2 are read.
        scalars: tags to read; all when None.

    Raises:
        ImportError: the package `tensorboard` is not installed.
        FileNotFoundError: there is no such folder.
        ValueError: no event file lies below the folder, or none has these scalars.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(
            f"no folder at {root}; give the folder that tensorboard --logdir shows"
        )
    files = [path for path in root.rglob("*tfevents*") if path.is_file()]
    if not files:
        raise ValueError(
            f"{root}: no event file (*tfevents*) in it or below it; "
            "give the folder that tensorboard --logdir shows"
        )
    wanted = [scalars] if isinstance(scalars, str) else scalars
    tables: list[pd.DataFrame] = []
    known_tags: set[str] = set()
    for run_folder in sorted({path.parent for path in files}):
        table, tags = _read_tensorboard_run(run_folder, wanted)
        known_tags |= tags
        if table.empty:
            continue
        run_id = run_folder.relative_to(root).as_posix()
        own = {"run_id": run_id, "trunk_id": run_id, "step": table.index}
        table = table.rename(columns={name: f"scalar.{name}" for name in own})
        table = pd.DataFrame(own, index=table.index).join(table)
        tables.append(table.reset_index(drop=True))
    if not tables:
        near: list[str] = []
        problem = "no scalar"
        if wanted is not None:
            problem = f"none of the scalars {list(wanted)}"
            near = find_near(wanted[0], known_tags, most=3, cutoff=0.4)
        shown = near or sorted(known_tags)[:12]
        raise ValueError(f"{root}: {problem}; it has: {', '.join(shown) or 'none'}")
    return keep_ids_as_text(pd.concat(tables, ignore_index=True))


def _read_tensorboard_run(
    folder: Path, wanted: Sequence[str] | None
) -> tuple[pd.DataFrame, set[str]]:
    """(table by step of the wanted scalars of one run, tags of all its scalars)."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import (
            EventAccumulator,
        )
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise ImportError(
            "from_tensorboard: the package `tensorboard` is not installed; "
            'run: pip install "scaling[import]"'
        ) from error
    # A size of 0 keeps all points instead of a sample.
    size_guidance = {"scalars": 0, "tensors": 0}
    events = EventAccumulator(str(folder), size_guidance=size_guidance).Reload()
    tags = events.Tags()
    points: dict[str, list[tuple[float, int, float]]] = {}
    for tag in tags["scalars"]:
        points[tag] = [
            (event.wall_time, event.step, event.value) for event in events.Scalars(tag)
        ]
    for tag in tags["tensors"]:
        # TensorFlow 2 writes scalars as tensors of the plugin "scalars".
        if events.SummaryMetadata(tag).plugin_data.plugin_name != "scalars":
            continue
        points[tag] = [
            (event.wall_time, event.step, float(make_ndarray(event.tensor_proto)))
            for event in events.Tensors(tag)
        ]
    columns: dict[str, dict[int, float]] = {}
    for tag, values in points.items():
        if wanted is None or tag in wanted:
            in_order = sorted(values, key=lambda point: point[0])
            columns[tag] = {step: value for _, step, value in in_order}
    return pd.DataFrame(columns, dtype=float).sort_index(), set(points)


IMPORTER = Importer(
    name="tensorboard",
    reads="a folder of TensorBoard",
    read=from_tensorboard,
)
