"""Repeated sampling: how often one of k answers is right, if a checker picks it.

The probability that k samples hold a right answer is estimated for every example from n
samples without bias (Chen et al. 2021, arXiv:2107.03374), and its mean over examples is
the coverage (Brown et al. 2024, arXiv:2407.21787).

Axes: examples, K numbers of samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from scaling.data.errors import DataError
from scaling.inference.generation import GenerationConfig, TextWriter
from scaling.inference.model import TrainedModel
from scaling.inference.sampling import SamplingConfig
from scaling.tasks.examples import TaskData, list_pairs
from scaling.tasks.metrics import pass_at_k


@dataclass(frozen=True, eq=False)
class Coverage:
    """How often one of k samples is right.

    Attributes:
        samples: Number of samples of each example.
        right: How many of them were right, for each example.
        k: The numbers of samples that were asked for.
        coverage: For each of them, the mean over examples.
        standard_error: Of the mean over examples.
    """

    samples: int
    right: Int[np.ndarray, " examples"]
    k: Int[np.ndarray, " K"]
    coverage: Float[np.ndarray, " K"]
    standard_error: Float[np.ndarray, " K"]


def measure_coverage(
    model: TrainedModel,
    task: TaskData,
    *,
    samples: int = 64,
    k: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    temperature: float = 1.0,
    limit: int | None = None,
    seed: int = 0,
) -> Coverage:
    """Sample answers to the held-out examples of a task, and check them.

    An answer is right if it equals the completion, without white space around it.

    Args:
        model: The model.
        task: A task of completions.
        samples: Answers to each example.
        k: Numbers of samples, each at most `samples`.
        temperature: Of the samples.
        limit: Use the first so many examples.
        seed: Of the samples.

    Raises:
        DataError: the task has no completions to check, or a k is out of range.
    """
    if task.kind != "completion":
        raise DataError(
            f"task {task.name!r}: is of kind {task.kind!r}; repeated sampling needs "
            "completions that can be checked, such as those of 'addition'"
        )
    wrong = [number for number in k if not 1 <= number <= samples]
    if wrong:
        raise DataError(f"k = {wrong[0]}: must lie between 1 and samples = {samples}")
    pairs = list_pairs(task.heldout[:limit])
    longest = max(len(model.encode(pair.completion)) for pair in pairs)
    writer = TextWriter(model.config, model.params, model.require_tokenizer())
    texts = writer.write(
        [pair.prompt for pair in pairs],
        SamplingConfig(temperature=temperature),
        GenerationConfig(
            max_tokens=longest + 1, stop=task.stop, samples=samples, seed=seed
        ),
    )
    answers = np.array([text.text.strip() for text in texts]).reshape(len(pairs), -1)
    expected = np.array([pair.completion.strip() for pair in pairs])
    right = (answers == expected[:, None]).sum(axis=1)
    # Examples with as many right answers have the same estimate.
    estimates = np.empty((samples + 1, len(k)))
    for count in range(samples + 1):
        estimates[count] = [pass_at_k(samples, count, number) for number in k]
    rates = estimates[right]
    return Coverage(
        samples=samples,
        right=right,
        k=np.asarray(k),
        coverage=rates.mean(axis=0),
        standard_error=rates.std(axis=0, ddof=1) / len(pairs) ** 0.5,
    )


def list_powers(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    powers = [1 << i for i in range(most.bit_length()) if 1 << i < most]
    return [*powers, most]
