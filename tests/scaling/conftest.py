"""Results and models of runs that were never trained, for the tests of what reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling.config import ModelConfig, RunConfig
from scaling.data.tokenizers import ByteTokenizer
from scaling.inference.model import TrainedModel
from scaling.model.architecture import Params
from scaling.model.family import unstack_layers
from scaling.store import run_dirs

MakeRow = Callable[..., dict[str, Any]]
RecordRun = Callable[..., Path]


@pytest.fixture(scope="session")
def make_row() -> MakeRow:
    """The row of the run table for a run, with changes by column."""

    def make(run: RunConfig, **changes: Any) -> dict[str, Any]:
        columns = run_dirs.describe_run(run)
        return {
            **columns,
            "sweep": "mine",
            "status": "finished",
            "diverged": False,
            "loss": 1.5,
            "loss_se": 0.01,
            "bits_per_byte": 2.0,
            "unique_tokens": columns["tokens"],
            "epochs": 1.0,
            "wall_seconds": 0.5,
            "fingerprint": "",
            "device": "",
            "versions": "{}",
            "commit": "",
            **changes,
        }

    return make


@pytest.fixture(scope="session")
def record(make_row: MakeRow) -> RecordRun:
    """Store a run as the trainer does, without training it, with changes by column."""

    def record_run(out: Path, run: RunConfig, **changes: Any) -> Path:
        folder = run_dirs.open_run(out, run)
        run_dirs.write_result(out, run, make_row(run, **changes))
        return folder

    return record_run


@pytest.fixture(scope="session")
def wrap_model() -> Callable[..., TrainedModel]:
    """A model of bytes with some parameters, which no run has trained."""

    def wrap(config: ModelConfig, params: Params) -> TrainedModel:
        listed, params = unstack_layers(config, params)
        return TrainedModel(
            run=RunConfig(config),
            config=listed,
            params=params,
            tokenizer=ByteTokenizer(),
            step=0,
            folder=Path("none"),
        )

    return wrap
