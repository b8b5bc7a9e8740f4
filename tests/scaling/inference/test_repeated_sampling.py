"""Coverage is the unbiased share of examples that k samples solve."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from scaling.data import DataError
from scaling.inference.generation import GenerationConfig, TextWriter
from scaling.inference.model import TrainedModel
from scaling.inference.repeated_sampling import list_powers, measure_coverage
from scaling.inference.sampling import SamplingConfig
from scaling.tasks import CompletionExample, TaskData, open_task

MakeTrained = Callable[..., TrainedModel]


@pytest.fixture(scope="module")
def task() -> TaskData:
    """Twelve examples whose answer is a letter."""
    examples = []
    for letter in "abcdefghijkl":
        examples.append(CompletionExample(f"the letter {letter}", letter))
    return TaskData("letters", "completion", (), tuple(examples))


def write_letters(
    writer: TextWriter,
    prompts: Sequence[str],
    sampling: SamplingConfig,
    generation: GenerationConfig,
) -> list[SimpleNamespace]:
    """Answers of one random letter each, some with white space around it."""
    del writer, sampling
    rng = np.random.default_rng(generation.seed)
    count = len(prompts) * generation.samples
    letters = rng.choice(list("abcdefghijkl"), count)
    return [SimpleNamespace(text=f" {letter}\n") for letter in letters]


def test_coverage_is_that_of_all_choices_of_k_samples(
    make_trained: MakeTrained, task: TaskData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextWriter, "write", write_letters)
    found = measure_coverage(make_trained(), task, samples=8, k=[1, 3, 8])
    assert 0 < found.right.sum() < 8 * len(task.heldout)
    for i, k in enumerate([1, 3, 8]):
        shares = []
        for right in found.right:
            answers = [True] * right + [False] * (8 - right)
            chosen = list(itertools.combinations(answers, int(k)))
            shares.append(np.mean([any(choice) for choice in chosen]))
        assert found.coverage[i] == pytest.approx(np.mean(shares))
    assert (np.diff(found.coverage) >= 0).all()


def test_what_cannot_be_checked_is_named(make_trained: MakeTrained) -> None:
    model = make_trained()
    with pytest.raises(DataError, match="needs completions"):
        measure_coverage(model, open_task("facts:choices=4"))
    with pytest.raises(DataError, match="k = 9"):
        measure_coverage(model, open_task("addition:digits=1"), samples=8, k=[9])


def test_powers_end_with_the_most() -> None:
    assert list_powers(1) == [1]
    assert list_powers(8) == [1, 2, 4, 8]
    assert list_powers(12) == [1, 2, 4, 8, 12]
