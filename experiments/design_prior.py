"""What is known of the recipe of the preset `isoflop` before a sweep: its law and its
noise.

    scaling sweep --preset isoflop --seeds 0 1 2 --out runs/isoflop3
    python -m experiments.design_prior runs/isoflop3 > quickstart_prior.toml

The law is that of `analysis.fit`. The bend, by which runs far from the compute-optimal
tokens per parameter leave it (`analysis.decisions.prior.compute_bend`), is one more
parameter of the linearized law, and the sizes of the effects are those that the law with
the bend leaves. `analysis/decisions/quickstart_prior.toml` is such a file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

import analysis
from analysis.decisions.prior import compute_bend, make_prior_from_fit
from analysis.decisions.quantity import compute_log_jacobian
from analysis.fitting.effects import (
    Trunks,
    compute_ratio,
    compute_restricted_likelihood,
    estimate_components,
)
from scaling.store.table import run_table


@dataclass(frozen=True)
class DesignPriorArgs:
    """Measure the law and the noise of a finished sweep."""

    runs: tyro.conf.Positional[Path]


def write_prior(fit: analysis.Fit) -> str:
    """The file of a default prior, as TOML."""
    points = {name: fit.data[name] for name in fit.law.variables}
    unit = replace(make_prior_from_fit(fit), bend=1.0)
    bend = compute_bend(unit, points).sum(axis=1)
    jacobian = compute_log_jacobian(fit.law, fit.binding, fit.params, points)
    extended = np.column_stack([jacobian, bend])
    trunks = Trunks.from_names(fit.data["trunk"])
    components = estimate_components(extended, fit.residuals, trunks)
    ratio = np.array([compute_ratio(components)])
    likelihood = compute_restricted_likelihood(
        extended, fit.residuals, trunks, ratios=ratio
    )
    # Residuals are the law's log loss minus the measured one.
    size = -float(likelihood.shift[0, -1])
    lines = [
        "# Written by `python -m experiments.design_prior` from three seeds of the 20",
        "# runs of the preset isoflop; its docstring says how.",
        f'law = "{fit.law.name}"',
        'source = "the recipe of the preset isoflop"',
        "",
        "[params]",
        *(f"{name} = {value:.6g}" for name, value in fit.params.items()),
        "",
        "[noise]",
        f"trunk = {components['trunk']:.2g}",
        f"row = {components['row']:.2g}",
        f"bend = {size:.2g}",
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the file."""
    args = tyro.cli(DesignPriorArgs, description=__doc__)
    print(write_prior(analysis.fit(run_table(args.runs))))


if __name__ == "__main__":
    main()
