"""Values with standard errors, over documents.

Examples of one document are not independent, so a document is one draw. `documents`
gives the number of its document for each example. If each example is a document of its
own, the standard error of a mean is the usual one, for a share
sqrt(p (1 - p) / (n - 1)). It is then 0 where all examples agree: that says nothing about
how sure the value is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

REPLICATES = 500
"""Bootstrap samples; the standard error itself is then known to about 3 %."""


class Estimate(NamedTuple):
    """A measured value.

    Attributes:
        standard_error: NaN if it is unknown, as with one document.
    """

    value: float
    standard_error: float


def number_documents(names: Iterable[Hashable]) -> Int[np.ndarray, " n"]:
    """Documents numbered from 0 in the order of their names' first use."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], int)


def sum_documents(
    values: Float[np.ndarray, "n k"], documents: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "d k"]:
    """The sum over each document."""
    sums = np.zeros((int(documents.max(initial=-1)) + 1, values.shape[1]))
    np.add.at(sums, documents, values)
    return sums


def estimate_ratio(
    amounts: Float[np.ndarray, " n"],
    sizes: Float[np.ndarray, " n"],
    documents: Int[np.ndarray, " n"],
) -> Estimate:
    """The ratio of two sums, as nats per token.

    The standard error is that of the ratio estimator under sampling of documents
    (Cochran 1977, section 6.4), with residuals amount - ratio * size:

        sqrt(D / (D - 1) * sum of squared residuals of documents) / sum of sizes
    """
    total = float(sizes.sum())
    if total == 0:
        return Estimate(math.nan, math.nan)
    ratio = float(amounts.sum()) / total
    if not math.isfinite(ratio):
        return Estimate(ratio, math.nan)
    residuals = sum_documents((amounts - ratio * sizes)[:, None], documents)
    count = len(residuals)
    if count < 2:
        return Estimate(ratio, math.nan)
    variance = count / (count - 1) * float(np.square(residuals).sum())
    return Estimate(ratio, math.sqrt(variance) / total)


def estimate_mean(
    values: Float[np.ndarray, " n"], documents: Int[np.ndarray, " n"]
) -> Estimate:
    """The mean over examples."""
    return estimate_ratio(values, np.ones(len(values)), documents)


def estimate_bootstrap(
    statistics: Float[np.ndarray, "n k"],
    documents: Int[np.ndarray, " n"],
    measure: Callable[[Float[np.ndarray, "r k"]], Float[np.ndarray, " r"]],
    seed: int = 0,
) -> Estimate:
    """A function of sums over examples; its standard error by the bootstrap.

    A replicate draws as many documents as there are, with replacement.

    Args:
        statistics: what `measure` needs the sums of.
        measure: values from sums, of one or more samples at once.
    """
    sums = sum_documents(statistics, documents)
    value = float(measure(sums.sum(axis=0, keepdims=True))[0])
    count = len(sums)
    if count < 2:
        return Estimate(value, math.nan)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=REPLICATES)
    replicates = measure(weights @ sums)
    return Estimate(value, float(np.nanstd(replicates, ddof=1)))
