"""Claims about unit scaling: what it does to signals, rates and quality (S13), and its
initialisation (S15).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from analysis.plots.style import (
    GRAY,
    LOSS,
    MARKERS,
    make_figure,
    sample_colors,
    use_style,
)
from experiments.documents.claims.activations import LIMIT, measure_octaves_by_arm
from experiments.documents.claims.recipe import find_best_cells
from experiments.documents.evidence import Evidence
from experiments.documents.figures import HEIGHT, plot_rate_lines
from experiments.documents.grids import BASE_WIDTH, SCHEMES, make_scheme_runs
from experiments.documents.statement import (
    Claim,
    Estimate,
    Finding,
    Numbers,
    Row,
    all_hold,
    any_holds,
    name_verdict,
)
from experiments.documents.stats import estimate_contrast, estimate_mean
from experiments.frames import Frame
from scaling.config import ModelConfig, RunConfig
from scaling.model.probes import measure_activation_scales
from scaling.model.transformer import Family, Params, build_family

Profile = dict[
    str, dict[str, list[float]]
]  # branch -> {"signal": [L], "gradient": [L]}
FORMS = {
    "normalized_literal": "as written",
    "normalized": "per column",
}  # of the documents' unit scaling
READINGS = {"deviation 1/sqrt(n)": "sp", "variance 1/sqrt(n)": "sp_variance"}
ALONE, TOGETHER = "no norms, no residuals", "norms and residuals"
SETTINGS: dict[str, dict[str, Any]] = {
    ALONE: {"norm": "none", "residual": False},
    "norms, no residuals": {"norm": "rmsnorm", "residual": False},
    "residuals, no norms": {"norm": "none", "residual": True},
    TOGETHER: {"norm": "rmsnorm", "residual": True},
}
BOUND = 1.0  # log10: scales within a factor of ten from block to block
BRANCHES = ("attention", "feed_forward")


def measure_profile(
    family: Family, params: Params, windows_BxT1: np.ndarray
) -> Profile:
    """Root mean square of every block's branch outputs and of the loss's gradient with
    respect to them.
    """
    scales = measure_activation_scales(family, params, jnp.asarray(windows_BxT1))
    return {
        branch: {
            kind: [
                scales[f"block{i}.{branch}"][place] for i in range(family.config.depth)
            ]
            for place, kind in enumerate(("signal", "gradient"))
        }
        for branch in BRANCHES
    }


def measure_span(found: Profile, kind: str) -> float:
    """log10 of the largest scale over the smallest among blocks, the wider of the two
    kinds of branch.
    """
    values = [np.maximum(np.abs(found[branch][kind]), 1e-38) for branch in BRANCHES]
    return max(
        float(np.log10(v.max() / v.min())) if np.isfinite(v).all() else np.inf
        for v in values
    )


def _measure_initial_profiles(
    evidence: Evidence, config: ModelConfig, parametrization: str
) -> list[Profile]:
    """A profile per seed of a model initialised under some parametrisation."""
    run = make_scheme_runs(evidence.size)[0]
    windows = evidence.heldout(run, 4 * run.model.context)
    family = build_family(dataclasses.replace(config, parametrization=parametrization))
    return [
        measure_profile(family, family.init(seed), windows)
        for seed in evidence.size.seeds
    ]


def _select_best_runs(table: Frame, scheme: str) -> list[RunConfig]:
    rows = table[table["parametrization"] == scheme]
    rate = rows.groupby("lr")["loss"].mean().idxmin()
    return list(rows.loc[rows["lr"] == rate, "run"])


def _measure_profiles(evidence: Evidence) -> dict[str, dict[str, list[Profile]]]:
    """Of each scheme, profiles at initialisation and of the trained models at their
    best rate.
    """
    table, found = evidence.table("schemes"), {}
    for scheme in SCHEMES:
        trained, runs = [], _select_best_runs(table, scheme)
        for run in runs:
            params = evidence.params(run)
            if params is not None:
                trained.append(
                    measure_profile(
                        build_family(run.model),
                        params,
                        evidence.heldout(run, 4 * run.model.context),
                    )
                )
        found[scheme] = {
            "start": _measure_initial_profiles(evidence, runs[0].model, scheme),
            "trained": trained,
        }
    return found


def measure_widest_spans(profiles: list[Profile]) -> np.ndarray:
    """The wider of the spans of signals and gradients of each profile."""
    return np.array(
        [
            max(measure_span(one, "signal"), measure_span(one, "gradient"))
            for one in profiles
        ]
    )


def summarize_unit_scaling(
    table: Frame, profiles: dict[str, dict[str, list[Profile]]]
) -> dict[str, Estimate]:
    """S13: of each form of the documents' unit scaling, the spans, and octaves and ln
    loss against SP's.
    """
    octaves, cells = (
        measure_octaves_by_arm(table, "parametrization"),
        find_best_cells(table, "parametrization"),
    )
    numbers: dict[str, Estimate] = {}
    for form, name in FORMS.items():
        for what, arms in (("octaves gained", octaves), ("ln loss over SP's", cells)):
            weight = 1 / len(arms[form]) + 1 / len(arms["sp"])
            gain = float(np.mean(arms[form]) - np.mean(arms["sp"]))
            finite = [values for values in arms.values() if np.isfinite(values).all()]
            numbers[f"{what}, {name}"] = estimate_contrast(gain, finite, weight)
        for stage, label in (("start", "at the start"), ("trained", "trained")):
            spans = {
                scheme: measure_widest_spans(found[stage])
                for scheme, found in profiles.items()
            }
            value, weight = float(spans[form].mean()), 1 / len(spans[form])
            numbers[f"span {label}, {name}"] = estimate_contrast(
                value, list(spans.values()), weight
            )
    return dict(
        sorted(numbers.items(), key=lambda item: not item[0].startswith("ln loss"))
    )


def _make_scheme_rows(
    table: Frame, profiles: dict[str, dict[str, list[Profile]]]
) -> list[Row]:
    octaves, cells = (
        measure_octaves_by_arm(table, "parametrization"),
        find_best_cells(table, "parametrization"),
    )
    best = {scheme: _select_best_runs(table, scheme)[0].optim.lr for scheme in SCHEMES}
    grids = {
        scheme: table.loc[table["parametrization"] == scheme, "lr"]
        for scheme in SCHEMES
    }
    return [
        {
            "parametrisation": scheme,
            "best rate": f"{best[scheme]:.2g}"
            + (
                ", at the grid's edge"
                if best[scheme] in (grids[scheme].min(), grids[scheme].max())
                else ""
            ),
            "best loss": f"{np.exp(np.mean(cells[scheme])):.3f}",
            "octaves that train": f"{octaves[scheme].mean():.1f}",
            "span at the start": f"{measure_widest_spans(profiles[scheme]['start']).mean():.2f}",
            "span trained": f"{measure_widest_spans(profiles[scheme]['trained']).mean():.2f}",
        }
        for scheme in SCHEMES
    ]


def _examine_s13(evidence: Evidence) -> Finding:
    table = evidence.table("schemes")
    profiles = evidence.measured("schemes", lambda: _measure_profiles(evidence))
    return Finding(
        summarize_unit_scaling(table, profiles),
        "The documents' unit scaling: weights divided by their norm after every step; as written, the norm is of the "
        "whole tensor; per column, each column keeps unit norm and a learned scale (nGPT, arXiv:2410.01131). Spans are "
        "log10 of the largest over the smallest scale among blocks, of signals or gradients, at initialisation "
        "and after training at each scheme's best rate, 4 blocks. Octaves and losses: "
        f"{evidence.size.short:,} tokens, rates a factor of 4 apart, a rate trains within {LIMIT} times the "
        "best loss of all schemes. 'unit' is the unit scaling of Blake et al. 2023 (arXiv:2303.11257).",
        plot_schemes(table),
        "Loss against learning rate under each parametrisation, means over seeds; crosses at the top are losses "
        "beyond it.",
        _make_scheme_rows(table, profiles),
    )


def _decide_s13(n: Numbers) -> str:
    forms = [
        all_hold(
            n[f"span at the start, {name}"].below(BOUND),
            n[f"span trained, {name}"].below(BOUND),
            n[f"octaves gained, {name}"].above(0.0),
            n[f"ln loss over SP's, {name}"].below(0.0),
        )
        for name in FORMS.values()
    ]
    return name_verdict(any_holds(*forms))


def _measure_initializations(evidence: Evidence) -> dict[str, dict[str, list[Profile]]]:
    """Of each reading, profiles at initialisation in every setting; the readings differ
    in nothing else.
    """
    shape = {
        "width": BASE_WIDTH,
        "depth": evidence.size.deep,
        "n_heads": 4,
        "head_dim": 16,
        "qk_norm": False,
    }
    return {
        reading: {
            setting: _measure_initial_profiles(
                evidence, ModelConfig(**shape, **options), scheme
            )
            for setting, options in SETTINGS.items()
        }
        for reading, scheme in READINGS.items()
    }


def summarize_initializations(
    profiles: dict[str, dict[str, list[Profile]]],
) -> dict[str, Estimate]:
    """S15: spans of signals and gradients of each reading, alone and with norms and
    residuals.
    """
    return {
        f"span of {kind}s, {reading}, {setting}": estimate_mean(
            [measure_span(one, kind) for one in profiles[reading][setting]]
        )
        for setting in (ALONE, TOGETHER)
        for reading in READINGS
        for kind in ("signal", "gradient")
    }


def _examine_s15(evidence: Evidence) -> Finding:
    profiles = evidence.measured(
        "initialisations", lambda: _measure_initializations(evidence)
    )
    alone = {
        reading: profiles[reading][ALONE][0]["feed_forward"] for reading in READINGS
    }
    full = {
        f"{reading}, {TOGETHER}": profiles[reading][TOGETHER][0]["feed_forward"]
        for reading in READINGS
    }
    rows: list[Row] = [
        {"reading": reading, "setting": setting}
        | {
            f"span of {kind}s": f"{np.mean([measure_span(one, kind) for one in profiles[reading][setting]]):.2f}"
            for kind in ("signal", "gradient")
        }
        for reading in READINGS
        for setting in SETTINGS
    ]
    return Finding(
        summarize_initializations(profiles),
        f"{evidence.size.deep} blocks of width {BASE_WIDTH} at initialisation, no QK-norm; n is the "
        "fan-in. A deviation of 1/sqrt(n) is a variance of 1/n, the usual initialisation. Spans are log10 of the "
        "largest over the smallest scale among blocks; a span of 1 is a factor of ten.",
        plot_profiles(
            {f"{name}, neither": series for name, series in alone.items()} | full
        ),
        "Scale of the feed-forward branches' outputs, over the first block's, and of the gradients with respect to "
        "them, over the last block's; one seed. The band is a factor of ten either way.",
        rows,
    )


def _decide_s15(n: Numbers) -> str:
    readings = [
        all_hold(
            *(
                number.below(BOUND)
                for name, number in n.items()
                if f", {reading}, " in name
            )
        )
        for reading in READINGS
    ]
    return name_verdict(any_holds(*readings))


@use_style
def plot_schemes(table: Frame) -> Figure:
    """Loss against rate, one line per parametrisation."""
    fig = make_figure(HEIGHT)
    ax = fig.add_subplot()
    handles = plot_rate_lines(ax, table, "parametrization")
    ax.set(ylabel=LOSS)
    fig.legend(handles=handles, title="Parametrisation", loc="outside right upper")
    return fig


@use_style
def plot_profiles(
    layers: dict[str, dict[str, list[float]]], bound: float = 10.0
) -> Figure:
    """Scale of signals and gradients block by block, one panel each: arm -> {"signal":
    [L], "gradient": [L]}.
    """
    fig = make_figure(HEIGHT + 0.3)
    axes = fig.subplots(1, 2)
    handles: list[Any] = []
    for ax, kind in zip(axes, ("signal", "gradient"), strict=True):
        handles = []
        for (arm, series), color, marker in zip(
            layers.items(), sample_colors(len(layers)), MARKERS, strict=False
        ):
            values = np.asarray(series[kind], float)
            values = values / (values[0] if kind == "signal" else values[-1])
            x = np.arange(1, len(values) + 1)
            handles += ax.plot(
                x, values, color=color, marker=marker, markersize=3.5, label=arm
            )
        ax.axhspan(1 / bound, bound, color=GRAY, alpha=0.12, linewidth=0, zorder=0)
        ax.set(yscale="log", xlabel="Block")
    axes[0].set(ylabel="Signal (rms) over the first block's")
    axes[1].set(ylabel="Gradient (rms) over the last block's")
    fig.legend(handles=handles, loc="outside upper left", ncols=2)
    return fig


CLAIMS = (
    Claim(
        "S13",
        "E",
        "unit scaling: healthy signals, stable, better",
        "Unit scaling avoids vanishing and exploding signals and improves stability and quality.",
        "Supported if the documents' unit scaling, as written or per column, keeps signals and gradients within a "
        "factor of ten from block to block at the start and after training, widens the range of rates that train, and "
        "lowers the loss at equal compute, against SP (95 % intervals); refuted if both forms fail in one of these.",
        _decide_s13,
        "Rates, widths or lengths at which the normalised forms overtake SP; each form at its best rate is compared.",
        _examine_s13,
        ("schemes",),
    ),
    Claim(
        "S15",
        "E",
        "N(0, 1/sqrt(n)) keeps gradients",
        "Initialising from N(0, 1/sqrt(n)) prevents vanishing and exploding gradients.",
        "Supported if under one of the two readings, variance or deviation, signals and gradients stay within a factor "
        "of ten over all blocks both without norms and residuals and with them (95 % intervals); refuted if neither "
        "reading does.",
        _decide_s15,
        "Fewer blocks, or norms and residuals taken for granted: then they, not the initialisation, keep the scale.",
        _examine_s15,
    ),
)
