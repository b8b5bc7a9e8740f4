"""Save and restore training states with Orbax.

A checkpoint is numbered by its step, written atomically and while training goes on, and
only a few are kept. It holds a host copy in one format for all strategies, so a run may
be resumed under another strategy. In a multi-host run process 0 alone reads and writes,
and sends what it read to the others.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree, UInt8
from numpy.typing import ArrayLike

from scaling.store.files import StoreError
from scaling.training import multihost

_DIGEST = "digest"
_DIGEST_BYTES = 32
_PARAMS_PATH = "['state'].params"
"""Before the path of a parameter in the tree that `scaling.training.loop` saves."""
log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one directory: the two latest and the protected ones."""

    def __init__(self, directory: Path, protected: Iterable[int] = ()) -> None:
        """Open the directory, or create it.

        Args:
            directory: The directory.
            protected: Steps whose checkpoints are always kept.
        """
        self._manager = None
        if not multihost.is_process_0():
            return
        policy = ocp.checkpoint_managers.AnyPreservationPolicy(
            [
                ocp.checkpoint_managers.LatestN(2),
                ocp.checkpoint_managers.CustomSteps(sorted(set(protected))),
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
        directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def save(self, step: int, tree: PyTree) -> None:
        """Write a tree of host arrays under a step, whole or not at all.

        A checkpoint of that step that exists already stays. Training goes on while the
        tree is written, and every other method waits for the end of the writing.
        """
        if self._manager is None or step in self._manager.all_steps():
            return
        leaves = _list_leaves_by_path(tree)
        content = {**leaves, _DIGEST: _hash_leaves(leaves)}
        self._manager.save(step, args=ocp.args.StandardSave(content), force=True)

    def restore_latest(self, like: PyTree, at_most: int) -> tuple[int, PyTree] | None:
        """The latest state at or before a step, and its step.

        A checkpoint that cannot be read is passed over with a warning.

        Args:
            like: A tree of the same structure, shapes and types.
            at_most: The step.

        Returns:
            The step and the tree, or None if there is no such checkpoint.
        """
        found = self._read_latest(like, at_most)
        step = multihost.broadcast_from_process_0(None if found is None else found[0])
        if step is None:
            return None
        # Process 0 sends its arrays; the others receive them into arrays of zeros.
        tree = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
        if found is not None:
            tree = found[1]
        return step, jax.tree.map(
            lambda x: multihost.broadcast_array(np.asarray(x)), tree
        )

    def _read_latest(self, like: PyTree, at_most: int) -> tuple[int, PyTree] | None:
        if self._manager is None:
            return None
        self.wait()
        abstract: dict[str, jax.ShapeDtypeStruct] = {}
        for path, x in _list_leaves_by_path(like).items():
            abstract[path] = jax.ShapeDtypeStruct(x.shape, x.dtype)
        digest = jax.ShapeDtypeStruct((_DIGEST_BYTES,), np.uint8)
        arguments = ocp.args.StandardRestore({**abstract, _DIGEST: digest})
        for step in sorted(self._manager.all_steps(), reverse=True):
            if step > at_most:
                continue
            try:
                content = self._manager.restore(step, args=arguments)
                leaves = {path: content[path] for path in abstract}
                if not np.array_equal(_hash_leaves(leaves), content[_DIGEST]):
                    raise ValueError("its checksum is wrong")
                structure = jax.tree.structure(like)
                return step, jax.tree.unflatten(structure, list(leaves.values()))
            except (ValueError, OSError, KeyError) as error:
                log.warning(
                    "checkpoint %d cannot be read (%s): an earlier one is used",
                    step,
                    error,
                )
        return None

    def wait(self) -> None:
        """Wait until the latest checkpoint is written."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until the latest checkpoint is written, and release the directory."""
        if self._manager is not None:
            self._manager.close()


def list_checkpoints(directory: Path) -> list[int]:
    """The steps that have a checkpoint in a directory, in order."""
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir()]
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


def read_checkpoint_params(directory: Path, step: int, abstract: PyTree) -> PyTree:
    """The parameters in a checkpoint, whatever the optimizer beside them.

    Args:
        directory: The directory of the checkpoints.
        step: The step.
        abstract: A tree of the parameters' structure.

    Raises:
        StoreError: the checkpoint cannot be read, or its checksum is wrong.
    """
    fix = "use another step"
    try:
        with ocp.CheckpointManager(directory.absolute()) as manager:
            content = manager.restore(step, args=ocp.args.StandardRestore())
        checksum = content.pop(_DIGEST)
        if not np.array_equal(_hash_leaves(content), checksum):
            raise ValueError("its checksum is wrong")
        paths = _list_leaves_by_path(abstract)
        leaves = [np.asarray(content[_PARAMS_PATH + path]) for path in paths]
    except (ValueError, OSError, KeyError) as error:
        raise StoreError(
            f"{directory / str(step)}: cannot be read ({error}); {fix}"
        ) from None
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _list_leaves_by_path(tree: PyTree) -> dict[str, PyTree]:
    """The leaves by their path.

    The paths are names on disk, so that Orbax need not know the types of the nodes.
    """
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _hash_leaves(leaves: Mapping[str, ArrayLike]) -> UInt8[np.ndarray, " 32"]:
    """A hash of all paths and bytes.

    Orbax notices a file that is cut short, but not a bit that has flipped.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for path in sorted(leaves):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(leaves[path]).view(np.uint8).data)
    return np.frombuffer(digest.digest(), np.uint8)
