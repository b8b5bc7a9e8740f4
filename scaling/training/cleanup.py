"""Checkpoints that finished runs no longer need, and the bytes that they take.

A finished run needs its parameters. Its checkpoints, most of which is the state of the
optimizer, are needed only to resume it. Those of a trunk are where later runs of other
token budgets would leave it: they go only if that is asked for.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from scaling.config import RunConfig
from scaling.store import query, run_dirs
from scaling.store.leases import Leases
from scaling.store.parameters import PARAMETERS_FILE, write_parameters
from scaling.training.checkpoint import list_checkpoints
from scaling.training.trained_params import read_params_at


@dataclass(frozen=True)
class Disposable:
    """Checkpoints that may go.

    Attributes:
        folder: The folder of the checkpoints.
        bytes: What they take.
        run: The finished run whose final parameters must be written from the last of
            them first; None if there is nothing to write.
    """

    folder: Path
    bytes: int
    run: RunConfig | None = None


def find_disposable_checkpoints(out: Path, trunks: bool = False) -> list[Disposable]:
    """The checkpoints below a sweep's folder that nothing needs.

    A finished run that kept neither its parameters nor a checkpoint of its last step
    keeps what it has. So does a run whose files cannot be read, and with one of these in
    the folder every trunk, since the run may need any of them.

    Args:
        out: The folder of the sweep.
        trunks: Also those of trunks all of whose runs are finished.
    """
    found: list[Disposable] = []
    busy_trunks: set[str] = set()
    for run_id in query.list_run_ids(out):
        try:
            run = query.read_config(out, run_id)
            if not run_dirs.is_finished(out, run):
                busy_trunks.add(run.trunk_id)
                continue
            has_diverged = query.read_result(out, run_id)["loss"] is None
        except query.UnreadableFile:
            trunks = False
            continue
        folder = out / run_id
        steps = list_checkpoints(folder / "checkpoints")
        if not steps:
            continue
        has_parameters = (folder / PARAMETERS_FILE).is_file()
        size = _count_bytes(folder / "checkpoints")
        if has_parameters or has_diverged:
            found.append(Disposable(folder / "checkpoints", size))
        elif run.steps in steps:
            found.append(Disposable(folder / "checkpoints", size, run))
    if trunks:
        found += _find_disposable_trunks(out, busy_trunks)
    return found


def _find_disposable_trunks(out: Path, busy: set[str]) -> list[Disposable]:
    found = []
    leases = Leases()
    for folder in sorted(out.glob("trunk-*")):
        checkpoints = folder / "checkpoints"
        trunk_id = folder.name.removeprefix("trunk-")
        if trunk_id in busy or not checkpoints.is_dir() or not leases.is_free(folder):
            continue
        found.append(Disposable(checkpoints, _count_bytes(checkpoints)))
    return found


def remove_checkpoints(disposable: Disposable) -> None:
    """Remove checkpoints, after the parameters that they alone hold are written.

    Raises:
        StoreError: the parameters cannot be read; nothing is removed.
    """
    run = disposable.run
    if run is not None:
        folder = disposable.folder.parent
        params = read_params_at(folder, run, run.steps)
        metadata = {"run_id": run.run_id, "step": str(run.steps)}
        write_parameters(folder / PARAMETERS_FILE, params, metadata)
    shutil.rmtree(disposable.folder)


def _count_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            total += (Path(parent) / name).lstat().st_size
    return total
