"""A model of any kind as plain files: its parameters by name, its configuration and its
tokenizer.
"""

from __future__ import annotations

from pathlib import Path

from scaling.config.conversion import JsonObject
from scaling.data.tokenizers import Tokenizer
from scaling.export.tokenizer_files import write_json, write_tokenizer
from scaling.model.architecture import Params
from scaling.store.files import open_empty_folder
from scaling.store.parameters import PARAMETERS_FILE, write_parameters

FORMAT = {"format": "pt"}
"""PyTorch's loaders ask for the framework that wrote a safetensors file."""


def export_safetensors(
    run: JsonObject, params: Params, tokenizer: Tokenizer | None, folder: str | Path
) -> None:
    """Write a model as this library has it.

    The folder then holds `config.json` (the configuration of the run),
    `parameters.safetensors` (float32, the path of each parameter as its name, e.g.
    "blocks.0.branches.0.qkv.weights.0"; a matrix has its inputs first) and, if there is
    one, the tokenizer.

    Args:
        run: A `RunConfig` as nested plain data (`scaling.config.to_dict`).
        params: The parameters, stacked or not.
        tokenizer: None for a source that emits ids.
        folder: It is created. It must be empty.

    Raises:
        ConfigError: the folder holds something.
    """
    folder = open_empty_folder(folder)
    write_parameters(folder / PARAMETERS_FILE, params, FORMAT)
    if tokenizer is not None:
        write_tokenizer(tokenizer, folder, run["model"]["context"])
    write_json(folder / "config.json", run)
