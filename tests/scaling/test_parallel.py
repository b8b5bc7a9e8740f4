"""Laws of the strategies: however many devices share a batch, the losses are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from scaling import parallel
from scaling.config import ConfigError, RunConfig, to_dict
from scaling.parallel import Strategy, choose

MakeRun = Callable[..., RunConfig]

SCRIPT = """
import faulthandler, json, sys
from pathlib import Path
import numpy as np
from scaling import store
from scaling.config import RunConfig, from_dict
from scaling.parallel import Strategy, choose
from scaling.train import Schedule, program
from scaling.trunk import LoopConfig, train_trunk

faulthandler.dump_traceback_later(280)
run, out = from_dict(RunConfig, json.loads(sys.argv[1])), Path(sys.argv[2])
S, B, T = 4, run.optim.batch_size, run.model.context
rng = np.random.default_rng(0)


def windows(*shape):  # each token is its predecessor plus one
    return ((rng.integers(0, run.model.vocab, (*shape, 1)) + np.arange(T + 1)) % run.model.vocab).astype(np.int32)


batches, heldout = windows(S, B), windows(300)
rates = Schedule(np.full(S, 0.01, np.float32), np.full(S, 1e-3, np.float32))
answer = {}
for strategy in (Strategy("single", 1), Strategy("pmap", 2), Strategy("pmap", 8)):
    compiled = program(run, strategy, None)
    state = compiled.init(0)
    before = compiled.evaluate(state, heldout)
    state, metrics = compiled.chunk(state, strategy.shard_batches(batches), rates, np.int32(S), np.uint32(0))
    after = compiled.evaluate(state, heldout)
    answer[f"{strategy.name} {strategy.devices}"] = {
        "losses": strategy.gather(metrics)["loss"].tolist(),
        "evaluations": [before.loss, before.loss_se, after.loss, after.loss_se],
    }
for name in ("single", "pmap"):  # the whole road: data, trunk, checkpoints, cooldown, result
    train_trunk([run], out / name, LoopConfig(chunk_steps=4, checkpoint_seconds=0.0, strategy=name), lambda event: None)
    answer[name] = json.loads((store.run_dir(out / name, run) / "result.json").read_text())["loss"]
answer["chosen"] = [choose("auto", 6).devices, choose("auto", 16, 4).devices, choose("auto", 7).devices]
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def answer(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Losses under each strategy in a process with 8 virtual devices, 16 sequences a step in 2 micro-batches."""
    run = make_run(**{"optim.batch_size": 16, "optim.accumulate": 2, "tokens": 8 * 256})
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(to_dict(run)), str(tmp_path_factory.mktemp("parallel"))],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=290,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("devices", [2, 8])
def test_pmap_gives_the_losses_of_a_single_device(answer: dict[str, Any], devices: int) -> None:
    """Four steps, each in two micro-batches, and the evaluation before and after them."""
    alone, shared = answer["single 1"], answer[f"pmap {devices}"]
    assert alone["losses"][0] - alone["losses"][-1] > 0.01  # something was learned
    np.testing.assert_allclose(shared["losses"], alone["losses"], atol=1e-5)
    np.testing.assert_allclose(shared["evaluations"], alone["evaluations"], atol=1e-5)


def test_a_run_recorded_under_pmap_is_that_of_a_single_device(answer: dict[str, Any]) -> None:
    assert abs(answer["single"] - answer["pmap"]) < 1e-5


def test_auto_takes_as_many_devices_as_share_the_batch(answer: dict[str, Any]) -> None:
    assert answer["chosen"] == [6, 4, 7]


def test_a_batch_that_does_not_split_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "local_device_count", lambda: 8)
    assert choose("pmap", 16) == Strategy("pmap", 8)
    with pytest.raises(ConfigError, match=r"optim.batch_size = 12: must be a multiple of the 8 devices"):
        choose("pmap", 12)
    with pytest.raises(ConfigError, match=r"optim.batch_size = 16: .*8 devices x 4 micro-batches"):
        choose("pmap", 16, accumulate=4)
    assert choose("single", 12) == Strategy("single", 1)


def test_only_this_file_names_devices() -> None:
    """Nothing else in the package shards, maps or counts devices, but for what lowers programs for other machines."""
    package = Path(parallel.__file__).parent
    words = ("jax.pmap", "jax.local_device", "shard_map", "NamedSharding", "PartitionSpec")
    for path in package.rglob("*.py"):
        if path.name not in ("parallel.py", "lowering.py"):
            assert not [word for word in words if word in path.read_text()], path
