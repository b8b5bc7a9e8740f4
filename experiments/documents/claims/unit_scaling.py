"""Claims of document E about unit scaling: what it does to signals, rates and quality
(S13), and its initialization (S15).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, TypedDict

import jax.numpy as jnp
import numpy as np
import pandas as pd
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
from experiments.documents.claims.recipe import Cells, find_best_cells
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
from experiments.groups import average_by
from scaling.config import ArchitectureConfig, ModelConfig, RunConfig
from scaling.model.architecture import Params
from scaling.model.family import Family, build_family
from scaling.model.probes import measure_activation_scales

Kind = Literal["signal", "gradient"]
KINDS: tuple[Kind, ...] = ("signal", "gradient")


class BranchProfile(TypedDict):
    """Root mean square of a branch's outputs and of the loss's gradient with respect to
    them, [L].
    """

    signal: list[float]
    gradient: list[float]


Profile = dict[str, BranchProfile]
"""By branch of a block."""


class StageProfiles(TypedDict):
    """Profiles of a scheme's models, one per seed, at initialization and trained."""

    start: list[Profile]
    trained: list[Profile]


ReadingProfiles = dict[str, dict[str, list[Profile]]]
"""Profiles by reading and setting, one per seed."""

FORMS = {"normalized_literal": "as written", "normalized": "per column"}
"""The two forms of document E's unit scaling by parametrization."""

READINGS = {"deviation 1/sqrt(n)": "sp", "variance 1/sqrt(n)": "sp_variance"}
"""The two readings of N(0, 1/sqrt(n)) and the parametrizations that follow them."""

ALONE = "no norms, no residuals"
TOGETHER = "norms and residuals"
BOUND = 1.0
"""log10: scales within a factor of ten from block to block."""

BRANCHES = ("attention", "feed_forward")
_SMALLEST_SCALE = 1e-38
"""Scales that underflow are taken as this, so that their logarithm is finite."""


def make_settings(depth: int) -> dict[str, ModelConfig]:
    """S15: models with and without norms and residuals, by name of the setting."""
    model = ModelConfig(
        width=BASE_WIDTH, depth=depth, n_heads=4, head_dim=16, qk_norm=False
    )
    return {
        ALONE: dataclasses.replace(model, norm="none", residual=False),
        "norms, no residuals": dataclasses.replace(
            model, norm="rmsnorm", residual=False
        ),
        "residuals, no norms": dataclasses.replace(model, norm="none", residual=True),
        TOGETHER: dataclasses.replace(model, norm="rmsnorm", residual=True),
    }


def measure_profile(family: Family, params: Params, windows: np.ndarray) -> Profile:
    """Root mean square of every block's branch outputs and of the loss's gradient with
    respect to them, on windows [B, T + 1].
    """
    scales = measure_activation_scales(family, params, jnp.asarray(windows))
    profile: Profile = {}
    for branch in BRANCHES:
        blocks = [scales[f"block{i}.{branch}"] for i in range(family.config.depth)]
        profile[branch] = {
            "signal": [signal for signal, _ in blocks],
            "gradient": [gradient for _, gradient in blocks],
        }
    return profile


def measure_span(profile: Profile, kind: Kind) -> float:
    """log10 of the largest scale over the smallest among blocks, the wider of the two
    kinds of branch.
    """
    spans = []
    for branch in BRANCHES:
        scales = np.maximum(np.abs(profile[branch][kind]), _SMALLEST_SCALE)
        span = np.inf
        if np.isfinite(scales).all():
            span = float(np.log10(scales.max() / scales.min()))
        spans.append(span)
    return max(spans)


def _measure_initial_profiles(
    evidence: Evidence, config: ArchitectureConfig, parametrization: str
) -> list[Profile]:
    """A profile per seed of a model that is initialized under some parametrization."""
    run = make_scheme_runs(evidence.size)[0]
    windows = evidence.heldout(run, 4 * run.model.context)
    family = build_family(dataclasses.replace(config, parametrization=parametrization))
    return [
        measure_profile(family, family.init(seed), windows)
        for seed in evidence.size.seeds
    ]


def _select_best_runs(table: pd.DataFrame, scheme: str) -> list[RunConfig]:
    """The runs, one per seed, at the learning rate of the least mean loss."""
    rows: pd.DataFrame = table.loc[table["parametrization"] == scheme]
    best_rate = average_by(rows, "lr").idxmin()
    return rows.loc[rows["lr"] == best_rate, "run"].tolist()


def _measure_profiles(evidence: Evidence) -> dict[str, StageProfiles]:
    """Of each scheme, profiles at initialization and of the trained models at their
    best rate.
    """
    table = evidence.table("schemes")
    profiles: dict[str, StageProfiles] = {}
    for scheme in SCHEMES:
        runs = _select_best_runs(table, scheme)
        trained = []
        for run in runs:
            params = evidence.params(run)
            if params is not None:
                windows = evidence.heldout(run, 4 * run.model.context)
                family = build_family(run.model)
                trained.append(measure_profile(family, params, windows))
        profiles[scheme] = {
            "start": _measure_initial_profiles(evidence, runs[0].model, scheme),
            "trained": trained,
        }
    return profiles


