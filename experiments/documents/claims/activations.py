"""Claims about signals and gradients: residuals and norms (S5), the scale of attention
logits (S6).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Literal, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from analysis.plots.style import (
    BLUE,
    GRAY,
    LOSS,
    MARKERS,
    VERMILLION,
    make_figure,
    use_style,
)
from experiments.documents.evidence import Evidence
from experiments.documents.figures import HEIGHT, plot_rate_lines, set_value_ticks
from experiments.documents.grids import BASE_WIDTH, make_norm_runs
from experiments.documents.statement import (
    Claim,
    Estimate,
    Finding,
    Numbers,
    all_hold,
    any_holds,
    name_verdict,
    negate_answer,
)
from experiments.documents.stats import (
    estimate_contrast,
    estimate_mean,
)
from experiments.groups import average_by
from scaling.config import ModelConfig
from scaling.model.architecture import Params
from scaling.model.family import build_family

VANISHED = -1.0
"""A gradient has vanished if log10 of the first block's gradient norm, over the last
block's or over that of the shallowest model, is below this."""

LIMIT = 1.1
"""A rate trains if its loss is at most so many times the best of all arms."""

ATTENTION_DRAWS = 16
WITH = "with residuals"
WITHOUT = "without residuals"
OVER_LAST = "log10 gradient over the last block's"
OVER_SHALLOW = "log10 gradient over the shallowest model's"
LAYER_NORM = "octaves gained by layer norm"
SETTINGS = {"none": "no norm", "layernorm": "layer norm"}
SCALED = "scaled"
UNSCALED = "not scaled"

_SMALLEST_NORM = 1e-38
"""Gradient norms that underflow are taken as this, so that their logarithm is finite.
"""


class GradientRow(TypedDict):
    """log10 of the first block's gradient norm (`first`), and of that over the last
    block's (`ratio`).
    """

    depth: int
    norm: str
    residual: bool
    seed: int
    first: float
    ratio: float


class AttentionRow(TypedDict):
    """Entropy as a share of its maximum, and the root mean square gradient."""

    head_dim: int
    arm: str
    seed: int
    entropy: float
    gradient: float


@functools.partial(jax.jit, static_argnums=0)
def compute_block_gradients(
    config: ModelConfig, params: Params, windows: Int[Array, "B T1"]
) -> Float[Array, " L"]:
    """Norm of the loss's gradient with respect to each block's weights; for a model
    whose layers are scanned.
    """
    family = build_family(config)

    def compute_loss(params: Params) -> Float[Array, ""]:
        logits = family.apply(params, windows[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:])
        return losses.mean()

    gradients = jax.grad(compute_loss)(params)
    # Each leaf below "blocks" has a leading layer axis.
    squares = [
        jnp.square(leaf).reshape(config.depth, -1).sum(axis=1)
        for leaf in jax.tree.leaves(gradients["blocks"])
    ]
    return jnp.sqrt(sum(squares))


def _measure_gradient_ratios(evidence: Evidence) -> list[GradientRow]:
    """The first block's gradient at initialization, by depth, norm, residual and seed."""
    run = make_norm_runs(evidence.size)[0]
    windows = jnp.asarray(evidence.heldout(run, 4 * run.model.context))
    norms: tuple[Literal["layernorm", "none"], ...] = ("layernorm", "none")
    rows: list[GradientRow] = []
    for depth, norm, seed in itertools.product(
        evidence.size.probe_depths, norms, evidence.size.seeds
    ):
        config = ModelConfig(
            width=BASE_WIDTH,
            depth=depth,
            n_heads=4,
            head_dim=16,
            norm=norm,
            qk_norm=False,
            scan_layers="always",
        )
        params = build_family(config).init(seed)
        for residual in (True, False):
            config = dataclasses.replace(config, residual=residual)
            gradients = compute_block_gradients(config, params, windows)
            norms_L = np.maximum(np.asarray(gradients, float), _SMALLEST_NORM)
            rows.append(
                {
                    "depth": depth,
                    "norm": norm,
                    "residual": residual,
                    "seed": seed,
                    "first": float(np.log10(norms_L[0])),
                    "ratio": float(np.log10(norms_L[0] / norms_L[-1])),
                }
            )
    return rows


