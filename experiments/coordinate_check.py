"""Coordinate check: how much each layer's activations change in the first steps,
against width and against depth.

    python -m experiments.coordinate_check --out runs/coordinate_check

Under a parametrization whose learning rates transfer, the first steps move every
activation by the same amount at every size (Yang et al. 2022, arXiv:2203.03466,
appendix D.1). Every shape is trained for some steps on the same batches at one rate.
Measured are the root mean square of the change of each layer's activation on held-out
data since initialization, and its slope in the logarithm of the size.

Expect a slope of 0 +- 0.1:

- in width under muP, CompleteP and u-muP, except in u-muP's embedding, which falls as
  width^-1/2 by its rule;
- in depth under CompleteP, whose stream approaches a limit at a distance of order
  1 / depth: the slope after half of the blocks is 0.13 from depth 2, and 0.04 from
  depth 8.

What each branch of u-muP and of a = 1/2 writes falls with depth by rule; in u-muP the
slope of the last block is 0 for three steps and -0.14 after ten. Expect a slope of
about 1 of the blocks in width under `sp`, and in depth under `sp` and muP.

Outputs start at zero, as muP's authors advise. From a random readout
(`--no-model.zero-init-outputs`) the change of the logits holds a part that falls as
width^-1/2. After ten small steps this is most of it: the slope is -0.3 under muP.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import jax.numpy as jnp
import pandas as pd
import tyro

from analysis.plots.style import save_figure
from experiments.transfer import fit_slope, plot_changes
from scaling import data
from scaling.cli.output import to_records
from scaling.config import DataConfig, ModelConfig, OptimConfig
from scaling.training.activation_changes import measure_activation_changes

RATE_FACTORS = {"umup": 100.0, "unit": 8.0}
"""By parametrization, the factor on `rate` that moves a weight of the base shape by the
same share of its scale."""

MODEL = ModelConfig(
    depth=2,
    n_heads=None,
    head_dim=16,
    base_width=64,
    base_depth=2,
    zero_init_outputs=True,
)
AXES = ("width", "depth")


@dataclass(frozen=True)
class CoordinateCheck:
    """What to train."""

    out: Path = Path("runs/coordinate_check")
    width: tuple[str, ...] = ("sp", "mup", "completep", "umup")
    """Parametrizations to check over widths."""
    depth: tuple[str, ...] = ("sp", "mup", "completep", "completep_half", "umup")
    """Parametrizations to check over depths."""
    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 4, 8, 16, 32)
    rate: float = 1e-3
    steps: int = 10
    seeds: int = 3
    source: str = "code"
    model: ModelConfig = field(default_factory=lambda: MODEL)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(batch_size=4))

    def get_parametrizations(self, axis: str) -> tuple[str, ...]:
        """The parametrizations to check along an axis."""
        return self.width if axis == "width" else self.depth

    def get_sizes(self, axis: str) -> tuple[int, ...]:
        """The sizes along an axis."""
        return self.widths if axis == "width" else self.depths


def name_layers(depth: int) -> dict[str, str]:
    """By a name that does not depend on depth, the name of the activation: the residual
    stream, then what branches write.

    The stream is measured after half and after all of the blocks: after the first block
    it has only one depth-th of the change.
    """
    last = depth - 1
    return {
        "embedding": "embedding",
        "middle block": f"block{max(depth // 2 - 1, 0)}",
        "last block": f"block{last}",
        "final_norm": "final_norm",
        "logits": "logits",
        "first attention": "block0.attention",
        "first feed_forward": "block0.feed_forward",
        "last attention": f"block{last}.attention",
        "last feed_forward": f"block{last}.feed_forward",
    }


def measure_axis(args: CoordinateCheck, axis: str) -> pd.DataFrame:
    """One row per parametrization, size, layer and step along `axis`: width or depth."""
    dataset = data.load_dataset(DataConfig(args.source))
    context = args.model.context
    batch_size = args.optim.batch_size
    train = data.Windows(dataset.train, context, batch_size)
    windows = jnp.asarray(train.batches(0, args.steps))
    heldout = data.heldout_windows(dataset.heldout, context, batch_size * context)
    probe = jnp.asarray(heldout[:, :-1], jnp.int32)
    rows = []
    for name in args.get_parametrizations(axis):
        rate = args.rate * RATE_FACTORS.get(name, 1.0)
        optim = dataclasses.replace(args.optim, lr=rate)
        for size in args.get_sizes(axis):
            model = dataclasses.replace(
                args.model, parametrization=name, **{axis: size}
            )
            changes = measure_activation_changes(
                model, optim, windows, probe, args.seeds
            )
            for layer, activation in name_layers(model.depth).items():
                for k, change in enumerate(changes[activation]):
                    rows.append(
                        {
                            "parametrization": name,
                            "axis": axis,
                            "size": size,
                            "layer": layer,
                            "step": k + 1,
                            "change": float(change),
                        }
                    )
    return pd.DataFrame(rows)


def fit_slopes(table: pd.DataFrame) -> pd.DataFrame:
    """One row per parametrization, axis, layer and step: slope, se."""
    keys = ["parametrization", "axis", "layer", "step"]
    rows = []
    for _, cell in table.groupby(keys, sort=False):
        slope, error = fit_slope(cell["size"].tolist(), cell["change"].tolist())
        key = cell[keys].iloc[0].to_dict()
        rows.append({**key, "slope": slope, "se": error})
    return pd.DataFrame(rows, columns=[*keys, "slope", "se"])


def summarize_slopes(found: pd.DataFrame, step: int) -> pd.DataFrame:
    """Slopes with standard errors after `step` steps, a row per layer, and the layer
    that is worst.
    """
    last: pd.DataFrame = found.loc[found["step"] == step]
    text = [
        f"{slope:+.2f} ± {error:.2f}"
        for slope, error in zip(last["slope"], last["se"], strict=True)
    ]
    shown = last.assign(text=text).pivot(
        index="layer", columns="parametrization", values="text"
    )
    shown = shown.loc[last["layer"].unique(), last["parametrization"].unique()]
    worst = {}
    known: pd.DataFrame = last.loc[last["slope"].notna()]
    for name, rows in known.groupby("parametrization"):
        row = rows.loc[rows["slope"].abs().idxmax()]
        worst[name] = f"{row['slope']:+.2f} {row['layer']}"
    return pd.concat([shown, pd.DataFrame(worst, index=["worst"])])


def main() -> None:
    """Measure both axes, print the slopes after the last step, write the figures and
    the numbers.
    """
    args = tyro.cli(CoordinateCheck, description=__doc__)
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, object] = {
        "settings": asdict(args) | {"out": str(args.out)},
        "rates": RATE_FACTORS,
    }
    for axis in AXES:
        if not args.get_parametrizations(axis):
            continue
        table = measure_axis(args, axis)
        slopes = fit_slopes(table)
        print(
            f"\nslope of log change in log {axis} after {args.steps} steps, mean of "
            f"{args.seeds} seeds"
        )
        print(summarize_slopes(slopes, args.steps).to_string(), flush=True)
        save_figure(plot_changes(table, args.steps), args.out / f"{axis}.png")
        results[axis] = {"changes": to_records(table), "slopes": to_records(slopes)}
    path = args.out / "coordinate_check.json"
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
