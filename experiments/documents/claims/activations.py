"""Claims about signals and gradients: residuals and norms (S5), attention's scale (S6)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

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
    negate,
)
from experiments.documents.stats import estimate_contrast, estimate_mean
from experiments.frames import Frame
from scaling.config import ModelConfig
from scaling.model.transformer import Params, build_family

VANISHED = -1.0  # log10 of the first block's gradient over the last's, or over that of a shallow model
ATTENTION_DRAWS = 16
LIMIT = 1.1  # a rate trains if its loss is at most so many times the best of all arms
WITH, WITHOUT = "with residuals", "without residuals"
OVER_LAST, OVER_SHALLOW = (
    "log10 gradient over the last block's",
    "log10 gradient over the shallowest model's",
)
LAYER_NORM = "octaves gained by layer norm"
SETTINGS = {"none": "no norm", "layernorm": "layer norm"}
SCALED, UNSCALED = "scaled", "not scaled"


@functools.partial(jax.jit, static_argnums=0)
def compute_block_gradients(
    config: ModelConfig, params: Params, windows: Int[Array, "B T1"]
) -> Float[Array, " L"]:
    """Norm of the loss's gradient with respect to each block's weights; for a model
    whose layers are scanned.
    """
    family = build_family(config)

    def loss(params: Params) -> Float[Array, ""]:
        logits = family.apply(params, windows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, windows[:, 1:]
        ).mean()

    blocks = jax.tree.leaves(
        jax.grad(loss)(params)["blocks"]
    )  # each with a leading layer axis
    return jnp.sqrt(
        sum(jnp.square(g).reshape(config.depth, -1).sum(axis=1) for g in blocks)
    )


def _measure_gradient_ratios(evidence: Evidence) -> list[dict[str, Any]]:
    """log10 of the first block's gradient norm, itself and over the last's, by depth,
    norm, residual and seed.
    """
    run = make_norm_runs(evidence.size)[0]
    windows, rows = jnp.asarray(evidence.heldout(run, 4 * run.model.context)), []
    shape = {
        "width": BASE_WIDTH,
        "n_heads": 4,
        "head_dim": 16,
        "qk_norm": False,
        "scan_layers": "always",
    }
    for depth, norm in itertools.product(
        evidence.size.probe_depths, ("layernorm", "none")
    ):
        for seed in evidence.size.seeds:
            config = ModelConfig(**shape, depth=depth, norm=norm)
            params = build_family(config).init(seed)
            for residual in (True, False):
                config = dataclasses.replace(config, residual=residual)
                g = np.maximum(
                    np.asarray(compute_block_gradients(config, params, windows), float),
                    1e-38,
                )  # may underflow
                first, ratio = float(np.log10(g[0])), float(np.log10(g[0] / g[-1]))
                row = {"depth": depth, "norm": norm, "residual": residual, "seed": seed}
                rows.append(row | {"first": first, "ratio": ratio})
    return rows


def measure_trainable_octaves(
    rates: Sequence[float], losses: Sequence[float], limit: float
) -> float:
    """Octaves of learning rate around the best one at which the loss stays at or below
    a limit.

    Crossings are interpolated in log rate, half-way where the next loss is not finite;
    the grid's ends bound it.
    """
    x, y = np.log2(np.asarray(rates, float)), np.asarray(losses, float)
    best = int(np.argmin(y))
    if not y[best] <= limit:
        return 0.0
    reach = 0.0
    for step in (-1, 1):
        i = best
        while 0 <= i + step < len(x) and y[i + step] <= limit:
            i += step
        edge = x[i]
        if 0 <= i + step < len(x):
            rise = y[i + step] - y[i]
            share = (limit - y[i]) / rise if np.isfinite(rise) else 0.5
            edge = x[i] + share * (x[i + step] - x[i])
        reach += abs(edge - x[best])
    return float(reach)


def measure_octaves_by_arm(table: Frame, by: str) -> dict[str, np.ndarray]:
    """Trainable octaves of each arm, [seeds]; the limit is `LIMIT` times the least mean
    loss of all arms.
    """
    limit = LIMIT * float(table.groupby([by, "lr"])["loss"].mean().min())
    found = {}
    for arm, rows in table.groupby(by):
        cells = [cell.sort_values("lr") for _, cell in rows.groupby("seed")]
        found[str(arm)] = np.array(
            [measure_trainable_octaves(c["lr"], c["loss"], limit) for c in cells]
        )
    return found


def summarize_residuals(ratios: Frame, rates: Frame) -> dict[str, Estimate]:
    """S5: gradient ratios at the greatest depth in each setting, and the octaves that
    layer norm adds.
    """
    numbers = {}
    for norm, setting in SETTINGS.items():
        for name, kept in ((WITHOUT, False), (WITH, True)):
            rows = ratios[(ratios["norm"] == norm) & (ratios["residual"] == kept)]
            deep, shallow = (
                rows[rows["depth"] == end(rows["depth"])].set_index("seed")
                for end in (max, min)
            )
            numbers[f"{OVER_SHALLOW}, {setting}, {name}"] = estimate_mean(
                deep["first"] - shallow["first"]
            )
            numbers[f"{OVER_LAST}, {setting}, {name}"] = estimate_mean(deep["ratio"])
    octaves = measure_octaves_by_arm(rates, "norm")
    with_norm, without = octaves["layernorm"], octaves["none"]
    weight = 1 / len(with_norm) + 1 / len(without)
    gain = float(with_norm.mean() - without.mean())
    return numbers | {LAYER_NORM: estimate_contrast(gain, [with_norm, without], weight)}


def _examine_s5(evidence: Evidence) -> Finding:
    ratios: Frame = pd.DataFrame(
        evidence.measured("gradient ratios", lambda: _measure_gradient_ratios(evidence))
    )
    rates = evidence.table("norms")
    rates = rates.assign(norm=[run.model.norm for run in rates["run"]])
    octaves = measure_octaves_by_arm(rates, "norm")
    deepest = int(ratios["depth"].max())
    return Finding(
        summarize_residuals(ratios, rates),
        f"Norm of the gradient with respect to the first block's weights at initialisation, {deepest} blocks, over the "
        "first block's of the shallowest model and over the last block's, with layer norm before each "
        "branch and without any norm. Learning "
        f"rates on a grid of factors of 4 at depth 4: a rate trains if its loss is at most {LIMIT} times the best of "
        f"both arms; {octaves['layernorm'].mean():.1f} octaves with layer norm, {octaves['none'].mean():.1f} without; "
        "no clipping, no QK-norm, residuals on.",
        plot_residuals(ratios, rates),
        "Left and middle: first block's gradient norm over the last's, and over the shallowest model's, against depth, "
        "means over seeds. Right: loss against learning rate with and without layer norm; crosses at the top are "
        "losses beyond it.",
    )


def _decide_s5(n: Numbers) -> str:
    def vanishes(setting: str, name: str) -> bool | None:
        return any_holds(
            *(
                n[f"{what}, {setting}, {name}"].below(VANISHED)
                for what in (OVER_SHALLOW, OVER_LAST)
            )
        )

    kept = all_hold(*(negate(vanishes(setting, WITH)) for setting in SETTINGS.values()))
    needed = any_holds(*(vanishes(setting, WITHOUT) for setting in SETTINGS.values()))
    return name_verdict(
        all_hold(kept, needed or None, n[LAYER_NORM].above(0.0))
    )  # what never vanishes cannot be prevented


@functools.partial(jax.jit, static_argnums=0)
def measure_attention_health(
    head_dim: int, scale: float, seed: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(entropy of the softmax as a share of its maximum, root mean square gradient with
    respect to the logits) of causal attention with unit-normal queries, keys, values
    and upstream gradients; 64 positions, 8 heads."""
    H, T = 8, 64
    q, k, v, upstream = jax.random.normal(jax.random.key(seed), (4, H, T, head_dim))
    mask = np.tril(np.ones((T, T), bool))[None]
    logits = jnp.einsum("htk,hsk->hts", q, k) * scale

    def output(logits: Float[Array, "H T S"]) -> Float[Array, ""]:
        weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1)
        return (
            weights @ v * upstream
        ).sum() / head_dim**0.5  # so that the upstream signal does not grow with K

    weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1)
    entropy = -jax.scipy.special.xlogy(weights, weights).sum(axis=-1)[:, 1:]
    share = (entropy / jnp.log(jnp.arange(2, T + 1))[None]).mean()
    gradient = jax.grad(output)(logits)
    return share, jnp.sqrt(jnp.square(gradient).sum() / (H * mask.sum()))


