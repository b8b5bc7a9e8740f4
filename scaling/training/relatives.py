"""The trained models that a run starts from or learns from: its parent and its teacher."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from scaling.config import ArchitectureConfig, ConfigError, RelativeConfig, RunConfig
from scaling.config.architecture import Masking
from scaling.data import Dataset
from scaling.model.architecture import Params
from scaling.model.masks import prune_params
from scaling.store import query
from scaling.training.sharding import Strategy
from scaling.training.step import Executable, Teacher, get_executable
from scaling.training.trained_params import read_trained_params


def open_executable(run: RunConfig, strategy: Strategy, dataset: Dataset) -> Executable:
    """The executable that trains a run on its dataset.

    Raises:
        ConfigError: its teacher is not where the configuration says.
    """
    return get_executable(
        run,
        strategy,
        dataset.row_format,
        make_teacher(run),
    )


def read_relative_config(relative: RelativeConfig) -> RunConfig:
    """The configuration of a parent or teacher.

    Raises:
        ConfigError: it is not where the configuration says.
    """
    try:
        return query.read_config(Path(relative.folder), relative.run)
    except query.UnreadableFile as error:
        raise ConfigError(
            f"{relative.field_path}.folder = {relative.folder!r}: run {relative.run} is "
            f"not there ({error}); give the folder of its sweep"
        ) from None


def read_relative_params(relative: RelativeConfig) -> Params:
    """The parameters of a parent or teacher, on the host.

    Raises:
        ConfigError: it is not where the configuration says, or has no such step.
        StoreError: a file cannot be read.
    """
    folder = Path(relative.folder) / relative.run
    return read_trained_params(folder, relative.step).params


def read_parent_params(run: RunConfig) -> Params:
    """The parameters that a run starts from, pruned if it is to be sparse.

    Raises:
        ConfigError: the parent is not where the configuration says, its model has
            another shape, or it cannot be pruned so.
    """
    parent = run.parent
    assert parent is not None
    config = read_relative_config(parent)
    if dataclasses.replace(config.model, dropout=run.model.dropout) != run.model:
        raise ConfigError(
            f"model: differs from that of parent.run = {parent.run}; a run has the model "
            "of its parent, with any dropout"
        )
    params = read_relative_params(parent)
    if not run.keeps_zeros:
        return params
    return prune_params(run.model, params, parent.pattern, parent.sparsity)


def make_teacher(run: RunConfig) -> Teacher | None:
    """How a run learns from its teacher; None if it has none.

    Raises:
        ConfigError: the teacher is not where the configuration says, or it reads other
            tokens than the run.
    """
    teacher = run.teacher
    if teacher is None:
        return None
    config = read_relative_config(teacher).model
    if config.vocab != run.model.vocab:
        raise ConfigError(
            f"model.vocab = {run.model.vocab}: teacher.run = {teacher.run} has "
            f"{config.vocab}; both must read the same tokens"
        )
    if config.context < run.model.context:
        raise ConfigError(
            f"model.context = {run.model.context}: teacher.run = {teacher.run} sees "
            f"{config.context} tokens; lower it to at most that"
        )
    if _describe_reading(config) != _describe_reading(run.model):
        raise ConfigError(
            f"model.architecture = {run.model.architecture!r}: teacher.run = "
            f"{teacher.run} ({config.architecture!r}) predicts other tokens, or sees "
            "others; both must read their windows alike"
        )
    config = dataclasses.replace(config, dropout=0.0)
    return Teacher(config, teacher.weight, teacher.temperature)


def _describe_reading(model: ArchitectureConfig) -> tuple[int, Masking | None]:
    """What a model sees of its window and predicts."""
    return model.prefix_tokens, model.masking
