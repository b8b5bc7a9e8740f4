"""How much memory it takes to import a large log.

    python benchmarks/import_memory.py --megabytes 1024

writes a log of that size for each format in a temporary folder, imports it in a process of
its own, and prints the seconds and the most memory that the process held.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro

import analysis

BATCH = 1000
"""Lines that are written at a time."""
RUNS = 20
"""Of the chart."""


@dataclass(frozen=True)
class ImportMemory:
    """What to write.

    Attributes:
        megabytes: size of each log.
    """

    megabytes: int = 1024


def write_nanogpt(step: int) -> str:
    loss = 3 + 1 / (step + 1)
    if step % 100 == 0:
        return f"step {step}: train loss {loss:.4f}, val loss {loss + 0.1:.4f}\n"
    return f"iter {step}: loss {loss:.4f}, time 123.40ms, mfu 12.30%\n"


def write_megatron(step: int) -> str:
    return (
        f" iteration {step + 1:8d}/ 9999999 | consumed samples: {256 * (step + 1):12d} | "
        "elapsed time per iteration (ms): 512.3 | learning rate: 1.000E-04 | "
        f"global batch size:   256 | lm loss: {3 + 1 / (step + 1):.6E} | "
        "grad norm: 0.500 | number of nan iterations:   0 |\n"
    )


def write_levanter(step: int) -> str:
    metrics = {"train/loss": 3 + 1 / (step + 1), "throughput/total_tokens": step * 1e6}
    event = {"tracker": "json_logger", "event": "log", "metrics": metrics}
    return json.dumps(event) + "\n"


def write_chart(step: int) -> str:
    if step == 0:
        bounds = ("", "__MIN", "__MAX")
        columns = [f"w{i} - loss{bound}" for i in range(RUNS) for bound in bounds]
        return ",".join(["Step", *columns]) + "\n"
    return ",".join([str(step), *["3.14159"] * (3 * RUNS)]) + "\n"


Read = Callable[[Path], pd.DataFrame]
LOGS: dict[str, tuple[str, Callable[[int], str], Read]] = {
    "nanogpt": (
        "w64.log",
        write_nanogpt,
        lambda root: analysis.from_text_log(root, "nanogpt", metric="val_loss"),
    ),
    "megatron": (
        "w64.log",
        write_megatron,
        lambda root: analysis.from_text_log(root, "megatron"),
    ),
    "levanter": ("tracker_metrics.jsonl", write_levanter, analysis.from_levanter),
    "wandb-chart": (
        "chart.csv",
        write_chart,
        lambda root: analysis.from_wandb_chart(root / "chart.csv", series="w{i}"),
    ),
}
"""Importer -> file, writer of a line, importer."""


def write_log(path: Path, write: Callable[[int], str], size: int) -> int:
    """Write lines until the file has `size` bytes; returns their number."""
    lines = 0
    with path.open("w") as file:
        while file.tell() < size:
            file.writelines(write(lines + i) for i in range(BATCH))
            lines += BATCH
    return lines


def import_log(name: str, megabytes: int) -> None:
    """Write, import and print, in a process of its own."""
    file, write, read = LOGS[name]
    with tempfile.TemporaryDirectory() as folder:
        lines = write_log(Path(folder) / file, write, megabytes * 2**20)
        start = time.perf_counter()
        runs = len(read(Path(folder)))
        seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name:<12} {megabytes:,} MiB, {lines:,} lines, {runs} rows: "
        f"{seconds:.0f} s, {memory:.0f} MiB",
        flush=True,
    )


def main() -> None:
    """Import a log of each format."""
    args = tyro.cli(ImportMemory, description=__doc__)
    context = multiprocessing.get_context("spawn")
    for name in LOGS:
        process = context.Process(target=import_log, args=(name, args.megabytes))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