def measure_trainable_octaves(
    rates: ArrayLike, losses: ArrayLike, limit: float
) -> float:
    """Octaves of learning rate around the best one at which the loss stays at or below
    a limit.

    Crossings are interpolated in log rate, half-way where the next loss is not finite;
    the grid's ends bound the range.
    """
    log_rates = np.log2(np.asarray(rates, float))
    losses = np.asarray(losses, float)
    best = int(np.argmin(losses))
    if not losses[best] <= limit:
        return 0.0
    octaves = 0.0
    for direction in (-1, 1):
        last = best
        following = last + direction
        while 0 <= following < len(losses) and losses[following] <= limit:
            last = following
            following = last + direction
        edge = log_rates[last]
        if 0 <= following < len(losses):
            rise = losses[following] - losses[last]
            share = (limit - losses[last]) / rise if np.isfinite(rise) else 0.5
            edge = log_rates[last] + share * (log_rates[following] - log_rates[last])
        octaves += abs(edge - log_rates[best])
    return float(octaves)


def measure_octaves_by_arm(table: pd.DataFrame, by: str) -> dict[str, np.ndarray]:
    """Trainable octaves of each arm, [seeds]; the limit is `LIMIT` times the least mean
    loss of all arms.
    """
    limit = LIMIT * float(average_by(table, [by, "lr"]).min())
    octaves: dict[str, np.ndarray] = {}
    for arm, rows in table.groupby(by):
        by_seed = []
        for _, cell in rows.groupby("seed"):
            ordered = cell.sort_values("lr")
            by_seed.append(
                measure_trainable_octaves(ordered["lr"], ordered["loss"], limit)
            )
        octaves[str(arm)] = np.array(by_seed)
    return octaves


def summarize_residuals(
    ratios: pd.DataFrame, rates: pd.DataFrame
) -> dict[str, Estimate]:
    """S5: gradient ratios at the greatest depth in each setting, and the octaves that
    layer norm adds.
    """
    numbers = {}
    for norm, setting in SETTINGS.items():
        for name, residual in ((WITHOUT, False), (WITH, True)):
            is_arm = (ratios["norm"] == norm) & (ratios["residual"] == residual)
            rows: pd.DataFrame = ratios.loc[is_arm]
            deep = rows.loc[rows["depth"] == rows["depth"].max()].set_index("seed")
            shallow = rows.loc[rows["depth"] == rows["depth"].min()].set_index("seed")
            over_shallow = deep["first"] - shallow["first"]
            numbers[f"{OVER_SHALLOW}, {setting}, {name}"] = estimate_mean(over_shallow)
            numbers[f"{OVER_LAST}, {setting}, {name}"] = estimate_mean(deep["ratio"])
    octaves = measure_octaves_by_arm(rates, "norm")
    with_norm = octaves["layernorm"]
    without = octaves["none"]
    numbers[LAYER_NORM] = estimate_contrast(
        float(with_norm.mean() - without.mean()),
        [with_norm, without],
        weight=1 / len(with_norm) + 1 / len(without),
    )
    return numbers


def _examine_s5(evidence: Evidence) -> Finding:
    ratios = pd.DataFrame(
        evidence.measured("gradient ratios", lambda: _measure_gradient_ratios(evidence))
    )
    rates = evidence.table("norms")
    rates = rates.assign(norm=[run.model.norm for run in rates["run"]])
    octaves = measure_octaves_by_arm(rates, "norm")
    return Finding(
        numbers=summarize_residuals(ratios, rates),
        remark=(
            "Norm of the gradient with respect to the first block's weights at "
            f"initialization, {max(evidence.size.probe_depths)} blocks, over the first "
            "block's of the "
            "shallowest model and over the last block's, with layer norm before each "
            "branch and without any norm. Learning rates on a grid of factors of 4 at "
            f"depth 4: a rate trains if its loss is at most {LIMIT} times the best of "
            f"both arms; {octaves['layernorm'].mean():.1f} octaves with layer norm, "
            f"{octaves['none'].mean():.1f} without; no clipping, no QK-norm, residuals "
            "on."
        ),
        figure=plot_residuals(ratios, rates),
        caption=(
            "Left and middle: first block's gradient norm over the last's, and over "
            "the shallowest model's, against depth, means over seeds. Right: loss "
            "against learning rate with and without layer norm; crosses at the top are "
            "losses beyond it."
        ),
    )


def _decide_s5(n: Numbers) -> str:
    def vanishes(setting: str, name: str) -> bool | None:
        return any_holds(
            n[f"{OVER_SHALLOW}, {setting}, {name}"].below(VANISHED),
            n[f"{OVER_LAST}, {setting}, {name}"].below(VANISHED),
        )

    settings = SETTINGS.values()
    kept = all_hold(*(negate_answer(vanishes(setting, WITH)) for setting in settings))
    lost = any_holds(*(vanishes(setting, WITHOUT) for setting in settings))
    # If nothing vanishes without residuals, they have nothing to prevent, and the claim
    # stays undecided.
    needed = lost or None
    return name_verdict(all_hold(kept, needed, n[LAYER_NORM].above(0.0)))