def _measure_attention(evidence: Evidence) -> list[dict[str, Any]]:
    rows = []
    for head_dim in evidence.size.head_dims:
        for name, scale in ((SCALED, head_dim**-0.5), (UNSCALED, 1.0)):
            for seed in range(ATTENTION_DRAWS):
                entropy, gradient = (
                    float(x) for x in measure_attention_health(head_dim, scale, seed)
                )
                row = {
                    "head_dim": head_dim,
                    "arm": name,
                    "seed": seed,
                    "entropy": entropy,
                    "gradient": gradient,
                }
                rows.append(row)
    return rows


def summarize_attention(table: Frame) -> dict[str, Estimate]:
    """Gradient at the largest head dimension over that at the smallest, and entropy at
    the largest, with and without the scale."""
    numbers = {}
    for name in (UNSCALED, SCALED):
        rows = table[table["arm"] == name].pivot(
            index="seed", columns="head_dim", values="gradient"
        )
        numbers[f"gradient kept, {name}"] = estimate_mean(
            rows[rows.columns.max()] / rows[rows.columns.min()]
        )
    for name in (UNSCALED, SCALED):
        last = table[
            (table["arm"] == name) & (table["head_dim"] == table["head_dim"].max())
        ]
        numbers[f"entropy left, {name}"] = estimate_mean(last["entropy"])
    return numbers


