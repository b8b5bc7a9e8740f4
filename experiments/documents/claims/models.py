"""S11, S17, S19: what trained models are used for: fine-tuning, compression, and writing
text.

The models are those of the family, at its largest token budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.plots.style import (
    BLUE,
    GRAY,
    MARKERS,
    VERMILLION,
    make_figure,
    sample_colors,
    use_style,
)
from experiments.documents.evidence import Evidence
from experiments.documents.figures import FREE, HEIGHT, set_value_ticks
from experiments.documents.statement import (
    Claim,
    Finding,
    Numbers,
    all_hold,
    name_verdict,
)
from experiments.documents.stats import estimate_mean
from experiments.groups import average_by
from scaling.compression.prune import PruningConfig, prune_model
from scaling.compression.quantize import QuantizationConfig, quantize_model
from scaling.config import RunConfig
from scaling.execution.finetune import FinetuneConfig, plan_finetuning
from scaling.execution.sweep import sweep
from scaling.inference.generation import Generation
from scaling.inference.load import load
from scaling.inference.model import TrainedModel
from scaling.planning.plan import Plan

# --- S11 ------------------------------------------------------------------------------

TASKS = ("package_of_file", "addition:digits=2")
"""The small target corpora: which package a piece of source comes from, and sums. They
need nothing that is not installed with the library."""

EXAMPLES = 250
EPOCHS = (2.0, 8.0, 32.0)
RATES = (0.3, 1.0)
"""Learning rates over the parent's; each side takes its best."""


def name_gain(task: str) -> str:
    """The name of a task's number."""
    return f"ln loss of the task alone over fine-tuned, {task.partition(':')[0]}"


def _examine_s11(evidence: Evidence) -> Finding:
    losses = pd.DataFrame(evidence.measured("finetuning", lambda: _tune_all(evidence)))
    numbers = {}
    for task in TASKS:
        rows = losses.loc[losses["task"] == task]
        gains = np.log(rows["alone"] / rows["tuned"])
        numbers[name_gain(task)] = estimate_mean(gains)
    return Finding(
        numbers=numbers,
        remark=(
            f"{EXAMPLES:,} examples of each task, on which models of "
            f"{losses['width'].nunique()} widths were trained from fresh parameters and "
            "from those of pre-training on source code. Each side takes the best of "
            f"{len(RATES)} learning rates and {len(EPOCHS)} numbers of epochs "
            "on the held-out examples. The loss is that of the answers."
        ),
        figure=plot_finetuning(losses),
        caption="Held-out loss of the answers, trained on the task alone (hollow) and "
        "after pre-training (filled).",
    )


def _tune_all(evidence: Evidence) -> dict[str, list]:
    """The best loss of every model and task, as columns."""
    parents = select_parents(evidence)
    rows = []
    for task in TASKS:
        tuned = _find_best_losses(evidence, parents, task, from_scratch=False)
        alone = _find_best_losses(evidence, parents, task, from_scratch=True)
        for parent, width in zip(parents["run_id"], parents["width"], strict=True):
            losses = {"tuned": tuned[parent], "alone": alone[parent]}
            rows.append({"task": task, "width": width, **losses})
    return pd.DataFrame(rows).to_dict("list")


def select_parents(evidence: Evidence) -> pd.DataFrame:
    """The models of every second width, the widest among them, with all seeds."""
    table = evidence.table("family")
    longest: pd.DataFrame = table.loc[table["tokens"] == table["tokens"].max()]
    widths = sorted(longest["width"].unique())[::-2]
    return longest.loc[longest["width"].isin(widths)]


def _find_best_losses(
    evidence: Evidence, parents: pd.DataFrame, task: str, from_scratch: bool
) -> dict[str, float]:
    """The lowest held-out loss of each parent, over learning rates and epochs."""
    owners: dict[RunConfig, str] = {}
    for row in parents.to_dict("records"):
        parent = str(row["run_id"])
        for factor in RATES:
            config = FinetuneConfig(
                task,
                examples=(EXAMPLES,),
                epochs=EPOCHS,
                seeds=(int(row["seed"]),),
                lr_factor=factor,
                from_scratch=from_scratch,
            )
            (group,) = plan_finetuning(evidence.out / "runs" / parent, config)
            for run in group:
                owners[run] = parent
    plan = Plan("finetuning", tuple(owners))
    table = sweep(plan, evidence.out / "finetuned", workers=evidence.workers)
    losses = dict(zip(table["run_id"], table["loss"], strict=True))
    best = {parent: math.inf for parent in owners.values()}
    for run, parent in owners.items():
        # A run that diverged has no loss.
        best[parent] = np.fmin(best[parent], losses[run.run_id]).item()
    return best


def _decide_s11(n: Numbers) -> str:
    return name_verdict(all_hold(*[n[name_gain(task)].above(0.0) for task in TASKS]))


