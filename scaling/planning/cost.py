"""An estimate of what a plan costs on hardware that need not be present: whether each
model fits, what would make it fit, and how long training takes.

Every distinct shape of the plan is compiled ahead of time. For a TPU slice that is done
by the TPU's own compiler, so that bytes and rejections are those of the hardware. The
compiler for a GPU needs a GPU, so the bytes are counted instead
(`scaling.planning.memory`). The seconds are model FLOPs (`scaling.model.flops`) over
the peak at a stated utilization, without recomputation; on `cpu` they are those that
`scaling.planning.timing` measures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from scaling.config import ConfigError, RunConfig, Trunk
from scaling.model.flops import count_parameters, flops_per_step
from scaling.planning import memory, timing
from scaling.planning.aot import Compiler, Footprint
from scaling.planning.hardware import Hardware
from scaling.planning.plan import Plan
from scaling.training.sharding import count_sharing_devices as count_devices_for_batch

Report = Callable[[str], None]
Measure = Callable[[Plan], Sequence[timing.Timing]]

# The bytes of a run, given the number of devices that share it and whether they split
# its parameters and optimizer state.
EstimateMemory = Callable[[RunConfig, int, bool], Footprint]

RULES = {
    "tpu": "bytes are those of the TPU's compiler; "
    "seconds are model FLOPs / (peak x utilization)",
    "gpu": "bytes are an estimate, of what the backward pass keeps, held against the "
    "75 % of a GPU's memory that JAX takes by default; "
    "seconds are model FLOPs / (peak x utilization)",
    "cpu": "bytes are those of the program that runs here; seconds are measured here",
}


@dataclass(frozen=True)
class Fix:
    """A change that saves memory and leaves the loss as it is.

    Attributes:
        run: the changed run.
        sharded: whether the devices split parameters and optimizer state.
        flags: the change as flags of the command line.
    """

    run: RunConfig
    sharded: bool
    flags: str


@dataclass(frozen=True)
class CostEstimate:
    """What a plan takes of some hardware.

    Attributes:
        table: a row per distinct compiled shape, with the columns `width`, `depth`,
            `n_total`, `batch_size` (sequences per step), `micro_batch` (sequences per
            device at a time), `devices` that share a step, `bytes_per_device`, `fits`,
            `flops_per_step`, `remedy` (flags that make it fit; empty where it fits,
            None where nothing helps), `remedy_bytes`, `message` (of the compiler, where
            it rejected the program), `seconds_per_step`, and `steps` and `seconds` of
            all trunks of the shape.
        utilization: share of the peak that was assumed; None on `cpu`.
        seconds: of the whole plan; NaN where it is not known.
        rule: where bytes and seconds come from.
    """

    hardware: Hardware
    table: pd.DataFrame
    utilization: float | int | None
    seconds: float
    rule: str


def estimate_cost(
    plan: Plan | Iterable[RunConfig],
    hardware: Hardware,
    utilization: float | int | None = None,
    *,
    measure: Measure | None = None,
    workers: int = 1,
    report: Report = lambda line: None,
) -> CostEstimate:
    """Estimate the memory of every distinct shape of a plan, and the time of the plan.

    Args:
        utilization: share of the peak that training reaches; None for the hardware's.
        measure: for `cpu`, gives the timings of a plan's `select_calibration_runs`. It
            is called with the runs that fit. Without it, and for shapes that do not
            fit, the seconds are NaN.
        workers: for `cpu`, runs trained at a time, each with an equal part of the
            memory.
        report: is called with a line before each compilation.

    Raises:
        ConfigError: libtpu is not installed or knows no such slice, or the utilization
            is outside (0, 1] or given for `cpu`.
        RuntimeError: the compiler failed for another reason than memory.
    """
    plan = plan if isinstance(plan, Plan) else Plan("plan", tuple(plan))
    groups = _group_by_shape(plan)
    examples = [trunks[0].runs[0] for trunks in groups]
    is_cpu = hardware.kind == "cpu"
    if is_cpu and utilization is not None:
        raise ConfigError(
            f"utilization = {utilization}: not for the hardware 'cpu', whose speed is "
            f"measured; leave it out"
        )
    if is_cpu:
        hardware = dataclasses.replace(
            hardware, memory=hardware.memory / max(1, workers)
        )
    used = hardware.utilization if utilization is None else utilization
    steps = [sum(trunk.steps for trunk in trunks) for trunks in groups]
    times: list[float] = []
    if not is_cpu:  # before the slow compilations, since it checks the utilization
        times = [_estimate_step_seconds(run, hardware, used) for run in examples]
    total = sum(a * b for a, b in zip(times, steps, strict=False))

    rows = []
    with contextlib.ExitStack() as stack:
        if hardware.kind == "gpu":
            estimate_memory: EstimateMemory = memory.estimate_gpu_footprint
        else:
            estimate_memory = stack.enter_context(Compiler(hardware)).footprint
        for run in examples:
            rows.append(_estimate_shape(run, hardware, estimate_memory, report))
    if is_cpu:
        fits = [row["fits"] for row in rows]
        times, total = _measure_seconds(groups, fits, measure, workers)
    table = pd.DataFrame(rows).assign(seconds_per_step=times, steps=steps)
    table["seconds"] = table["seconds_per_step"] * table["steps"]
    return CostEstimate(
        hardware=hardware,
        table=table,
        utilization=None if is_cpu else used,
        seconds=total,
        rule=RULES[hardware.kind],
    )


def count_sharing_devices(run: RunConfig, devices: int) -> int:
    """How many of the devices can share a step of the run."""
    return count_devices_for_batch(
        run.optim.batch_size // run.optim.accumulate, devices
    )


def suggest_fixes(
    run: RunConfig, hardware: Hardware, state_bytes: int = 0
) -> Iterator[Fix]:
    """Changes that may make a run fit, the least costly first.

    First remat, then also micro-batches halved as long as every device has a sequence,
    then both with parameters and optimizer state split over the devices.

    Args:
        state_bytes: of parameters and optimizer on each device. Where they alone
            exceed the memory, only changes that split them are suggested.
    """
    devices = count_sharing_devices(run, hardware.devices)
    with_remat = dataclasses.replace(
        run, model=dataclasses.replace(run.model, remat=True)
    )
    for sharded in (False, True):
        if sharded and devices == 1:
            continue
        if not sharded and state_bytes > hardware.memory:
            continue
        accumulate = run.optim.accumulate
        while run.optim.batch_size % (accumulate * devices) == 0:
            optim = dataclasses.replace(run.optim, accumulate=accumulate)
            new = dataclasses.replace(with_remat, optim=optim)
            if new != run or sharded:
                flags = _describe_change(run, new)
                if sharded:
                    flags.append(f"fsdp over {devices} devices")
                yield Fix(new, sharded, " ".join(flags))
            accumulate *= 2


def _describe_change(old: RunConfig, new: RunConfig) -> list[str]:
    """The flags that turn one run into another."""
    flags = []
    if new.model.remat and not old.model.remat:
        flags.append("--model.remat")
    if new.optim.accumulate != old.optim.accumulate:
        flags.append(f"--optim.accumulate {new.optim.accumulate}")
    return flags


def _group_by_shape(plan: Plan) -> list[list[Trunk]]:
    """The trunks of a plan, grouped by what determines memory and FLOPs; the group with
    the cheapest step first.
    """
    groups: dict[tuple[Any, ...], list[Trunk]] = {}
    for trunk in plan.trunks():
        optim = trunk.runs[0].optim
        key = (trunk.model, optim.optimizer, optim.batch_size, optim.accumulate)
        groups.setdefault(key, []).append(trunk)
    return sorted(groups.values(), key=lambda trunks: flops_per_step(trunks[0].runs[0]))


def _estimate_step_seconds(
    run: RunConfig, hardware: Hardware, utilization: float | int
) -> float:
    """Seconds of a step on the devices that share it."""
    devices = count_sharing_devices(run, hardware.devices)
    return hardware.seconds(flops_per_step(run), run.model.dtype, devices, utilization)


def _measure_seconds(
    groups: Sequence[list[Trunk]],
    fits: Sequence[bool],
    measure: Measure | None,
    workers: int,
) -> tuple[list[float], float]:
    """Seconds of a step of each shape, and of the whole plan; NaN for a shape that does
    not fit, and for the plan unless all shapes fit.
    """
    runs: list[RunConfig] = []
    for trunks, fitting in zip(groups, fits, strict=True):
        if fitting:
            for trunk in trunks:
                runs += trunk.runs
    if measure is None or not runs:
        return [math.nan] * len(groups), math.nan
    plan = Plan("fitting", tuple(runs))
    timings = measure(plan)
    times = [math.nan] * len(groups)
    for i, trunks in enumerate(groups):
        if fits[i]:
            times[i] = timing.interpolate_step_seconds(plan, timings, trunks[0].runs[0])
    if not all(fits):
        return times, math.nan
    return times, timing.estimate_plan_seconds(plan, timings, max(1, workers))


def _estimate_shape(
    run: RunConfig,
    hardware: Hardware,
    estimate_memory: EstimateMemory,
    report: Report,
) -> dict[str, Any]:
    """The row of a shape: its bytes, and the first fix that works if it does not fit."""
    devices = count_sharing_devices(run, hardware.devices)
    shape = f"width {run.model.width}, depth {run.model.depth}"
    report(
        f"estimating memory for {hardware.name}: {shape}, {run.optim.batch_size} "
        f"sequences a step"
    )
    taken = estimate_memory(run, devices, False)
    fits = _is_within_memory(taken, hardware)
    flags: str | None = "" if fits else None
    fixed_bytes: int | None = None
    if not fits:
        for fix in suggest_fixes(run, hardware, taken.arguments):
            report(f"it does not fit; estimating memory with {fix.flags}")
            candidate = estimate_memory(fix.run, devices, fix.sharded)
            if _is_within_memory(candidate, hardware):
                flags = fix.flags
                fixed_bytes = candidate.total
                break
    return {
        "width": run.model.width,
        "depth": run.model.depth,
        "n_total": count_parameters(run.model).n_total,
        "batch_size": run.optim.batch_size,
        "micro_batch": run.optim.batch_size // run.optim.accumulate // devices,
        "devices": devices,
        "bytes_per_device": taken.total,
        "fits": fits,
        "flops_per_step": flops_per_step(run),
        "remedy": flags,
        "remedy_bytes": fixed_bytes,
        "message": taken.rejection,
    }


def _is_within_memory(taken: Footprint, hardware: Hardware) -> bool:
    return taken.rejection is None and taken.total <= hardware.memory
