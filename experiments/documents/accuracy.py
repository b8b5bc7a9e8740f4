"""Perplexity and next-token accuracy of every state in which the family's trunks were
saved.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jaxtyping import Array, Float, Int

from experiments.documents.evidence import Evidence
from experiments.frames import Frame
from scaling.config import ModelConfig
from scaling.model.transformer import Params, build_family

ROWS = 32  # windows at a time


@functools.partial(jax.jit, static_argnums=0)
def _score_block(
    config: ModelConfig, params: Params, windows_MxT1: Int[Array, "M T1"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean loss in nats per token, and the share of targets that have the largest
    logit.
    """
    logits = build_family(config).apply(params, windows_MxT1[:, :-1])
    targets = windows_MxT1[:, 1:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return losses.mean(), (logits.argmax(axis=-1) == targets).mean()


def score_windows(
    config: ModelConfig, params: Params, windows_MxT1: np.ndarray
) -> tuple[float, float]:
    """(loss, accuracy) over all windows, whose number must be a multiple of `ROWS`."""
    blocks = windows_MxT1.reshape(-1, ROWS, windows_MxT1.shape[1])
    pairs = np.array(
        [
            [float(x) for x in _score_block(config, params, jnp.asarray(block))]
            for block in blocks
        ]
    )
    loss, accuracy = pairs.mean(axis=0)
    return float(loss), float(accuracy)


def measure_accuracies(evidence: Evidence) -> Frame:
    """One row per saved state of the family: trunk, N, tokens, loss, accuracy."""

    def measure() -> list[dict[str, Any]]:
        rows = []
        for run in evidence.table("family")["run"]:
            params = evidence.params(run)
            if params is None:
                continue
            windows = evidence.heldout(run, 128 * run.model.context)
            loss, accuracy = score_windows(
                run.model, params, windows[: len(windows) // ROWS * ROWS]
            )
            tokens = run.branch_step * run.batch_tokens
            rows.append(
                {
                    "trunk": run.trunk_id,
                    "width": run.model.width,
                    "tokens": tokens,
                    "loss": loss,
                }
            )
            rows[-1]["accuracy"] = accuracy
        return rows

    return pd.DataFrame(evidence.measured("accuracy", measure))