@use_style
def plot_finetuning(losses: pd.DataFrame) -> Figure:
    """Losses over width by task, with and without pre-training."""
    fig = make_figure(HEIGHT)
    axes = fig.subplots(1, len(TASKS))
    for ax, task in zip(axes, TASKS, strict=True):
        rows = losses.loc[losses["task"] == task]
        ax.plot(
            rows["width"],
            rows["alone"],
            "o",
            color=VERMILLION,
            markerfacecolor="white",
            **FREE,
            label="the task alone",
        )
        ax.plot(
            rows["width"], rows["tuned"], "o", color=BLUE, **FREE, label="fine-tuned"
        )
        ax.set(title=task, xlabel="Width")
        ax.set_xticks(sorted(rows["width"].unique()))
    axes[0].set(ylabel="Loss of the answers (nats per token)")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=2)
    return fig


# --- S17 ------------------------------------------------------------------------------

LITTLE = 0.01
"""A rise of the loss by less than this share is little."""

SMALLEST_BITS = 4

COMPRESSIONS: dict[str, QuantizationConfig | PruningConfig] = {
    "8 bits": QuantizationConfig(bits=8),
    "4 bits": QuantizationConfig(bits=SMALLEST_BITS),
    "a quarter pruned": PruningConfig(sparsity=0.25),
    "a half pruned": PruningConfig(sparsity=0.5),
}
ROUNDED = "8 bits"
PRUNED = "a half pruned"
"""What the rule reads: the gentler of both that hold the matrices in half their bytes."""


def name_rise(compression: str) -> str:
    """The name of a compression's number."""
    return f"relative rise of the loss, {compression}"


def _examine_s17(evidence: Evidence) -> Finding:
    rises = pd.DataFrame(evidence.measured("compression", lambda: _compress(evidence)))
    order = [PRUNED, ROUNDED, *COMPRESSIONS]
    numbers = {}
    for name in dict.fromkeys(order):
        rows = rises.loc[rises["compression"] == name]
        numbers[name_rise(name)] = estimate_mean(rows["rise"])
    return Finding(
        numbers=numbers,
        remark=(
            "The models of all widths and seeds at the largest budget. The matrices that "
            "multiply activations are rounded to nearest with a scale for each output, "
            "or lose their smallest weights, without training afterwards."
        ),
        figure=plot_compression(rises),
        caption="Relative rise of the held-out loss of each model. The dashed line is "
        "what counts as little.",
    )


def _compress(evidence: Evidence) -> dict[str, list]:
    """The relative rise of the loss of every model and compression, as columns."""
    table = evidence.table("family")
    longest = table.loc[table["tokens"] == table["tokens"].max()]
    rows = []
    for run_id, width in zip(longest["run_id"], longest["width"], strict=True):
        model = load(evidence.out / "runs" / run_id)
        before = model.evaluate_heldout().loss
        for name, settings in COMPRESSIONS.items():
            if isinstance(settings, QuantizationConfig):
                smaller = quantize_model(model, settings).dequantize()
            else:
                smaller = prune_model(model, settings).model
            rise = smaller.evaluate_heldout().loss / before - 1
            rows.append({"compression": name, "width": width, "rise": rise})
    return pd.DataFrame(rows).to_dict("list")


def _decide_s17(n: Numbers) -> str:
    little = [n[name_rise(name)].below(LITTLE) for name in (ROUNDED, PRUNED)]
    return name_verdict(all_hold(*little))


@use_style
def plot_compression(rises: pd.DataFrame) -> Figure:
    """The rise of the loss over width, a line for each compression."""
    fig = make_figure(HEIGHT)
    ax = fig.add_subplot()
    names = list(COMPRESSIONS)
    for name, color, marker in zip(
        names, sample_colors(len(names)), MARKERS, strict=False
    ):
        rows = rises.loc[rises["compression"] == name]
        means = average_by(rows, "width", "rise")
        ax.plot(means.index, means, color=color, marker=marker, label=name)
    ax.axhline(LITTLE, color=GRAY, linestyle="--", zorder=1)
    set_value_ticks(ax, rises["width"])
    # Rounding to 8 bits may lower the loss a little.
    ax.set_yscale("symlog", linthresh=LITTLE / 10)
    ax.set(xlabel="Width", ylabel="Relative rise of the loss")
    fig.legend(loc="outside right upper")
    return fig


# --- S19 ------------------------------------------------------------------------------

BEAMS = 4
PROMPTS = 64
READ = 32
WRITTEN = 48
"""Tokens of a prompt, and of the text after it."""

LIKELIER = "nats per token that beam search gains"
LESS_REPEATED = "share of repeated words that beam search avoids"
WORD = 4
"""Tokens of what may be repeated."""


