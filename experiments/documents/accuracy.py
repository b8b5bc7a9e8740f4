"""Perplexity and next-token accuracy of every saved state of the family's trunks."""

from __future__ import annotations

import functools
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jaxtyping import Array, Float, Int

from experiments.documents.evidence import Evidence
from scaling.config import ArchitectureConfig
from scaling.model.architecture import Params
from scaling.model.family import build_family

ROWS = 32
"""Windows that are evaluated at once."""


class AccuracyRow(TypedDict):
    """One saved state: loss in nats per token, accuracy as a share of targets."""

    trunk: str
    width: int
    tokens: int
    loss: float
    accuracy: float


@functools.partial(jax.jit, static_argnums=0)
def _score_block(
    config: ArchitectureConfig, params: Params, windows: Int[Array, "M T1"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean loss in nats per token, and the share of targets that have the largest
    logit.
    """
    logits = build_family(config).apply(params, windows[:, :-1])
    targets = windows[:, 1:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return losses.mean(), (logits.argmax(axis=-1) == targets).mean()


def score_windows(
    config: ArchitectureConfig, params: Params, windows: Int[np.ndarray, "M T1"]
) -> tuple[float, float]:
    """(loss, accuracy) over all windows; M must be a multiple of `ROWS`."""
    scores = []
    for block in windows.reshape(-1, ROWS, windows.shape[1]):
        loss, accuracy = _score_block(config, params, jnp.asarray(block))
        scores.append((float(loss), float(accuracy)))
    mean_loss, mean_accuracy = np.array(scores).mean(axis=0)
    return float(mean_loss), float(mean_accuracy)


def measure_accuracies(evidence: Evidence) -> pd.DataFrame:
    """One row per saved state of the family: trunk, N, tokens, loss, accuracy."""

    def measure_states() -> list[AccuracyRow]:
        rows: list[AccuracyRow] = []
        for run in evidence.configs("family"):
            params = evidence.params(run)
            if params is None:
                continue
            windows = evidence.heldout(run, 128 * run.model.context)
            whole_blocks = windows[: len(windows) // ROWS * ROWS]
            loss, accuracy = score_windows(run.model, params, whole_blocks)
            rows.append(
                {
                    "trunk": run.trunk_id,
                    "width": run.model.width,
                    "tokens": run.branch_step * run.batch_tokens,
                    "loss": loss,
                    "accuracy": accuracy,
                }
            )
        return rows

    return pd.DataFrame(evidence.measured("accuracy", measure_states))
