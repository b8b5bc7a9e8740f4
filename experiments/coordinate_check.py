"""Coordinate check: how much each layer's activations change in the first steps,
against width and against depth.

    python -m experiments.coordinate_check --out runs/coordinate_check

A parametrization under which rates transfer moves every activation by the same amount
at every size (Yang et al. 2022, arXiv:2203.03466, appendix D.1). Every shape is trained
for some steps on the same batches at one rate; measured is the root mean square of the
change of each layer's activation on held-out text since initialization, and its slope
in the logarithm of the size. Expect 0 +- 0.1 in width under muP, CompleteP and u-muP,
whose embedding alone falls, as width^-1/2 by its rule; in depth under CompleteP, whose
stream comes to a limit at a distance of order 1 / depth: the slope after half of the
blocks is 0.13 from depth 2, 0.04 from depth 8. What each branch of u-muP and of a = 1/2
writes falls with depth by rule; in u-muP the last block holds for three steps and comes
to -0.14 after ten. About 1: the blocks in width under `sp`, in depth under `sp` and
muP.

Outputs start at zero, as muP's authors advise: from a random readout
(`--no-model.zero-init-outputs`) the change of the logits holds a part that falls as
width^-1/2 and after ten small steps is most of it, slope -0.3 under muP.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import tyro
from jaxtyping import Array, Int

from analysis.plots.style import save_figure
from experiments.transfer import fit_slope, plot_changes
from scaling import data
from scaling.cli.output import to_records
from scaling.config import DataConfig, ModelConfig, OptimConfig
from scaling.model.probes import record_activations
from scaling.model.transformer import build_family
from scaling.training.optimizer import make_optimizer
from scaling.training.step import StepSpec, train_step

# In units of `rate`: what moves a weight of the base shape by the same share of its
# scale.
RATES = {"umup": 100.0, "unit": 8.0}
MODEL = ModelConfig(
    depth=2,
    n_heads=None,
    head_dim=16,
    base_width=64,
    base_depth=2,
    zero_init_outputs=True,
)


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


def measure_changes(
    model: ModelConfig,
    optim: OptimConfig,
    windows: Int[Array, "S B T1"],
    probe: Array,
    seeds: int,
) -> dict:
    """Layer -> [S] root mean square change of its activation after each step, mean over
    seeds.
    """
    family = build_family(model)
    recipe = StepSpec(family, make_optimizer(optim, family), 1, None)
    look = jax.jit(lambda params: record_activations(family, params, probe))
    rate, decay = jnp.float32(optim.lr), jnp.float32(0)
    step = jax.jit(
        lambda state, batch: train_step(recipe, state, batch, rate, decay, None, None)[
            0
        ]
    )
    found: dict[str, np.ndarray] = {}
    for seed in range(seeds):
        state = recipe.init(seed)
        start = jax.device_get(look(state.params))
        for k, batch in enumerate(windows):
            state = step(state, batch)
            for name, now in jax.device_get(look(state.params)).items():
                change = np.sqrt(np.mean(np.square(now - start[name])))
                found.setdefault(name, np.zeros(len(windows)))[k] += change / seeds
    return found


def name_layers(depth: int) -> dict[str, str]:
    """Name that does not depend on depth -> name of the activation: the residual
    stream, then what branches write.

    The stream is looked at after half and after all of the blocks: after the first it
    has one depth-th of the change.
    """
    stream = {
        "middle block": f"block{max(depth // 2 - 1, 0)}",
        "last block": f"block{depth - 1}",
    }
    ends = {"first": 0, "last": depth - 1}
    branches = {
        f"{k} {part}": f"block{i}.{part}"
        for k, i in ends.items()
        for part in ("attention", "feed_forward")
    }
    return {
        "embedding": "embedding",
        **stream,
        "final_norm": "final_norm",
        "logits": "logits",
        **branches,
    }


def measure_axis(args: CoordinateCheck, axis: str) -> pd.DataFrame:
    """One row per parametrization, size, layer and step along `axis`: width or depth."""
    dataset = data.load_dataset(DataConfig(args.source))
    T, B = args.model.context, args.optim.batch_size
    windows = jnp.asarray(data.Windows(dataset.train, T, B).batches(0, args.steps))
    probe = jnp.asarray(
        data.heldout_windows(dataset.heldout, T, B * T)[:, :-1], jnp.int32
    )
    rows = []
    for name in getattr(args, axis):
        optim = dataclasses.replace(args.optim, lr=args.rate * RATES.get(name, 1.0))
        for size in getattr(args, f"{axis}s"):
            model = dataclasses.replace(
                args.model, parametrization=name, **{axis: size}
            )
            found = measure_changes(model, optim, windows, probe, args.seeds)
            for layer, of in name_layers(model.depth).items():
                here = {
                    "parametrization": name,
                    "axis": axis,
                    "size": size,
                    "layer": layer,
                }
                rows += [
                    here | {"step": k + 1, "change": float(found[of][k])}
                    for k in range(args.steps)
                ]
    return pd.DataFrame(rows)


def fit_slopes(table: pd.DataFrame) -> pd.DataFrame:
    """One row per parametrization, axis, layer and step: slope, se."""
    keys = ["parametrization", "axis", "layer", "step"]
    cells: Any = table.groupby(keys, sort=False)
    rows = [
        (*key, *fit_slope(cell["size"].tolist(), cell["change"].tolist()))
        for key, cell in cells
    ]
    return pd.DataFrame(rows, columns=[*keys, "slope", "se"])


def summarize_slopes(found: pd.DataFrame, step: int) -> pd.DataFrame:
    """Slopes with standard errors after `step` steps, a row per layer, and the layer
    that is worst.
    """
    last: Any = found[found["step"] == step]
    text = last["slope"].map("{:+.2f}".format) + " ± " + last["se"].map("{:.2f}".format)
    shown = last.assign(text=text).pivot(
        index="layer", columns="parametrization", values="text"
    )
    shown = shown.loc[last["layer"].unique(), last["parametrization"].unique()]
    worst = {}
    for name, rows in last[last["slope"].notna()].groupby("parametrization"):
        one = rows.loc[rows["slope"].abs().idxmax()]
        worst[name] = f"{one['slope']:+.2f} {one['layer']}"
    return pd.concat([shown, pd.DataFrame(worst, index=["worst"])])


def main() -> None:
    """Measure both axes, print the slopes after the last step, write the figures and
    the numbers.
    """
    args = tyro.cli(CoordinateCheck, description=__doc__)
    args.out.mkdir(parents=True, exist_ok=True)
    written: dict[str, Any] = {
        "settings": asdict(args) | {"out": str(args.out)},
        "rates": RATES,
    }
    for axis in (axis for axis in ("width", "depth") if getattr(args, axis)):
        table = measure_axis(args, axis)
        found = fit_slopes(table)
        print(
            f"\nslope of log change in log {axis} after {args.steps} steps, mean of {args.seeds} seeds"
        )
        print(summarize_slopes(found, args.steps).to_string(), flush=True)
        save_figure(plot_changes(table, args.steps), args.out / f"{axis}.png")
        written[axis] = {"changes": to_records(table), "slopes": to_records(found)}
    (args.out / "coordinate_check.json").write_text(
        json.dumps(written, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
