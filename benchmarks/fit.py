"""Time of a certified fit with bootstrap: ours against SciPy as published, and against
the PyPI package `chinchilla`.

    python benchmarks/fit.py --data-dir DIR [--rounds 3] [--json]
    python benchmarks/fit.py --commands [--rows 25]     # part 3 alone

1. The protocol of Besiroglu et al. 2024 (240 runs, sum of Huber(1e-3) on log loss):
   L-BFGS-B with SciPy's defaults from their 4,500 starts, then 4,000 bootstraps from
   the optimum alone, one after the other, with gradients by autograd as in their code.
   A random sample of both is timed and extrapolated. Variants: gradients written by
   hand; all cores; bootstraps that search from all 4,500 starts, as ours search
   globally.
   Ours: a fit and 4,000 bootstraps, each with its own global search, in a new process,
   imports included: once with an empty cache of executables (cold), once with the one
   that this leaves (warm).
2. The package `chinchilla` (extra `bench`) on its own example, 5^5 starts, the same
   objective, extrapolated from 2^5. Ours: a fit in a new process, compilation included,
   and a second one in the same process.
3. `scaling fit` with its default intervals in a new process and a warm cache: of 25
   rows, against a process that imports JAX and pandas alone; of 100,000 and of
   2,000,000 rows, each also with trunks of four rows. Seconds on the wall and of the
   processor, and peak memory.

The sides take turns; the output is the median over the rounds and the range, and a table
in Markdown. Nothing else should run meanwhile; where something does, the processor time
of part 3 still tells. Expect a few minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.optimize

STARTS, BOOTSTRAPS, DELTA = 4500, 4000, 1e-3
SIZES = (25, 100_000, 2_000_000)  # rows of the tables of part 3
OPTIMUM = 0.001018274018
SAMPLE_STARTS, SAMPLE_BOOTSTRAPS = 60, 40
GRID = (
    range(0, 30, 5),
    range(0, 30, 5),
    np.arange(-1, 1.5, 0.5),
    np.arange(0, 2.5, 0.5),
    np.arange(0, 2.5, 0.5),
)
PACKAGE_GRID = {  # of the package's example: 5^5 starts
    "E": (1.1, 1.5),
    "a": (1.0, 10.0),
    "b": (1.0, 10.0),
    "alpha": (0.1, 0.7),
    "beta": (0.1, 0.7),
}
PACKAGE_STARTS = 5**5

OURS = """
import json, resource, sys, time
start = time.perf_counter()
import pandas as pd
import analysis
kind, path, draws = sys.argv[1:]
runs = analysis.load_runs(pd.read_csv(path))
load = time.perf_counter()
fit = analysis.fit(runs)
cold = time.perf_counter()
again = analysis.fit(runs)
warm = time.perf_counter()
if int(draws):
    fit.bootstrap(int(draws), seed=0, unit="row")
