"""Fine-tuning starts from its parent, and is resumed, repeated and read like any sweep."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

import scaling
from scaling.cli.main import main
from scaling.config import (
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimConfig,
    ParentConfig,
    RunConfig,
    Trunk,
)
from scaling.execution.finetune import (
    FinetuneConfig,
    finetune,
    may_improve,
    plan_finetuning,
    select_best,
)
from scaling.execution.sweep import sweep
from scaling.store import run_dirs
from scaling.training.loop import LoopConfig, train_trunk

LOOP = LoopConfig(chunk_steps=4, checkpoint_seconds=0.0)
RecordRun = Callable[..., Path]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on the digits of numbers."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(80):
        numbers = [str((i * k * k) % 997) for k in range(40)]
        (folder / f"{i}.txt").write_text(" ".join(numbers))
    model = ModelConfig(width=16, depth=1, n_heads=2, context=32)
    source = DataConfig(str(folder), heldout_fraction=0.2)
    optim = OptimConfig(batch_size=4, warmup_tokens=128)
    run = RunConfig(model, source, optim, tokens=128 * 40, eval_tokens=2048)
    out = tmp_path_factory.mktemp("parents")
    sweep([run], out, workers=0, loop=LOOP, show="quiet")
    return out / run.run_id


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("task") / "parity.jsonl"
    lines = []
    for i in range(150):
        label = "even" if i % 2 == 0 else "odd"
        lines.append(json.dumps({"text": f"number {i} is", "label": f" {label}"}))
    path.write_text("\n".join(lines))
    return path


def tune(parent: Path, task: Path, out: Path, **settings: object) -> pd.DataFrame:
    config = FinetuneConfig(str(task), **{"epochs": (1.0, 3.0), **settings})
    return finetune(parent, config, out, workers=0, loop=LOOP, show="quiet")


def test_a_run_starts_from_its_parent(parent: Path, task: Path, tmp_path: Path) -> None:
    """Without a step to speak of it is its parent."""
    table = tune(parent, task, tmp_path, lr=1e-12, patience=None)
    child = scaling.load(tmp_path, "best")
    same = jax.tree.map(
        lambda a, b: np.allclose(a, b, atol=1e-6),
        child.params,
        scaling.load(parent).params,
    )
    assert all(jax.tree.leaves(same))
    recorded = json.loads((parent / "result.json").read_text())["loss"]
    assert table["pretraining_loss"].tolist() == pytest.approx([recorded] * 2, rel=1e-5)
    assert set(table["parent"]) == {parent.name}
    assert set(table["task"]) == {str(task)}
    assert table["examples"].nunique() == 1


def test_training_on_the_task_is_learned_and_the_text_forgotten(
    parent: Path, task: Path, tmp_path: Path
) -> None:
    before = scaling.load(parent)
    table = tune(parent, task, tmp_path, epochs=(8.0,), lr=0.01)
    child = scaling.load(tmp_path)
    assert child.evaluate_heldout().loss == pytest.approx(table["loss"][0], rel=1e-6)
    found = scaling.evaluate_on_task(child, str(task)).metrics
    base = scaling.evaluate_on_task(before, str(task)).metrics
    assert found["choice_nats"].value < base["choice_nats"].value
    assert found["answer_bits_per_byte"].value < base["answer_bits_per_byte"].value
    text = child.run.parent
    assert text is not None and text.run == before.run.run_id
    forgotten = table["pretraining_loss"][0]
    assert forgotten > before.evaluate_heldout().loss


@pytest.mark.parametrize(
    "settings", [{}, {"lora_rank": 2}, {"from_scratch": True}, {"sparsity": 0.5}]
)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    parent: Path, task: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    config = FinetuneConfig(str(task), epochs=(2.0,), **settings)
    ((run,),) = plan_finetuning(parent, config)
    trunk = Trunk((run,))
    train_trunk(trunk, tmp_path / "whole", LOOP, lambda event: None)
    steps = 0

    def interrupt(event: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_trunk(trunk, tmp_path / "cut", LOOP, interrupt)
    assert not run_dirs.is_finished(tmp_path / "cut", run)
    train_trunk(trunk, tmp_path / "cut", LOOP, lambda event: None)
    rows = []
    for name in ("whole", "cut"):
        path = tmp_path / name / run.run_id / "result.json"
        rows.append(json.loads(path.read_text()))
    assert rows[0]["loss"] == rows[1]["loss"]
    if run.parent is not None:
        assert rows[0]["pretraining_loss"] == rows[1]["pretraining_loss"]
    models = [scaling.load(tmp_path / name).params for name in ("whole", "cut")]
    same = jax.tree.map(lambda a, b: bool((a == b).all()), *models)
    assert all(jax.tree.leaves(same))


def test_a_second_call_trains_nothing(parent: Path, task: Path, tmp_path: Path) -> None:
    first = tune(parent, task, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    second = tune(parent, task, tmp_path)
    pd.testing.assert_frame_equal(first, second)
    for path, time in times.items():
        assert path.stat().st_mtime_ns == time


def test_packed_seeds_equal_seeds_alone(
    parent: Path, task: Path, tmp_path: Path
) -> None:
    config = FinetuneConfig(str(task), epochs=(2.0,), seeds=(0, 1))
    losses = []
    for pack in ("solo", "map"):
        loop = dataclasses.replace(LOOP, pack=pack)
        table = finetune(
            parent, config, tmp_path / pack, workers=0, loop=loop, show="quiet"
        )
        losses.append(table.sort_values("seed")["loss"].tolist())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][0] != losses[0][1]


def test_adapters_open_at_a_checkpoint_too(
    parent: Path, task: Path, tmp_path: Path
) -> None:
    tune(parent, task, tmp_path, epochs=(4.0,), lora_rank=2)
    end = scaling.load(tmp_path)
    trunk = run_dirs.trunk_dir(tmp_path, end.run) / "checkpoints"
    step = max(int(path.name) for path in trunk.iterdir() if path.name.isdecimal())
    earlier = scaling.load(tmp_path, step=step)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), earlier.params, end.params)
    assert not all(jax.tree.leaves(same))
    assert jax.tree.structure(earlier.params) == jax.tree.structure(end.params)


@pytest.mark.parametrize(
    ("losses", "patience", "goes_on"),
    [
        ([3.0], 1, True),
        ([3.0, 2.0], 1, True),
        ([2.0, 3.0], 1, False),
        ([2.0, 3.0], 2, True),
        ([2.0, 3.0, 2.5], 2, False),
        ([2.0, None], 1, False),
        ([2.0, 3.0, 4.0], None, True),
    ],
)
def test_longer_runs_are_trained_while_they_may_be_better(
    tmp_path: Path,
    parent: Path,
    task: Path,
    record: RecordRun,
    losses: list[float | None],
    patience: int | None,
    goes_on: bool,
) -> None:
    epochs = (1.0, 2.0, 4.0, 8.0)
    (group,) = plan_finetuning(parent, FinetuneConfig(str(task), epochs=epochs))
    for run, loss in zip(group, losses, strict=False):
        record(tmp_path, run, loss=loss)
    assert may_improve(tmp_path, group, len(losses) - 1, patience) == goes_on
    assert not may_improve(tmp_path, group, 3, patience)


def test_the_best_of_each_trunk_is_kept() -> None:
    table = pd.DataFrame(
        {
            "trunk_id": ["a", "a", "b", "b"],
            "loss": [2.0, 1.0, 3.0, np.nan],
            "status": ["finished"] * 3 + ["diverged"],
        }
    )
    assert select_best(table)["loss"].tolist() == [1.0, 3.0]


def test_what_cannot_be_a_parent_is_named(
    parent: Path, task: Path, tmp_path: Path
) -> None:
    ((run,),) = plan_finetuning(parent, FinetuneConfig(str(task), epochs=(1.0,)))
    assert run.parent is not None
    moved = dataclasses.replace(run.parent, folder=str(tmp_path / "away"))
    lost = dataclasses.replace(run, parent=moved)
    assert lost.run_id == run.run_id
    with pytest.raises(ConfigError, match=r"parent\.folder = .*is not there"):
        train_trunk(Trunk((lost,)), tmp_path, LOOP, lambda event: None)
    wider = dataclasses.replace(run, model=dataclasses.replace(run.model, width=32))
    with pytest.raises(ConfigError, match="differs from that of parent"):
        train_trunk(Trunk((wider,)), tmp_path, LOOP, lambda event: None)
    with pytest.raises(ConfigError, match=r"parent\.run = 'best'"):
        ParentConfig("best")
    unfinished = Path(shutil.copytree(parent, tmp_path / parent.name))
    (unfinished / "result.json").unlink()
    with pytest.raises(ConfigError, match="not finished"):
        plan_finetuning(unfinished, FinetuneConfig(str(task)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": ()}, "epochs"),
        ({"epochs": (0.0,)}, "epochs"),
        ({"seeds": ()}, "seeds"),
        ({"patience": 0}, "patience = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"lr": 0.0}, "lr = 0.0"),
        ({"lr_factor": -1.0}, "lr_factor = -1.0"),
        ({"from_scratch": True, "lora_rank": 2}, "lora_rank = 2"),
        ({"from_scratch": True, "sparsity": 0.5}, "sparsity = 0.5"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FinetuneConfig("addition", **settings)  # type: ignore[arg-type]


def test_the_verbs_fine_tune_and_evaluate(
    parent: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "tuned")
    flags = ["--task", str(task), "--epochs", "1", "2", "--out", out, "--workers", "0"]
    more = ["--progress", "quiet", "--json", "--examples", "40"]
    assert main(["finetune", str(parent), *flags, *more]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["examples"] == 40
    answers = tmp_path / "answers.csv"
    flags = ["--run", "best", "--task", str(task), "--predictions", str(answers)]
    assert main(["evaluate", out, *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["baselines"]["chance"]["accuracy"] == 0.5
    assert len(pd.read_csv(answers)) == found["examples"]
    assert main(["evaluate", out, *flags[:4]]) == 0
    assert "macro_f1" in capsys.readouterr().out
