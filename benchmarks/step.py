"""Tokens per second of the training step on CPU: this library, plain Flax, and PyTorch, each at its best.

    python benchmarks/step.py [--quick] [--json]

Every contender trains the same architecture (`benchmarks/contenders/`) at each rung of a ladder, once as one process
over all cores and once as one single-threaded process per core. All are started first and then timed in turn, round by
round; printed are the median over rounds of the tokens per second of all processes together, its spread, the share of
the machine's own peak that its products are (measured in the same rounds), and the ratios of the best arrangements,
round by round. PyTorch is left out where it is not installed (`pip install -e '.[bench]'`). Twenty minutes on two
cores.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from scaling.config import ModelConfig
from scaling.flops import flops_per_token

LADDER = ((64, 2, 128, 32), (128, 4, 128, 32), (256, 6, 256, 16), (512, 8, 256, 8))  # width, depth, context, batch
CONTENDERS = ("ours", "plain_flax", "torch_eager")
ARRANGEMENTS = ("threads", "processes")
Found = dict[str, np.ndarray]  # by "contender arrangement": tokens per second of each round


@dataclass(frozen=True)
class Step:
    """What to time."""

    quick: bool = False
    """The two small rungs, three rounds of two seconds."""
    json: bool = False
    """End with one JSON line: the ratios, per rung and their geometric means."""
    contenders: tuple[str, ...] = CONTENDERS
    rounds: int = 5
    seconds: float = 4.0
    """Of each contender in each round; a call that is longer counts whole."""


class Team:
    """One contender in one arrangement: its processes, started and compiled."""

    def __init__(self, name: str, arrangement: str, shape: tuple[int, ...]) -> None:
        self.name, self.arrangement = name, arrangement
        cores = sorted(os.sched_getaffinity(0))
        groups = [[core] for core in cores] if arrangement == "processes" else [cores]
        self.processes = [self._start(name, shape, group) for group in groups]

    def wait(self) -> dict[str, float]:
        """Until all have compiled: what the first says of itself."""
        lines = [self._line(process) for process in self.processes]
        return lines[0]

    def _start(self, name: str, shape: tuple[int, ...], cores: list[int]) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "contenders.worker", name, json.dumps(shape), ",".join(map(str, cores))]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, cwd=Path(__file__).parent, text=True, **pipes)

    def _line(self, process: subprocess.Popen[str]) -> dict[str, float]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ({self.arrangement}) died: exit status {process.wait()}")
        return json.loads(line)

    def tokens_per_second(self, seconds: float) -> float:
        """All processes at once."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
        lines = [self._line(process) for process in self.processes]
        return sum(line["tokens"] / line["seconds"] for line in lines)

    def stop(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
            process.wait()


def matmul_peak(size: int = 1024, calls: int = 8) -> float:
    """FLOP/s of a float32 product of two square matrices over all cores."""
    import jax

    x = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(x))
    start = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(product(x))
    return 2 * size**3 * calls / (time.perf_counter() - start)


def time_rung(args: Step, names: tuple[str, ...], shape: tuple[int, ...]) -> tuple[Found, np.ndarray]:
    """Tokens per second of each contender's arrangements, and FLOP/s of products alone, by round."""
    teams = [Team(name, arrangement, shape) for name in names for arrangement in ARRANGEMENTS]
    found: dict[str, list[float]] = {f"{team.name} {team.arrangement}": [] for team in teams}
    try:
        parameters = {team.name: team.wait()["parameters"] for team in teams}
        if len(set(parameters.values())) != 1:
            raise RuntimeError(f"not one architecture: parameters {parameters}")
        for team in teams:
            team.tokens_per_second(0.5)
        peak = []
        for _ in range(args.rounds):
            peak.append(matmul_peak())
            for team in teams:
                found[f"{team.name} {team.arrangement}"].append(team.tokens_per_second(args.seconds))
    finally:
        for team in teams:
            team.stop()
    return {name: np.array(values) for name, values in found.items()}, np.array(peak)


def report(shape: tuple[int, ...], found: Found, peak: np.ndarray, names: tuple[str, ...]) -> dict[str, float]:
    """Print a rung, and return its ratios and our share of the peak."""
    width, depth, context, batch = shape
    print(f"\nwidth {width}, depth {depth}, context {context}, batch {batch}")
    flops = flops_per_token(ModelConfig(width=width, depth=depth, n_heads=4, context=context))
    for name, values in found.items():
        share = np.median(values / peak) * flops
        spread = f"[{values.min():,.0f}, {values.max():,.0f}]"
        print(f"  {name:24} {np.median(values):10,.0f} tokens/s {spread:>22}  {share:4.0%} of the peak of products")
    best = {name: max((v for k, v in found.items() if k.startswith(name)), key=np.median) for name in names}
    ratios = {"share_of_matmul_peak": float(np.median(best["ours"] / peak) * flops)}
    for other in names[1:]:
        ratio = best["ours"] / best[other]
        ratios[f"vs_{other}"] = float(np.median(ratio))
        print(f"  ours over {other}: {np.median(ratio):.2f} [{ratio.min():.2f}, {ratio.max():.2f}]")
    return ratios


def main() -> None:
    """Time every rung and print ratios."""
    args = tyro.cli(Step, description=__doc__)
    ladder = LADDER[:2] if args.quick else LADDER
    if args.quick:
        args = Step(True, args.json, args.contenders, rounds=3, seconds=2.0)
    names = tuple(n for n in args.contenders if not n.startswith("torch") or importlib.util.find_spec("torch"))
    versions = ", ".join(
        f"{p} {version(p)}" for p in ("jax", "flax", "torch") if p != "torch" or "torch_eager" in names
    )
    print(
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores; {versions}; float32; FLOPs with causal attention"
    )
    rungs = {shape: report(shape, *time_rung(args, names, shape), names) for shape in ladder}
    result: dict[str, Any] = {"rungs": {"x".join(map(str, shape)): ratios for shape, ratios in rungs.items()}}
    print(f"\ngeometric means of {len(rungs)} rungs:")
    for name in next(iter(rungs.values())):
        result[name] = float(np.exp(np.mean([np.log(ratios[name]) for ratios in rungs.values()])))
        print(f"  {name}: {result[name]:.2f}")
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
