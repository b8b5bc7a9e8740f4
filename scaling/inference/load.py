"""Open a trained model from the folder of its run, of a sweep or of a compressed model."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp

from scaling import data
from scaling.config import ConfigError, RunConfig
from scaling.data.synthetic.protocol import is_synthetic
from scaling.data.tokenizers import FileTokenizer, Tokenizer, open_tokenizer
from scaling.inference.compressed import is_compressed, read_compressed
from scaling.inference.model import TrainedModel
from scaling.model.architecture import find_architecture
from scaling.model.family import unstack_layers
from scaling.store import query, run_dirs
from scaling.store.files import StoreError
from scaling.training.trained_params import TrainedParams, read_trained_params


def load(
    path: str | Path, run: str | None = None, *, step: int | None = None
) -> TrainedModel:
    """Open a trained model.

    Args:
        path: The folder of a run, of a sweep, or of a compressed model, which is opened
            as a plain model in float32.
        run: In the folder of a sweep, the beginning of the run's id, or "best" for the
            finished run of the lowest loss. It may be left out if there is one run.
        step: A step that a checkpoint of the run or of its trunk holds. The default is
            the end of the run.

    Raises:
        ConfigError: there is no such run or checkpoint; the message says which there
            are.
        StoreError: a file cannot be read.
    """
    if is_compressed(Path(path)):
        for name, value in (("run", run), ("step", step)):
            if value is not None:
                raise ConfigError(
                    f"{name} = {value!r}: {path} holds one compressed model; leave "
                    f"{name} out, or give the folder of its run"
                )
        return read_compressed(path)
    folder = find_run_folder(Path(path), run)
    trained = read_trained_params(folder, step)
    model, params = unstack_layers(trained.run.model, trained.params)
    architecture = find_architecture(model)
    model, params = architecture.drop_training_layers(model, params)
    expected = trained.metadata.get("tokenizer_hash")
    return TrainedModel(
        run=trained.run,
        config=model,
        params=jax.tree.map(jnp.asarray, params),
        tokenizer=_open_run_tokenizer(folder, trained.run, expected),
        step=trained.step,
        folder=folder,
        fingerprint=_read_fingerprint(folder, trained),
    )


def _read_fingerprint(folder: Path, trained: TrainedParams) -> str | None:
    """The fingerprint of a run's data: beside its parameters, else in its result."""
    if "fingerprint" in trained.metadata:
        return trained.metadata["fingerprint"]
    try:
        return query.read_result(folder.parent, folder.name).get("fingerprint")
    except query.UnreadableFile:
        return None


def find_run_folder(path: Path, run: str | None) -> Path:
    """The folder of the run that a user means; see `load`.

    Raises:
        ConfigError: there is no such run, or several.
    """
    if is_compressed(path):
        raise ConfigError(
            f"{path}: holds a compressed model, which is no run; give the folder of the "
            "run that it was made from"
        )
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder; give that of a sweep or of a run")
    if (path / "config.json").is_file():
        if run is not None and not path.name.startswith(run):
            raise ConfigError(
                f"run = {run!r}: {path} is the folder of another run; leave run out, "
                "or give the folder of the sweep"
            )
        return path.resolve()
    if run == "best":
        return path / _find_best_run(path)
    if run is not None:
        return path / query.find_run(path, run)
    names = query.list_run_ids(path)
    if len(names) != 1:
        raise ConfigError(
            f"{path}: holds {len(names)} runs; choose one by run = the beginning of its "
            f"id, or 'best'; `scaling runs {path}` lists them"
        )
    return path / names[0]


def _find_best_run(path: Path) -> str:
    """The id of the finished run of the lowest loss."""
    table, _ = query.list_runs(path)
    losses = table.loc[table["status"] == "finished", "loss"]
    if losses.empty or not math.isfinite(losses.min()):
        raise ConfigError(f"{path}: run = 'best': no run has finished with a loss")
    return str(table.loc[losses.idxmin(), "run_id"])


def _open_run_tokenizer(
    folder: Path, run: RunConfig, expected: str | None
) -> Tokenizer | None:
    """The tokenizer of a run: the one that its sweep kept, else that of its data.

    Raises:
        StoreError: it is not the one that the run was trained with.
    """
    if is_synthetic(run.data.source):
        return None
    if run.data.tokenizer == "bytes":
        return open_tokenizer("bytes")
    if expected is not None:
        kept = folder.parent / run_dirs.name_tokenizer_file(expected)
        if kept.is_file():
            return FileTokenizer(kept)
    tokenizer = data.load_tokenizer(run.data)
    if expected is not None and tokenizer.hash != expected:
        raise StoreError(
            f"data.tokenizer = {run.data.tokenizer!r}: it has changed since run "
            f"{run.run_id} was trained; bring the old one back"
        )
    return tokenizer
