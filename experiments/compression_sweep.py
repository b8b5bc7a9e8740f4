"""What rounding and pruning cost the models of a sweep, and how that depends on their
size and on the tokens that they have seen.

    python -m experiments.compression_sweep --runs runs/quickstart --out runs/compression

Every finished run is rounded to several bits, by several methods, and pruned; the rise of
its held-out loss goes into `compression.csv`, a row for each. Then two laws of that rise
are fitted by least squares of its logarithm, for each method:

- k D^gamma_D / N^gamma_N exp(-P / gamma_post) (Kumar et al. 2024, arXiv:2411.04330,
  section 3);
- k D^beta / (N^alpha P^gamma) (Ouyang et al. 2024, arXiv:2411.17691).

N are the weights that multiply activations, D the tokens, P the bits. Only rows whose
rise is above zero by twice its standard error are fitted, since the others have no
logarithm to speak of; the laws therefore describe visible damage. Intervals come from a
bootstrap over runs: all rows of a model are drawn together. The question is the sign of
the exponent of D: above zero, models that were trained for longer lose more.

docs/guides/compress.md says what was found on a small sweep.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from jaxtyping import Float
from matplotlib.figure import Figure

import scaling
from analysis.plots.style import save_figure
from experiments.rise_laws import (
    RiseLaw,
    fit_law,
    format_fit,
    plot_rises_in_panels,
    select_visible,
)
from scaling import PruningConfig, QuantizationConfig, prune_model, quantize_model
from scaling.compression.losses import compare_windows, measure_heldout_windows
from scaling.compression.prune import count_sparse_bytes
from scaling.inference.model import TrainedModel
from scaling.store import query

COLUMNS = (
    "run_id",
    "n_matmul",
    "tokens",
    "method",
    "bits",
    "group_size",
    "sparsity",
    "loss",
    "loss_increase",
    "loss_increase_se",
    "bytes",
)


@dataclass(frozen=True)
class CompressionSweep:
    """What to compress.

    Attributes:
        runs: folder of a finished sweep.
        out: folder of the table, the fits and the figure.
        bits: that weights are rounded to.
        group_size: of rounding in groups.
        sparsities: of pruning by magnitude.
        draws: of the bootstrap.
        seed: of the bootstrap.
    """

    runs: Path
    out: Path = Path("runs/compression")
    bits: tuple[int, ...] = (3, 4, 6, 8)
    group_size: int = 32
    sparsities: tuple[float, ...] = (0.25, 0.5, 0.75)
    draws: int = 1000
    seed: int = 0


# --- the table ------------------------------------------------------------------------


@dataclass(frozen=True)
class Compressed:
    """A compressed model and its row of the table, but for the losses."""

    model: TrainedModel
    method: str
    bytes: int
    bits: int | None = None
    group_size: int | None = None
    sparsity: float = 0.0


def list_quantizations(args: CompressionSweep) -> list[QuantizationConfig]:
    """Every way of rounding."""
    listed = []
    for bits in args.bits:
        listed.append(QuantizationConfig(bits))
        listed.append(QuantizationConfig(bits, args.group_size))
        listed.append(QuantizationConfig(bits, method="gptq"))
    return listed


def list_prunings(args: CompressionSweep) -> list[PruningConfig]:
    """Every way of pruning."""
    listed = [PruningConfig(sparsity=sparsity) for sparsity in args.sparsities]
    return [*listed, PruningConfig("2:4")]


def compress_model(model: TrainedModel, args: CompressionSweep) -> Iterator[Compressed]:
    """A model, compressed in every way."""
    for settings in list_quantizations(args):
        quantized = quantize_model(model, settings)
        yield Compressed(
            model=quantized.dequantize(),
            method=settings.method,
            bytes=quantized.nbytes,
            bits=settings.bits,
            group_size=settings.group_size,
        )
    for settings in list_prunings(args):
        pruned = prune_model(model, settings)
        yield Compressed(
            model=pruned.model,
            method=settings.pattern,
            bytes=count_sparse_bytes(pruned.model),
            sparsity=pruned.sparsity,
        )


def measure_sweep(args: CompressionSweep) -> pd.DataFrame:
    """The rise of the loss of every run of a folder under every compression."""
    runs, _ = query.list_runs(args.runs)
    rows = []
    for run in runs.loc[runs["status"] == "finished"].to_dict("records"):
        model = scaling.load(args.runs, run["run_id"])
        before = measure_heldout_windows(model)
        for compressed in compress_model(model, args):
            change = compare_windows(before, measure_heldout_windows(compressed.model))
            rows.append(
                {
                    "run_id": run["run_id"],
                    "n_matmul": run["n_matmul"],
                    "tokens": run["tokens"],
                    "method": compressed.method,
                    "bits": compressed.bits,
                    "group_size": compressed.group_size,
                    "sparsity": compressed.sparsity,
                    "loss": change.loss,
                    "loss_increase": change.increase,
                    "loss_increase_se": change.increase_se,
                    "bytes": compressed.bytes,
                }
            )
        print(f"{run['run_id']}  {len(rows)} rows", flush=True)
    return pd.DataFrame(rows, columns=list(COLUMNS))


# --- the laws -------------------------------------------------------------------------


def _list_kumar_regressors(rows: pd.DataFrame) -> Float[np.ndarray, "rows 3"]:
    logs = np.log(rows[["tokens", "n_matmul"]].to_numpy(float))
    return np.column_stack([logs[:, 0], -logs[:, 1], -rows["bits"].to_numpy(float)])


def _read_kumar(coefficients: Float[np.ndarray, " 4"]) -> dict[str, float]:
    constant, data, size, bits = coefficients
    return {
        "gamma_D": float(data),
        "gamma_N": float(size),
        "gamma_post": float(1 / bits),
        "k": float(np.exp(constant)),
    }


def _list_ouyang_regressors(rows: pd.DataFrame) -> Float[np.ndarray, "rows 3"]:
    logs = np.log(rows[["tokens", "n_matmul", "bits"]].to_numpy(float))
    return np.column_stack([logs[:, 0], -logs[:, 1], -logs[:, 2]])


def _read_ouyang(coefficients: Float[np.ndarray, " 4"]) -> dict[str, float]:
    constant, data, size, bits = coefficients
    return {
        "beta": float(data),
        "alpha": float(size),
        "gamma": float(bits),
        "k": float(np.exp(constant)),
    }


LAWS = (
    RiseLaw(
        "kumar",
        ("gamma_D", "gamma_N", "gamma_post"),
        _list_kumar_regressors,
        _read_kumar,
    ),
    RiseLaw(
        "ouyang", ("beta", "alpha", "gamma"), _list_ouyang_regressors, _read_ouyang
    ),
)


def split_by_method(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each method of rounding, with its name in words."""
    rounded = table.loc[table["bits"].notna()]
    for keys, rows in rounded.groupby(["method", "group_size"], dropna=False):
        yield name_method(*keys), rows


