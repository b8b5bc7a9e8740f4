"""The best mixture of two sources, predicted by the mixing law from small runs and then
trained.

    python -m experiments.best_mixture --out runs/mixture

Small models are trained on several shares of the first source. The law of Ye et al. 2024
(arXiv:2403.16952, equation 1), loss = c + k exp(t share), is fitted to the loss on each
source; the share of the least mean of both losses is predicted, with the interval of a
bootstrap over the runs. Then larger models are trained on the predicted share and on
others around it. Writes `runs.csv`, `prediction.json` and `mixture.png`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import tyro
from jaxtyping import Float
from matplotlib.figure import Figure

from analysis.plots.style import (
    BLUE,
    GRAY,
    VERMILLION,
    make_figure,
    save_figure,
    use_style,
)
from scaling import DataConfig, ModelConfig, OptimConfig, Plan, RunConfig, sweep

_GRID = np.linspace(0.01, 0.99, 197)
_RATES = np.concatenate([np.geomspace(-60, -0.1, 200), np.geomspace(0.1, 60, 200)])
"""Values of t that are tried."""


@dataclass(frozen=True)
class BestMixture:
    """What to train.

    Attributes:
        out: folder of the runs, the prediction and the figure.
        first: the source whose share is varied.
        second: the other source.
        shares: of the first source, of the small runs.
        width: of the small models.
        tokens: of the small runs.
        larger_width: of the models that test the prediction.
        larger_tokens: of their runs.
        steps_around: distances from the predicted share that are trained as well.
        seeds: of each small run.
        larger_seeds: of each larger run.
        draws: of the bootstrap.
        workers: processes. Default: one per core on CPU.
    """

    out: Path = Path("runs/mixture")
    first: str = "code"
    second: str = "sotu"
    shares: tuple[float, ...] = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95)
    width: int = 32
    tokens: int = 1_000_000
    larger_width: int = 48
    larger_tokens: int = 1_500_000
    steps_around: tuple[float, ...] = (-0.3, -0.15, 0.15, 0.3)
    seeds: int = 3
    larger_seeds: int = 2
    draws: int = 500
    workers: int | None = None


class MixingLaw(NamedTuple):
    """The loss on one source: c + k exp(t share).

    Attributes:
        c: the loss that no share goes below.
        k: what the share can change.
        t: how fast it does.
    """

    c: float
    k: float
    t: float

    def predict(self, share: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The loss at some shares of the first source."""
        return self.c + self.k * np.exp(self.t * share)


class Prediction(NamedTuple):
    """What the small runs predict.

    Attributes:
        share: of the first source, at the least mean of both losses.
        low: end of its 90 % interval.
        high: the other end.
        laws: of the losses on both sources.
    """

    share: float
    low: float
    high: float
    laws: tuple[MixingLaw, MixingLaw]


def make_run(
    args: BestMixture, share: float, width: int, tokens: int, seed: int
) -> RunConfig:
    """A run on a mixture."""
    source = f"mixture:{args.first}={share:.4f},{args.second}={1 - share:.4f}"
    return RunConfig(
        model=ModelConfig(width=width, depth=2, n_heads=4, head_dim=16),
        data=DataConfig(source),
        optim=OptimConfig(
            batch_size=4, lr=5e-3 * (width / 64) ** -0.7, warmup_tokens=tokens // 20
        ),
        tokens=tokens,
        seed=seed,
    )


def train_shares(
    args: BestMixture, name: str, runs: dict[float, list[RunConfig]]
) -> pd.DataFrame:
    """The losses of runs on both sources, in bits per byte, with their shares."""
    plan = Plan(name, tuple(run for group in runs.values() for run in group))
    table = sweep(plan, args.out, workers=args.workers)
    described = dict(zip(table["run_id"], table["mixture"], strict=True))
    rows = []
    for share, group in runs.items():
        for run in group:
            sources = json.loads(described[run.run_id])
            rows.append(
                {
                    "stage": name,
                    "share": share,
                    "seed": run.seed,
                    "first": sources[args.first]["bits_per_byte"],
                    "second": sources[args.second]["bits_per_byte"],
                }
            )
    found = pd.DataFrame(rows)
    return found.assign(mean=(found["first"] + found["second"]) / 2)


