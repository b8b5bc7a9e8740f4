"""The SLURM executor, on a real cluster of one node, if SLURM is installed and the user
is root. Debian: `apt-get install slurm-wlm munge`, and the extra `slurm`.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from scaling import events as event_types
from scaling.config import ConfigError, RunConfig, Trunk
from scaling.execution import slurm
from scaling.execution.base import Job, run_jobs
from scaling.execution.config import SlurmConfig
from scaling.execution.slurm import QueueState, Slurm, estimate_minutes
from scaling.execution.sweep import sweep
from scaling.planning.plan import Plan
from scaling.store import run_dirs
from scaling.store.leases import Leases
from scaling.store.table import run_table
from scaling.training.loop import LoopConfig

MakeRun = Callable[..., RunConfig]
Event = event_types.Event
SECONDS = 100  # of training that the longest run takes here
PROBE_STEPS = 30_000
LOOP = LoopConfig(
    chunk_steps=16, checkpoint_seconds=600.0
)  # no checkpoint but those that a notice asks for
QUICK = SlurmConfig(minutes=1, memory_gb=0.5, notice=30, interval=1.0)

CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
MinJobAge=3600
SwitchType=switch/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=10 State=UP
"""


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def munged(folder: Path) -> list[str]:
    """The command of the daemon that signs what SLURM's others say, with a key of its
    own.
    """
    munge = folder / "munge"
    munge.mkdir()
    (munge / "key").write_bytes(os.urandom(128))
    user = pwd.getpwnam("munge")
    for path in (munge / "key", munge):
        os.chown(path, user.pw_uid, user.pw_gid)
    (munge / "key").chmod(0o400)
    files = {
        "key-file": "key",
        "socket": "socket",
        "pid-file": "pid",
        "log-file": "log",
        "seed-file": "seed",
    }
    options = [f"--{name}={munge / file}" for name, file in files.items()]
    return ["munged", "--foreground", "--force", "--num-threads=2", *options]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """SLURM of one node with two cores, on loopback."""
    if missing := [
        name
        for name in ("slurmctld", "slurmd", "munged", "sbatch")
        if shutil.which(name) is None
    ]:
        pytest.skip(
            f"no SLURM here ({', '.join(missing)} missing): apt-get install slurm-wlm "
            "munge"
        )
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("submitit is missing: pip install 'scaling[slurm]'")
    if os.geteuid() != 0:
        pytest.skip("only root may start a SLURM")
    folder, host = (
        Path(tempfile.mkdtemp(prefix="slurm-")),
        socket.gethostname().split(".")[0],
    )
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(
        CONFIG.format(folder=folder, host=host, ports=free_ports(2))
    )
    daemons = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        try:
            daemons.append(
                subprocess.Popen(
                    munged(folder), user="munge", stderr=subprocess.DEVNULL
                )
            )
            wait_for((folder / "munge" / "socket").exists, "munged did not start")
            daemons.append(
                subprocess.Popen(["slurmctld", "-D", "-i"], stderr=subprocess.DEVNULL)
            )
            daemons.append(
                subprocess.Popen(
                    ["slurmd", "-D", "-N", host], stderr=subprocess.DEVNULL
                )
            )
            wait_for(
                lambda: "idle" in printed("sinfo", "--noheader", "--format=%t"),
                f"no SLURM, see {folder}",
            )
            yield folder
        finally:
            subprocess.run(["scancel", "--user", "root"], check=False)
            for daemon in reversed(daemons):
                daemon.terminate()
                with suppress(subprocess.TimeoutExpired):
                    daemon.wait(10)
                daemon.kill()
                daemon.wait()
    shutil.rmtree(folder, ignore_errors=True)


