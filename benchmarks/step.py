"""Tokens per second of the training step: this library, plain Flax, and PyTorch, each
at its best.

    python benchmarks/step.py [--quick] [--device gpu] [--json]

Every contender trains the same architecture (`benchmarks/contenders/`) at shapes of
growing size, once as one process over all cores and once as one single-threaded process
per core. All are started first and then take turns, round by round. The output is the
median over rounds of the tokens per second of all processes together, with its range;
the share of the machine's own peak that its products are (measured in the same rounds);
and the ratios of the best arrangements, round by round. PyTorch is left out if it is
not installed (`pip install -e '.[bench]'`). Twenty minutes on two cores.

With `--device gpu` larger models train in bfloat16 on the first GPU, in one process
each, PyTorch also through `torch.compile`. `--target gpu:h100` names the GPU whose
datasheet states the peak.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from contenders import Shape

from scaling.model.flops import flops_per_token
from scaling.planning.hardware import Hardware, parse_hardware

SHAPES = {
    "cpu": tuple(
        Shape(*s)
        for s in (
            (64, 2, 128, 32),
            (128, 4, 128, 32),
            (256, 6, 256, 16),
            (512, 8, 256, 8),
        )
    ),
    "gpu": tuple(
        Shape(*s, vocab=32_768, dtype="bfloat16")
        for s in ((256, 6, 512, 32), (512, 8, 1024, 16), (1024, 12, 1024, 8))
    ),
}
CONTENDERS = (
    "ours",
    "plain_flax",
    "torch_eager",
    "torch_compiled",
)  # the last one on a GPU
ARRANGEMENTS = {"cpu": ("threads", "processes"), "gpu": ("device",)}
MEMORY = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # the contenders share a GPU
Found = dict[
    str, np.ndarray
]  # by "contender arrangement": tokens per second of each round


@dataclass(frozen=True)
class Step:
    """What to time."""

    quick: bool = False
    """The two small shapes, three rounds of two seconds."""
    device: Literal["cpu", "gpu"] = "cpu"
    target: str | None = None
    """A machine as `scaling plan --target` has it: our share of its stated peak is
    printed too.
    """
    json: bool = False
    """End with one JSON line: the ratios, per shape and their geometric means."""
    contenders: tuple[str, ...] = CONTENDERS
    rounds: int = 5
    seconds: float = 4.0
    """Of each contender in each round; a call that is longer counts whole."""


class Team:
    """One contender in one arrangement: its processes, started and compiled."""

    def __init__(self, name: str, arrangement: str, shape: Shape) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.name, self.arrangement = name, arrangement
        cores = sorted(os.sched_getaffinity(0))
        groups = [[core] for core in cores] if arrangement == "processes" else [cores]
        self.processes = [self._start(name, shape, group) for group in groups]

    def wait(self) -> dict[str, float]:
        """Until all have compiled: what the first says of itself."""
        lines = [self._line(process) for process in self.processes]
        return lines[0]

    def _start(
        self, name: str, shape: Shape, cores: list[int]
    ) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "contenders.worker",
            name,
            json.dumps(shape),
            ",".join(map(str, cores)),
        ]
        return subprocess.Popen(
            command,
            cwd=Path(__file__).parent,
            env=os.environ | MEMORY,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )

    def _line(self, process: subprocess.Popen[str]) -> dict[str, float]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(
                f"{self.name} ({self.arrangement}) died:\n{self.errors.read()[-1000:]}"
            )
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
        self.errors.close()


def measure_matmul_peak(device: str, calls: int = 8) -> float:
    """FLOP/s of a product of two square matrices over all cores in float32, or on the
    GPU in bfloat16.
    """
    import jax

    size, dtype = (8192, "bfloat16") if device == "gpu" else (1024, "float32")
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(x))
    start = time.perf_counter()
    jax.block_until_ready([product(x) for _ in range(calls)])
    return 2 * size**3 * calls / (time.perf_counter() - start)


def time_shape(
    args: Step, names: tuple[str, ...], shape: Shape
) -> tuple[Found, np.ndarray]:
    """Tokens per second of each contender's arrangements, and FLOP/s of products alone,
    by round.
    """
    teams = [
        Team(name, arrangement, shape)
        for name in names
        for arrangement in ARRANGEMENTS[args.device]
    ]
    found: dict[str, list[float]] = {
        f"{team.name} {team.arrangement}": [] for team in teams
    }
    try:
        parameters = {team.name: team.wait()["parameters"] for team in teams}
        if len(set(parameters.values())) != 1:
            raise RuntimeError(f"not one architecture: parameters {parameters}")
        for team in teams:
            team.tokens_per_second(0.5)
        peak = []
        for _ in range(args.rounds):
            peak.append(measure_matmul_peak(args.device))
            for team in teams:
                found[f"{team.name} {team.arrangement}"].append(
                    team.tokens_per_second(args.seconds)
                )
    finally:
        for team in teams:
            team.stop()
    return {name: np.array(values) for name, values in found.items()}, np.array(peak)


def report_shape(
    shape: Shape,
    found: Found,
    peak: np.ndarray,
    names: tuple[str, ...],
    target: Hardware | None,
) -> dict[str, float]:
    """Print a shape's speeds, and return its ratios and our share of the peak."""
    print(
        f"\nwidth {shape.width}, depth {shape.depth}, context {shape.context}, batch "
        f"{shape.batch}"
    )
    flops = flops_per_token(shape.model())
    for name, values in found.items():
        share = np.median(values / peak) * flops
        spread = f"[{values.min():,.0f}, {values.max():,.0f}]"
        print(
            f"  {name:24} {np.median(values):10,.0f} tokens/s {spread:>22}  "
            f"{share:4.0%} of the peak of products"
        )
    best = {
        name: max((v for k, v in found.items() if k.startswith(name)), key=np.median)
        for name in names
    }
    ratios = {"share_of_matmul_peak": float(np.median(best["ours"] / peak) * flops)}
    if target is not None:
        ratios["mfu"] = float(
            np.median(best["ours"]) * flops / target.peak[shape.dtype]
        )
        print(
            f"  ours: {ratios['mfu']:.0%} of the "
            f"{target.peak[shape.dtype] / 1e12:.0f} TFLOP/s of {target.name}"
        )
    for other in names[1:]:
        ratio = best["ours"] / best[other]
        ratios[f"vs_{other}"] = float(np.median(ratio))
        print(
            f"  ours over {other}: {np.median(ratio):.2f} [{ratio.min():.2f}, "
            f"{ratio.max():.2f}]"
        )
    return ratios