def fit_law(share: Float[np.ndarray, " n"], loss: Float[np.ndarray, " n"]) -> MixingLaw:
    """The law by least squares. Given t it is linear in c and k, so the search is over t
    alone.
    """
    best = MixingLaw(c=float(loss.mean()), k=0.0, t=0.0)
    least = math.inf
    for t in _RATES:
        basis = np.exp(t * (share - 0.5))
        centered = basis - basis.mean()
        k = float(centered @ loss / (centered @ centered))
        c = float(loss.mean() - k * basis.mean())
        cost = float(np.square(c + k * basis - loss).sum())
        if cost < least:
            least = cost
            best = MixingLaw(c, k * math.exp(-0.5 * t), float(t))
    return best


def find_best_share(laws: tuple[MixingLaw, MixingLaw]) -> float:
    """The share of the least mean of both losses."""
    mean = (laws[0].predict(_GRID) + laws[1].predict(_GRID)) / 2
    return float(_GRID[np.argmin(mean)])


def fit_both(rows: pd.DataFrame) -> tuple[MixingLaw, MixingLaw]:
    """The laws of the losses on the first and on the second source."""
    share = rows.loc[:, "share"].to_numpy(float)
    loss_on_first = rows.loc[:, "first"].to_numpy(float)
    loss_on_second = rows.loc[:, "second"].to_numpy(float)
    return fit_law(share, loss_on_first), fit_law(share, loss_on_second)


def predict_share(args: BestMixture, small: pd.DataFrame) -> Prediction:
    """Fit both laws, and draw seeds of each share anew for the interval."""
    laws = fit_both(small)
    rng = np.random.default_rng(0)
    places = [group.index.to_numpy() for _, group in small.groupby("share")]
    drawn = []
    for _ in range(args.draws):
        chosen = [rng.choice(group, len(group)) for group in places]
        drawn.append(find_best_share(fit_both(small.loc[np.concatenate(chosen)])))
    low, high = np.quantile(drawn, [0.05, 0.95])
    return Prediction(find_best_share(laws), float(low), float(high), laws)


def list_tested_shares(args: BestMixture, predicted: float) -> list[float]:
    """The predicted share and those around it that are mixtures."""
    shares = [predicted, *(predicted + step for step in args.steps_around)]
    return sorted(round(share, 4) for share in shares if 0.02 <= share <= 0.98)


@use_style
def plot_mixture(args: BestMixture, runs: pd.DataFrame, found: Prediction) -> Figure:
    """The mean of both losses against the share, small runs with their law and larger
    ones.
    """
    figure = make_figure(3.2)
    axes = figure.subplots(1, 2)
    for ax, stage, color in zip(
        axes, ("small", "larger"), (BLUE, VERMILLION), strict=True
    ):
        rows = runs.loc[runs["stage"] == stage]
        ax.plot(rows["share"], rows["mean"], "o", color=color, markersize=4)
        ax.axvline(found.share, color=GRAY, linestyle="--", linewidth=1)
        ax.axvspan(found.low, found.high, color=GRAY, alpha=0.15, linewidth=0)
        width = args.width if stage == "small" else args.larger_width
        ax.set_title(f"Width {width}")
        ax.set_xlabel(f"Share of {args.first}")
    mean = (found.laws[0].predict(_GRID) + found.laws[1].predict(_GRID)) / 2
    axes[0].plot(_GRID, mean, color=GRAY, linewidth=1)
    axes[0].set_ylabel("Mean loss on both, bits per byte")
    return figure


def main() -> None:
    """Train small runs, predict, train larger ones, draw."""
    args = tyro.cli(BestMixture, description=__doc__)
    seeds = range(args.seeds)
    small_runs = {}
    for share in args.shares:
        small_runs[share] = [
            make_run(args, share, args.width, args.tokens, seed) for seed in seeds
        ]
    small = train_shares(args, "small", small_runs)
    found = predict_share(args, small)
    print(
        f"predicted share of {args.first}: {found.share:.3f}, 90 % interval "
        f"[{found.low:.3f}, {found.high:.3f}]"
    )
    larger_runs = {}
    for share in list_tested_shares(args, found.share):
        larger_runs[share] = [
            make_run(args, share, args.larger_width, args.larger_tokens, seed)
            for seed in range(args.larger_seeds)
        ]
    larger = train_shares(args, "larger", larger_runs)
    runs = pd.concat([small, larger], ignore_index=True)
    runs.to_csv(args.out / "runs.csv", index=False)
    means = larger.groupby("share")[["first", "second", "mean"]].agg(["mean", "std"])
    print(means.round(4).to_string())
    content = dataclasses.asdict(args) | {"out": str(args.out), **found._asdict()}
    (args.out / "prediction.json").write_text(json.dumps(content, indent=1))
    print(save_figure(plot_mixture(args, runs, found), args.out / "mixture.png"))


if __name__ == "__main__":
    main()
