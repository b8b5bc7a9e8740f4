"""A compressed model as a folder: its arrays, and what it was trained as.

`compressed.safetensors` holds the arrays, with the checksum of all of them, and says in
its metadata how they are stored. `config.json` holds the configuration of the run, that
of the model, the step and the fingerprint of the data. A tokenizer that is a file is there
as `tokenizer.json`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaling.config import ArchitectureConfig, RunConfig, from_dict, to_dict
from scaling.config.conversion import JsonObject
from scaling.config.strict_json import parse_json
from scaling.data.synthetic.protocol import is_synthetic
from scaling.data.tokenizers import ByteTokenizer, FileTokenizer, Tokenizer
from scaling.inference.model import TrainedModel
from scaling.model.architecture import Params
from scaling.model.matrices import EMBEDDING, fix_weight_bits
from scaling.store.encoded_arrays import QuantizedMatrix, decode_zeros
from scaling.store.files import (
    StoreError,
    open_empty_folder,
    read_plain_file,
    write_atomically,
)
from scaling.store.parameters import (
    flatten_parameters,
    read_parameters,
    unflatten_parameters,
    write_parameters,
)

Arrays = dict[str, np.ndarray]

COMPRESSED_FILE = "compressed.safetensors"
_CONFIG_FILE = "config.json"
_TOKENIZER_FILE = "tokenizer.json"

QUANTIZED = "quantized"
"""The kind of a model with matrices of few bits."""
PRUNED = "pruned"
"""The kind of a model that is stored without its zeros."""


@dataclass(frozen=True, eq=False)
class Origin:
    """A trained model without its parameters.

    Attributes:
        run: The run's configuration.
        config: The model, with its layers in a list.
        tokenizer: From text to ids; None for a synthetic source.
        step: The optimizer steps that the parameters have seen.
        folder: The folder of the run, or of the compressed model.
        fingerprint: Of the data that the run was trained on; None if it is not known.
    """

    run: RunConfig
    config: ArchitectureConfig
    tokenizer: Tokenizer | None
    step: int
    folder: Path
    fingerprint: str | None = None

    def make_model(self, params: Params) -> TrainedModel:
        """The model with some parameters, as JAX arrays."""
        return TrainedModel(
            run=self.run,
            config=self.config,
            params=jax.tree.map(jnp.asarray, params),
            tokenizer=self.tokenizer,
            step=self.step,
            folder=self.folder,
            fingerprint=self.fingerprint,
        )


def describe_origin(model: TrainedModel) -> Origin:
    """What a model is, without its parameters."""
    return Origin(
        run=model.run,
        config=model.config,
        tokenizer=model.tokenizer,
        step=model.step,
        folder=model.folder,
        fingerprint=model.fingerprint,
    )


def store_as_multiplied(model: TrainedModel) -> TrainedModel:
    """The model with its matrices as it multiplies by them.

    Those of a run with `model.weight_bits` are rounded, and the setting is left out.
    """
    config, params = fix_weight_bits(model.config, model.params)
    return dataclasses.replace(model, config=config, params=params)


def count_bytes(params: Params) -> int:
    """Bytes of all arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def write_folder(
    folder: str | Path,
    origin: Origin,
    arrays: Mapping[str, np.ndarray],
    encoding: JsonObject,
) -> int:
    """Write a compressed model.

    Args:
        folder: It is created. It must be empty.
        origin: What the model is.
        arrays: By name.
        encoding: How they are stored.

    Returns:
        The size of the file of the arrays, in bytes.

    Raises:
        ConfigError: the folder holds something.
    """
    folder = open_empty_folder(folder)
    metadata = {"encoding": json.dumps(encoding, sort_keys=True)}
    write_parameters(folder / COMPRESSED_FILE, dict(arrays), metadata)
    if isinstance(origin.tokenizer, FileTokenizer):
        write_atomically(folder / _TOKENIZER_FILE, origin.tokenizer.content)
    description = {
        "run": to_dict(origin.run),
        "model": to_dict(origin.config),
        "step": origin.step,
        "fingerprint": origin.fingerprint,
    }
    write_atomically(folder / _CONFIG_FILE, json.dumps(description, indent=1))
    return (folder / COMPRESSED_FILE).stat().st_size


