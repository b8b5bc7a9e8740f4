"""Laws of the strategies: however many devices share a batch or hold a state, the
losses are the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import ConfigError, RunConfig, to_dict
from scaling.model.sharding_axes import SHARDS, split_rows
from scaling.training import sharding
from scaling.training.sharding import (
    STRATEGIES,
    Fsdp,
    Single,
    choose_split_axis,
    choose_strategy,
)

MakeRun = Callable[..., RunConfig]

SCRIPT = """
import faulthandler, json, sys
from pathlib import Path
import jax
import numpy as np
from scaling.store import run_dirs
from scaling.config import ConfigError, RunConfig, Trunk, from_dict
from scaling.training.sharding import STRATEGIES, Fsdp, choose_strategy
from scaling.training.step import StepRates, get_executable
from scaling.training.loop import LoopConfig, train_trunk

faulthandler.dump_traceback_later(280)
S = 4
out = Path(sys.argv[2])
plain, accumulated, wide = (from_dict(RunConfig, run) for run in json.loads(sys.argv[1]))


def inputs(run, strategy):  # each token is its predecessor plus one
    shape = (S, run.optim.batch_size, 1)
    start = np.random.default_rng(0).integers(0, run.model.vocab, shape)
    windows = ((start + np.arange(run.model.context + 1)) % run.model.vocab).astype(np.int32)
    rates = StepRates(np.full(S, 0.01, np.float32), np.full(S, 1e-3, np.float32))
    return strategy.shard_batches(windows), rates, np.int32(S), np.uint32(0)


def losses(run, strategy):
    compiled = get_executable(run, strategy)
    heldout = np.random.default_rng(1).integers(0, run.model.vocab, (300, run.model.context + 1), dtype=np.int32)
    start = compiled.init(0)
    before = compiled.evaluate(start, heldout)
    kept = strategy.copy(start)
    state, metrics = compiled.chunk(start, *inputs(run, strategy))
    after = compiled.evaluate(state, heldout)
    found = {
        "losses": strategy.gather(metrics)["loss"].tolist(),
        "evaluations": [before.loss, before.loss_se, after.loss, after.loss_se],
        "copy": compiled.evaluate(kept, heldout).loss,
    }
    if strategy.name == "fsdp":
        layouts = [x.sharding for x in jax.tree.leaves(state)]
        again, _ = compiled.chunk(state, *inputs(run, strategy))
        found["donated"] = all(x.is_deleted() for x in jax.tree.leaves((start, state)))
        found["stable"] = layouts == [x.sharding for x in jax.tree.leaves(again)] and compiled.chunk._cache_size() == 1
    return found


def cost(run, strategy):  # of one device
    compiled = get_executable(run, strategy)
    state = strategy.place(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), compiled.abstract_state))
    step = compiled.chunk.lower(state, *inputs(run, strategy)).compile()
    return [step.memory_analysis().argument_size_in_bytes, step.cost_analysis()["flops"]]


class Killed(BaseException):
    pass


def train(folder, strategy, chunks=None):  # the whole road: data, trunk, checkpoints, cooldown, result
    events = []

    def report(event):
        events.append(type(event).__name__)
        if events.count("Progress") == chunks:
            raise Killed

    loop = LoopConfig(chunk_steps=S, checkpoint_seconds=0.0, strategy=strategy)
    try:
        train_trunk(Trunk((accumulated,)), out / folder, loop, report)
    except Killed:
        return events.count("Progress")
    row = json.loads((run_dirs.run_dir(out / folder, accumulated) / "result.json").read_text())
    return [events.count("Progress"), row["loss"]]


answer = {}
for name, devices in (("single", 1), ("pmap", 8), ("fsdp", 8)):
    answer[f"accumulated {name}"] = losses(accumulated, STRATEGIES[name](devices))