@functools.partial(jax.jit, static_argnums=0)
def measure_attention_health(
    head_dim: int, scale: float, seed: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Entropy and gradient of a causal softmax: 64 positions, 8 heads, and unit-normal
    queries, keys, values and upstream gradients.

    Returns:
        The entropy as a share of its maximum, and the root mean square gradient with
        respect to the logits.
    """
    H, T = 8, 64
    q, k, v, upstream = jax.random.normal(jax.random.key(seed), (4, H, T, head_dim))
    mask = np.tril(np.ones((T, T), bool))[None]
    logits = jnp.einsum("htk,hsk->hts", q, k) * scale

    def compute_weights(logits: Float[Array, "H T S"]) -> Float[Array, "H T S"]:
        return jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1)

    def project_output(logits: Float[Array, "H T S"]) -> Float[Array, ""]:
        projection = (compute_weights(logits) @ v * upstream).sum()
        # The upstream signal must not grow with the head dimension.
        return projection / head_dim**0.5

    weights = compute_weights(logits)
    entropy = -jax.scipy.special.xlogy(weights, weights).sum(axis=-1)[:, 1:]
    share = (entropy / jnp.log(jnp.arange(2, T + 1))[None]).mean()
    gradient = jax.grad(project_output)(logits)
    return share, jnp.sqrt(jnp.square(gradient).sum() / (H * mask.sum()))


def _measure_attention(evidence: Evidence) -> list[AttentionRow]:
    rows: list[AttentionRow] = []
    for head_dim in evidence.size.head_dims:
        for name, scale in ((SCALED, head_dim**-0.5), (UNSCALED, 1.0)):
            for seed in range(ATTENTION_DRAWS):
                entropy, gradient = measure_attention_health(head_dim, scale, seed)
                rows.append(
                    {
                        "head_dim": head_dim,
                        "arm": name,
                        "seed": seed,
                        "entropy": float(entropy),
                        "gradient": float(gradient),
                    }
                )
    return rows


def summarize_attention(table: pd.DataFrame) -> dict[str, Estimate]:
    """S6: gradient at the largest head dimension over that at the smallest, and entropy
    at the largest, with and without the scale.
    """
    smallest = table["head_dim"].min()
    largest = table["head_dim"].max()
    numbers = {}
    for name in (UNSCALED, SCALED):
        rows: pd.DataFrame = table.loc[table["arm"] == name]
        gradients = rows.pivot(index="seed", columns="head_dim", values="gradient")
        kept = gradients[largest] / gradients[smallest]
        numbers[f"gradient kept, {name}"] = estimate_mean(kept)
    for name in (UNSCALED, SCALED):
        is_last = (table["arm"] == name) & (table["head_dim"] == largest)
        entropy: pd.Series = table.loc[is_last, "entropy"]
        numbers[f"entropy left, {name}"] = estimate_mean(entropy)
    return numbers


def _examine_s6(evidence: Evidence) -> Finding:
    table = pd.DataFrame(
        evidence.measured("attention", lambda: _measure_attention(evidence))
    )
    low = table["head_dim"].min()
    high = table["head_dim"].max()
    return Finding(
        numbers=summarize_attention(table),
        remark=(
            "Gradient that the softmax passes back to its logits at head dimension "
            f"{high} over that at {low}, for unit-normal queries and keys, as at "
            "initialization, causal attention over 64 positions; and the entropy of "
            f"the softmax at {high}, as a share of its maximum. A row that has settled "
            "on one position passes next to nothing back, an undecided one more, so "
            "that the norm may fall less than the entropy. Normalized or trained "
            "queries and keys may have another size."
        ),
        figure=plot_attention(table),
        caption=(
            "Left: gradient with respect to the logits. Right: entropy of the softmax "
            "as a share of its maximum. Means over seeds, against head dimension."
        ),
    )


def _decide_s6(n: Numbers) -> str:
    scaled = n[f"gradient kept, {SCALED}"]
    unscaled = n[f"gradient kept, {UNSCALED}"]
    falls = None
    if unscaled.below(0.5):
        falls = True
    if unscaled.above(0.9):
        falls = False
    return name_verdict(all_hold(scaled.within(0.5, 2.0), falls))


@use_style
def plot_residuals(ratios: pd.DataFrame, rates: pd.DataFrame) -> Figure:
    """Gradient ratio against depth in four settings; loss against rate with and without
    layer norm.
    """
    fig = make_figure(3.6)
    left, middle, right = fig.subplots(1, 3)
    handles = []
    for norm, residual in itertools.product(("layernorm", "none"), (False, True)):
        is_arm = (ratios["norm"] == norm) & (ratios["residual"] == residual)
        rows: pd.DataFrame = ratios.loc[is_arm]
        ratio = average_by(rows, "depth", "ratio")
        first = average_by(rows, "depth", "first")
        has_norm = norm == "layernorm"
        residuals = "with residuals" if residual else "no residuals"
        color = BLUE if residual else VERMILLION
        marker = "o" if has_norm else "s"
        linestyle = "-" if has_norm else "--"
        handles += left.plot(
            ratio.index,
            ratio,
            color=color,
            marker=marker,
            linestyle=linestyle,
            markersize=4.5,
            label=f"{residuals}, {'layer norm' if has_norm else 'no norm'}",
        )
        middle.plot(
            first.index,
            first - first.iloc[0],
            color=color,
            marker=marker,
            linestyle=linestyle,
            markersize=4.5,
        )
    for ax, over in ((left, "last block's"), (middle, "shallowest model's")):
        ax.axhline(VANISHED, color=GRAY, linestyle=":", zorder=1)
        set_value_ticks(ax, ratios["depth"])
        ax.set(
            xlabel="Depth (blocks)",
            ylabel=f"log₁₀ of first block's gradient\nnorm over {over}",
        )
    lines = plot_rate_lines(
        right, rates.assign(norm=[SETTINGS[norm] for norm in rates["norm"]]), "norm"
    )
    right.legend(
        handles=lines, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1
    )
    right.set(ylabel=LOSS)
    fig.legend(handles=handles, loc="outside lower left", ncols=2)
    return fig


@use_style
def plot_attention(table: pd.DataFrame) -> Figure:
    """Gradient with respect to the logits, and entropy, against head dimension."""
    fig = make_figure(HEIGHT)
    left, right = fig.subplots(1, 2)
    labels = {UNSCALED: "not scaled", SCALED: r"scaled by $1/\sqrt{d_k}$"}
    handles = []
    for ax, column in ((left, "gradient"), (right, "entropy")):
        handles = []
        for (name, rows), color, marker in zip(
            table.groupby("arm"), (VERMILLION, BLUE), MARKERS, strict=False
        ):
            means = average_by(rows, "head_dim", column)
            handles += ax.plot(
                means.index,
                means,
                color=color,
                marker=marker,
                markersize=4.5,
                label=labels[str(name)],
            )
        set_value_ticks(ax, table["head_dim"])
        ax.set_ylim(0, None)
        ax.set(xlabel="Head dimension $d_k$")
    left.set(ylabel="Gradient at the logits (rms)")
    right.set(ylabel="Entropy of the softmax\nover its maximum")
    fig.legend(handles=handles, loc="outside upper left", ncols=2)
    return fig


CLAIMS = (
    Claim(
        id="S5",
        documents="A",
        short="residuals keep gradients, layer norm stabilizes",
        statement=(
            "Residual connections prevent vanishing gradients; layer norm stabilizes "
            "training."
        ),
        rule=(
            "A gradient has vanished where the first block's norm at the greatest "
            "depth is below a tenth of the last block's or of the shallowest "
            "model's. Supported if with residuals it vanishes neither under layer "
            "norm nor without any norm, without residuals it does in one of the two, "
            "and layer norm widens the range of learning rates that train (95 % "
            "intervals); refuted if it vanishes with residuals or layer norm narrows "
            "the range; undecided if nothing vanishes that could be prevented. "
            "Restated after a first look: the rule before it read models with layer "
            "norm alone, and the ratio to the last block alone."
        ),
        decide=_decide_s5,
        change=(
            "A setting in which gradients vanish with residuals, such as branches "
            "that cancel the stream; or the rule held to one of the two settings "
            "alone."
        ),
        experiment=_examine_s5,
        needs=("norms",),
    ),
    Claim(
        id="S6",
        documents="C",
        short="1/sqrt(d_k) keeps gradients healthy",
        statement=(
            "Scaling the attention logits by 1/sqrt(d_k) keeps gradients healthy."
        ),
        rule=(
            "Supported if from the smallest to the largest head dimension the "
            "gradient through the softmax stays within a factor of two with the "
            "scale and falls to less than half without it (95 % intervals); refuted "
            "if it does not stay so with the scale, or keeps more than nine tenths "
            "without it; between the two undecided, which the first rule, tried "
            "once, had counted as refuted."
        ),
        decide=_decide_s6,
        change=(
            "Queries and keys that are not of unit size, as under QK-norm with a "
            "learned gain or muP, of scale 1/d_k."
        ),
        experiment=_examine_s6,
    ),
)