def measure_widest_spans(profiles: list[Profile]) -> np.ndarray:
    """The wider of the spans of signals and gradients of each profile."""
    spans = [[measure_span(profile, kind) for kind in KINDS] for profile in profiles]
    return np.array([max(pair) for pair in spans])


def summarize_unit_scaling(
    table: pd.DataFrame, profiles: Mapping[str, StageProfiles]
) -> dict[str, Estimate]:
    """S13: of each form of document E's unit scaling, the spans, and octaves and ln
    loss against SP's. The losses come first.
    """
    octaves = measure_octaves_by_arm(table, "parametrization")
    losses = find_best_cells(table, "parametrization")
    starts = {s: measure_widest_spans(profiles[s]["start"]) for s in profiles}
    ends = {s: measure_widest_spans(profiles[s]["trained"]) for s in profiles}
    numbers: dict[str, Estimate] = {}
    for form, name in FORMS.items():
        numbers[f"ln loss over SP's, {name}"] = _compare_with_sp(losses, form)
    for form, name in FORMS.items():
        numbers[f"octaves gained, {name}"] = _compare_with_sp(octaves, form)
        numbers[f"span at the start, {name}"] = _estimate_arm_mean(starts, form)
        numbers[f"span trained, {name}"] = _estimate_arm_mean(ends, form)
    return numbers


def _compare_with_sp(arms: Cells, form: str) -> Estimate:
    """Mean of an arm minus that of `sp`; the variance is pooled over the finite arms."""
    gain = float(np.mean(arms[form]) - np.mean(arms["sp"]))
    finite = [values for values in arms.values() if np.isfinite(values).all()]
    weight = 1 / len(arms[form]) + 1 / len(arms["sp"])
    return estimate_contrast(gain, finite, weight)


def _estimate_arm_mean(arms: Mapping[str, np.ndarray], form: str) -> Estimate:
    """Mean of an arm; the variance is pooled over all arms."""
    mean = float(arms[form].mean())
    return estimate_contrast(mean, list(arms.values()), weight=1 / len(arms[form]))


def _make_scheme_rows(
    table: pd.DataFrame, profiles: Mapping[str, StageProfiles]
) -> list[Row]:
    octaves = measure_octaves_by_arm(table, "parametrization")
    losses = find_best_cells(table, "parametrization")
    rows = []
    for scheme in SCHEMES:
        rates: pd.Series = table.loc[table["parametrization"] == scheme, "lr"]
        best_rate = _select_best_runs(table, scheme)[0].optim.lr
        shown_rate = f"{best_rate:.2g}"
        if best_rate in (rates.min(), rates.max()):
            shown_rate += ", at the grid's edge"
        start = measure_widest_spans(profiles[scheme]["start"]).mean()
        trained = measure_widest_spans(profiles[scheme]["trained"]).mean()
        rows.append(
            {
                "parametrization": scheme,
                "best rate": shown_rate,
                "best loss": f"{np.exp(np.mean(losses[scheme])):.3f}",
                "octaves that train": f"{octaves[scheme].mean():.1f}",
                "span at the start": f"{start:.2f}",
                "span trained": f"{trained:.2f}",
            }
        )
    return rows


