"""The parameters of a trained model, from the folder of its run.

The end of a run is in `parameters.safetensors`; earlier steps are in the checkpoints of
the run and, up to its branch step, of its trunk.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax

from scaling.config import ConfigError, RunConfig
from scaling.model.architecture import Params
from scaling.store import query, run_dirs
from scaling.store.files import StoreError
from scaling.store.parameters import PARAMETERS_FILE, read_parameters
from scaling.training.checkpoint import list_checkpoints, read_checkpoint_params
from scaling.training.step import TaughtParams, make_step_spec


class TrainedParams(NamedTuple):
    """The parameters that a run had at a step.

    Attributes:
        run: The run's configuration.
        step: The step.
        params: The parameters, on the host; those of a scanned model are stacked.
        metadata: What was stored beside them at the end of the run.
    """

    run: RunConfig
    step: int
    params: Params
    metadata: dict[str, str]


def read_trained_params(folder: Path, step: int | None = None) -> TrainedParams:
    """The parameters of a run at its end or at a step.

    Args:
        folder: The folder of the run.
        step: A step that a checkpoint has; None means the end.

    Raises:
        ConfigError: nothing holds the parameters; the message says which steps there
            are.
        StoreError: a file cannot be read.
    """
    try:
        run = query.read_config(folder.parent, folder.name)
    except query.UnreadableFile as error:
        raise StoreError(str(error)) from None
    metadata: dict[str, str] = {}
    if step is None or step == run.steps:
        step = run.steps
        if (folder / PARAMETERS_FILE).is_file():
            params, metadata = read_parameters(folder / PARAMETERS_FILE)
        else:
            params = _read_last_checkpoint(folder, run)
    else:
        params = read_params_at(folder, run, step)
    _check_shapes(folder, run, params)
    return TrainedParams(run, step, params, metadata)


def _read_last_checkpoint(folder: Path, run: RunConfig) -> Params:
    if run.steps in list_checkpoints(folder / "checkpoints"):
        return read_params_at(folder, run, run.steps)
    state = "is not finished"
    if run_dirs.is_finished(folder.parent, run):
        state = "was trained without keeping its parameters"
    raise ConfigError(f"{folder}: the run {state}; {_describe_steps(folder, run)}")


def read_params_at(folder: Path, run: RunConfig, step: int) -> Params:
    """The parameters in the checkpoint of a step.

    Raises:
        ConfigError: no checkpoint has the step; the message says which there are.
        StoreError: the checkpoint cannot be read.
    """
    sources = list_steps(folder, run)
    if step not in sources:
        raise ConfigError(
            f"step = {step}: no checkpoint of {folder} or of its trunk has it; "
            f"{_describe_steps(folder, run)}"
        )
    spec = make_step_spec(run)
    abstract = jax.eval_shape(lambda: spec.init(0)).params
    if run.teacher is not None:
        # The checkpoint holds the teacher too, which is not read.
        taught = TaughtParams(student=abstract, teacher={})
        return read_checkpoint_params(sources[step], step, taught).student
    return spec.make_model(read_checkpoint_params(sources[step], step, abstract))


def list_steps(folder: Path, run: RunConfig) -> dict[int, Path]:
    """The steps that have a checkpoint, and the folders of these checkpoints."""
    trunk = run_dirs.trunk_dir(folder.parent, run) / "checkpoints"
    own = folder / "checkpoints"
    sources = {
        step: trunk for step in list_checkpoints(trunk) if step <= run.branch_step
    }
    sources.update(dict.fromkeys(list_checkpoints(own), own))
    return dict(sorted(sources.items()))


def _describe_steps(folder: Path, run: RunConfig) -> str:
    steps = ", ".join(str(step) for step in list_steps(folder, run))
    if not steps:
        return "no checkpoint is there either; train it again into another folder"
    return f"step = one of {steps} opens a checkpoint"


def _check_shapes(folder: Path, run: RunConfig, params: Params) -> None:
    """Check that the parameters are those of the run's model."""
    family = make_step_spec(run).family
    expected = jax.eval_shape(lambda: family.init(0))
    shapes = jax.tree.map(lambda x: x.shape, expected)
    if jax.tree.map(lambda x: x.shape, params) != shapes:
        raise StoreError(
            f"{folder / PARAMETERS_FILE}: holds parameters of another model than "
            "config.json describes"
        )
