"""A compressed model as a folder: its arrays, and what it was trained as.

`compressed.safetensors` holds the arrays, with the checksum of all of them, and says in
its metadata how they are stored. `config.json` holds the configuration of the run, that
of the model and the step. A tokenizer that is a file is there as `tokenizer.json`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scaling.config import ModelConfig, RunConfig, from_dict, to_dict
from scaling.config.conversion import JsonObject
from scaling.config.strict_json import parse_json
from scaling.data.synthetic.protocol import is_synthetic
from scaling.data.tokenizers import ByteTokenizer, FileTokenizer, Tokenizer
from scaling.inference.model import TrainedModel
from scaling.model.matrices import fix_weight_bits
from scaling.model.transformer import Params
from scaling.store.files import (
    StoreError,
    open_empty_folder,
    read_plain_file,
    write_atomically,
)
from scaling.store.parameters import (
    flatten_parameters,
    read_parameters,
    write_parameters,
)

COMPRESSED_FILE = "compressed.safetensors"
_CONFIG_FILE = "config.json"
_TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, eq=False)
class Origin:
    """A trained model without its parameters.

    Attributes:
        run: The run's configuration.
        config: The model, with its layers in a list.
        tokenizer: From text to ids; None for a synthetic source.
        step: The optimizer steps that the parameters have seen.
        folder: The folder of the run, or of the compressed model.
    """

    run: RunConfig
    config: ModelConfig
    tokenizer: Tokenizer | None
    step: int
    folder: Path

    def make_model(self, params: Params) -> TrainedModel:
        """The model with some parameters, as JAX arrays."""
        return TrainedModel(
            run=self.run,
            config=self.config,
            params=jax.tree.map(jnp.asarray, params),
            tokenizer=self.tokenizer,
            step=self.step,
            folder=self.folder,
        )


def describe_origin(model: TrainedModel) -> Origin:
    """What a model is, without its parameters."""
    return Origin(
        run=model.run,
        config=model.config,
        tokenizer=model.tokenizer,
        step=model.step,
        folder=model.folder,
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
    }
    write_atomically(folder / _CONFIG_FILE, json.dumps(description, indent=1))
    return (folder / COMPRESSED_FILE).stat().st_size


def read_folder(
    folder: str | Path, kind: str
) -> tuple[Origin, dict[str, np.ndarray], JsonObject]:
    """What `write_folder` has written.

    Args:
        folder: The folder.
        kind: What `encoding["kind"]` must be.

    Raises:
        StoreError: a file is missing or damaged, or holds another kind of model.
    """
    folder = Path(folder)
    tree, metadata = read_parameters(folder / COMPRESSED_FILE)
    try:
        encoding = json.loads(metadata["encoding"])
        description = parse_json(read_plain_file(folder / _CONFIG_FILE))
        run = from_dict(RunConfig, description["run"])
        origin = Origin(
            run=run,
            config=from_dict(ModelConfig, description["model"]),
            tokenizer=_read_tokenizer(folder, run),
            step=int(description["step"]),
            folder=folder,
        )
        found = encoding["kind"]
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise StoreError(f"{folder}: is no compressed model ({error})") from None
    if found != kind:
        raise StoreError(
            f"{folder}: holds a {found} model; open it with scaling.read_{found}"
        )
    return origin, flatten_parameters(tree), encoding


def _read_tokenizer(folder: Path, run: RunConfig) -> Tokenizer | None:
    if is_synthetic(run.data.source):
        return None
    if (folder / _TOKENIZER_FILE).is_file():
        return FileTokenizer(folder / _TOKENIZER_FILE)
    return ByteTokenizer()
