"""The price of a plan on a machine that need not be here: does each shape fit, with
what remedy, how long will it take.

Every distinct shape of the plan is compiled ahead of time: for a TPU slice by the TPU's
own compiler, whose bytes and refusals are the machine's. For a GPU, whose compiler
needs one, the bytes are counted (`scaling.planning.memory`). Seconds are model FLOPs
(`scaling.model.flops`) over the peak at a stated utilisation, recomputation not
counted; on `cpu` they are those that `scaling.planning.timing` measures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from scaling.config import ConfigError, RunConfig
from scaling.model.flops import count_parameters, flops_per_token
from scaling.planning import memory, timing
from scaling.planning.aot import Compiler, Footprint
from scaling.planning.hardware import Target
from scaling.planning.plan import Plan, trunk_steps
from scaling.training.sharding import count_sharing_devices

Report = Callable[[str], None]
Measure = Callable[[Plan], Sequence[timing.Timing]]
Weigh = Callable[
    [RunConfig, int, bool], Footprint
]  # a run, devices that share it, whether its state is split


@dataclass(frozen=True)
class Remedy:
    """A change that leaves the loss as it is and saves memory."""

    run: RunConfig
    sharded: bool
    text: str


@dataclass(frozen=True)
class Price:
    """What a plan takes of a target.

    `table` has a row per distinct compiled shape: `width`, `depth`, `n_total`,
    `batch_size` (sequences per step), `micro_batch` (sequences per device at a time),
    `devices` that share it, `bytes_per_device`, `fits`, `flops_per_step`,
    `seconds_per_step`, `steps` and `seconds` of all trunks of the shape, `remedy`
    (empty where it fits; None where nothing helps) with `remedy_bytes`, and the
    compiler's `message` where it refused. `seconds` is of the whole plan; `rule` says
    where bytes and seconds come from.
    """

    target: Target
    table: pd.DataFrame
    utilisation: float | int | None
    seconds: float
    rule: str


def price(
    plan: Plan | Iterable[RunConfig],
    target: Target,
    utilisation: float | int | None = None,
    *,
    measure: Measure | None = None,
    workers: int = 1,
    report: Report = lambda line: None,
) -> Price:
    """Compile every distinct shape of a plan for a target, or for a GPU count, and tell
    what it takes.

    `utilisation` is the share of the peak that training reaches; None for the target's.
    `measure` is for `cpu`: the timings of a plan's `calibration_runs`, asked for the
    runs that fit; without it, and for what does not fit, seconds are not a number.
    `workers`, for `cpu`: runs trained at a time, each with an equal part of the memory.
    `report` is called with a line before each compilation.

    Raises:
        ConfigError: libtpu is not installed or knows no such slice; a utilisation
        outside (0, 1] or for `cpu`.
        RuntimeError: the compiler failed for another reason than memory.
    """
    plan = plan if isinstance(plan, Plan) else Plan("plan", tuple(plan))
    groups, here = _shapes(plan), target.kind == "cpu"
    if here and utilisation is not None:
        raise ConfigError(
            f"utilisation = {utilisation}: not for the target 'cpu', whose speed is measured"
        )
    if here:
        target = dataclasses.replace(target, memory=target.memory / max(1, workers))
    used = target.utilisation if utilisation is None else utilisation
    steps = [sum(map(trunk_steps, trunks)) for trunks in groups]
    times = (
        [] if here else [_seconds(trunks[0][0], target, used) for trunks in groups]
    )  # refuses early
    total = sum(a * b for a, b in zip(times, steps, strict=False))
    with (
        contextlib.nullcontext()
        if target.kind == "gpu"
        else Compiler(target) as compiler
    ):
        weigh = memory.gpu_footprint if compiler is None else compiler.footprint
        rows = [_row(trunks[0][0], target, weigh, report) for trunks in groups]
    if here:
        times, total = _measured(
            groups, [row["fits"] for row in rows], measure, workers
        )
    table = pd.DataFrame(rows).assign(seconds_per_step=times, steps=steps)
    table["seconds"] = table["seconds_per_step"] * table["steps"]
    return Price(target, table, None if here else used, total, RULES[target.kind])


RULES = {
    "tpu": "bytes are those of the TPU's compiler; seconds are model FLOPs / (peak x utilisation)",
    "gpu": "bytes are an estimate, of what the backward pass keeps, held against the 75 % of a GPU's memory that JAX "
    "takes by default; seconds are model FLOPs / (peak x utilisation)",
    "cpu": "bytes are those of the program that runs here; seconds are measured here",
}


def shares(run: RunConfig, devices: int) -> int:
    """How many of the devices share a step."""
    return count_sharing_devices(run.optim.batch_size // run.optim.accumulate, devices)


def remedies(run: RunConfig, target: Target, state_bytes: int = 0) -> Iterator[Remedy]:
    """What may make a run fit, the least costly first: remat, then micro-batches halved
    as long as every device has a sequence, then both with parameters and state split
    over the devices.

    state_bytes: of parameters and optimiser on each device; where these alone are too
    many, only splitting is tried.
    """
    devices = shares(run, target.devices)
    remat = dataclasses.replace(run, model=dataclasses.replace(run.model, remat=True))
    for sharded in (False, True) if devices > 1 else (False,):
        if not sharded and state_bytes > target.memory:
            continue
        accumulate = run.optim.accumulate
        while run.optim.batch_size % (accumulate * devices) == 0:
            new = dataclasses.replace(
                remat, optim=dataclasses.replace(run.optim, accumulate=accumulate)
            )
            if new != run or sharded:
                yield Remedy(
                    new,
                    sharded,
                    _describe(
                        run, new, f"fsdp over {devices} devices" if sharded else ""
                    ),
                )
            accumulate *= 2


def _describe(old: RunConfig, new: RunConfig, last: str) -> str:
    """The flags that make one run of another."""
    flags = ["--model.remat"] if new.model.remat and not old.model.remat else []
    if new.optim.accumulate != old.optim.accumulate:
        flags.append(f"--optim.accumulate {new.optim.accumulate}")
    return " ".join([*flags, *([last] if last else [])])


def _shapes(plan: Plan) -> list[list[list[RunConfig]]]:
    """The plan's trunks by what decides memory and FLOPs, the cheapest step first."""
    groups: dict[Any, list[list[RunConfig]]] = {}
    for trunk in plan.trunks():
        optim = trunk[0].optim
        groups.setdefault(
            (trunk[0].model, optim.optimizer, optim.batch_size, optim.accumulate), []
        ).append(trunk)
    return sorted(groups.values(), key=lambda trunks: _step_flops(trunks[0][0]))