end = time.perf_counter()
print(json.dumps({
    "total": end - start - (warm - cold),
    "fit": cold - load,
    "warm": warm - cold,
    "bootstrap": end - warm,
    "objective": fit.objective,
    "certified": fit.certificate.ok,
    "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
}))
"""


COMMAND = "from scaling.cli.main import main; main()"
IMPORTS = "import jax, pandas"


@dataclass(frozen=True)
class Cost:
    """What a process took.

    Attributes:
        wall: seconds.
        processor: seconds, of all its threads.
        peak_gb: of memory.
    """

    wall: float
    processor: float
    peak_gb: float


def time_ours(table: Path, draws: int, cache: Path) -> dict[str, float]:
    """Seconds of each part in a process of its own; `total` includes imports and
    compilation, not the second fit. Executables are kept in `cache`.
    """
    output, _ = run_python(["-c", OURS, "fit", str(table), str(draws)], cache)
    return json.loads(output.splitlines()[-1])


def run_python(arguments: list[str], cache: Path) -> tuple[str, Cost]:
    """What a Python process prints that keeps executables in `cache`, and what it took.

    Raises:
        RuntimeError: it failed.
    """
    environment = dict(os.environ, SCALING_CACHE=str(cache))
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    with tempfile.TemporaryFile("w+") as printed:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=printed,
            cwd=Path(__file__).parents[1],
            env=environment,
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{arguments} ended with {process.returncode}")
        printed.seek(0)
        seconds = usage.ru_utime + usage.ru_stime
        return printed.read(), Cost(wall, seconds, usage.ru_maxrss / 2**20)


def time_command(table: Path, cache: Path) -> Cost:
    """What `scaling fit` takes in a process of its own."""
    return run_python(["-c", COMMAND, "fit", str(table)], cache)[1]


def read_epoch_runs(path: Path) -> pd.DataFrame:
    """The 240 runs, D = C/(6N), the five highest losses left out."""
    table = pd.read_csv(path)
    table = table.sort_values("loss").iloc[:-5]
    N, C = table["Model Size"], table["Training FLOP"]
    return pd.DataFrame({"N": N, "D": C / (6 * N), "C": C, "loss": table["loss"]})


class Published:
    """The published objective over p = (a, b, e, alpha, beta), its gradient, and the
    minimizer.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self.ln_N, self.ln_D, self.ln_loss = (
            np.log(table[v].to_numpy(float)) for v in ("N", "D", "loss")
        )

    def both(self, p: np.ndarray, weight: np.ndarray) -> tuple[float, np.ndarray]:
        """Sum of weight * Huber, and its gradient."""
        a, b, e, alpha, beta = p
        parts = np.stack(
            [a - alpha * self.ln_N, b - beta * self.ln_D, np.full_like(self.ln_N, e)]
        )
        top = parts.max(axis=0)
        powers = np.exp(parts - top)
        total = powers.sum(axis=0)
        r = top + np.log(total) - self.ln_loss
        size = np.abs(r)
        huber = np.where(size <= DELTA, r * r / 2, DELTA * (size - DELTA / 2))
        pull = weight * np.clip(r, -DELTA, DELTA) * powers / total
        gradient = [
            pull[0].sum(),
            pull[1].sum(),
            pull[2].sum(),
            -(pull[0] @ self.ln_N),
            -(pull[1] @ self.ln_D),
        ]
        return float(weight @ huber), np.array(gradient)

    def traced(self, p: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """The objective in autograd's NumPy."""
        import autograd.numpy as anp

        a, b, e, alpha, beta = p[0], p[1], p[2], p[3], p[4]
        total = (
            anp.exp(a - alpha * self.ln_N) + anp.exp(b - beta * self.ln_D) + anp.exp(e)
        )
        size = anp.abs(anp.log(total) - self.ln_loss)
        return anp.sum(
            weight * anp.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2))
        )

    def minimize(
        self, start: np.ndarray, weight: np.ndarray, by_hand: bool
    ) -> scipy.optimize.OptimizeResult:
        """L-BFGS-B with SciPy's defaults."""
        if by_hand:
            return scipy.optimize.minimize(
                self.both, start, args=(weight,), method="L-BFGS-B", jac=True
            )
        from autograd import grad

        slope = grad(self.traced)
        return scipy.optimize.minimize(
            self.traced, start, args=(weight,), method="L-BFGS-B", jac=slope
        )


def estimate_scipy_seconds(
    published: Published,
    starts: np.ndarray,
    optimum: np.ndarray,
    best: float,
    seed: int,
) -> tuple[dict[str, float], float]:
    """(seconds of the published protocol and of its variants, extrapolated from a
    sample; share of starts that end at `best`, the lowest objective known)."""
    rng = np.random.default_rng(seed)
    n = len(published.ln_N)
    some = starts[rng.choice(len(starts), SAMPLE_STARTS, replace=False)]

    def per_call(
        begin: list[np.ndarray], weights: list[np.ndarray], by_hand: bool
    ) -> tuple[float, float]:
        """(seconds, share that ends within 1e-6 of the optimum, relatively)."""
        clock, ends = time.perf_counter(), []
        for start, weight in zip(begin, weights, strict=True):
            ends.append(published.minimize(start, weight, by_hand).fun)
        return (time.perf_counter() - clock) / len(begin), float(
            np.mean(np.array(ends) <= best * (1 + 1e-6))
        )

    ones = [np.ones(n)] * SAMPLE_STARTS
    counts = list(
        rng.multinomial(n, np.full(n, 1 / n), size=SAMPLE_BOOTSTRAPS).astype(float)
    )
    here = [optimum] * SAMPLE_BOOTSTRAPS
    start, reached = per_call(list(some), ones, by_hand=True)
    boot, _ = per_call(here, counts, by_hand=True)
    traced, _ = per_call(list(some), ones, by_hand=False)
    traced_boot, _ = per_call(here, counts, by_hand=False)
    cores = os.cpu_count() or 1
    return {
        "as published": STARTS * traced + BOOTSTRAPS * traced_boot,
        "gradients by hand": STARTS * start + BOOTSTRAPS * boot,
        "gradients by hand, all cores": (STARTS * start + BOOTSTRAPS * boot) / cores,
        "by hand, all cores, global search": (1 + BOOTSTRAPS) * STARTS * start / cores,
    }, reached


