"""All importers by name, for the command line and the guide."""

from __future__ import annotations

from analysis.importers import (
    json_files,
    levanter,
    lm_eval,
    mlflow,
    tensorboard,
    text_logs,
    trackio,
    trainer_state,
    wandb,
    wandb_chart,
    wandb_table,
)
from analysis.importers.base import Importer

_ALL = (
    wandb.IMPORTER,
    wandb_chart.IMPORTER,
    wandb_table.IMPORTER,
    mlflow.IMPORTER,
    tensorboard.IMPORTER,
    trackio.IMPORTER,
    trainer_state.IMPORTER,
    levanter.IMPORTER,
    lm_eval.IMPORTER,
    json_files.FOLDER_IMPORTER,
    json_files.LINES_IMPORTER,
    text_logs.IMPORTER,
)

IMPORTERS: dict[str, Importer] = {importer.name: importer for importer in _ALL}
"""Name -> importer."""
