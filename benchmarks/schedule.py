"""How long a sweep takes over many unequal workers that fail, by the order in which
they take its trunks; simulated.

    python benchmarks/schedule.py [--workers 64] [--draws 20] [--json]

`scaling.planning.plan` makes a plan of a thousand runs. Its trunks, each trained by one
worker at a time, are taken by workers of one to four times the slowest one's speed. A
worker fails at exponential times. Its trunk loses what was trained since the last
checkpoint, and is taken by the next free worker, before the trunks that wait, once the
lease has expired; the worker is back after a delay.

The orders are:

longest
    That of `Plan.trunks`, which sweeps use.
planned
    As the runs are listed.
random, shortest
    For comparison.
matched
    The longest first, and the fastest of the free workers is served first.
ahead
    The longest first, each for the worker that would finish it first, busy or not; the
    others leave it.

A makespan is printed as a multiple of the lower bound, the larger of all work over all
speed and of the longest trunk on the fastest worker, both without failures.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tyro

from scaling import Plan, PlanConfig, make_plan
from scaling.cli.plan_sweep import find_preset
from scaling.config import read_toml
from scaling.model.flops import trunk_flops
from scaling.store.leases import EXPIRY
from scaling.training.loop import LoopConfig

WIDTHS = (*PlanConfig.widths[1:], 640, 768, 896, 1024)
"""The widths of a plan without the smallest one, and larger ones."""

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


class Happening(NamedTuple):
    """Something that happens in the simulation, ordered by time.

    Attributes:
        at: seconds.
        number: breaks ties.
        what: `free` or `died` of a worker, or `trunk` that is free again.
        value: which worker, or how much work.
    """

    at: float
    number: int
    what: str
    value: float


def simulate_sweep(
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
    rates = np.asarray(speeds, float)
    waiting = list(work)
    idle = list(range(len(speeds)))
    ready = np.zeros(len(speeds))  # when each worker is free, as far as is known
    events: list[Happening] = []
    tie_breaker = itertools.count()
    now = last = 0.0
    failed = 0

    def schedule(at: float, what: str, value: float) -> None:
        heapq.heappush(events, Happening(at, next(tie_breaker), what, value))

    while waiting or events:
        while waiting and idle:
            free_at = np.maximum(ready, now)
            choice = choose_trunk(waiting, idle, rates, free_at, order)
            if choice is None:
                break
            worker, place = choice
            trunk = waiting.pop(place)
            idle.remove(worker)
            end = now + trunk / rates[worker]
            death = now + dice.exponential(1.0) * failures.every
            ready[worker] = end
            if end <= death:
                last = max(last, end)
                schedule(end, "free", worker)
                continue
            failed += 1
            saved_seconds = (death - now) // failures.checkpoint * failures.checkpoint
            left = trunk - saved_seconds * rates[worker]
            schedule(death, "died", worker)
            schedule(death + failures.noticed, "trunk", left)
        now, _, what, value = heapq.heappop(events)
        if what == "trunk":
            waiting.insert(0, value)
        elif what == "free":
            idle.append(int(value))
        else:
            ready[int(value)] = now + failures.away
            schedule(now + failures.away, "free", value)
    return last, failed


def choose_trunk(
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


def compute_lower_bound(work: Sequence[float], speeds: Sequence[float]) -> float:
    """Seconds that no schedule can beat."""
    return max(sum(work) / sum(speeds), max(work) / max(speeds))


def make_sweep(seeds: int) -> Plan:
    """The family of the preset `isoflop` over nine doublings of compute: a thousand runs
    at eleven seeds.
    """
    config = read_toml(find_preset("isoflop"), PlanConfig)
    budgets = tuple((2e12 * 2.0 ** np.arange(10)).tolist())
    return make_plan(
        dataclasses.replace(
            config,
            name="schedule",
            budgets=budgets,
            widths=WIDTHS,
            sizes_per_budget=10,
            seeds=tuple(range(seeds)),
        )
    )


def order_trunks(plan: Plan, order: str, dice: np.random.Generator) -> list[float]:
    """FLOPs of the plan's trunks as workers take them."""
    longest = [trunk_flops(trunk) for trunk in plan.trunks()]
    if order == "random":
        return dice.permutation(longest).tolist()
    if order == "planned":
        first: dict[str, int] = {}
        for place, run in enumerate(plan):
            first.setdefault(run.trunk_id, place)
        trunks = sorted(
            plan.trunks(),
            key=lambda trunk: min(first[run.trunk_id] for run in trunk.runs),
        )
        return [trunk_flops(trunk) for trunk in trunks]
    if order == "shortest":
        return longest[::-1]
    return longest


def compare_orders(
    args: Schedule, plan: Plan
) -> dict[str, dict[str, dict[str, float]]]:
    """Makespans over their lower bound by mean time between failures and order:
    quartiles over the draws.
    """
    answer = {}
    orders = {
        name: order_trunks(plan, name, np.random.default_rng(0)) for name in ORDERS
    }
    for hours in args.hours_between_failures:
        failures = Failures(every=hours * HOUR, away=args.away)
        makespans: dict[str, list[float]] = {name: [] for name in ORDERS}
        failed_workers: dict[str, list[int]] = {name: [] for name in ORDERS}
        for draw, name in itertools.product(range(args.draws), ORDERS):
            dice = np.random.default_rng(draw)  # the same speeds for every order
            speeds = (args.speed * dice.uniform(1, args.spread, args.workers)).tolist()
            work = orders[name]
            if name == "random":
                work = dice.permutation(work).tolist()
            seconds, failed = simulate_sweep(work, speeds, failures, dice, name)
            makespans[name].append(seconds / compute_lower_bound(work, speeds))
            failed_workers[name].append(failed)
        answer[f"{hours:g}"] = {
            name: summarize_draws(makespans[name], failed_workers[name])
            for name in ORDERS
        }
    return answer


def summarize_draws(makespans: list[float], failed: list[int]) -> dict[str, float]:
    """Quartiles of the makespans and the median number of failures."""
    low, median, high = np.quantile(makespans, (0.25, 0.5, 0.75))
    return {
        "low": low,
        "median": median,
        "high": high,
        "failures": float(np.median(failed)),
    }


def main() -> None:
    """Simulate and print."""
    args = tyro.cli(Schedule, description=__doc__)
    plan = make_sweep(args.seeds)
    work = order_trunks(plan, "longest", np.random.default_rng(0))
    bound = np.median(
        [
            compute_lower_bound(
                work,
                args.speed
                * np.random.default_rng(draw).uniform(1, args.spread, args.workers),
            )
            for draw in range(args.draws)
        ]
    )
    print(
        f"{len(plan)} runs on {len(work)} trunks, {sum(work):.3g} FLOPs, the longest "
        f"trunk {max(work) / sum(work):.2%}"
    )
    print(
        f"{args.workers} workers, lower bound {bound / HOUR:.2f} hours; makespan over "
        "it, median [quartiles]"
    )
    answer = compare_orders(args, plan)
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
