"""Laws of training a mixture of experts: devices, packing and interruption change nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling.config import RunConfig, Trunk, to_dict
from scaling.execution.in_process import train_in_process
from scaling.model.sharding_axes import SHARDS
from scaling.store import run_dirs
from scaling.training.loop import LoopConfig, train_trunk
from scaling.training.sharding import choose_split_axis

MakeRun = Callable[..., RunConfig]
EIGHT: dict[str, Any] = {
    "model.zero_init_outputs": False,
    "model.depth": 2,
    "model.experts.routed": 8,
    "model.experts.per_token": 2,
    "model.experts.granularity": 2,
}
SCRIPT = """
import json, sys
import jax
import numpy as np
from scaling.config import RunConfig, from_dict
from scaling.training.sharding import STRATEGIES
from scaling.training.step import StepRates, get_executable

S = 4
answer = {}
for name, run in json.loads(sys.argv[1]).items():
    run = from_dict(RunConfig, run)
    shape = (S, run.optim.batch_size, 1)
    start = np.random.default_rng(0).integers(0, run.model.vocab, shape)
    windows = ((start + np.arange(run.model.context + 1)) % run.model.vocab).astype(np.int32)
    rates = StepRates(np.full(S, 0.01, np.float32), np.full(S, 1e-3, np.float32))
    found = {}
    for kind, devices in (("single", 1), ("pmap", 8), ("fsdp", 8)):
        strategy = STRATEGIES[kind](devices)
        compiled = get_executable(run, strategy)
        state, metrics = compiled.chunk(
            compiled.init(0), strategy.shard_batches(windows), rates, np.int32(S), np.uint32(0)
        )
        metrics = strategy.gather(metrics)
        found[kind] = {key: np.asarray(value).tolist() for key, value in metrics.items()}
        if kind == "fsdp":
            found["splits"] = [
                list(leaf.sharding.spec)
                for role, leaf in zip(
                    jax.tree.leaves(compiled.spec.family.roles), jax.tree.leaves(state.params)
                )
                if role.startswith("expert")
            ]
    answer[name] = found
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def answer(make_run: MakeRun) -> dict[str, Any]:
    """What eight virtual devices find, for layers in a list and as a scan."""
    sizes = {"optim.batch_size": 16, "model.width": 16, **EIGHT}
    runs = {
        "list": make_run(**sizes),
        "scan": make_run(
            **sizes,
            **{
                "model.scan_layers": "always",
                "model.experts.balancing": "loss",
                "optim.accumulate": 2,
            },
        ),
    }
    flags = (
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    )
    values = json.dumps({name: to_dict(run) for name, run in runs.items()})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, values],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=290,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# One test, since every process that runs tests would make the answer anew.
@pytest.mark.slow
def test_eight_devices_give_the_losses_and_loads_of_one(answer: dict[str, Any]) -> None:
    """Under fsdp each device holds some experts."""
    for layers in ("list", "scan"):
        alone = answer[layers]["single"]
        assert alone["loss"][0] - alone["loss"][-1] > 0.01  # something was learned
        for name in ("pmap", "fsdp"):
            for metric, values in alone.items():
                found = answer[layers][name][metric]
                where = f"{layers}, {name}: {metric}"
                np.testing.assert_allclose(found, values, atol=2e-5, err_msg=where)
    assert answer["list"]["splits"] == [[SHARDS]] * 4  # two matrices of two layers
    assert answer["scan"]["splits"] == [[None, SHARDS]] * 2


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((8, 3, 5), (SHARDS,)),
        ((2, 8, 3, 5), (None, SHARDS)),
        ((6, 8, 16), (None, None, SHARDS)),  # 4 devices do not divide six experts
        ((3, 6, 8, 12), (None, None, None, SHARDS)),
    ],
)
def test_a_stack_is_split_along_its_experts(
    shape: tuple[int, ...], axes: tuple[Any, ...]
) -> None:
    assert choose_split_axis(shape, 4, of_experts=True) == axes


# --- runs -----------------------------------------------------------------------------


def read_loss(out: Path, run: RunConfig) -> float:
    path = run_dirs.run_dir(out, run) / "result.json"
    return json.loads(path.read_text())["loss"]


@pytest.mark.slow
def test_packed_and_resumed_runs_are_those_trained_alone(
    make_run: MakeRun, tmp_path: Path
) -> None:
    """Their loads are in the metrics, and their counts in the row."""
    runs = [make_run(**EIGHT), make_run(**EIGHT, **{"seed": 1, "optim.lr": 3e-3})]
    trunks = [Trunk((run,)) for run in runs]
    for mode in ("solo", "vmap"):
        loop = LoopConfig(pack=mode, chunk_steps=4)
        assert train_in_process(trunks, tmp_path / mode, loop, lambda event: None) == []
    losses = [read_loss(tmp_path / "solo", run) for run in runs]
    assert losses[0] != losses[1]
    for run, loss in zip(runs, losses, strict=True):
        assert abs(read_loss(tmp_path / "vmap", run) - loss) < 1e-5

    class Stop(KeyboardInterrupt):
        pass

    seen: list[object] = []

    def stop_early(event: object) -> None:
        seen.append(event)
        if len(seen) == 4:
            raise Stop

    loop = LoopConfig(chunk_steps=4, checkpoint_seconds=0.0)
    with pytest.raises(Stop):
        train_trunk(trunks[0], tmp_path / "cut", loop, stop_early)
    assert not run_dirs.is_finished(tmp_path / "cut", runs[0])
    train_trunk(trunks[0], tmp_path / "cut", loop, lambda event: None)
    assert read_loss(tmp_path / "cut", runs[0]) == losses[0]

    folder = run_dirs.trunk_dir(tmp_path / "solo", runs[0])
    metrics = run_dirs.read_metrics(folder / "metrics.jsonl")
    assert (metrics["largest_load"] >= 1).all()
    assert metrics["idle_experts"].between(0, 1).all()
    row = json.loads(
        (run_dirs.run_dir(tmp_path / "solo", runs[0]) / "result.json").read_text()
    )
    assert row["n_experts"] == 8 and row["experts_per_token"] == 2
    assert row["n_matmul"] < row["n_active"] < row["n_total"]
