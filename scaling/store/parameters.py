"""Parameters of a trained model as a safetensors file.

The name of an array is its path in the tree of parameters, for example
"blocks.0.branches.0.qkv.weights.2". The metadata hold the checksum of all arrays, since
the format notices a file that is cut short, but not a bit that has flipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree

from scaling.store.files import StoreError, replace_file

PARAMETERS_FILE = "parameters.safetensors"
"""Name of the file in the folder of a run."""

_CHECKSUM = "checksum"


def write_parameters(
    path: Path, params: PyTree, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a tree of arrays whole or not at all.

    Args:
        path: The file.
        params: A nested dictionary of arrays, with names or numbers as keys.
        metadata: Texts to store beside them.
    """
    arrays = flatten_parameters(params)
    described = {**(metadata or {}), _CHECKSUM: hash_arrays(arrays)}
    with replace_file(path) as aside:
        aside.write_bytes(safetensors.numpy.save(arrays, described))


def read_parameters(path: Path) -> tuple[PyTree, dict[str, str]]:
    """The tree of arrays in a file, and its metadata.

    Raises:
        StoreError: the file cannot be read, or its checksum is wrong.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = dict(file.metadata() or {})
            for name in file.keys():  # noqa: SIM118 (the file is no mapping)
                arrays[name] = file.get_tensor(name)
    except (OSError, safetensors.SafetensorError) as error:
        raise StoreError(f"{path}: cannot be read ({error})") from None
    checksum = metadata.pop(_CHECKSUM, None)
    if checksum is not None and checksum != hash_arrays(arrays):
        raise StoreError(f"{path}: its checksum is wrong; the file is damaged")
    return unflatten_parameters(arrays), metadata


def read_metadata(path: Path) -> dict[str, str]:
    """The texts beside the arrays of a file.

    Raises:
        StoreError: the file cannot be read.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return dict(file.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise StoreError(f"{path}: cannot be read ({error})") from None


def flatten_parameters(params: PyTree) -> dict[str, np.ndarray]:
    """The arrays of a tree by their path, with dots between its keys."""
    return dict(_walk_tree(params, ()))


def _walk_tree(tree: PyTree, path: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
    if not isinstance(tree, Mapping):
        yield ".".join(path), np.asarray(tree, order="C")
        return
    for key, child in tree.items():
        yield from _walk_tree(child, (*path, str(key)))


def unflatten_parameters(arrays: Mapping[str, np.ndarray]) -> PyTree:
    """The tree of some arrays by their path; whole numbers become keys as numbers."""
    tree: dict[str | int, PyTree] = {}
    for path, array in arrays.items():
        *parents, name = path.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(_parse_key(key), {})
        node[_parse_key(name)] = array
    return tree


def _parse_key(key: str) -> str | int:
    return int(key) if key.isdecimal() else key


def hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
    return digest.hexdigest()
