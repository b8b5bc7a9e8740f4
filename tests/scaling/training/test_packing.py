"""Laws of packing: runs trained together are the runs trained alone, whatever becomes
of their neighbors.
"""

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
from scaling.store import run_dirs
from scaling.store.table import run_table
from scaling.training import packing
from scaling.training.loop import LoopConfig, PackingMode, Trainer, train_trunk

MakeRun = Callable[..., RunConfig]
Trunks = list[Trunk]


@pytest.fixture(scope="module")
def trunks(make_run: MakeRun) -> Trunks:
    """Three of one shape: other seeds, rates and lengths; the second has two branches."""
    return [
        Trunk((make_run(),)),
        Trunk(
            tuple(
                make_run(**{"seed": 1, "optim.lr": 3e-3, "tokens": n})
                for n in (640, 1920)
            )
        ),
        Trunk(
            (
                make_run(
                    **{
                        "seed": 2,
                        "data.seed": 5,
                        "optim.warmup_tokens": 640,
                        "tokens": 2560,
                    }
                ),
            )
        ),
    ]


def losses(trunks: Trunks, out: Path, loop: LoopConfig) -> dict[str, float]:
    """Losses of all runs by their ids."""
    assert train_in_process(trunks, out, loop, lambda event: None) == []
    return read(trunks, out)


def read(trunks: Trunks, out: Path) -> dict[str, float]:
    table = run_table(out, [run for trunk in trunks for run in trunk.runs])
    return dict(zip(table["run_id"], table["loss"], strict=True))


@pytest.fixture(scope="module")
def alone(trunks: Trunks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    return losses(
        trunks, tmp_path_factory.mktemp("solo"), LoopConfig(pack="solo", chunk_steps=4)
    )


@pytest.mark.parametrize("mode", ["vmap", "map"])
def test_packed_equals_solo(
    trunks: Trunks,
    alone: dict[str, float],
    make_run: MakeRun,
    tmp_path: Path,
    mode: PackingMode,
) -> None:
    """To 1e-5, though they end at different steps and the loss of one is no number from
    its second step on.
    """
    broken = make_run(
        **{
            "optim.lr": 1e38,
            "optim.clip_norm": None,
            "optim.warmup_tokens": 0,
            "seed": 9,
        }
    )
    together = losses(
        [Trunk((broken,)), *trunks], tmp_path, LoopConfig(pack=mode, chunk_steps=4)
    )
    assert np.isnan(together.pop(broken.run_id))
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_pack_resumes_where_its_members_were(
    trunks: Trunks, alone: dict[str, float], tmp_path: Path
) -> None:
    """One member done, one on its way, one not begun."""
    loop = LoopConfig(pack="map", chunk_steps=4, checkpoint_seconds=0.0)
    train_trunk(trunks[0], tmp_path, loop, lambda event: None)
    trainer = Trainer(list(trunks[1].runs), tmp_path, loop, lambda event: None)
    steps = trainer.generate_chunks()
    chunk = next(steps)
    for _ in range(3):
        chunk = steps.send(trainer.executable.train(chunk))
    steps.close()
    assert losses(trunks, tmp_path, loop) == pytest.approx(alone, abs=1e-5)


def test_a_member_that_fails_is_named_and_stops_no_other(
    trunks: Trunks,
    alone: dict[str, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write, lost = run_dirs.write_result, trunks[1].runs[0].run_id

    def full(out: Path, run: RunConfig, row: dict[str, Any]) -> None:
        if run.run_id == lost:
            raise OSError("no space left on device")
        write(out, run, row)

    monkeypatch.setattr(run_dirs, "write_result", full)
    failures = train_in_process(
        trunks, tmp_path, LoopConfig(pack="map", chunk_steps=4), lambda event: None
    )
    assert [(f.runs, f.reason) for f in failures] == [
        (trunks[1].runs, "OSError: no space left on device")
    ]
    for trunk in (trunks[0], trunks[2]):
        assert read([trunk], tmp_path) == pytest.approx(
            {trunk.runs[0].run_id: alone[trunk.runs[0].run_id]}, abs=1e-5
        )


def test_a_pack_that_fails_as_a_whole_is_trained_one_by_one(
    trunks: Trunks,
    alone: dict[str, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(self: packing.PackedRuns, chunks: Any) -> Any:
        raise MemoryError("out of memory")

    monkeypatch.setattr(packing.PackedRuns, "train", full)
    assert losses(trunks, tmp_path, LoopConfig(pack="map", chunk_steps=4)) == alone


def test_only_one_shape_shares_a_program(trunks: Trunks, make_run: MakeRun) -> None:
    wide, other, body = (
        Trunk((make_run(**{"model.width": 16}),)),
        Trunk((make_run(**{"data.source": "markov:tokens=50000"}),)),
        Trunk((make_run(**{"data.field": "body"}),)),
    )
    assert packing.group_by_shape(
        [trunks[0], wide, trunks[1], other, body, trunks[2]], 2
    ) == [
        [trunks[0], trunks[1]],
        [trunks[2]],
        [wide],
        [other],
        [body],
    ]


def test_the_way_is_measured_once_and_recorded(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunks = [Trunk((make_run(seed=seed, tokens=64 * 3000),)) for seed in range(2)]
    assert packing.choose_packing(trunks, tmp_path, LoopConfig(chunk_steps=2)) in (
        "solo",
        "vmap",
        "map",
    )
    ((key, seconds),) = json.loads((tmp_path / "packing.json").read_text()).items()
    assert (
        " x2 on cpu" in key
        and set(seconds) == {"solo", "vmap", "map"}
        and min(seconds.values()) > 0
    )
    (tmp_path / "packing.json").write_text(
        json.dumps({key: {"solo": 2.0, "vmap": 1.0, "map": 3.0}})
    )
    monkeypatch.setattr(
        packing, "measure_modes", lambda *_: pytest.fail("measured again")
    )
    assert packing.choose_packing(trunks, tmp_path, LoopConfig()) == "vmap"
    assert packing.choose_packing(trunks, tmp_path, LoopConfig(pack="map")) == "map"
    assert (
        packing.choose_packing(trunks, tmp_path, LoopConfig(strategy="pmap")) == "solo"
    )
    assert (
        packing.choose_packing([Trunk((make_run(),))] * 2, tmp_path, LoopConfig())
        == "solo"
    )  # over before it is measured


SCRIPT = """
import json, sys
from pathlib import Path
import jax
from scaling.config import RunConfig, Trunk, from_dict
from scaling.store.table import run_table
from scaling.training import packing
from scaling.training.loop import LoopConfig

trunks = [
    Trunk(tuple(from_dict(RunConfig, run) for run in runs))
    for runs in json.loads(sys.argv[1])
]
out = Path(sys.argv[2])
assert jax.device_count() == 2
assert packing.train_packed(trunks, out, LoopConfig(chunk_steps=4), lambda event: None, "vmap") == {}
table = run_table(out, [run for trunk in trunks for run in trunk.runs])
print(json.dumps(dict(zip(table["run_id"], table["loss"], strict=True))))
"""


def test_members_spread_over_devices(
    trunks: Trunks, alone: dict[str, float], tmp_path: Path
) -> None:
    """Three members on two devices: two on the first, one and an idle place on the
    second.
    """
    flags = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    arguments = [
        json.dumps([[to_dict(run) for run in trunk.runs] for trunk in trunks]),
        str(tmp_path),
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=os.environ | flags,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx(alone, abs=1e-5)