def _name_gpu(device: str) -> str:
    if device != "gpu":
        return ""
    import jax

    return f", {jax.devices('gpu')[0].device_kind}"


def main() -> None:
    """Time every shape and print ratios."""
    args = tyro.cli(Step, description=__doc__)
    target = parse_hardware(args.target) if args.target else None
    shapes = SHAPES[args.device]
    if args.quick:
        args, shapes = dataclasses.replace(args, rounds=3, seconds=2.0), shapes[:2]
    os.environ.update(
        MEMORY | ({"JAX_PLATFORMS": "cpu"} if args.device == "cpu" else {})
    )
    names = tuple(
        n
        for n in args.contenders
        if not n.startswith("torch") or importlib.util.find_spec("torch")
    )
    names = tuple(n for n in names if args.device == "gpu" or n != "torch_compiled")
    versions = ", ".join(
        f"{p} {version(p)}"
        for p in ("jax", "flax", "torch")
        if p != "torch" or "torch_eager" in names
    )
    print(
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} "
        f"cores{_name_gpu(args.device)}; {versions}; {shapes[0].dtype}; FLOPs with "
        "causal attention"
    )
    rungs = {
        shape: report_shape(shape, *time_shape(args, names, shape), names, target)
        for shape in shapes
    }
    print(f"\ngeometric means of {len(rungs)} shapes:")
    means = {}
    for name in next(iter(rungs.values())):
        logs = [np.log(ratios[name]) for ratios in rungs.values()]
        means[name] = float(np.exp(np.mean(logs)))
        print(f"  {name}: {means[name]:.2f}")
    if args.json:
        ratios_by_shape = {
            "x".join(map(str, shape[:4])): ratios for shape, ratios in rungs.items()
        }
        print(json.dumps({"rungs": ratios_by_shape, **means}))


if __name__ == "__main__":
    main()
