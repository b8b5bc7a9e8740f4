"""A run from a pruned parent trains the weights that stay, and only those."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import scaling
from scaling.compression.prune import PruningConfig, prune_model
from scaling.config import (
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimConfig,
    ParentConfig,
    RunConfig,
)
from scaling.execution.sweep import sweep
from scaling.inference.model import TrainedModel
from scaling.model.matrices import list_matrices, read_matrices
from scaling.store.table import run_table
from scaling.training.loop import LoopConfig

LOOP = LoopConfig(chunk_steps=8, checkpoint_seconds=0.0)
PATTERNS = {"magnitude": 0.6, "2:4": 0.5, "heads": 0.5}


def read_zeros(model: TrainedModel) -> dict[str, np.ndarray]:
    names = list_matrices(model.config)
    matrices = read_matrices(model.params, names)
    return {name: np.asarray(matrix) == 0 for name, matrix in matrices.items()}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sparse")


@pytest.fixture(
    scope="module", params=["listed", pytest.param("scanned", marks=pytest.mark.slow)]
)
def dense(request: pytest.FixtureRequest, out: Path) -> RunConfig:
    """A trained run on a source of known entropy."""
    scan = "always" if request.param == "scanned" else "never"
    model = ModelConfig(
        width=16, depth=2, n_heads=2, context=16, vocab=64, scan_layers=scan
    )
    optim = OptimConfig(batch_size=4, warmup_tokens=128, lr=0.02)
    run = RunConfig(model, DataConfig("markov:states=64"), optim, 64 * 100)
    sweep([run], out, workers=0, loop=LOOP, show="quiet")
    return run


def train_sparse(dense: RunConfig, out: Path, **changes: object) -> RunConfig:
    pattern = str(changes.pop("pattern", "magnitude"))
    parent = ParentConfig(
        dense.run_id, folder=str(out), pattern=pattern, sparsity=PATTERNS[pattern]
    )
    optim = dataclasses.replace(dense.optim, **changes)
    run = dataclasses.replace(dense, parent=parent, optim=optim, tokens=64 * 40)
    sweep([run], out, workers=0, loop=LOOP, show="quiet")
    return run


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_removed_stays_removed_and_the_rest_recovers(
    dense: RunConfig, out: Path, pattern: str
) -> None:
    run = train_sparse(dense, out, pattern=pattern)
    settings = PruningConfig(pattern, sparsity=PATTERNS[pattern], heads=1)
    pruned = prune_model(scaling.load(out, dense.run_id), settings).model
    tuned = scaling.load(out, run.run_id)
    expected = read_zeros(pruned)
    found = read_zeros(tuned)
    assert all(np.array_equal(expected[name], found[name]) for name in expected)
    assert any(zeros.any() for zeros in expected.values())
    assert tuned.evaluate_heldout().loss < pruned.evaluate_heldout().loss - 0.01
    table = run_table(out).set_index("run_id")
    assert table.loc[run.run_id, "sparsity"] == PATTERNS[pattern]
    assert table.loc[run.run_id, "pattern"] == pattern
    assert np.isnan(table.loc[dense.run_id, "sparsity"])


@pytest.mark.parametrize(
    "changes", [{"optimizer": "muon"}, {"weight_decay": 1e-3, "optimizer": "sgd"}]
)
def test_no_optimizer_revives_a_weight(
    dense: RunConfig, out: Path, changes: dict[str, object]
) -> None:
    run = train_sparse(dense, out, **changes)
    settings = PruningConfig(sparsity=PATTERNS["magnitude"])
    pruned = prune_model(scaling.load(out, dense.run_id), settings).model
    expected = read_zeros(pruned)
    found = read_zeros(scaling.load(out, run.run_id))
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_a_run_that_removes_nothing_is_a_run_from_a_parent(
    dense: RunConfig, out: Path
) -> None:
    """The id is that of before the option, and so is what training does."""
    parent = ParentConfig(dense.run_id, folder=str(out))
    run = dataclasses.replace(dense, parent=parent, tokens=64 * 8)
    identity = json.dumps(scaling.config.to_dict(run))
    assert '"sparsity"' in identity
    assert "sparsity" not in json.dumps(
        scaling.config.identity.describe_identity(run)["parent"]
    )
    assert not run.keeps_zeros


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, r"parent\.sparsity = 1\.0: must lie in \[0, 1\)"),
        ({"sparsity": 0.3, "pattern": "2:4"}, r"must be 0\.5 for parent\.pattern"),
        ({"pattern": "heads"}, "give the share of the heads"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ParentConfig("0123456789abcdef", **settings)  # type: ignore[arg-type]


def test_what_cannot_be_sparse_is_named(dense: RunConfig, out: Path) -> None:
    half = ParentConfig(dense.run_id, folder=str(out), sparsity=0.5)
    adapters = dataclasses.replace(dense.optim, lora_rank=2)
    with pytest.raises(ConfigError, match="adapters would fill"):
        dataclasses.replace(dense, parent=half, optim=adapters)
    few = dataclasses.replace(half, pattern="heads", sparsity=0.1)
    run = dataclasses.replace(dense, parent=few)
    with pytest.raises(scaling.SweepError, match="is 0 of 2 heads"):
        sweep([run], out, workers=0, loop=LOOP, show="quiet")
