"""Fine-tuning on eight devices gives what one gives, and a killed process loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = """
import json, os, signal, sys
from pathlib import Path

import scaling
from scaling.config import DataConfig, ModelConfig, OptimConfig, RunConfig, Trunk
from scaling.execution.finetune import FinetuneConfig, plan_finetuning
from scaling.execution.sweep import sweep
from scaling.store import run_dirs
from scaling.training.loop import LoopConfig, train_trunk

out = Path(sys.argv[1])
name, kill_after = sys.argv[2], int(sys.argv[3])
quick = dict(chunk_steps=4, checkpoint_seconds=0.0)
model = ModelConfig(width=16, depth=1, n_heads=2, context=32)
parent = RunConfig(
    model, DataConfig(sys.argv[4], heldout_fraction=0.2),
    OptimConfig(batch_size=4, warmup_tokens=128), tokens=128 * 12, eval_tokens=1024,
)
sweep([parent], out / "parents", workers=0, loop=LoopConfig(**quick), show="quiet")
folder = out / "parents" / parent.run_id

events = 0


def report(event):
    global events
    events += type(event).__name__ == "Progress"
    if events == kill_after:
        os.kill(os.getpid(), signal.SIGKILL)


losses = []
for settings in ({}, {"lora_rank": 2}, {"sparsity": 0.5}):
    config = FinetuneConfig("addition:digits=1,examples=60", epochs=(6.0,), **settings)
    ((run,),) = plan_finetuning(folder, config)
    loop = LoopConfig(strategy=name, **quick)
    target = out / sys.argv[5]
    train_trunk(Trunk((run,)), target, loop, report)
    row = json.loads((run_dirs.run_dir(target, run) / "result.json").read_text())
    losses += [row["loss"], row["pretraining_loss"]]
print(json.dumps(losses))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("devices")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for i in range(60):
        numbers = [str((i * k * k) % 997) for k in range(40)]
        (folder / f"{i}.txt").write_text(" ".join(numbers))
    return folder


def start(
    folder: Path, texts: Path, name: str, target: str, kill_after: int = -1
) -> subprocess.CompletedProcess[str]:
    flags = "--xla_force_host_platform_device_count=8"
    flags += " --xla_backend_optimization_level=0"
    words = [str(folder), name, str(kill_after), str(texts), target]
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=290,
    )


def read_losses(done: subprocess.CompletedProcess[str]) -> list[Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def alone(folder: Path, texts: Path) -> list[float]:
    """Losses of full and of low-rank fine-tuning on one device."""
    return read_losses(start(folder, texts, "single", "single"))


@pytest.mark.parametrize("name", [pytest.param("pmap", marks=pytest.mark.slow), "fsdp"])
def test_eight_devices_equal_one(
    folder: Path, texts: Path, alone: list[float], name: str
) -> None:
    found = read_losses(start(folder, texts, name, name))
    assert found == pytest.approx(alone, rel=1e-4)


def test_a_killed_process_goes_on_where_it_was(
    folder: Path, texts: Path, alone: list[float]
) -> None:
    killed = start(folder, texts, "single", "killed", kill_after=3)
    assert killed.returncode == -9
    assert read_losses(start(folder, texts, "single", "killed")) == alone
