"""The Ray executor, on real clusters of this machine, on loopback, if Ray is installed
(extra `ray`).
"""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scaling import events as event_types
from scaling.config import ConfigError, RunConfig, Trunk
from scaling.execution.base import Job, run_jobs
from scaling.execution.config import RayConfig
from scaling.execution.ray import Ray
from scaling.execution.sweep import sweep
from scaling.planning.plan import Plan
from scaling.store import run_dirs
from scaling.store.table import run_table
from scaling.training.loop import LoopConfig

MakeRun = Callable[..., RunConfig]
Event = event_types.Event
LOOP = LoopConfig(chunk_steps=16, checkpoint_seconds=1.0)

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="ray is missing: pip install 'scaling[ray]'",
    ),
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
    ),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def is_whole(checkpoint: Path) -> bool:
    """Whether it has its last name: while it is written it has a longer one."""
    return checkpoint.name.isdecimal()


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A cluster of two nodes of one core each, which this process has joined as a
    driver: (cluster, second node).
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    address = "127.0.0.2"  # on loopback; 127.0.0.1 Ray takes for the machine's own
    node = {
        "num_cpus": 1,
        "node_ip_address": address,
        "object_store_memory": 80 * 2**20,
    }
    cluster = Cluster(
        initialize_head=True, head_node_args={**node, "include_dashboard": False}
    )
    try:
        second = cluster.add_node(**node)
        ray.init(address=cluster.address, _node_ip_address=address, log_to_driver=False)
        yield cluster, second
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_node_costs_no_run(make_run: MakeRun, tmp_path: Path) -> None:
    """Two jobs train on two nodes; one node is lost when both have made progress. The
    other then trains both. A third job waits for room all the while. The same losses as
    from local workers, to the last bit."""
    plan = Plan(
        "tiny",
        tuple(
            make_run(tokens=64 * n, seed=i) for i, n in enumerate((20_000, 20_000, 20))
        ),
    )
    local = sweep(
        plan, tmp_path / "local", workers=2, loop=LOOP, show="quiet"
    ).set_index("run_id")
    events = list[Event]()
    with two_nodes() as (cluster, second):

        def report(event: Event) -> None:
            events.append(event)
            saved = [
                any(
                    map(
                        is_whole, (run_dirs.trunk_dir(out, r) / "checkpoints").glob("*")
                    )
                )
                for r in plan.runs[:2]
            ]
            if all(saved) and second in cluster.list_all_nodes():
                cluster.remove_node(second, allow_graceful=False)

        out = tmp_path / "ray"
        failures, _ = run_jobs(
            Ray(out, LOOP, report, RayConfig()),
            [Job(Trunk((run,))) for run in plan],
            report,
        )
    assert not failures
    reasons = [
        event.reason for event in events if isinstance(event, event_types.Restarted)
    ]
    assert len(reasons) == 1 and "Ray: " in reasons[0], reasons
    assert [
        event.flops > 0 for event in events if isinstance(event, event_types.Restored)
    ] == [True]
    table = run_table(out).set_index("run_id")
    assert len(table) == 3 and (table["loss"] == local["loss"][table.index]).all()


@pytest.mark.slow
def test_an_interrupt_saves(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint is due for an hour, so the one that exists was requested. The sweep
    starts its own cluster.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    run, events = make_run(tokens=64 * 50_000), list[Event]()
    loop = LoopConfig(checkpoint_seconds=3600.0)

    def report(event: Event) -> None:
        events.append(event)
        if sum(isinstance(e, event_types.Progress) for e in events) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            run_jobs(
                Ray(tmp_path, loop, report, RayConfig()), [Job(Trunk((run,)))], report
            )
    finally:
        signal.signal(signal.SIGINT, before)
    assert list((run_dirs.trunk_dir(tmp_path, run) / "checkpoints").glob("[0-9]*"))
    assert not run_dirs.is_finished(tmp_path, run)
    assert not any((tmp_path / "ray").iterdir())
    import ray

    assert not ray.is_initialized()


@pytest.mark.slow
def test_what_no_node_can_hold_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"ray.gpus = 9999, .*no node has as much \(nodes: .*: ask for less",
    ):
        sweep([make_run()], tmp_path, executor=RayConfig(gpus=9999.0), show="quiet")
