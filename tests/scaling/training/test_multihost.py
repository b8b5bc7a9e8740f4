"""Laws of multi-host training: processes find each other where the environment
describes a multi-host run, and train as one process does.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from scaling import sweep
from scaling.config import ConfigError, RunConfig, to_dict
from scaling.data import Windows
from scaling.store import run_dirs
from scaling.store.table import run_table
from scaling.training import multihost
from scaling.training.loop import LoopConfig

MakeRun = Callable[..., RunConfig]
LOOP = LoopConfig(chunk_steps=4, checkpoint_seconds=0.0)
SLURM = {"SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
EXPLICIT = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}

SCRIPT = """
import dataclasses, faulthandler, json, sys
from pathlib import Path
import jax
import scaling
from scaling.store import run_dirs
from scaling.training import multihost
from scaling.config import ConfigError, RunConfig, from_dict
from scaling.training.loop import LoopConfig

faulthandler.dump_traceback_later(280)
short, long, longer = (from_dict(RunConfig, run) for run in json.loads(sys.argv[1]))
out, loop = Path(sys.argv[2]), from_dict(LoopConfig, json.loads(sys.argv[3]))
scaling.sweep([short], out, loop=loop, show="quiet")
table = scaling.sweep([short, long], out, loop=loop, show="quiet")  # from the trunk's checkpoint
answer = {"processes": jax.process_count(), "devices": jax.device_count(), "table": table.to_dict("list")}
answer["types"] = [str(kind) for kind in table.dtypes]

other = dataclasses.replace(short, seed=jax.process_index())
odd = dataclasses.replace(short, optim=dataclasses.replace(short.optim, batch_size=18))
for name, runs, workers in (("plan", [other], 0), ("workers", [short], 2), ("batch", [odd], 0)):
    try:
        scaling.sweep(runs, out, workers=workers, show="quiet")
    except ConfigError as error:
        answer[name] = str(error)
try:
    with multihost.all_or_none("reading"):
        if jax.process_index() == 1:
            raise OSError("no such file")
except (OSError, RuntimeError) as error:
    answer["reading"] = str(error)
print(json.dumps(answer), flush=True)


def full(*args):
    raise OSError("disk full")