for name, devices in (("single", 1), ("pmap", 2), ("fsdp", 2)):
    answer[f"plain {name}"] = losses(plain, STRATEGIES[name](devices))
answer["cost"] = {devices: cost(wide, Fsdp(devices)) for devices in (1, 2, 4, 8)}
for name in ("single", "pmap", "fsdp"):
    answer[name] = train(name, name)
for first, then in (("fsdp", "single"), ("pmap", "fsdp")):
    answer[f"{first}, {then}"] = [train(f"{first} {then}", first, chunks=3), *train(f"{first} {then}", then)]
answer["chosen"] = [
    choose_strategy("auto", *sizes).devices for sizes in ((6,), (16, 4), (7,))
]
try:
    choose_strategy("fdsp", 16)
except ConfigError as error:
    answer["unknown"] = str(error)
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def answer(
    make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What a process with 8 virtual devices finds: 16 sequences a step, in one batch, or
    in 2 micro-batches by a model with the options of attention.
    """
    sizes: dict[str, Any] = {"optim.batch_size": 16, "tokens": 20 * 256}
    plain = make_run(**sizes, **{"model.depth": 2, "model.scan_layers": "always"})
    options = {
        "model.n_kv_heads": 1,
        "model.attention_gate": True,
        "model.attention_sink": True,
        "model.layer_pattern": "wn",
        "model.window": 5,
        "optim.z_loss": 1e-3,
    }
    accumulated = make_run(**sizes, **options, **{"optim.accumulate": 2})
    bare = {
        "model.norm": "none",
        "model.qk_norm": False,
        "optim.clip_norm": None,
    }  # compiles faster
    wide = make_run(
        **sizes, **bare, **{"optim.accumulate": 2, "model.width": 64, "model.vocab": 64}
    )
    flags = (
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    )
    runs = json.dumps([to_dict(run) for run in (plain, accumulated, wide)])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, runs, str(tmp_path_factory.mktemp("parallel"))],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=290,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("batch", ["plain", "accumulated"])
@pytest.mark.parametrize("name", ["pmap", "fsdp"])
def test_many_devices_give_the_losses_of_one(
    answer: dict[str, Any], name: str, batch: str
) -> None:
    """Four steps, on 2 devices with scanned layers or on 8 in two micro-batches, and
    the evaluations around them.
    """
    alone, shared = answer[f"{batch} single"], answer[f"{batch} {name}"]
    assert alone["losses"][0] - alone["losses"][-1] > 0.01  # something was learned
    np.testing.assert_allclose(shared["losses"], alone["losses"], atol=1e-5)
    np.testing.assert_allclose(shared["evaluations"], alone["evaluations"], atol=1e-5)


@pytest.mark.parametrize("name", ["single", "pmap", "fsdp"])
def test_a_copy_outlives_the_state_it_was_taken_from(
    answer: dict[str, Any], name: str
) -> None:
    assert answer[f"plain {name}"]["copy"] == answer[f"plain {name}"]["evaluations"][0]


def test_a_split_state_keeps_its_layout_and_is_donated(answer: dict[str, Any]) -> None:
    """From chunk to chunk, through one executable."""
    for batch in ("plain", "accumulated"):
        assert answer[f"{batch} fsdp"]["stable"]
        assert answer[f"{batch} fsdp"]["donated"]


def test_under_fsdp_a_device_holds_and_computes_its_share(
    answer: dict[str, Any],
) -> None:
    """Bytes of state and batch, and FLOPs, of one device fall as 1 / devices."""
    (argument_bytes, flops), *others = answer["cost"].values()
    for devices, found in zip((2, 4, 8), others, strict=True):
        assert found[0] == pytest.approx(argument_bytes / devices, rel=0.02)
        assert found[1] == pytest.approx(flops / devices, rel=0.03)


def test_a_recorded_run_is_that_of_a_single_device(answer: dict[str, Any]) -> None:
    for name in ("pmap", "fsdp"):
        assert answer[name][0] == answer["single"][0]
        assert abs(answer[name][1] - answer["single"][1]) < 1e-5


@pytest.mark.parametrize("strategies", ["fsdp, single", "pmap, fsdp"])
def test_a_run_may_be_resumed_under_another_strategy(
    answer: dict[str, Any], strategies: str
) -> None:
    """Killed after three chunks, of which two were saved: the rest under the other
    gives the loss of no kill at all.
    """
    chunks, loss = answer["single"]
    before, after, resumed = answer[strategies]
    assert before == 3
    assert after == chunks - 2
    assert abs(resumed - loss) < 1e-5


def test_auto_takes_as_many_devices_as_share_the_batch(answer: dict[str, Any]) -> None:
    assert answer["chosen"] == [6, 4, 7]


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((), ()),
        ((6,), ()),  # 4 devices do not divide it
        ((8,), (SHARDS,)),
        ((8, 8), (SHARDS,)),
        ((8, 16), (None, SHARDS)),
        ((8, 18), (SHARDS,)),  # the largest that they divide
        ((64, 8, 12), (None, None, SHARDS)),  # 64 layers
        ((64, 6, 6), ()),
        ((0,), ()),
    ],
)
def test_an_array_is_split_along_its_largest_divisible_axis(
    shape: tuple[int, ...], axes: tuple[Any, ...]
) -> None:
    assert choose_split_axis(shape, 4) == axes


def test_splitting_rows_is_nothing_outside_of_fsdp() -> None:
    x = jnp.ones((3, 2))
    assert split_rows(x) is x
    assert str(jax.make_jaxpr(split_rows)(x)) == str(jax.make_jaxpr(lambda x: x)(x))


@pytest.mark.parametrize("name", ["pmap", "fsdp"])
def test_a_batch_that_does_not_split_is_an_error(
    monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    monkeypatch.setattr(jax, "local_device_count", lambda: 8)
    assert choose_strategy(name, 16) == STRATEGIES[name](8)
    with pytest.raises(
        ConfigError,
        match=rf"optim.batch_size = 12: must be a multiple of the 8 devices under {name}",
    ):
        choose_strategy(name, 12)
    with pytest.raises(
        ConfigError, match=r"optim.batch_size = 16: .*8 devices x 4 micro-batches"
    ):
        choose_strategy(name, 16, accumulate=4)
    assert choose_strategy("single", 12) == Single()


def test_an_unknown_strategy_is_an_error(answer: dict[str, Any]) -> None:
    assert (
        answer["unknown"]
        == "loop.strategy = 'fdsp': must be one of auto, single, pmap, fsdp"
    )


def test_several_processes_train_under_fsdp(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many devices as share the batch evenly, equally many in each process."""
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    assert choose_strategy("auto", 24) == Fsdp(12)
    assert choose_strategy("auto", 18) == Fsdp(9)
    for name in ("single", "pmap"):
        with pytest.raises(
            ConfigError,
            match=rf"loop.strategy = '{name}': 3 processes .* use 'fsdp' or 'auto'",
        ):
            choose_strategy(name, 24)
    with pytest.raises(
        ConfigError,
        match=r"optim.batch_size = 16: must be a multiple of the 12 devices under fsdp",
    ):
        choose_strategy("auto", 16)
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    assert list(range(24))[Fsdp(12).local_rows(24)] == list(range(16, 24))


def test_only_this_file_names_devices() -> None:
    """Nothing else in the package shards, maps or counts devices, but for what lowers
    functions for other machines.
    """
    package = Path(sharding.__file__).parents[1]
    words = (
        "jax.pmap",
        "jax.local_device",
        "shard_map",
        "NamedSharding",
        "PartitionSpec",
    )
    for path in package.rglob("*.py"):
        if path.name not in ("sharding.py", "sharding_axes.py", "lowering.py"):
            assert not [word for word in words if word in path.read_text()], path
