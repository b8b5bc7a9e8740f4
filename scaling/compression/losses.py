"""What compression costs: held-out losses before and after, window by window."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scaling.inference.model import TrainedModel
from scaling.training.step import WindowLosses


@dataclass(frozen=True)
class LossChange:
    """The held-out loss after a change of a model.

    Attributes:
        loss: Afterwards, in nats per token.
        increase: Over the loss before, in nats per token.
        increase_se: The standard error of the increase over windows. Both losses are
            those of the same windows, so it is far smaller than that of either loss.
    """

    loss: float
    increase: float
    increase_se: float


def measure_heldout_windows(model: TrainedModel) -> WindowLosses:
    """The losses on the windows over which the model's run was evaluated.

    Raises:
        DataError: the data have changed since the run was trained.
    """
    heldout = model.open_heldout()
    return heldout.executable.measure_windows(model.params, heldout.windows)


def compare_windows(before: WindowLosses, after: WindowLosses) -> LossChange:
    """The change of the loss on the same windows, with its paired standard error."""
    total = before.tokens.sum()
    changes = after.nats - before.nats
    increase = changes.sum() / total
    residuals = changes - increase * before.tokens
    windows = len(changes)
    error = math.nan
    if windows > 1:
        correction = windows / (windows - 1)
        error = math.sqrt(np.square(residuals).sum() * correction) / total
    return LossChange(
        loss=float(after.nats.sum() / total),
        increase=float(increase),
        increase_se=float(error),
    )
