"""Kill a sweep many times at random, and check that nothing is lost, nothing is done
twice and no loss changes.

    python benchmarks/chaos.py [--kills 200] [--runs 40] [--workers 3] [--json]

One sweep is trained undisturbed. Then the same sweep is trained while its workers, or
the whole sweep, get a SIGKILL or a SIGTERM after a random number of chunks of training,
or after tenths of a second, when nothing may have been trained yet. A sweep that was
killed is started again. Rounds, each in a new folder, go on until there were enough
kills and the last round is finished. The folders then show whether every run is there
once, whether results were written twice, and whether the losses are those of the
undisturbed sweep to the last bit.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

from scaling import (
    DataConfig,
    LoopConfig,
    ModelConfig,
    OptimConfig,
    Plan,
    RunConfig,
    sweep,
)
from scaling.model.flops import flops_per_token
from scaling.store.table import run_table

_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)


@dataclass(frozen=True)
class Chaos:
    """Kill a sweep many times and compare it with an undisturbed one."""

    kills: int = 200
    runs: int = 40
    workers: int = 3
    steps: int = 3000
    """Of the longest run; its trunk has a second one of half the steps."""
    chunks: int = 20
    """Of training between two kills, on average; every fourth kill comes sooner."""
    seed: int = 0
    out: Path | None = None
    """Folder to keep; default: a temporary one."""
    json: bool = False


def make_plan(args: Chaos) -> Plan:
    """Pairs of runs on a trunk, of two widths and many seeds."""
    runs = []
    for number in range(args.runs // 2):
        model = ModelConfig(
            width=(16, 24)[number % 2], depth=1, n_heads=2, vocab=64, context=32
        )
        optim = OptimConfig(lr=1e-2, batch_size=8, warmup_tokens=2560)
        source = DataConfig("markov:states=64,branching=4,tokens=400000")
        for share in (2, 1):
            tokens = args.steps // share * 8 * 32
            runs.append(
                RunConfig(
                    model, source, optim, tokens=tokens, seed=number, eval_tokens=8192
                )
            )
    return Plan("chaos", tuple(runs))


def train_sweep(plan: Path, out: Path, workers: int) -> None:
    """What is killed: a sweep in a process of its own, its events as JSON lines."""
    loop = LoopConfig(checkpoint_seconds=0.5, attempts=1000)
    sweep(Plan.from_json(plan), out, workers=workers, loop=loop, show="json")


def attack_sweep(
    plan: Path, out: Path, args: Chaos, dice: random.Random, left: int
) -> tuple[Counter[str], list[str]]:
    """One sweep to its end, with at most `left` kills: counts of them, and the ids
    reported as finished.
    """
    counts: Counter[str] = Counter()
    log = out.with_suffix(".jsonl")
    command = [
        sys.executable,
        __file__,
        "sweep",
        str(plan),
        str(out),
        str(args.workers),
    ]
    while True:
        with open(log, "ab") as events, open(out.with_suffix(".log"), "ab") as errors:
            process = subprocess.Popen(command, stdout=errors, stderr=events)
        counts["starts"] += 1
        while process.poll() is None:
            _wait_before_kill(process, log, args.chunks, dice)
            if counts["kills"] < left:
                counts += _kill_process(process, dice)
        if process.wait() == 0:
            return counts, _read_finished_ids(log)


def _wait_before_kill(
    process: subprocess.Popen[bytes], log: Path, chunks: int, dice: random.Random
) -> None:
    """Until some chunks have been trained, or for a moment, or until the sweep is over."""
    before = log.stat().st_size
    if dice.random() < 0.25:
        time.sleep(dice.uniform(0.0, 3.0))
        return
    aim = dice.expovariate(1 / chunks)
    while process.poll() is None and _count_chunks(log, before) < aim:
        time.sleep(0.05)


def _count_chunks(log: Path, start: int) -> int:
    with open(log, "rb") as file:
        file.seek(start)
        return file.read().count(b'"progress"')


def _kill_process(
    process: subprocess.Popen[bytes], dice: random.Random
) -> Counter[str]:
    """One kill of a process of the sweep, or none where there is none any more. Needs
    Linux's /proc.
    """
    try:
        workers = [
            int(pid)
            for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children")
            .read_text()
            .split()
        ]
        whole = dice.random() < 0.2
        if not whole and not workers:
            return Counter()
        chosen, number = (
            process.pid if whole else dice.choice(workers),
            dice.choice(_SIGNALS),
        )
        os.kill(chosen, number)
    except (FileNotFoundError, ProcessLookupError):
        return Counter()
    return Counter(
        ["kills", f"{number.name} to {'the sweep' if whole else 'a worker'}"]
    )


def _read_finished_ids(log: Path) -> list[str]:
    events = [_parse_event(line) for line in log.read_text().splitlines()]
    return [
        event["run_id"]
        for event in events
        if event.get("event") in ("finished", "repeated")
    ]


def _parse_event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def count_wasted_flops(plan: Plan, out: Path) -> float:
    """FLOPs of steps that were trained, logged, lost and trained again."""
    flops, chunk = 0.0, LoopConfig().chunk_steps
    for path, run in _iterate_logs(plan, out):
        last = 0
        for row in map(_parse_event, path.read_text().splitlines()):
            step = int(row.get("step", last + 1))
            if step <= last:
                flops += chunk * run.batch_tokens * flops_per_token(run.model)
            last = max(last, step)
    return flops


def _iterate_logs(plan: Plan, out: Path) -> Iterator[tuple[Path, RunConfig]]:
    for trunk in plan.trunks():
        folders = [out / run.run_id for run in trunk.runs] + [trunk.folder(out)]
        for folder in folders:
            if (folder / "metrics.jsonl").exists():
                yield folder / "metrics.jsonl", trunk.runs[0]


def compare_tables(calm: pd.DataFrame, hit: pd.DataFrame) -> dict[str, int]:
    """Runs lost, and those whose loss is not that of the undisturbed sweep to the last
    bit.
    """
    ours, theirs = (
        {
            row["run_id"]: (row["loss"], row["loss_se"])
            for row in table.to_dict("records")
        }
        for table in (calm, hit)
    )
    different = sum(theirs.get(run, ours[run]) != ours[run] for run in ours)
    return {"lost": len(ours.keys() - theirs.keys()), "different": different}


def attack_all_rounds(args: Chaos, folder: Path) -> dict[str, float]:
    """All rounds; what came of them."""
    plan, dice = make_plan(args), random.Random(args.seed)
    plan.to_json(folder / "plan.json")
    start = time.monotonic()
    command = [
        sys.executable,
        __file__,
        "sweep",
        str(folder / "plan.json"),
        str(folder / "calm"),
        str(args.workers),
    ]
    subprocess.run(command, check=True, capture_output=True)
    calm, quiet_seconds = run_table(folder / "calm"), time.monotonic() - start
    total: Counter[str] = Counter()
    rounds = 0
    while total["kills"] < args.kills:
        out = folder / f"round-{rounds}"
        counts, finished = attack_sweep(
            folder / "plan.json", out, args, dice, args.kills - total["kills"]
        )
        takeovers = [
            len(list((trunk.folder(out) / "claims").iterdir())) - 1
            for trunk in plan.trunks()
        ]
        found = compare_tables(calm, run_table(out))
        twice = sum(count - 1 for count in Counter(finished).values())
        total += counts + Counter(
            found | {"duplicated": twice, "resumes": sum(takeovers)}
        )
        total["wasted"] += int(count_wasted_flops(plan, out))
        rounds += 1
        print(f"round {rounds}: {dict(counts)}, {found}", file=sys.stderr, flush=True)
    return {
        **{
            name: total[name]
            for name in (
                "kills",
                "starts",
                "resumes",
                "lost",
                "duplicated",
                "different",
            )
        },
        **{
            name: count
            for name, count in sorted(total.items())
            if name.startswith("SIG")
        },
        "rounds": rounds,
        "runs": len(plan) * rounds,
        "wasted_flops": float(total["wasted"]),
        "wasted_share": total["wasted"] / (plan.flops * rounds),
        "calm_seconds": quiet_seconds,
        "seconds": time.monotonic() - start - quiet_seconds,
    }


def main() -> None:
    """Attack, and say what came of it."""
    if sys.argv[1:2] == ["sweep"]:
        return train_sweep(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    args = tyro.cli(Chaos, description=__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        answer = attack_all_rounds(dataclasses.replace(args, out=folder), folder)
    for name, value in answer.items():
        print(f"{name:24} {value}")
    if args.json:
        print(json.dumps(answer))


if __name__ == "__main__":
    main()
