"""The loss on the held-out slice of a dataset, and of a mixture on each of its sources.

Axes: M held-out windows, T1 tokens of a window.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from scaling.data import Dataset
from scaling.training.step import (
    Evaluation,
    Executable,
    TrainState,
    WindowLosses,
    summarize_losses,
)


@dataclass(frozen=True)
class HeldoutLoss:
    """The loss on a held-out slice.

    Attributes:
        whole: Of a mixture the mean over its sources by their weights in the last stage,
            which a source that this stage leaves out does not enter.
        by_source: Of each source of a mixture.
    """

    whole: Evaluation
    by_source: dict[str, Evaluation]


def describe_sources(
    dataset: Dataset, tokens: list[int], by_source: dict[str, Evaluation]
) -> str:
    """What a run saw and learned of each source of a mixture, as JSON: the weight in the
    last stage, the tokens trained on, how often they were seen, and the held-out loss
    with its standard error, which a run that diverged does not have.

    Args:
        dataset: The mixture.
        tokens: That the run trained on, by source.
        by_source: The losses.
    """
    described = {}
    for component, seen in zip(dataset.components, tokens, strict=True):
        epochs = max(1.0, seen / len(component.dataset.train)) if seen else 0.0
        values: dict[str, float] = {
            "weight": component.weight,
            "tokens": seen,
            "epochs": epochs,
        }
        found = by_source.get(component.source)
        if found is not None:
            bits = found.loss / math.log(2) / component.dataset.bytes_per_token
            values |= {
                "loss": found.loss,
                "loss_se": found.loss_se,
                "bits_per_byte": bits,
            }
        described[component.source] = values
    return json.dumps(described)


def evaluate_heldout(
    executable: Executable,
    state: TrainState,
    dataset: Dataset,
    windows: Int[np.ndarray, "M T1"],
    limit_tokens: int,
) -> HeldoutLoss:
    """Evaluate a model on the held-out windows of a dataset.

    Args:
        executable: Of the model.
        state: With its parameters.
        dataset: What it is evaluated on.
        windows: Those of `scaling.training.rows.make_heldout_rows`.
        limit_tokens: With which they were made.
    """
    if not dataset.components:
        return HeldoutLoss(executable.evaluate(state, windows), {})
    measured = executable.measure_windows(state.params, windows)
    context = windows.shape[1] - 1
    by_source = {}
    loss = 0.0
    variance = 0.0
    tokens = 0
    start = 0
    pieces = dataset.split_heldout(context, limit_tokens)
    for component, piece in zip(dataset.components, pieces, strict=True):
        part = slice(start, start + len(piece))
        start += len(piece)
        own = summarize_losses(WindowLosses(measured.nats[part], measured.tokens[part]))
        by_source[component.source] = own
        if component.weight > 0:
            loss += component.weight * own.loss
            variance += (component.weight * own.loss_se) ** 2
            tokens += own.tokens
    return HeldoutLoss(Evaluation(loss, math.sqrt(variance), tokens), by_source)