def _step_flops(run: RunConfig) -> float:
    return run.batch_tokens * flops_per_token(run.model)


def _seconds(run: RunConfig, target: Target, utilisation: float | int) -> float:
    """Seconds of a step on the devices that share it."""
    return target.seconds(
        _step_flops(run), run.model.dtype, shares(run, target.devices), utilisation
    )


def _measured(
    groups: Sequence[list[list[RunConfig]]],
    fits: Sequence[bool],
    measure: Measure | None,
    workers: int,
) -> tuple[list[float], float]:
    """Seconds of a step of each shape that fits, and of the whole plan, which has some
    only if all of it does.
    """
    runs = [
        run
        for trunks, ok in zip(groups, fits, strict=True)
        if ok
        for trunk in trunks
        for run in trunk
    ]
    if measure is None or not runs:
        return [math.nan] * len(groups), math.nan
    fitting = Plan("fitting", tuple(runs))
    timings = measure(fitting)
    times = [
        timing.step_seconds(fitting, timings, trunks[0][0]) if ok else math.nan
        for trunks, ok in zip(groups, fits, strict=True)
    ]
    return times, timing.estimate(fitting, timings, max(1, workers)) if all(
        fits
    ) else math.nan


def _row(
    run: RunConfig, target: Target, weigh: Weigh, report: Report
) -> dict[str, Any]:
    """A shape, its bytes, and the first remedy that fits if it does not."""
    devices = shares(run, target.devices)
    name = f"width {run.model.width}, depth {run.model.depth}, {run.optim.batch_size} sequences a step"
    report(f"weighing for {target.name}: {name}")
    taken = weigh(run, devices, False)
    text, found = "", None
    if not _fits(taken, target):
        text = None
        for remedy in remedies(run, target, taken.arguments):
            report(f"does not fit; weighing with {remedy.text}")
            candidate = weigh(remedy.run, devices, remedy.sharded)
            if _fits(candidate, target):
                text, found = remedy.text, candidate.total
                break
    return {
        "width": run.model.width,
        "depth": run.model.depth,
        "n_total": count_parameters(run.model).n_total,
        "batch_size": run.optim.batch_size,
        "micro_batch": run.optim.batch_size // run.optim.accumulate // devices,
        "devices": devices,
        "bytes_per_device": taken.total,
        "fits": _fits(taken, target),
        "flops_per_step": _step_flops(run),
        "remedy": text,
        "remedy_bytes": found,
        "message": taken.refused,
    }


def _fits(taken: Footprint, target: Target) -> bool:
    return taken.refused is None and taken.total <= target.memory
