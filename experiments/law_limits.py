"""From how many steps, and at which tokens per parameter, runs follow the law.

    scaling sweep --preset isoflop --seeds 0 1 2 --out runs/quickstart3
    scaling sweep --preset isoflop --budgets --widths 16 24 32 48 64 96 128 \
        --tokens 262144 524288 1048576 2097152 --seeds 0 1 2 --out runs/rectangle3
    python -m experiments.law_limits runs/quickstart3 runs/rectangle3

The law is fitted to the runs within each limit. Where runs leave the law, the effects of
runs that the fit finds are larger than where they follow it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

import analysis
from scaling.store.table import run_table

STEPS = (400, 1000, 1500, 2000)
RATIOS = ((4.0, 200.0), (8.0, 80.0))


@dataclass(frozen=True)
class LawLimits:
    """Fit the law to the runs within each limit."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    tokens_per_step: int = 512


def fit_within(
    table: pd.DataFrame, least_tokens: int, ratios: tuple[float, float]
) -> dict[str, object]:
    """The fit of the runs of at least so many tokens and with a ratio of tokens to
    parameters within these ends, as a row.
    """
    tokens = table["tokens"].to_numpy(float)
    ratio = tokens / table["n_matmul"].to_numpy(float)
    is_inside = (tokens >= least_tokens) & (ratio >= ratios[0]) & (ratio <= ratios[1])
    found = analysis.fit(analysis.load_runs(table.loc[is_inside]))
    low, high = found.bootstrap(1000).interval("a")
    noise = found.protocol.components
    return {
        "tokens per parameter": f"{ratios[0]:g} to {ratios[1]:g}",
        "runs": int(is_inside.sum()),
        "effects of trunks %": 100 * noise.get("trunk", np.nan),
        "of runs %": 100 * noise.get("row", np.nan),
        "a": f"{found.derived()['a']:.2f} [{low:.2f}, {high:.2f}]",
    }


def main() -> None:
    """Print a row per limit."""
    args = tyro.cli(LawLimits, description=__doc__)
    table = pd.concat([run_table(folder) for folder in args.runs], ignore_index=True)
    table = table.drop_duplicates("run_id")
    rows: list[dict[str, object]] = []
    for ratios in RATIOS:
        for steps in STEPS:
            row = fit_within(table, steps * args.tokens_per_step, ratios)
            rows.append({"least steps": steps, **row})
    found = pd.DataFrame(rows)
    print(found.to_string(index=False, float_format="{:.2f}".format))


if __name__ == "__main__":
    main()