def name_method(method: Hashable, group_size: Hashable) -> str:
    """A method of rounding in words."""
    if pd.isna(group_size):  # pyright: ignore[reportArgumentType, reportGeneralTypeIssues]
        return f"{method}, per output"
    return f"{method}, groups of {group_size:g}"


# --- what is shown --------------------------------------------------------------------


def summarize_table(table: pd.DataFrame) -> pd.DataFrame:
    """The median rise of the loss and of the bytes, by compression."""
    keys = ["method", "bits", "group_size", "sparsity"]
    rounded = table.assign(sparsity=table["sparsity"].round(2))
    values = rounded.groupby(keys, dropna=False)[["loss_increase", "bytes"]]
    return values.median().reset_index()


def plot_rises(table: pd.DataFrame) -> Figure:
    """The visible rise of the loss against tokens per weight, a panel for each method
    of rounding and a color for each number of bits.
    """
    panels = {}
    for method, rows in split_by_method(table):
        groups = {}
        for bits in sorted(table["bits"].dropna().unique()):
            groups[f"{bits:g} bits"] = select_visible(rows.loc[rows["bits"] == bits])
        panels[method] = groups
    return plot_rises_in_panels(panels)


def main() -> None:
    """Compress, fit, draw."""
    args = tyro.cli(CompressionSweep, description=__doc__)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "compression.csv"
    table = pd.read_csv(path) if path.is_file() else measure_sweep(args)
    table.to_csv(path, index=False)
    print(summarize_table(table).to_string(index=False))
    fits = []
    for method, rows in split_by_method(table):
        for law in LAWS:
            fit = fit_law(rows, law, args.draws, args.seed)
            print(format_fit(method, fit))
            fits.append({"method": method, **dataclasses.asdict(fit)})
    (args.out / "fits.json").write_text(json.dumps(fits, indent=1))
    print(save_figure(plot_rises(table), args.out / "compression.png"))


if __name__ == "__main__":
    main()
