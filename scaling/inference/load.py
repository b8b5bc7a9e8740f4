"""Open a trained model from the folder of its run or of a sweep."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp

from scaling import data
from scaling.config import ConfigError, RunConfig
from scaling.data.synthetic.protocol import is_synthetic
from scaling.data.tokenizers import FileTokenizer, Tokenizer, open_tokenizer
from scaling.inference.model import TrainedModel
from scaling.model.family import build_family, unstack_layers
from scaling.model.transformer import Params
from scaling.store import query, run_dirs
from scaling.store.files import StoreError
from scaling.store.parameters import PARAMETERS_FILE, read_parameters
from scaling.training.checkpoint import list_checkpoints, read_checkpoint_params


def load(
    path: str | Path, run: str | None = None, *, step: int | None = None
) -> TrainedModel:
    """Open a trained model.

    Args:
        path: The folder of a run or of a sweep.
        run: In the folder of a sweep, the beginning of the run's id, or "best" for the
            finished run of the lowest loss. It may be left out if there is one run.
        step: A step that a checkpoint of the run or of its trunk holds. The default is
            the end of the run.

    Raises:
        ConfigError: there is no such run or checkpoint; the message says which there
            are.
        StoreError: a file cannot be read.
    """
    folder = find_run_folder(Path(path), run)
    try:
        config = query.read_config(folder.parent, folder.name)
    except query.UnreadableFile as error:
        raise StoreError(str(error)) from None
    metadata: dict[str, str] = {}
    if step is None or step == config.steps:
        params, metadata = _read_final_params(folder, config)
        step = config.steps
    else:
        params = _read_params_at(folder, config, step)
    _check_shapes(folder, config, params)
    model, params = unstack_layers(config.model, params)
    return TrainedModel(
        run=config,
        config=model,
        params=jax.tree.map(jnp.asarray, params),
        tokenizer=_open_run_tokenizer(folder, config, metadata.get("tokenizer_hash")),
        step=step,
        folder=folder,
    )


def find_run_folder(path: Path, run: str | None) -> Path:
    """The folder of the run that a user means; see `load`.

    Raises:
        ConfigError: there is no such run, or several.
    """
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


def _read_final_params(folder: Path, run: RunConfig) -> tuple[Params, dict[str, str]]:
    path = folder / PARAMETERS_FILE
    if path.is_file():
        return read_parameters(path)
    steps = list_checkpoints(folder / "checkpoints")
    if run.steps in steps:
        return _read_params_at(folder, run, run.steps), {}
    state = "is not finished"
    if run_dirs.is_finished(folder.parent, run):
        state = "was trained without keeping its parameters"
    raise ConfigError(f"{folder}: the run {state}; {_describe_steps(folder, run)}")


def _list_sources(folder: Path, run: RunConfig) -> dict[int, Path]:
    """The checkpoints of a run and, up to its branch step, of its trunk."""
    trunk = run_dirs.trunk_dir(folder.parent, run) / "checkpoints"
    own = folder / "checkpoints"
    sources = {
        step: trunk for step in list_checkpoints(trunk) if step <= run.branch_step
    }
    sources.update(dict.fromkeys(list_checkpoints(own), own))
    return dict(sorted(sources.items()))


def _describe_steps(folder: Path, run: RunConfig) -> str:
    steps = ", ".join(str(step) for step in _list_sources(folder, run))
    if not steps:
        return "no checkpoint is there either; train it again into another folder"
    return f"step = one of {steps} opens a checkpoint"


def _read_params_at(folder: Path, run: RunConfig, step: int) -> Params:
    sources = _list_sources(folder, run)
    if step not in sources:
        raise ConfigError(
            f"step = {step}: no checkpoint of {folder} or of its trunk has it; "
            f"{_describe_steps(folder, run)}"
        )
    abstract = jax.eval_shape(lambda: build_family(run.model).init(0))
    return read_checkpoint_params(sources[step], step, abstract)


def _check_shapes(folder: Path, run: RunConfig, params: Params) -> None:
    """Check that the parameters are those of the run's model."""
    expected = jax.eval_shape(lambda: build_family(run.model).init(0))
    shapes = jax.tree.map(lambda x: x.shape, expected)
    if jax.tree.map(lambda x: x.shape, params) != shapes:
        raise StoreError(
            f"{folder / PARAMETERS_FILE}: holds parameters of another model than "
            "config.json describes"
        )


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
