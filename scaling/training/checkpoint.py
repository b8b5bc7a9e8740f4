"""Save and restore training states with Orbax: atomic, beside training, numbered by
step, a bounded number kept.

What is saved is a host copy, in one format for all strategies: a run may be resumed
under another one. Where several processes train together, the first alone reads and
writes, and tells the others what it read.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from scaling.training import multihost

Tree = Any
_DIGEST, _DIGEST_BYTES = "digest", 32
log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one directory. Steps in `protected` outlive the two latest."""

    def __init__(self, directory: Path, protected: Iterable[int] = ()) -> None:
        keep = frozenset(protected)
        policy = ocp.checkpoint_managers.AnyPreservationPolicy(
            [
                ocp.checkpoint_managers.LatestN(2),
                ocp.checkpoint_managers.CustomSteps(sorted(keep)),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            enable_async_checkpointing=True,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                active_processes={0}
            ),
        )
        self._manager = None
        if multihost.is_process_0():
            directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def save(self, step: int, tree: Tree) -> None:
        """Write `tree` under `step`, whole or not at all; a step that is there already
        is left as it is.

        The arrays are on the host. The writing goes on while training does; whatever
        follows here waits for it.
        """
        if self._manager is not None and step not in self._manager.all_steps():
            leaves = _by_path(tree)
            self._manager.save(
                step,
                args=ocp.args.StandardSave({**leaves, _DIGEST: _digest(leaves)}),
                force=True,
            )

    def restore_latest(self, like: Tree, at_most: int) -> tuple[int, Tree] | None:
        """The latest state at or before a step; None when there is none. An unreadable
        one is passed over.
        """
        found = self._read_latest(like, at_most)
        step = multihost.broadcast_from_process_0(None if found is None else found[0])
        if step is None:
            return None
        blank = (
            jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
            if found is None
            else found[1]
        )
        return step, jax.tree.map(
            lambda x: multihost.broadcast_array(np.asarray(x)), blank
        )

    def _read_latest(self, like: Tree, at_most: int) -> tuple[int, Tree] | None:
        if self._manager is None:
            return None
        self.wait()
        abstract = {
            path: jax.ShapeDtypeStruct(x.shape, x.dtype)
            for path, x in _by_path(like).items()
        }
        wanted = {**abstract, _DIGEST: jax.ShapeDtypeStruct((_DIGEST_BYTES,), np.uint8)}
        for step in sorted(self._manager.all_steps(), reverse=True):
            if step > at_most:
                continue
            try:
                leaves = self._manager.restore(
                    step, args=ocp.args.StandardRestore(wanted)
                )
                if not np.array_equal(
                    _digest({path: leaves[path] for path in abstract}), leaves[_DIGEST]
                ):
                    raise ValueError("its checksum is wrong")
                return step, jax.tree.unflatten(
                    jax.tree.structure(like), [leaves[path] for path in abstract]
                )
            except (ValueError, OSError, KeyError) as error:
                log.warning(
                    "checkpoint %d cannot be read (%s): an earlier one is used",
                    step,
                    error,
                )
        return None

    def wait(self) -> None:
        """Wait for what is being written."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for what is being written, and end."""
        if self._manager is not None:
            self._manager.close()


def _by_path(tree: Tree) -> dict[str, Any]:
    """Leaves by their path: names on disk, and no demand on the tree's own node types."""
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _digest(leaves: dict[str, Any]) -> np.ndarray:
    """Of all bytes: Orbax notices a file that is cut short, not a bit that has flipped."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for path in sorted(leaves):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(leaves[path]).view(np.uint8).data)
    return np.frombuffer(digest.digest(), np.uint8)