run_dirs.append_metrics = full  # which only process 0 calls
scaling.sweep([longer], out, loop=loop, show="quiet")
"""


def start(script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A process with four virtual devices."""
    flags = (
        "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | environment,
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answers(processes: Iterable[subprocess.Popen[str]], status: int = 0) -> list[Any]:
    """The last line of each, as JSON, and what it said on standard error."""
    found = []
    for process in processes:
        printed, errors = process.communicate(timeout=280)
        assert process.returncode == status, errors
        found.append((json.loads(printed.splitlines()[-1]), errors))
    return found


def free_port(ports: Iterable[int] = (0,)) -> int:
    for port in ports:
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
                return probe.getsockname()[1]
            except OSError:
                continue
    raise AssertionError("no port is free")


@pytest.fixture(scope="module")
def runs(make_run: MakeRun) -> list[RunConfig]:
    """Token budgets on one trunk, 16 sequences a step in two micro-batches."""
    return [
        make_run(**{"optim.batch_size": 16, "optim.accumulate": 2, "tokens": n * 256})
        for n in (11, 16, 20)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def together(runs: list[RunConfig], folder: Path) -> list[dict[str, Any]]:
    """What each of two processes finds, in a folder of its own; in the end the first
    one fails.
    """
    plan, loop = json.dumps([to_dict(run) for run in runs]), json.dumps(to_dict(LOOP))
    address = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
    }
    script = [SCRIPT, plan]
    processes = [
        start(*script, str(folder / str(i)), loop, **address, JAX_PROCESS_ID=str(i))
        for i in range(2)
    ]
    return [
        found | {"errors": errors} for found, errors in answers(processes, status=1)
    ]


def test_two_processes_give_the_losses_of_one(
    together: list[dict[str, Any]], runs: list[RunConfig], folder: Path, tmp_path: Path
) -> None:
    """On 2 x 4 devices and on one: every line of the trunk's and the runs' metrics, and
    the results.
    """
    sweep(runs[:1], tmp_path, workers=0, loop=LOOP, show="quiet")  # the same two calls
    alone = sweep(runs[:2], tmp_path, workers=0, loop=LOOP, show="quiet")
    assert [(found["processes"], found["devices"]) for found in together] == [
        (2, 8),
        (2, 8),
    ]
    logs = sorted(tmp_path.glob("*/metrics.jsonl"))
    assert len(logs) == 3
    for log in logs:
        here, there = (
            run_dirs.read_metrics(path)
            for path in (log, folder / "0" / log.relative_to(tmp_path))
        )
        assert here["step"].tolist() == there["step"].tolist()
        for column in ("loss", "grad_norm"):
            np.testing.assert_allclose(there[column], here[column], atol=1e-5)
    np.testing.assert_allclose(together[0]["table"]["loss"], alone["loss"], atol=1e-5)
    np.testing.assert_allclose(
        together[0]["table"]["loss_se"], alone["loss_se"], atol=1e-5
    )


def test_the_first_process_alone_writes_and_all_return_its_table(
    together: list[dict[str, Any]], runs: list[RunConfig], folder: Path
) -> None:
    table = run_table(folder / "0", runs[:2])
    assert not (folder / "1").exists()
    for found in together:
        assert found["types"] == [str(kind) for kind in table.dtypes]
        assert json.dumps(found["table"]) == json.dumps(
            table.to_dict("list")
        )  # NaN is equal to NaN there
    assert set(table["device"]) == {"cpu:cpu x8"}


def test_a_second_sweep_goes_on_from_what_the_first_process_saved(
    together: list[dict[str, Any]], runs: list[RunConfig], folder: Path
) -> None:
    """No step of the trunk was trained twice."""
    del together
    lines = (
        (run_dirs.trunk_dir(folder / "0", runs[0]) / "metrics.jsonl")
        .read_text()
        .splitlines()
    )
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(set(steps))
    assert runs[0].branch_step in steps and runs[1].branch_step in steps


def test_processes_that_disagree_stop_all_of_them(
    together: list[dict[str, Any]],
) -> None:
    for found in together:
        assert found["plan"].startswith(
            "the plan: processes [1] have another than process 0"
        )
        assert (
            found["workers"]
            == "workers = 2: must be 0 where 2 processes train together"
        )


def test_what_fails_in_one_process_stops_all_of_them(
    together: list[dict[str, Any]],
) -> None:
    """Before work begins all raise; in the midst of it they end, and the one that
    failed says why.
    """
    assert [found["reading"] for found in together] == [
        "reading failed in processes [1]: see their messages",
        "no such file",
    ]
    assert all(
        "must be a multiple of the 8 devices" in found["batch"] for found in together
    )
    assert "OSError: disk full" in together[0]["errors"]


def test_a_slurm_step_of_several_tasks_is_joined() -> None:
    """Found by JAX itself: the port follows from the number of the job."""
    port = free_port(range(62000, 65535))
    script = (
        "from scaling.training import multihost; multihost.join_processes(); import "
        "jax; "
        "print([jax.process_index(), jax.process_count()])"
    )
    step = SLURM | {"SLURM_JOB_ID": str(port - 61440)}
    there = answers([start(script, **step, SLURM_PROCID=str(i)) for i in range(2)])
    assert [found for found, _ in there] == [[0, 2], [1, 2]]


# --- what the environment says -------------------------------------------------------------------------------


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments of each call of `jax.distributed.initialize`, in an environment that
    says nothing.
    """
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda **arguments: calls.append(arguments)
    )
    for name in list(os.environ):
        if name.startswith(
            (
                "SLURM_",
                "TPU_",
                "JAX_COORDINATOR",
                "JAX_NUM_PROC",
                "JAX_PROCESS",
                "SCALING_DIST",
            )
        ):
            monkeypatch.delenv(name)
    return calls


def set_all(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


STEP = SLURM | {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        STEP | {"SLURM_NTASKS": "1"},
        {
            "SLURM_JOB_ID": "7",
            "SLURM_NTASKS": "8",
        },  # of a batch script: only srun starts tasks
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        EXPLICIT | {"SCALING_DISTRIBUTED": "0"},
    ],
)
def test_a_process_of_its_own_joins_nothing(
    monkeypatch: pytest.MonkeyPatch, joined: list[Any], environment: dict[str, str]
) -> None:
    set_all(monkeypatch, environment)
    multihost.join_processes()
    assert joined == []
    assert multihost.is_process_0() and not multihost.is_multihost()


@pytest.mark.parametrize(
    ("environment", "arguments"),
    [
        (STEP, {}),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, {}),
        ({"SCALING_DISTRIBUTED": "1"}, {}),
        (
            {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"},
            {},
        ),  # JAX reads it, and the rest from a cluster
        (
            EXPLICIT,
            {
                "num_processes": 4,
                "process_id": 3,
                "cluster_detection_method": "deactivate",
            },
        ),
    ],
)
def test_one_of_several_joins_the_others(
    monkeypatch: pytest.MonkeyPatch,
    joined: list[Any],
    environment: dict[str, str],
    arguments: dict[str, Any],
) -> None:
    set_all(monkeypatch, environment)
    multihost.join_processes()
    assert joined == [arguments]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"JAX_PROCESS_ID": "4"},
            "JAX_PROCESS_ID = 4: must be below JAX_NUM_PROCESSES = 4",
        ),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID = '-1': must be a whole number"),
        (
            {"JAX_PROCESS_ID": None},
            "JAX_PROCESS_ID = None: must be a whole number wherever "
            "JAX_COORDINATOR_ADDRESS",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "10.0.0.1"},
            "JAX_COORDINATOR_ADDRESS = '10.0.0.1': must be host:port",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": None},
            "JAX_NUM_PROCESSES = '4': needs JAX_COORDINATOR_ADDRESS too",
        ),
        (
            {"SCALING_DISTRIBUTED": "yes"},
            "SCALING_DISTRIBUTED = 'yes': must be 0 .* or 1",
        ),
    ],
)
def test_an_environment_that_contradicts_itself_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
    joined: list[Any],
    changes: dict[str, str | None],
    message: str,
) -> None:
    set_all(
        monkeypatch,
        {
            name: value
            for name, value in (EXPLICIT | changes).items()
            if value is not None
        },
    )
    with pytest.raises(ConfigError, match=message):
        multihost.join_processes()
    assert joined == []


def test_joining_too_late_names_the_fix(
    monkeypatch: pytest.MonkeyPatch, joined: list[Any]
) -> None:
    del joined
    monkeypatch.undo()
    jax.devices()
    set_all(monkeypatch, EXPLICIT)
    with pytest.raises(
        ConfigError,
        match=r"joining .* failed .*: call scaling.training.multihost.join_processes\(\) before any other use of",
    ):
        multihost.join_processes()


# --- what the first decides ----------------------------------------------------------------------------------


def test_alone_every_value_is_the_process_s_own() -> None:
    array = np.arange(6.0).reshape(2, 3)
    assert multihost.broadcast_array(array) is array
    assert multihost.broadcast_from_process_0({"a": [1, None]}) == {"a": [1, None]}
    multihost.assert_same_on_all("anything", "at all")


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("pace", [0.3, 1.0, 7.0, 50.0])
def test_a_timer_is_due_at_the_first_call_after_its_time(
    monkeypatch: pytest.MonkeyPatch, several: bool, pace: float
) -> None:
    """Twice in a row, at a steady pace of calls. In a multi-host run process 0 is asked
    a few times at most.
    """
    now, asked = [0.0], []
    monkeypatch.setattr(multihost.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(multihost, "is_multihost", lambda: several)
    monkeypatch.setattr(
        multihost, "broadcast_array", lambda array: asked.append(now[0]) or array
    )
    timer = multihost.Timer(30.0)
    for _ in range(2):
        begin = now[0]
        asked.clear()
        while now[0] - begin <= 30.0:
            assert not now[0] > begin or not timer.is_due()
            now[0] += pace
        assert timer.is_due()
        timer.restart()
        assert not several or len(asked) <= 4 + np.log2(max(1.0, 30.0 / pace))


@pytest.mark.parametrize("share", [slice(0, 2), slice(2, 6), slice(None)])
def test_a_share_of_the_rows_is_that_part_of_the_whole_batch(share: slice) -> None:
    """Also where a batch ends one epoch and begins the next."""
    windows = Windows(np.arange(100), 8, 6)
    np.testing.assert_array_equal(
        windows.batches(1, 5, share), windows.batches(1, 5)[:, share]
    )
