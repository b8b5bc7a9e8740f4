"""How long a sweep takes over many unlike workers that fail, by the order in which they
take its trunks; simulated.

    python benchmarks/schedule.py [--workers 64] [--draws 20] [--json]

A plan of a thousand runs is made by `scaling.planning.plan`; its trunks, each the work
of one worker at a time, are taken by workers of one to four times the slowest one's
speed. A worker fails at exponential times: its trunk loses what was trained since the
last checkpoint and is taken up again by whoever asks, before the trunks that wait and
once the lease has expired; the worker is back after a delay. Orders: `longest`, that of
`Plan.trunks`, which sweeps use; `planned`, as the runs are listed; `random`;
`shortest`; and two that know the workers' speeds: `matched`, the longest first with the
fastest of the free workers served first, and `ahead`, where each trunk, the longest
first, is meant for the worker that would end it first, busy or not, and the others
leave it alone. A makespan is a multiple of the lower bound, the larger of all work over
all speed and of the longest trunk on the fastest worker, both without failures.
Seconds.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import tyro

from scaling import Plan, PlanConfig, make_plan
from scaling.cli.plan_sweep import find_preset
from scaling.config import read_toml
from scaling.model.flops import trunk_flops
from scaling.store.leases import EXPIRY
from scaling.training.loop import LoopConfig

WIDTHS = (
    32,
    40,
    48,
    56,
    64,
    80,
    96,
    112,
    128,
    160,
    192,
    224,
    256,
    320,
    384,
    448,
    512,
    640,
    768,
    896,
    1024,
)
ORDERS = ("longest", "planned", "random", "shortest", "matched", "ahead")
HOUR = 3600.0


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Simulate a sweep under several orders."""

    workers: int = 64
    draws: int = 20
    """Of speeds and failures: medians and quartiles are over these."""
    seeds: int = 11
    """Of the plan: it has 91 runs on 17 trunks for each."""
    speed: float = 3e10
    """Of the slowest worker, FLOP/s."""
    spread: float = 4.0
    """Of the fastest worker's speed over the slowest one's."""
    hours_between_failures: tuple[float, ...] = (float("inf"), 24.0, 4.0)
    """Of one worker, on average; a table for each."""
    away: float = 300.0
    """Seconds until a worker that failed is back."""
    json: bool = False
    """End with one JSON line."""


@dataclasses.dataclass(frozen=True)
class Failures:
    """How workers fail: seconds between failures of one, between checkpoints, until it
    is back, until it is noticed.
    """

    every: float = float("inf")
    checkpoint: float = LoopConfig.checkpoint_seconds
    away: float = 300.0
    noticed: float = EXPIRY


def simulate(
    work: Sequence[float],
    speeds: Sequence[float],
    failures: Failures,
    dice: np.random.Generator,
    order: str = "planned",
) -> tuple[float, int]:
    """Seconds until all trunks are trained, and failures on the way.

    work: of each trunk, in the order in which they are taken; "matched" and "ahead"
    want the longest first.
    """
    waiting, idle, rates = (
        list(work),
        list(range(len(speeds))),
        np.asarray(speeds, float),
    )
    ready = np.zeros(len(speeds))  # when each worker is free, as far as is known
    events: list[
        tuple[float, int, str, float]
    ] = []  # when, tie-break, what, which worker or how much work
    number, now, last, failed = itertools.count(), 0.0, 0.0, 0
    while waiting or events:
        while (
            waiting
            and idle
            and (pair := choose(waiting, idle, rates, np.maximum(ready, now), order))
        ):
            worker, mine = pair[0], waiting.pop(pair[1])
            idle.remove(worker)
            end, death = (
                now + mine / rates[worker],
                now + dice.exponential(1.0) * failures.every,
            )
            ready[worker] = end
            if end <= death:
                last = max(last, end)
                heapq.heappush(events, (end, next(number), "free", worker))
                continue
            failed += 1
            saved = (
                (death - now)
                // failures.checkpoint
                * failures.checkpoint
                * rates[worker]
            )
            heapq.heappush(events, (death, next(number), "died", worker))
            heapq.heappush(
                events, (death + failures.noticed, next(number), "trunk", mine - saved)
            )
        now, _, what, value = heapq.heappop(events)
        if what == "trunk":
            waiting.insert(0, value)
        elif what == "free":
            idle.append(int(value))
        else:
            ready[int(value)] = now + failures.away
            heapq.heappush(events, (now + failures.away, next(number), "free", value))
    return last, failed


