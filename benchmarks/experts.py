"""The time of a training step with experts over that of the dense model of equal active
FLOPs.

    python benchmarks/experts.py [--rounds 12] [--json]

Each round times one chunk of every model, the dense one first; a ratio is taken within a
round, and the median over the rounds is printed with the lowest and the highest.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import jax
import numpy as np
import tyro

from scaling.config import ExpertConfig, ModelConfig, OptimConfig, RunConfig
from scaling.model.flops import forward_flops_per_token
from scaling.training.sharding import Single
from scaling.training.step import Executable, StepRates, TrainState, get_executable

CASES: dict[str, ExpertConfig] = {
    "1 expert: the router and the moving of rows": ExpertConfig(routed=1),
    "4 experts": ExpertConfig(routed=4),
    "8 experts": ExpertConfig(routed=8),
    "16 experts": ExpertConfig(routed=16),
    "64 experts, 4 a token": ExpertConfig(routed=64, per_token=4, granularity=4),
}
"""What is compared; in each a token uses as many hidden units as in the dense block."""


@dataclass(frozen=True)
class Args:
    """What to time."""

    width: int = 64
    depth: int = 4
    context: int = 128
    batch_size: int = 32
    steps: int = 4
    """Of a chunk."""
    rounds: int = 12
    json: bool = False


@dataclass
class Contender:
    """A model that is trained on and on."""

    executable: Executable
    state: TrainState

    def time_chunk(self, batches: np.ndarray) -> float:
        """Seconds of one chunk."""
        steps = len(batches)
        rates = StepRates(np.full(steps, 1e-6, np.float32), np.zeros(steps, np.float32))
        start = time.perf_counter()
        self.state, metrics = self.executable.chunk(
            self.state, batches, rates, np.int32(steps), np.uint32(0)
        )
        jax.block_until_ready(metrics)
        return time.perf_counter() - start


def make_contender(args: Args, experts: ExpertConfig) -> tuple[Contender, float]:
    """A model before its first step, and its FLOPs per token."""
    model = ModelConfig(
        width=args.width, depth=args.depth, context=args.context, experts=experts
    )
    optim = OptimConfig(batch_size=args.batch_size)
    run = RunConfig(model, optim=optim, tokens=args.batch_size * args.context)
    executable = get_executable(run, Single())
    return Contender(executable, executable.init(0)), forward_flops_per_token(model)


def measure_ratios(args: Args) -> list[dict[str, object]]:
    """A row for each case."""
    dense, dense_flops = make_contender(args, ExpertConfig())
    made = {name: make_contender(args, experts) for name, experts in CASES.items()}
    shape = (args.steps, args.batch_size, args.context + 1)
    batches = np.random.default_rng(0).integers(0, 256, shape, dtype=np.int32)
    for contender in (dense, *(contender for contender, _ in made.values())):
        contender.time_chunk(batches)  # it compiles
    ratios: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(args.rounds):
        seconds = dense.time_chunk(batches)
        for name, (contender, _) in made.items():
            ratios[name].append(contender.time_chunk(batches) / seconds)
    rows: list[dict[str, object]] = []
    for name, found in ratios.items():
        row: dict[str, object] = {"experts": name}
        row["flops"] = round(made[name][1] / dense_flops, 3)
        row["median"] = round(float(np.median(found)), 3)
        row["lowest"] = round(min(found), 3)
        row["highest"] = round(max(found), 3)
        rows.append(row)
    return rows


def main() -> None:
    """Measure and print."""
    args = tyro.cli(Args, description=__doc__)
    rows = measure_ratios(args)
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(
            f"{row['experts']}: {row['median']} [{row['lowest']}, {row['highest']}] times "
            f"the dense step, at {row['flops']} times its FLOPs"
        )


if __name__ == "__main__":
    main()