def is_compressed(folder: Path) -> bool:
    """Whether a folder holds a compressed model."""
    return (folder / COMPRESSED_FILE).is_file()


def read_compressed(folder: str | Path) -> TrainedModel:
    """A compressed model of any kind as a plain one, in float32.

    Raises:
        StoreError: a file is missing or damaged, or the kind is unknown.
    """
    stored = read_folder(folder)
    if stored.kind not in _DECODERS:
        raise StoreError(
            f"{folder}: holds a model of kind {stored.kind!r}, which this version cannot "
            f"read; it reads {', '.join(_DECODERS)}"
        )
    try:
        arrays = _DECODERS[stored.kind](stored.arrays, stored.encoding)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{folder}: is no {stored.kind} model ({error})") from None
    return stored.origin.make_model(unflatten_parameters(arrays))


def split_quantized(
    arrays: Arrays, encoding: JsonObject
) -> tuple[dict[str, QuantizedMatrix], Arrays]:
    """The matrices of few bits, and the other arrays, by name.

    Raises:
        KeyError: a part of a matrix is missing.
    """
    rest = dict(arrays)
    settings = encoding["settings"]
    matrices = {}
    for name, (inputs, outputs) in encoding["shapes"].items():
        matrices[name] = QuantizedMatrix(
            packed=rest.pop(f"{name}.packed"),
            scales=rest.pop(f"{name}.scales"),
            shape=(inputs, outputs),
            bits=settings["bits"],
            group_size=settings["group_size"],
        )
    return matrices, rest


def merge_quantized(
    matrices: Mapping[str, QuantizedMatrix], rest: Mapping[str, np.ndarray]
) -> Arrays:
    """All parameters by name, float32, of matrices of few bits and other arrays."""
    arrays = dict(rest)
    for name, quantized in matrices.items():
        matrix = quantized.dequantize()
        arrays[name] = matrix.T if name == EMBEDDING else matrix
    return arrays


def _decode_quantized(arrays: Arrays, encoding: JsonObject) -> Arrays:
    return merge_quantized(*split_quantized(arrays, encoding))


def _decode_pruned(arrays: Arrays, encoding: JsonObject) -> Arrays:
    decoded = dict(arrays)
    for name, shape in encoding["shapes"].items():
        parts = {part: decoded.pop(f"{name}.{part}") for part in ("values", "kept")}
        decoded[name] = decode_zeros(parts, shape)
    return decoded


_DECODERS = {QUANTIZED: _decode_quantized, PRUNED: _decode_pruned}


class StoredModel(NamedTuple):
    """What a folder holds.

    Attributes:
        origin: What the model is.
        kind: `QUANTIZED`, `PRUNED`, or that of another version.
        arrays: By name, as they are stored.
        encoding: How they are stored.
    """

    origin: Origin
    kind: str
    arrays: Arrays
    encoding: JsonObject


def read_folder(folder: str | Path) -> StoredModel:
    """What `write_folder` has written.

    Raises:
        StoreError: a file is missing or damaged.
    """
    folder = Path(folder)
    tree, metadata = read_parameters(folder / COMPRESSED_FILE)
    try:
        encoding = parse_json(metadata["encoding"])
        description = parse_json(read_plain_file(folder / _CONFIG_FILE))
        run = from_dict(RunConfig, description["run"])
        origin = Origin(
            run=run,
            config=from_dict(ArchitectureConfig, description["model"]),
            tokenizer=_read_tokenizer(folder, run),
            step=int(description["step"]),
            folder=folder.resolve(),
            fingerprint=description.get("fingerprint"),
        )
        kind = str(encoding["kind"])
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise StoreError(f"{folder}: is no compressed model ({error})") from None
    return StoredModel(origin, kind, flatten_parameters(tree), encoding)


def _read_tokenizer(folder: Path, run: RunConfig) -> Tokenizer | None:
    if is_synthetic(run.data.source):
        return None
    if (folder / _TOKENIZER_FILE).is_file():
        return FileTokenizer(folder / _TOKENIZER_FILE)
    return ByteTokenizer()