def time_package(path: Path, per_axis: int) -> tuple[float, float]:
    """(seconds of `Chinchilla.fit` on a grid of per_axis^5 starts, sum of Huber at its
    optimum).
    """
    from chinchilla import Chinchilla
    from chinchilla._metrics import log_huber

    grid = {
        name: np.linspace(low, high, per_axis)
        for name, (low, high) in PACKAGE_GRID.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "df.csv").write_bytes(path.read_bytes())
        tool = Chinchilla(
            folder,
            param_grid=grid,
            loss_fn=lambda y, p: log_huber(y, p, DELTA),
            log_level=100,
        )
        tool.visualizer.optim = lambda *_, **__: (
            None
        )  # its figure is not part of the fit
        begin = time.perf_counter()
        tool.fit()
        seconds = time.perf_counter() - begin
        table = tool.database.df
        r = np.abs(
            np.log(
                np.asarray(
                    tool.predict_loss(table.N.values, table.D.values)
                    / table.loss.values,
                    float,
                )
            )
        )
    return seconds, float(np.where(r <= DELTA, r**2 / 2, DELTA * (r - DELTA / 2)).sum())


def make_table(rows: int, trunks: bool = False) -> pd.DataFrame:
    """Runs of a known law with noise, with `trunks` in trunks of four rows."""
    rng = np.random.default_rng(0)
    N = np.exp(rng.uniform(np.log(1e7), np.log(1e10), rows))
    D = np.exp(rng.uniform(20, 26, rows))
    noise = np.exp(0.01 * rng.standard_normal(rows))
    loss = (1.8 + 480 / N**0.35 + 2100 / D**0.37) * noise
    table = pd.DataFrame({"N": N, "D": D, "loss": loss})
    if not trunks:
        return table
    luck = np.exp(0.007 * rng.standard_normal(-(-rows // 4)))
    trunk = np.arange(rows) // 4
    return table.assign(loss=loss * luck[trunk], trunk=trunk)


def format_spread(values: list[float], digits: int = 3) -> str:
    """Median [least, greatest]."""
    least, middle, greatest = min(values), np.median(values), max(values)
    return f"{middle:.{digits}g} [{least:.{digits}g}, {greatest:.{digits}g}]"


def main() -> None:
    """Time all sides in turn and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="folder of epoch_chinchilla.csv, chinchilla_package_example.csv",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commands", action="store_true", help="part 3 alone")
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES, help="of part 3")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    if args.commands:
        with tempfile.TemporaryDirectory() as folder:
            result = time_commands(Path(folder), args.rounds, tuple(args.rows))
        if args.json:
            print(json.dumps(result))
        return
    if (
        args.data_dir is None
        or not (args.data_dir / "epoch_chinchilla.csv").is_file()
        or _get_version("autograd") == "absent"
    ):
        print(
            "benchmarks/fit.py needs --data-dir with epoch_chinchilla.csv, and the "
            "`bench` extra: skipped"
        )
        return
    versions = ", ".join(
        f"{name} {_get_version(name)}"
        for name in ("jax", "numpy", "scipy", "autograd", "chinchilla")
    )
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {versions}"
    )
    with tempfile.TemporaryDirectory() as folder:
        result = compare_sides(args.data_dir, Path(folder), args.rounds)
        result |= time_commands(Path(folder), args.rounds, tuple(args.rows))
    if args.json:
        print(json.dumps(result))


def compare_sides(data: Path, folder: Path, rounds: int) -> dict[str, float | None]:
    """All rounds of parts 1 and 2; returns the figures of the JSON line."""
    runs = read_epoch_runs(data / "epoch_chinchilla.csv")
    runs.to_csv(folder / "epoch.csv", index=False)
    example = data / "chinchilla_package_example.csv"
    published = Published(runs)
    starts = np.array(list(itertools.product(*GRID)), float)
    optimum = np.array(
        [np.log(477.84), np.log(2143.86), np.log(1.81724), 0.34731, 0.36718]
    )
    cold, mine, theirs, reached, package, small = [], [], [], [], [], []
    with_package = example.is_file() and _get_version("chinchilla") != "absent"
    for seed in range(rounds):
        cache = folder / f"cache {seed}"
        cold.append(time_ours(folder / "epoch.csv", BOOTSTRAPS, cache))
        mine.append(time_ours(folder / "epoch.csv", BOOTSTRAPS, cache))
        seconds, share = estimate_scipy_seconds(
            published, starts, optimum, mine[-1]["objective"], seed
        )
        theirs.append(seconds)
        reached.append(share)
        if with_package:
            small.append(time_ours(example, 0, cache))
            package.append(time_package(example, 2))
    print(
        f"{np.mean(reached):.0%} of SciPy's sampled starts end at the optimum (to "
        "1e-6); every one counts as done"
    )
    return report_sides(cold, mine, theirs, package, small)


def time_commands(
    folder: Path, rounds: int, sizes: tuple[int, ...]
) -> dict[str, float | None]:
    """All rounds of part 3; prints them and returns their figures of the JSON line."""
    cache = folder / "cache"
    tables = {}
    for rows in sizes:
        for trunks in (False, True):
            name = f"{rows:,} rows" + (" in trunks" if trunks else "")
            tables[name] = folder / f"{rows} {trunks}.csv"
            make_table(rows, trunks).to_csv(tables[name], index=False)
            time_command(tables[name], cache)
    imports: list[Cost] = []
    commands: dict[str, list[Cost]] = {name: [] for name in tables}
    for _ in range(rounds):
        imports.append(run_python(["-c", IMPORTS], cache)[1])
        for name, path in tables.items():
            commands[name].append(time_command(path, cache))
    return report_commands(commands, imports)


def report_commands(
    commands: dict[str, list[Cost]], imports: list[Cost]
) -> dict[str, float | None]:
    """Print part 3; returns its figures of the JSON line."""
    alone = np.array([cost.processor for cost in imports])
    print("| new process | processor s | times the imports | wall s | peak GB |")
    print("| --- | --- | --- | --- | --- |")
    figures: dict[str, float | None] = {}
    rows = {"importing JAX and pandas": imports, **commands}
    for name, measured in rows.items():
        seconds = [cost.processor for cost in measured]
        # The rounds are pairs: the machine's speed changes from one to the next.
        ratio = (np.array(seconds) / alone).tolist()
        wall = [cost.wall for cost in measured]
        peak = max(cost.peak_gb for cost in measured)
        print(
            f"| {name} | {format_spread(seconds)} | {format_spread(ratio)} | "
            f"{format_spread(wall)} | {peak:.2f} |"
        )
        figures[f"processor seconds, {name}"] = float(np.median(seconds))
        figures[f"times the imports, {name}"] = float(np.median(ratio))
        figures[f"peak GB, {name}"] = peak
    return figures


def report_sides(
    cold: list[dict[str, float]],
    mine: list[dict[str, float]],
    theirs: list[dict[str, float]],
    package: list[tuple[float, float]],
    small: list[dict[str, float]],
) -> dict[str, float | None]:
    """Print what was measured; returns the figures of the JSON line."""
    total = [one["total"] for one in mine]
    first = [one["total"] for one in cold]
    fit, boot = (
        format_spread([one[part] for one in mine]) for part in ("fit", "bootstrap")
    )
    print(
        f"Epoch protocol, ours: {format_spread(total)} s in a new process with a warm "
        f"cache: fit {fit} s, {BOOTSTRAPS}"
    )
    print(
        f"  bootstraps with global search {boot} s; objective "
        f"{mine[0]['objective']:.12g}; {format_spread(first)} s with an empty cache"
    )
    ratios = {
        kind: [t[kind] / m for t, m in zip(theirs, total, strict=True)]
        for kind in theirs[0]
    }
    for kind, ratio in ratios.items():
        print(
            f"SciPy, {kind}: {format_spread([t[kind] for t in theirs])} s "
            f"(extrapolated), {format_spread(ratio)} times ours"
        )
    ratios_cold = [t["as published"] / m for t, m in zip(theirs, first, strict=True)]
    print(
        f"  as published, {format_spread(ratios_cold)} times ours with an empty cache"
    )
    rows = [
        ("fit and 4,000 bootstraps, a global search in each; warm cache", total),
        ("the same with an empty cache", first),
    ]
    for kind in theirs[0]:
        rows.append((f"SciPy, {kind} (extrapolated)", [t[kind] for t in theirs]))
    print("| 240 runs | wall s | against ours |")
    print("| --- | --- | --- |")
    for name, values in rows:
        ratio = format_spread([v / t for v, t in zip(values, total, strict=True)])
        print(f"| {name} | {format_spread(values)} | {ratio} |")
    against = None
    if package:
        seconds = [t * PACKAGE_STARTS / 2**5 for t, _ in package]
        against = [t / m["fit"] for t, m in zip(seconds, small, strict=True)]
        warm = [t / m["warm"] for t, m in zip(seconds, small, strict=True)]
        print(
            f"package chinchilla: {format_spread(seconds)} s (extrapolated), "
            f"objective {package[0][1]:.9g} from 32 starts"
        )
        print(
            f"  ours {format_spread([m['fit'] for m in small])} s with compilation, "
            f"objective {small[0]['objective']:.9g}:"
        )
        print(
            f"  {format_spread(against)} times ours, {format_spread(warm)} times a "
            "second fit of ours"
        )
    return {
        "speedup_vs_scipy": float(np.median(ratios["as published"])),
        "speedup_vs_scipy_cold": float(np.median(ratios_cold)),
        "speedup_vs_scipy_by_hand": float(np.median(ratios["gradients by hand"])),
        "speedup_vs_scipy_global_search": float(
            np.median(ratios["by hand, all cores, global search"])
        ),
        "seconds_total": float(np.median(total)),
        "objective": mine[0]["objective"],
        "speedup_vs_chinchilla_package": None
        if against is None
        else float(np.median(against)),
    }


def _get_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    main()
