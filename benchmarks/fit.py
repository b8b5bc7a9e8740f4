"""Time of a certified fit with bootstrap: ours against SciPy as published, and against
the PyPI package `chinchilla`.

    python benchmarks/fit.py --data-dir DIR [--rounds 3] [--json]

1. The protocol of Besiroglu et al. 2024 (240 runs, sum of Huber(1e-3) on log loss):
   L-BFGS-B with SciPy's defaults from their 4,500 starts, then 4,000 bootstraps from
   the optimum alone, one after the other, with gradients by autograd as in their code.
   A random sample of both is timed and extrapolated. Variants: gradients written by
   hand; all cores; bootstraps that search from all 4,500 starts, as ours search
   globally.
   Ours: a fit and 4,000 bootstraps, each with its own global search, in a new process,
   imports and compilation included.
2. The package `chinchilla` (extra `bench`) on its own example, 5^5 starts, the same
   objective, extrapolated from 2^5. Ours: a fit in a new process, compilation included,
   and a second one in the same process.
3. A fit to 100,000 rows in a new process: seconds and peak memory.

The sides take turns; the output is the median over the rounds and the range. Nothing
else should run meanwhile. Expect a few minutes.
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.optimize

STARTS, BOOTSTRAPS, DELTA = 4500, 4000, 1e-3
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


def time_ours(table: Path, draws: int) -> dict[str, float]:
    """Seconds of each part in a process of its own; `total` includes imports and
    compilation, not the second fit.
    """
    command = [sys.executable, "-c", OURS, "fit", str(table), str(draws)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    return json.loads(done.stdout.splitlines()[-1])


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


def make_large_table() -> pd.DataFrame:
    """100,000 checkpoints of a known law with noise."""
    rng = np.random.default_rng(0)
    N, D = (
        np.exp(rng.uniform(np.log(1e7), np.log(1e10), 100_000)),
        np.exp(rng.uniform(20, 26, 100_000)),
    )
    loss = (1.8 + 480 / N**0.35 + 2100 / D**0.37) * np.exp(
        0.01 * rng.standard_normal(100_000)
    )
    return pd.DataFrame({"N": N, "D": D, "loss": loss})


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
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
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
    if args.json:
        print(json.dumps(result))


def compare_sides(data: Path, folder: Path, rounds: int) -> dict[str, float | None]:
    """All rounds; returns the figures of the JSON line."""
    runs = read_epoch_runs(data / "epoch_chinchilla.csv")
    runs.to_csv(folder / "epoch.csv", index=False)
    make_large_table().to_csv(folder / "large.csv", index=False)
    example = data / "chinchilla_package_example.csv"
    published = Published(runs)
    starts = np.array(list(itertools.product(*GRID)), float)
    optimum = np.array(
        [np.log(477.84), np.log(2143.86), np.log(1.81724), 0.34731, 0.36718]
    )
    mine, theirs, reached, package, large, small = [], [], [], [], [], []
    with_package = example.is_file() and _get_version("chinchilla") != "absent"
    for seed in range(rounds):
        mine.append(time_ours(folder / "epoch.csv", BOOTSTRAPS))
        seconds, share = estimate_scipy_seconds(
            published, starts, optimum, mine[-1]["objective"], seed
        )
        theirs.append(seconds)
        reached.append(share)
        if with_package:
            small.append(time_ours(example, 0))
            package.append(time_package(example, 2))
        large.append(time_ours(folder / "large.csv", 0))
    print(
        f"{np.mean(reached):.0%} of SciPy's sampled starts end at the optimum (to "
        "1e-6); every one counts as done"
    )
    return report_sides(mine, theirs, package, small, large)


def report_sides(
    mine: list[dict[str, float]],
    theirs: list[dict[str, float]],
    package: list[tuple[float, float]],
    small: list[dict[str, float]],
    large: list[dict[str, float]],
) -> dict[str, float | None]:
    """Print what was measured; returns the figures of the JSON line."""
    total = [one["total"] for one in mine]
    fit, boot = (
        format_spread([one[part] for one in mine]) for part in ("fit", "bootstrap")
    )
    print(
        f"Epoch protocol, ours: {format_spread(total)} s in a new process: fit with "
        f"compilation {fit} s, {BOOTSTRAPS}"
    )
    print(
        f"  bootstraps with global search {boot} s; objective "
        f"{mine[0]['objective']:.12g}"
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
    cold, warm_large, peak = (
        format_spread([m[part] for m in large]) for part in ("fit", "warm", "peak_gb")
    )
    print(
        f"100,000 rows: {cold} s with compilation, {warm_large} s without; peak "
        f"{peak} GB"
    )
    return {
        "speedup_vs_scipy": float(np.median(ratios["as published"])),
        "speedup_vs_scipy_by_hand": float(np.median(ratios["gradients by hand"])),
        "speedup_vs_scipy_global_search": float(
            np.median(ratios["by hand, all cores, global search"])
        ),
        "seconds_total": float(np.median(total)),
        "objective": mine[0]["objective"],
        "speedup_vs_chinchilla_package": None
        if against is None
        else float(np.median(against)),
        "seconds_100k_rows": float(np.median([m["warm"] for m in large])),
        "peak_gb_100k_rows": float(np.median([m["peak_gb"] for m in large])),
    }


def _get_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    main()
