"""Bytes that `scaling plan --hardware gpu:NAME` estimates, against those of this GPU.

    python benchmarks/footprint.py [--target gpu:h100] [--json]

For each shape it prints the estimate (`scaling.planning.memory`), the total of the
training chunk compiled for this GPU, and the most that the GPU's allocator had handed
out while chunks ran, in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import tyro

from scaling.config import DataConfig, ModelConfig, OptimConfig, RunConfig
from scaling.planning.hardware import parse_hardware
from scaling.planning.memory import estimate_gpu_footprint
from scaling.training.loop import LoopConfig

SHAPES = (  # width, depth, context, batch, remat
    (256, 6, 512, 32, False),
    (512, 8, 512, 32, False),
    (1024, 12, 1024, 8, False),
    (1024, 12, 1024, 8, True),
    (2048, 8, 1024, 32, False),
    (2048, 24, 1024, 64, False),
)


@dataclass(frozen=True)
class Args:
    """What to compare."""

    target: str = "gpu:h100"
    dtype: str = "bfloat16"
    vocab: int = 32_768
    json: bool = False
    shape: int | None = None
    """Only run this one, here, and print its bytes; for the process of its own."""


def make_run(args: Args, shape: tuple[int, int, int, int, bool]) -> RunConfig:
    """A run of the shape."""
    width, depth, context, batch, remat = shape
    sizes = {
        "vocab": args.vocab,
        "context": context,
        "dtype": args.dtype,
        "remat": remat,
    }
    model = ModelConfig(width=width, depth=depth, n_heads=max(4, width // 128), **sizes)
    return RunConfig(
        model, DataConfig(), OptimConfig(batch_size=batch), tokens=batch * context
    )


def measure_bytes(args: Args, run: RunConfig) -> dict[str, float]:
    """Bytes by this GPU's compiler, and the most in use while two chunks run; None
    where it does not fit.
    """
    import jax

    from scaling.training.lowering import lower_for_devices
    from scaling.training.sharding import Single
    from scaling.training.step import Chunk, StepRates, get_executable

    S = LoopConfig().chunk_steps
    stats = (
        lower_for_devices(run, jax.devices()[:1], S).stages.compile().memory_analysis()
    )
    parts = (
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        -stats.alias_size_in_bytes,
    )
    answer = {"compiled": sum(parts) + stats.temp_size_in_bytes, "in_use": None}
    try:
        compiled = get_executable(run, Single())
        state = compiled.init(0)
        shape = (S, run.optim.batch_size, run.model.context + 1)
        windows = np.random.default_rng(0).integers(
            0, args.vocab, shape, dtype=np.int32
        )
        rates = StepRates(np.full(S, 1e-4, np.float32), np.zeros(S, np.float32))
        for _ in range(2):
            state, metrics = compiled.train(
                Chunk(state, windows, rates, np.int32(S), np.uint32(0))
            )
            jax.block_until_ready(metrics)
        answer["in_use"] = jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    except jax.errors.JaxRuntimeError as error:
        answer["refused"] = str(error).partition("\n")[0][:200]
    return answer


def main() -> None:
    """Print a row per shape."""
    args = tyro.cli(Args, description=__doc__)
    if args.shape is not None:
        print(json.dumps(measure_bytes(args, make_run(args, SHAPES[args.shape]))))
        return
    target, rows = parse_hardware(args.target), []
    print(
        f"{'shape':>32} {'counted':>9} {'compiled':>9} {'in use':>9}  GB of "
        f"{target.memory / 1e9:.0f}"
    )
    for index, shape in enumerate(SHAPES):
        counted = estimate_gpu_footprint(make_run(args, shape), 1).total
        flags = [
            "--shape",
            str(index),
            "--dtype",
            args.dtype,
            "--vocab",
            str(args.vocab),
        ]
        out = subprocess.run(
            [sys.executable, __file__, *flags], text=True, capture_output=True
        )
        found = (
            json.loads(out.stdout.splitlines()[-1])
            if out.returncode == 0
            else {"error": out.stderr[-300:]}
        )
        rows.append({"shape": shape, "counted": counted, **found})
        values = [counted, found.get("compiled"), found.get("in_use")]
        text = " ".join(f"{'-' if v is None else f'{v / 1e9:.2f}':>9}" for v in values)
        print(
            f"{shape!s:>32} {text}  {found.get('refused') or found.get('error') or ''}",
            flush=True,
        )
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