def choose(
    waiting: Sequence[float],
    idle: Sequence[int],
    speeds: np.ndarray,
    ready: np.ndarray,
    order: str,
) -> tuple[int, int] | None:
    """Which idle worker takes which of the waiting trunks; None: all wait for busy
    workers that end them sooner.
    """
    if order == "matched":
        return max(idle, key=lambda i: speeds[i]), 0
    if order != "ahead":
        return idle[0], 0
    for number, mine in enumerate(waiting):
        worker = int(np.argmin(ready + mine / speeds))
        if worker in idle:
            return worker, number
        ready[worker] += mine / speeds[worker]
    return None


def lower_bound(work: Sequence[float], speeds: Sequence[float]) -> float:
    """Seconds that no schedule can beat."""
    return max(sum(work) / sum(speeds), max(work) / max(speeds))


def make_sweep(seeds: int) -> Plan:
    """The quickstart's family over nine doublings of compute: a thousand runs at eleven
    seeds.
    """
    config = read_toml(find_preset("quickstart"), PlanConfig)
    budgets = tuple((2e12 * 2.0 ** np.arange(10)).tolist())
    changes: dict[str, Any] = {
        "widths": WIDTHS,
        "sizes_per_budget": 10,
        "seeds": tuple(range(seeds)),
    }
    return make_plan(
        dataclasses.replace(config, name="schedule", budgets=budgets, **changes)
    )


def ordered(plan: Plan, order: str, dice: np.random.Generator) -> list[float]:
    """FLOPs of the plan's trunks as workers take them."""
    longest = [trunk_flops(trunk) for trunk in plan.trunks()]
    if order == "random":
        return dice.permutation(longest).tolist()
    if order == "planned":
        first = {
            trunk_id: i
            for i, trunk_id in reversed(list(enumerate(run.trunk_id for run in plan)))
        }
        trunks = sorted(
            plan.trunks(),
            key=lambda trunk: min(first[run.trunk_id] for run in trunk.runs),
        )
        return [trunk_flops(trunk) for trunk in trunks]
    return longest[::-1] if order == "shortest" else longest


def compare(args: Schedule, plan: Plan) -> dict[str, Any]:
    """Makespans over their lower bound by mean time between failures and order:
    quartiles over the draws.
    """
    answer: dict[str, Any] = {}
    orders = {name: ordered(plan, name, np.random.default_rng(0)) for name in ORDERS}
    for hours in args.hours_between_failures:
        failures = Failures(every=hours * HOUR, away=args.away)
        found: dict[str, list[tuple[float, int]]] = {name: [] for name in ORDERS}
        for draw, name in itertools.product(range(args.draws), ORDERS):
            dice = np.random.default_rng(draw)  # the same speeds for every order
            speeds = (args.speed * dice.uniform(1, args.spread, args.workers)).tolist()
            work = (
                dice.permutation(orders[name]).tolist()
                if name == "random"
                else orders[name]
            )
            seconds, failed = simulate(work, speeds, failures, dice, name)
            found[name].append((seconds / lower_bound(work, speeds), failed))
        answer[f"{hours:g}"] = {
            name: {
                **dict(
                    zip(
                        ("low", "median", "high"),
                        np.quantile([x for x, _ in ends], (0.25, 0.5, 0.75)),
                        strict=True,
                    )
                ),
                "failures": float(np.median([failed for _, failed in ends])),
            }
            for name, ends in found.items()
        }
    return answer


def main() -> None:
    """Simulate and print."""
    args = tyro.cli(Schedule, description=__doc__)
    plan = make_sweep(args.seeds)
    work = ordered(plan, "longest", np.random.default_rng(0))
    bound = np.median(
        [
            lower_bound(
                work,
                args.speed
                * np.random.default_rng(draw).uniform(1, args.spread, args.workers),
            )
            for draw in range(args.draws)
        ]
    )
    print(
        f"{len(plan)} runs on {len(work)} trunks, {sum(work):.3g} FLOPs, the longest trunk {max(work) / sum(work):.2%}"
    )
    print(
        f"{args.workers} workers, lower bound {bound / HOUR:.2f} hours; makespan over it, median [quartiles]"
    )
    answer = compare(args, plan)
    for hours, orders in answer.items():
        print(f"\nhours between failures of a worker: {hours}")
        for name, row in orders.items():
            span = f"{row['median']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            print(f"  {name:9} {span}  failures {row['failures']:.0f}")
    if args.json:
        print(
            json.dumps(
                {
                    "runs": len(plan),
                    "trunks": len(work),
                    "bound_hours": bound / HOUR,
                    "makespan": answer,
                }
            )
        )


if __name__ == "__main__":
    main()