def _examine_s19(evidence: Evidence) -> Finding:
    found = evidence.measured("beams", lambda: _write_texts(evidence))
    gains = np.asarray(found["beams"]) - np.asarray(found["greedy"])
    repeated = np.asarray(found["greedy_repeated"]) - np.asarray(
        found["beams_repeated"]
    )
    numbers = {
        LESS_REPEATED: estimate_mean(repeated),
        LIKELIER: estimate_mean(gains),
    }
    return Finding(
        numbers=numbers,
        remark=(
            f"{PROMPTS} prompts of {READ} tokens of held-out source code, each continued "
            f"by {WRITTEN} tokens, greedily and with {BEAMS} beams, by the widest model. "
            f"A repeated word is a sequence of {WORD} tokens that has occurred in the "
            "text before."
        ),
        figure=plot_texts(found),
        caption="Each dot is a prompt: log-probability of a token, and share of repeated "
        "words, by beam search over greedily.",
    )


def _write_texts(evidence: Evidence) -> dict[str, list[float]]:
    """Log-probability of a token and share of repeated words, for each prompt."""
    table = evidence.table("family")
    widest = table.sort_values(["width", "tokens", "seed"]).iloc[-1]
    model = load(evidence.out / "runs" / widest["run_id"])
    prompts = cut_prompts(evidence, model)
    settings = {"max_tokens": WRITTEN, "ends_with_document": False}
    greedy = model.generate(prompts, temperature=0.0, **settings)
    beams = model.generate(prompts, beams=BEAMS, **settings)
    return {
        "greedy": [text.log_probability / WRITTEN for text in greedy],
        "beams": [text.log_probability / WRITTEN for text in beams],
        "greedy_repeated": [measure_repetition(text) for text in greedy],
        "beams_repeated": [measure_repetition(text) for text in beams],
    }


def cut_prompts(evidence: Evidence, model: TrainedModel) -> list[str]:
    """The beginnings of windows that lie evenly over the held-out slice."""
    windows = evidence.heldout(model.run, PROMPTS * model.context)
    tokenizer = model.require_tokenizer()
    return [tokenizer.decode(window[:READ]) for window in windows[:PROMPTS]]


def measure_repetition(text: Generation) -> float:
    """The share of a text's sequences of `WORD` tokens that occurred in it before."""
    tokens = text.tokens.tolist()
    words = [tuple(tokens[i : i + WORD]) for i in range(len(tokens) - WORD + 1)]
    return 1 - len(set(words)) / len(words)


def _decide_s19(n: Numbers) -> str:
    return name_verdict(all_hold(n[LIKELIER].above(0.0), n[LESS_REPEATED].above(0.0)))


@use_style
def plot_texts(found: Mapping[str, Sequence[float]]) -> Figure:
    """Both measures of each prompt, by beam search over greedily."""
    fig = make_figure(HEIGHT)
    axes = fig.subplots(1, 2)
    panels = (
        ("greedy", "beams", "Log-probability of a token (nats)"),
        ("greedy_repeated", "beams_repeated", "Share of repeated words"),
    )
    for ax, (x, y, title) in zip(axes, panels, strict=True):
        ax.plot(found[x], found[y], "o", color=BLUE, alpha=0.6, **FREE)
        low = min(*found[x], *found[y])
        high = max(*found[x], *found[y])
        ax.plot([low, high], [low, high], color="gray", linewidth=0.8)
        ax.set(title=title, xlabel="Greedy", ylabel=f"{BEAMS} beams")
    return fig


CLAIMS = (
    Claim(
        id="S11",
        documents="B, C, D",
        short="pre-training then fine-tuning beats the task alone",
        statement=(
            "Pre-training followed by fine-tuning beats training on the task alone."
        ),
        rule=(
            "Supported if on both tasks the loss of the held-out answers is lower after "
            "pre-training (95 % intervals of ln alone/fine-tuned, over widths and seeds, "
            "above 0); refuted if it is higher on one."
        ),
        decide=_decide_s11,
        change=(
            "More examples: with enough of them nothing is left that pre-training "
            "could give. A target that has nothing in common with the text."
        ),
        experiment=_examine_s11,
        needs=("family",),
    ),
    Claim(
        id="S17",
        documents="A, C, D",
        short="compression saves memory at little loss",
        statement=(
            "Compression, by pruning and by quantization, saves memory at little loss."
        ),
        rule=(
            "Supported if the loss rises by less than 1 % both where the matrices are "
            "rounded to 8 bits and where half of their weights are pruned (95 % "
            "intervals over models); refuted if it rises by more under one of them."
        ),
        decide=_decide_s17,
        change=(
            "Training after pruning, or larger models, which have weights to spare: "
            "half of theirs go at little loss."
        ),
        experiment=_examine_s17,
        needs=("family",),
    ),
    Claim(
        id="S19",
        documents="A",
        short="beam search beats greedy decoding",
        statement="Beam search gives better text than greedy decoding.",
        rule=(
            "Supported if the text of beam search is likelier to the model and repeats "
            "itself less (95 % intervals over prompts above 0); refuted if one of the "
            "two is worse."
        ),
        decide=_decide_s19,
        change=(
            "A judge of quality other than likelihood and repetition; a penalty on "
            "repetition; larger models, which repeat themselves less."
        ),
        experiment=_examine_s19,
        needs=("family",),
    ),
)
