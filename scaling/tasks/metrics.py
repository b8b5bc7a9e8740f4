"""Measures of choices and of probabilities, from numbers alone.

All shares lie in [0, 1]. Macro averages are unweighted means over the classes that occur
among the right answers or the predictions. A class that is never predicted has precision
0, one that is never right has recall 0, and F1 is 2 TP / (2 TP + FP + FN).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from scaling.tasks.estimates import (
    Estimate,
    estimate_bootstrap,
    estimate_mean,
    estimate_ratio,
)

LN2 = math.log(2)


def count_confusions(
    answers: Int[np.ndarray, " n"], predictions: Int[np.ndarray, " n"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """How often each class (row) was predicted as each class (column)."""
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (answers, predictions), 1)
    return counts


def make_confusion_table(
    answers: Int[np.ndarray, " n"],
    predictions: Int[np.ndarray, " n"],
    labels: Sequence[str],
) -> pd.DataFrame:
    """The confusion counts with right labels as rows and predicted ones as columns."""
    counts = count_confusions(answers, predictions, len(labels))
    return pd.DataFrame(
        counts,
        index=pd.Index(labels, name="answer"),
        columns=pd.Index(labels, name="predicted"),
    )


def measure_accuracy(
    answers: Int[np.ndarray, " n"],
    predictions: Int[np.ndarray, " n"],
    documents: Int[np.ndarray, " n"],
) -> Estimate:
    """The share of right predictions."""
    return estimate_mean((answers == predictions).astype(float), documents)


def compute_class_scores(
    counts: Float[np.ndarray, "r 3 classes"],
) -> Float[np.ndarray, "3 r classes"]:
    """Precision, recall and F1 of each class; NaN for a class that does not occur.

    Args:
        counts: how often each class was rightly predicted, predicted, and the answer,
            in each of r samples.
    """
    right, predicted, actual = np.moveaxis(counts, 1, 0)
    occurs = predicted + actual > 0
    # A denominator of 0 has the numerator 0, and the score is 0.
    precision = right / np.maximum(predicted, 1)
    recall = right / np.maximum(actual, 1)
    f1 = 2 * right / np.maximum(predicted + actual, 1)
    return np.where(occurs, np.stack([precision, recall, f1]), np.nan)


def measure_macro_averages(
    answers: Int[np.ndarray, " n"],
    predictions: Int[np.ndarray, " n"],
    documents: Int[np.ndarray, " n"],
    classes: int,
) -> dict[str, Estimate]:
    """`macro_precision`, `macro_recall` and `macro_f1`."""
    is_answer = np.eye(classes)[answers]
    is_predicted = np.eye(classes)[predictions]
    counts = np.stack([is_answer * is_predicted, is_predicted, is_answer], axis=1)
    flat = counts.reshape(len(answers), 3 * classes)
    found = {}
    for row, name in enumerate(("macro_precision", "macro_recall", "macro_f1")):

        def average_classes(
            sums: Float[np.ndarray, "r k"], row: int = row
        ) -> Float[np.ndarray, " r"]:
            scores = compute_class_scores(sums.reshape(-1, 3, classes))
            return np.nanmean(scores[row], axis=1)

        found[name] = estimate_bootstrap(flat, documents, average_classes)
    return found


# --- probabilities --------------------------------------------------------------------


def measure_bits_per_byte(
    nats: Float[np.ndarray, " n"],
    lengths: Float[np.ndarray, " n"],
    documents: Int[np.ndarray, " n"],
) -> Estimate:
    """Negative log-probability in bits over UTF-8 bytes, both summed.

    Args:
        nats: negative log-probability of each text.
        lengths: bytes of each text.
    """
    return estimate_ratio(nats / LN2, lengths, documents)


def measure_perplexity(
    nats: Float[np.ndarray, " n"],
    tokens: Float[np.ndarray, " n"],
    documents: Int[np.ndarray, " n"],
) -> Estimate:
    """exp(nats per token), infinite where that overflows; its standard error by the
    delta method.
    """
    mean, error = estimate_ratio(nats, tokens, documents)
    if not math.isfinite(mean) or mean > 700:
        return Estimate(math.nan if math.isnan(mean) else math.inf, math.nan)
    value = math.exp(mean)
    return Estimate(value, value * error)


# --- programs -------------------------------------------------------------------------


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that one of `k` samples is right, if `c` of `n` samples were.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021
    (arXiv:2107.03374), as the product 1 - prod over i = n - c + 1 .. n of (1 - k / i).

    Raises:
        ValueError: not 0 <= c <= n or not 1 <= k <= n.
    """
    if not 0 <= c <= n:
        raise ValueError(f"c = {c}: must lie between 0 and n = {n}")
    if not 1 <= k <= n:
        raise ValueError(f"k = {k}: must lie between 1 and n = {n}; draw more samples")
    if n - c < k:
        return 1.0
    # A sum of logarithms keeps the digits of a small probability.
    logarithms = np.log1p(-k / np.arange(n - c + 1, n + 1))
    return float(-np.expm1(logarithms.sum()))