def _examine_s13(evidence: Evidence) -> Finding:
    table = evidence.table("schemes")
    profiles = evidence.measured("schemes", lambda: _measure_profiles(evidence))
    return Finding(
        numbers=summarize_unit_scaling(table, profiles),
        remark=(
            "The documents' unit scaling: weights divided by their norm after every "
            "step; as written, the norm is of the whole tensor; per column, each "
            "column keeps unit norm and a learned scale (nGPT, arXiv:2410.01131). "
            "Spans are log10 of the largest over the smallest scale among blocks, of "
            "signals or gradients, at initialization and after training at each "
            "scheme's best rate, 4 blocks. Octaves and losses: "
            f"{evidence.size.short:,} tokens, rates a factor of 4 apart, a rate trains "
            f"within {LIMIT} times the best loss of all schemes. 'unit' is the unit "
            "scaling of Blake et al. 2023 (arXiv:2303.11257)."
        ),
        figure=plot_schemes(table),
        caption=(
            "Loss against learning rate under each parametrization, means over seeds; "
            "crosses at the top are losses beyond it."
        ),
        table=_make_scheme_rows(table, profiles),
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


def _measure_initializations(evidence: Evidence) -> ReadingProfiles:
    """Of each reading, profiles at initialization in every setting; the readings differ
    in nothing else.
    """
    settings = make_settings(evidence.size.deep)
    return {
        reading: {
            setting: _measure_initial_profiles(evidence, model, scheme)
            for setting, model in settings.items()
        }
        for reading, scheme in READINGS.items()
    }


def summarize_initializations(profiles: ReadingProfiles) -> dict[str, Estimate]:
    """S15: spans of signals and gradients of each reading, alone and with norms and
    residuals.
    """
    numbers = {}
    for setting in (ALONE, TOGETHER):
        for reading in READINGS:
            for kind in KINDS:
                spans = [measure_span(p, kind) for p in profiles[reading][setting]]
                name = f"span of {kind}s, {reading}, {setting}"
                numbers[name] = estimate_mean(spans)
    return numbers


def _make_initialization_rows(profiles: ReadingProfiles) -> list[Row]:
    rows = []
    for reading, by_setting in profiles.items():
        for setting, by_seed in by_setting.items():
            row = {"reading": reading, "setting": setting}
            for kind in KINDS:
                span = np.mean([measure_span(profile, kind) for profile in by_seed])
                row[f"span of {kind}s"] = f"{span:.2f}"
            rows.append(row)
    return rows


def _examine_s15(evidence: Evidence) -> Finding:
    # The name is that of a file which is kept, so its spelling stays.
    profiles = evidence.measured(
        "initialisations", lambda: _measure_initializations(evidence)
    )
    series = {}
    for label, setting in (("neither", ALONE), (TOGETHER, TOGETHER)):
        for reading in READINGS:
            first_seed = profiles[reading][setting][0]
            series[f"{reading}, {label}"] = first_seed["feed_forward"]
    return Finding(
        numbers=summarize_initializations(profiles),
        remark=(
            f"{evidence.size.deep} blocks of width {BASE_WIDTH} at initialization, no "
            "QK-norm; n is the fan-in. A deviation of 1/sqrt(n) is a variance of 1/n, "
            "the usual initialization. Spans are log10 of the largest over the "
            "smallest scale among blocks; a span of 1 is a factor of ten."
        ),
        figure=plot_profiles(series),
        caption=(
            "Scale of the feed-forward branches' outputs, over the first block's, and "
            "of the gradients with respect to them, over the last block's; one seed. "
            "The band is a factor of ten either way."
        ),
        table=_make_initialization_rows(profiles),
    )


def _decide_s15(n: Numbers) -> str:
    def keeps_scale(reading: str) -> bool | None:
        spans = [number for name, number in n.items() if f", {reading}, " in name]
        return all_hold(*(span.below(BOUND) for span in spans))

    return name_verdict(any_holds(*(keeps_scale(reading) for reading in READINGS)))


@use_style
def plot_schemes(table: pd.DataFrame) -> Figure:
    """Loss against rate, one line per parametrization."""
    fig = make_figure(HEIGHT)
    ax = fig.add_subplot()
    handles = plot_rate_lines(ax, table, "parametrization")
    ax.set(ylabel=LOSS)
    fig.legend(handles=handles, title="Parametrization", loc="outside right upper")
    return fig


@use_style
def plot_profiles(series: Mapping[str, BranchProfile], bound: float = 10.0) -> Figure:
    """Scale of signals and gradients block by block, one panel each and one line per
    arm.
    """
    fig = make_figure(HEIGHT + 0.3)
    axes = fig.subplots(1, 2)
    handles = []
    for ax, kind in zip(axes, KINDS, strict=True):
        handles = []
        for (arm, profile), color, marker in zip(
            series.items(), sample_colors(len(series)), MARKERS, strict=False
        ):
            scales = np.asarray(profile[kind], float)
            reference = scales[0] if kind == "signal" else scales[-1]
            handles += ax.plot(
                np.arange(1, len(scales) + 1),
                scales / reference,
                color=color,
                marker=marker,
                markersize=3.5,
                label=arm,
            )
        ax.axhspan(1 / bound, bound, color=GRAY, alpha=0.12, linewidth=0, zorder=0)
        ax.set(yscale="log", xlabel="Block")
    axes[0].set(ylabel="Signal (rms) over the first block's")
    axes[1].set(ylabel="Gradient (rms) over the last block's")
    fig.legend(handles=handles, loc="outside upper left", ncols=2)
    return fig


CLAIMS = (
    Claim(
        id="S13",
        documents="E",
        short="unit scaling: healthy signals, stable, better",
        statement=(
            "Unit scaling avoids vanishing and exploding signals and improves "
            "stability and quality."
        ),
        rule=(
            "Supported if the documents' unit scaling, as written or per column, "
            "keeps signals and gradients within a factor of ten from block to block "
            "at the start and after training, widens the range of rates that train, "
            "and lowers the loss at equal compute, against SP (95 % intervals); "
            "refuted if both forms fail in one of these."
        ),
        decide=_decide_s13,
        change=(
            "Rates, widths or lengths at which the normalized forms overtake SP; "
            "each form at its best rate is compared."
        ),
        experiment=_examine_s13,
        needs=("schemes",),
    ),
    Claim(
        id="S15",
        documents="E",
        short="N(0, 1/sqrt(n)) keeps gradients",
        statement=(
            "Initializing from N(0, 1/sqrt(n)) prevents vanishing and exploding "
            "gradients."
        ),
        rule=(
            "Supported if under one of the two readings, variance or deviation, "
            "signals and gradients stay within a factor of ten over all blocks both "
            "without norms and residuals and with them (95 % intervals); refuted if "
            "neither reading does."
        ),
        decide=_decide_s15,
        change=(
            "Fewer blocks, or norms and residuals taken for granted: then they, not "
            "the initialization, keep the scale."
        ),
        experiment=_examine_s15,
    ),
)