def wait_for(done: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, what
        time.sleep(0.1)


def printed(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def jobs_shown() -> str:
    """All that SLURM still knows of its jobs."""
    return printed("scontrol", "show", "jobs", "--oneliner")


@pytest.fixture(scope="module")
def undisturbed(
    make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Plan, pd.DataFrame]:
    """A run too long for a job of one minute here, one of a quarter of that, two short
    ones; trained by workers.
    """
    out = tmp_path_factory.mktemp("local")
    # The first run compiles; the probe is long against loading what it left.
    sweep([make_run(tokens=64 * 20, seed=8)], out, workers=1, loop=LOOP, show="quiet")
    probe = make_run(tokens=64 * PROBE_STEPS, seed=9)
    measured = sweep([probe], out, workers=1, loop=LOOP, show="quiet")
    steps = round(PROBE_STEPS * SECONDS / measured["wall_seconds"].max())
    sizes = (steps, steps // 4, 20, 40)
    plan = Plan(
        "tiny", tuple(make_run(tokens=64 * n, seed=i) for i, n in enumerate(sizes))
    )
    return plan, sweep(plan, out, workers=2, loop=LOOP, show="quiet").set_index(
        "run_id"
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a job that is slowed by others begins once more
def test_a_job_that_reaches_its_time_limit_resumes_to_the_same_losses(
    cluster: Path, undisturbed: tuple[Plan, pd.DataFrame], tmp_path: Path
) -> None:
    """SLURM's shortest limit is a minute, and its notice may come as soon as the job
    begins: a job that is still
    importing then ends, and another is submitted. One thread here and there: the same
    losses to the last bit."""
    plan, local = undisturbed
    table = sweep(plan, tmp_path, executor=QUICK, loop=LOOP, show="quiet").set_index(
        "run_id"
    )
    assert (table["loss"] == local["loss"][table.index]).all() and len(table) == len(
        plan
    )
    requeued = [
        int(line.split("Restarts=")[1].split()[0]) for line in jobs_shown().splitlines()
    ]
    assert len(requeued) >= len(plan) and max(requeued) >= 1
    assert not [path for path in (tmp_path / "slurm").iterdir() if path.is_file()]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_that_is_canceled_saves_and_is_submitted_again(
    cluster: Path, undisturbed: tuple[Plan, pd.DataFrame], tmp_path: Path
) -> None:
    """As preempted: SLURM sends SIGTERM. The steps of the two jobs are those of one,
    but for a chunk or so.
    """
    plan, local = undisturbed
    run, events = plan.runs[1], list[Event]()

    def report(event: Event) -> None:
        events.append(event)
        if sum(isinstance(e, event_types.Progress) for e in events) == 1:
            subprocess.run(["scancel", "--name", executor.name], check=True)

    executor = Slurm(
        tmp_path, LOOP, report, SlurmConfig(minutes=5, memory_gb=0.5, interval=1.0)
    )
    failures, _ = run_jobs(executor, [Job(Trunk((run,)))], report)
    assert not failures
    assert [
        "ended early" in event.reason
        for event in events
        if isinstance(event, event_types.Restarted)
    ] == [True]
    restored = [
        event.flops for event in events if isinstance(event, event_types.Restored)
    ]
    trained = [
        event.flops for event in events if isinstance(event, event_types.Progress)
    ]
    assert len(restored) == 1 and restored[0] > 0
    assert sum(trained) <= Plan("one", (run,)).flops + 2 * max(trained)
    loss = run_table(tmp_path).set_index("run_id")["loss"][run.run_id]
    assert loss == local["loss"][run.run_id]


@pytest.mark.slow
def test_what_can_never_start_is_refused_and_nothing_is_left(
    cluster: Path, make_run: MakeRun, tmp_path: Path
) -> None:
    for config, message in (
        (
            SlurmConfig(minutes=60, interval=0.2),
            r"never start job .*PartitionTimeLimit.*slurm.minutes",
        ),
        (SlurmConfig(partition="nowhere"), r"sbatch rejected the jobs: .*partition"),
    ):
        with pytest.raises(ConfigError, match=f"(?s){message}"):
            sweep([make_run()], tmp_path, executor=config, show="quiet")
        assert printed("squeue", "--noheader") == ""


@pytest.mark.slow
def test_a_trunk_that_is_held_is_not_submitted(
    cluster: Path, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run()
    executor = Slurm(tmp_path, LOOP, lambda event: None, QUICK)
    with Leases().hold(run_dirs.trunk_dir(tmp_path, run), lambda event: None):
        ticket = executor.submit(Job(Trunk((run,))))
        assert [(o.ticket, o.kind) for o in executor.poll(0.0)] == [(ticket, "busy")]
    assert not executor.posted
    executor.submit(Job(Trunk((run,))))
    executor.poll(0.0)
    assert len(executor.posted) == 1 == len(slurm.read_queue(executor.name) or {})
    executor.cancel()
    assert slurm.read_queue(executor.name) == {} and not run_dirs.is_finished(
        tmp_path, run
    )


# --- without a cluster ----------------------------------------------------------------------------------------


def test_short_jobs_ask_for_less_time(make_run: MakeRun) -> None:
    job = Job(Trunk((make_run(),)))
    flops = Plan("one", tuple(job.trunk.runs)).flops
    assert estimate_minutes(job, SlurmConfig(minutes=60)) == 60
    assert (
        estimate_minutes(job, SlurmConfig(minutes=60, flops_per_second=flops)) == 15
    )  # 7 to begin and end, and a little
    assert (
        estimate_minutes(job, SlurmConfig(minutes=60, flops_per_second=flops / 600))
        == 30
    )  # 20 for the steps
    assert (
        estimate_minutes(job, SlurmConfig(minutes=60, flops_per_second=flops / 1e6))
        == 60
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minutes": 0}, r"slurm.minutes = 0: must be positive"),
        ({"gpus": -1}, r"slurm.gpus = -1"),
        ({"extra": {"array": "1-3"}}, r"slurm.extra\['array'\]: is set by the sweep"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        SlurmConfig(**changes)


def test_without_slurm_the_remedy_is_named(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        ConfigError,
        match=r"sbatch, srun, squeue, scancel not found: start the sweep on",
    ):
        sweep([make_run()], tmp_path, executor=SlurmConfig(), show="quiet")


def test_a_controller_that_does_not_answer_ends_no_job(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "_import_submitit", lambda: None)
    monkeypatch.setattr(slurm, "read_queue", lambda name: None)
    executor = Slurm(tmp_path, LOOP, lambda event: None, QUICK)
    executor.posted["7"] = executor.mailbox.write_job(1, Job(Trunk((make_run(),))))
    assert executor.poll(0.0) == []
    monkeypatch.setattr(
        slurm, "read_queue", lambda name: {"7": QueueState("PENDING", "Priority")}
    )
    executor.next_look = 0.0
    assert executor.poll(0.0) == []
    monkeypatch.setattr(slurm, "read_queue", lambda name: {})
    executor.next_look = 0.0
    outcome = executor.poll(0.0)[0]
    assert (outcome.ticket, outcome.kind, outcome.advanced) == (
        1,
        "died",
        False,
    ) and "SLURM job 7" in outcome.reason


def test_what_the_cluster_does_not_take_now_is_submitted_later(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be too many jobs, for example. Only if the first submission is rejected
    is the configuration taken to be wrong.
    """

    class Submitit:
        full, taken = True, 0

        def SlurmExecutor(self, folder: Path, max_num_timeout: int) -> Submitit:
            return self

        def update_parameters(self, **parameters: Any) -> None:
            assert parameters["time"] == 1 and parameters["mem"] == "512M"

        def map_array(self, function: Any, paths: list[str]) -> list[SimpleNamespace]:
            if self.full:
                raise RuntimeError("QOSMaxSubmitJobPerUserLimit")
            self.taken += len(paths)
            return [SimpleNamespace(job_id=f"1_{i}") for i in range(len(paths))]

    cluster = Submitit()
    monkeypatch.setattr(slurm, "_import_submitit", lambda: cluster)
    monkeypatch.setattr(
        slurm,
        "read_queue",
        lambda name: {
            "1_0": QueueState("RUNNING", "None"),
            "1_1": QueueState("RUNNING", "None"),
        },
    )
    executor = Slurm(tmp_path, LOOP, lambda event: None, QUICK)
    for seed in (0, 1):
        executor.submit(Job(Trunk((make_run(seed=seed),))))
    with pytest.raises(ConfigError, match="QOSMaxSubmitJobPerUserLimit"):
        executor.poll(0.0)
    executor.accepted = 1
    for seed in (0, 1):
        executor.submit(Job(Trunk((make_run(seed=seed),))))
    for _ in range(3):
        assert executor.poll(0.0) == [] and len(executor.waiting) == 2
    cluster.full = False
    assert (
        executor.poll(0.0) == [] and cluster.taken == 0
    )  # it is not asked again at once
    executor.next_submission = 0.0
    assert (
        executor.poll(0.0) == []
        and cluster.taken == 2 == len(executor.posted)
        and not executor.waiting
    )