def _examine_s6(evidence: Evidence) -> Finding:
    table: Frame = pd.DataFrame(
        evidence.measured("attention", lambda: _measure_attention(evidence))
    )
    low, high = table["head_dim"].min(), table["head_dim"].max()
    return Finding(
        summarize_attention(table),
        f"Gradient that the softmax passes back to its logits at head dimension {high} over that at {low}, for "
        "unit-normal queries and keys, as at initialisation, causal attention over 64 positions; and the entropy "
        f"of the softmax at {high}, as a share of its maximum. A row that has settled on one position passes next to "
        "nothing back, an undecided one more, so that the norm may fall less than the entropy. "
        "Normalised or trained queries and keys may have another size.",
        plot_attention(table),
        "Left: gradient with respect to the logits. Right: entropy of the softmax as a share of its maximum. Means "
        "over seeds, against head dimension.",
    )


def _decide_s6(n: Numbers) -> str:
    kept, lost = n[f"gradient kept, {SCALED}"], n[f"gradient kept, {UNSCALED}"]
    harmless = lost.above(0.9)
    falls = False if harmless else True if lost.below(0.5) else None
    return name_verdict(all_hold(kept.within(0.5, 2.0), falls))


@use_style
def plot_residuals(ratios: Frame, rates: Frame) -> Figure:
    """Gradient ratio against depth in four settings; loss against rate with and without
    layer norm.
    """
    fig = make_figure(3.6)
    left, middle, right = fig.subplots(1, 3)
    handles = []
    for (norm, residual), rows in ratios.groupby(["norm", "residual"]):
        means = rows.groupby("depth")[["ratio", "first"]].mean()
        color = BLUE if residual else VERMILLION
        label = f"{'with' if residual else 'no'} residuals, {'layer norm' if norm == 'layernorm' else 'no norm'}"
        look = {
            "marker": "o" if norm == "layernorm" else "s",
            "linestyle": "-" if norm == "layernorm" else "--",
        }
        handles += left.plot(
            means.index,
            means["ratio"],
            color=color,
            markersize=4.5,
            label=label,
            **look,
        )
        middle.plot(
            means.index,
            means["first"] - means["first"].iloc[0],
            color=color,
            markersize=4.5,
            **look,
        )
    for ax, over in ((left, "last block's"), (middle, "shallowest model's")):
        ax.axhline(-1, color=GRAY, linestyle=":", zorder=1)
        set_value_ticks(ax, ratios["depth"])
        ax.set(
            xlabel="Depth (blocks)",
            ylabel=f"log₁₀ of first block's gradient\nnorm over {over}",
        )
    named = rates.assign(
        norm=rates["norm"].map({"layernorm": "layer norm", "none": "no norm"})
    )
    lines = plot_rate_lines(right, named, "norm")
    right.legend(
        handles=lines, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1
    )
    right.set(ylabel=LOSS)
    fig.legend(handles=handles, loc="outside lower left", ncols=2)
    return fig


@use_style
def plot_attention(table: Frame) -> Figure:
    """Gradient with respect to the logits, and entropy, against head dimension."""
    fig = make_figure(HEIGHT)
    left, right = fig.subplots(1, 2)
    handles = []
    for ax, column in ((left, "gradient"), (right, "entropy")):
        handles = []
        for (name, rows), color, marker in zip(
            table.groupby("arm"), (VERMILLION, BLUE), MARKERS, strict=False
        ):
            means = rows.groupby("head_dim")[column].mean()
            label = (
                "not scaled" if name == "not scaled" else r"scaled by $1/\sqrt{d_k}$"
            )
            handles += ax.plot(
                means.index,
                means,
                color=color,
                marker=marker,
                markersize=4.5,
                label=label,
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
        "S5",
        "A",
        "residuals keep gradients, layer norm stabilises",
        "Residual connections prevent vanishing gradients; layer norm stabilises training.",
        "A gradient has vanished where the first block's norm at the greatest depth is below a tenth of the last "
        "block's or of the shallowest model's. Supported if with residuals it vanishes neither under layer norm nor "
        "without any norm, without residuals it does in one of the two, and layer norm widens the range of learning "
        "rates that train (95 % intervals); refuted if it vanishes with residuals or layer norm narrows the range; "
        "undecided if nothing vanishes that could be prevented. Restated after a first look: the rule before it read "
        "models with layer norm alone, and the ratio to the last block alone.",
        _decide_s5,
        "A setting in which gradients vanish with residuals, such as branches that cancel the stream; or the rule "
        "held to one of the two settings alone.",
        _examine_s5,
        ("norms",),
    ),
    Claim(
        "S6",
        "C",
        "1/sqrt(d_k) keeps gradients healthy",
        "Scaling the attention logits by 1/sqrt(d_k) keeps gradients healthy.",
        "Supported if from the smallest to the largest head dimension the gradient through the softmax stays within a "
        "factor of two with the scale and falls to less than half without it (95 % intervals); refuted if it does not "
        "stay so with the scale, or keeps more than nine tenths without it; between the two undecided, which the first "
        "rule, tried once, had counted as refuted.",
        _decide_s6,
        "Queries and keys that are not of unit size, as under QK-norm with a learned gain or muP, of scale 1/d_k.",
        _examine_s6,
    ),
)
