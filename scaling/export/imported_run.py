"""A checkpoint of transformers as the folder of a run, to fine-tune, evaluate and generate
from like any other.
"""

from __future__ import annotations

from pathlib import Path

from scaling.config import ConfigError, DataConfig, OptimConfig, RunConfig
from scaling.data.tokenizers import FileTokenizer, open_tokenizer
from scaling.export.hugging_face import import_hugging_face
from scaling.store import provenance, run_dirs
from scaling.store.files import write_atomically
from scaling.store.parameters import (
    PARAMETERS_FILE,
    flatten_parameters,
    hash_arrays,
    write_parameters,
)

SOURCE = "imported"
"""The source of an imported run is "imported:" and the checksum of its parameters."""


def import_run(folder: str | Path, out: str | Path) -> Path:
    """Write a checkpoint as the folder of a finished run.

    What it was trained on is not known: the run counts one step, and its loss is
    missing.

    Args:
        folder: A folder that `scaling.import_hugging_face` reads.
        out: The folder in which the run is written, as that of a sweep.

    Returns:
        The folder of the run.

    Raises:
        ConfigError: the checkpoint cannot be read, or its model cannot be expressed.
    """
    folder = Path(folder)
    out = Path(out)
    imported = import_hugging_face(folder)
    checksum = hash_arrays(flatten_parameters(imported.params))
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = imported.tokenizer
    if tokenizer is None:
        raise ConfigError(
            f"{folder}: holds no tokenizer.json; a model without a tokenizer cannot be "
            "used on text"
        )
    opened = open_tokenizer(tokenizer)
    if isinstance(opened, FileTokenizer):
        kept = (out / run_dirs.name_tokenizer_file(opened.hash)).resolve()
        write_atomically(kept, opened.content)
        tokenizer = str(kept)
    optim = OptimConfig(batch_size=1, warmup_tokens=0)
    run = RunConfig(
        model=imported.config,
        data=DataConfig(f"{SOURCE}:{checksum}", tokenizer),
        optim=optim,
        tokens=imported.config.context,
    )
    target = run_dirs.open_run(out, run)
    metadata = {
        "run_id": run.run_id,
        "step": str(run.steps),
        "tokenizer_hash": opened.hash,
    }
    write_parameters(target / PARAMETERS_FILE, imported.params, metadata)
    row = {
        **run_dirs.describe_run(run),
        "sweep": SOURCE,
        "status": "finished",
        "unique_tokens": run.tokens,
        "epochs": 1.0,
        "loss": None,
        "loss_se": None,
        "bits_per_byte": None,
        "diverged": False,
        "wall_seconds": 0.0,
        **provenance.read_provenance(),
    }
    run_dirs.write_result(out, run, row)
    return target
