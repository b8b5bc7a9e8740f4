"""Where trunks are trained: this process, or one single-threaded worker process per core.

Both take jobs (lists of runs that share a trunk), call back with events, and return the failures. A worker that
dies is replaced and its job taken up again from its checkpoints.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

from scaling import compilation, hosts, packing
from scaling.config import RunConfig, to_dict
from scaling.data import load
from scaling.lowering import lower_chunk
from scaling.parallel import choose, local_devices
from scaling.train import program
from scaling.trunk import LoopConfig, train_trunk

Report = Callable[[dict[str, Any]], None]
_ATTEMPTS = 3
_LINE_LIMIT = 1 << 22


@dataclasses.dataclass(frozen=True)
class Failure:
    """A trunk that could not be trained, and why."""

    runs: list[RunConfig]
    reason: str


def run_here(trunks: Sequence[list[RunConfig]], out: Path, loop: LoopConfig, report: Report) -> list[Failure]:
    """Train trunk after trunk in this process, over all of its devices; those of one shape may share a program."""
    failures: list[tuple[list[RunConfig], Exception]] = []
    packs = packing.group(trunks, loop.members * local_devices())
    with compilation.kept(out) as programs, ThreadPoolExecutor(1) as ahead:
        for pack, following in zip_longest(packs, packs[1:]):
            ready = ahead.submit(compile_ahead, following[0][0], loop) if following else None
            failures += _train_pack(pack, out, loop, report)
            wait([ready] if ready else [])
    report({"event": "programs", **programs})
    return [Failure(trunk, f"{type(error).__name__}: {error}") for trunk, error in failures]


def compile_ahead(run: RunConfig, loop: LoopConfig) -> None:
    """Load a run's data and compile its chunk into the folder of programs, while another run trains.

    What fails here fails again where it is needed, and is told there.
    """
    strategy = choose(loop.strategy, run.optim.batch_size, run.optim.accumulate)
    compiled = program(run, strategy, load(run.data).loss_range)
    lower_chunk(compiled, run, loop.chunk_steps).stages.compile()


def _train_pack(
    trunks: list[list[RunConfig]], out: Path, loop: LoopConfig, report: Report
) -> list[tuple[list[RunConfig], Exception]]:
    """Trunks of one shape, in one program where that is faster. A trunk that fails stops no other.

    Where the pack as a whole fails, too large for the memory perhaps, its trunks train one by one from where they were.
    """
    try:
        how = packing.choose_way(trunks, out, loop)
    except Exception:  # e.g. no data: each trunk says so for itself
        how = "solo"
    if len(trunks) > 1:
        report({"event": "packed", "members": len(trunks), "how": how})
    if how != "solo":
        try:
            return packing.train_packed(trunks, out, loop, report, how)
        except Exception as error:
            report({"event": "unpacked", "reason": f"{type(error).__name__}: {error}"})
    failures = []
    for trunk in trunks:
        try:
            train_trunk(trunk, out, loop, report)
        except Exception as error:
            if hosts.several():  # the others may not know of it: they wait for this process, and end with it
                hosts.abandon(error)
            failures.append((trunk, error))
    return failures


def run_workers(
    trunks: Sequence[list[RunConfig]], out: Path, loop: LoopConfig, report: Report, workers: int
) -> list[Failure]:
    """Train the trunks on `workers` processes, each pinned to one core; an interrupt ends them all."""
    jobs = [{"job": "train", "runs": [to_dict(r) for r in t], "out": str(out), "loop": _plain(loop)} for t in trunks]
    results = asyncio.run(_serve(jobs, out, report, workers))
    return [Failure(trunks[i], result["error"]) for i, result in sorted(results.items()) if "error" in result]


def time_in_workers(runs: Sequence[RunConfig], out: Path, loop: LoopConfig, workers: int) -> list[tuple[float, float]]:
    """`calibration.seconds_per_step` of each run, measured as the workers would train them, at once if they can."""
    jobs = [{"job": "time", "runs": [to_dict(run)], "out": str(out), "loop": _plain(loop)} for run in runs]
    results = asyncio.run(_serve(jobs, out, lambda event: None, workers))
    for result in results.values():
        if "error" in result:
            raise RuntimeError(f"the timing of this machine failed: {result['error']}")
    return [(step, start) for _, result in sorted(results.items()) for step, start in result["seconds"]]


def _plain(loop: LoopConfig) -> dict[str, Any]:
    return dataclasses.asdict(loop)


async def _serve(jobs: list[dict[str, Any]], out: Path, report: Report, workers: int) -> dict[int, dict[str, Any]]:
    """The last event of each job, by its number."""
    queue = deque((i, job, 1) for i, job in enumerate(jobs))
    results: dict[int, dict[str, Any]] = {}
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    count = min(workers, len(jobs))
    async with (
        asyncio.TaskGroup() as slots
    ):  # an interrupt ends every slot, and each its worker, before it is passed on
        for slot in range(count):
            core = cores[slot % len(cores)] if cores else None
            slots.create_task(_slot(queue, results, out, report, slot, core))
    return results


async def _slot(
    queue: deque[tuple[int, dict[str, Any], int]],
    results: dict[int, dict[str, Any]],
    out: Path,
    report: Report,
    slot: int,
    core: int | None,
) -> None:
    """One worker at a time on one core, until the queue is empty."""
    process = None
    try:
        while queue:
            number, job, attempt = queue.popleft()
            if process is None:
                process = await _start(out / "logs" / f"worker-{slot}.log", core)
            last = await _run_job(process, job, report)
            if last is None:
                await process.wait()
                code, process = process.returncode, None
                if attempt < _ATTEMPTS:
                    report({"event": "restarted", "exit": code})
                    queue.appendleft((number, job, attempt + 1))
                    continue
                last = {"error": f"the worker died {attempt} times (exit status {code}); see {out / 'logs'}"}
            results[number] = last
    finally:
        if process is not None:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def _run_job(process: asyncio.subprocess.Process, job: dict[str, Any], report: Report) -> dict[str, Any] | None:
    """Send a job, pass its events on, and return the last one; None when the worker died."""
    assert process.stdin is not None and process.stdout is not None
    with suppress(ConnectionError):
        process.stdin.write(json.dumps(job).encode() + b"\n")
        await process.stdin.drain()
    while line := await process.stdout.readline():
        event = json.loads(line)
        if event["event"] in ("done", "failed"):
            return event
        report(event)
    return None


async def _start(log: Path, core: int | None) -> asyncio.subprocess.Process:
    """A worker with one computing thread on one core."""
    log.parent.mkdir(parents=True, exist_ok=True)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    environment = os.environ | threads | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "scaling.worker", *([] if core is None else [str(core)])]
    with open(log, "ab") as errors:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=environment,
            limit=_LINE_LIMIT,
        )
