"""What is trained: parents on source code, and their children on tasks.

All children are trained by one sweep, so that no core waits for another.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from experiments.downstream.settings import Settings, TaskChoice, count_examples
from scaling import (
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    OptimConfig,
    Plan,
    PlanConfig,
    RunConfig,
    make_plan,
    open_task,
    sweep,
)
from scaling.cli.output import print_plan
from scaling.execution.finetune import plan_finetuning
from scaling.tasks.examples import TaskData

LORA_RANK = 8
BATCH_SIZE = 2
"""Rows of a step, as the parents have: their learning rate holds for it."""
RATES_TASKS = ("word_sentiment", "name_translation:to=de", "addition:digits=2")
"""Where learning rates are tried."""
LORA_TASKS = ("word_sentiment", "name_translation:to=de")


class Child(NamedTuple):
    """A model that is trained on a task.

    Attributes:
        run: its configuration.
        task: the task.
        mode: "fine-tuned", "from scratch", "adapters" or "rate".
        examples: number of training examples.
        epochs: over them.
    """

    run: RunConfig
    task: TaskChoice
    mode: str
    examples: int
    epochs: float


def plan_parents(settings: Settings) -> Plan:
    """All widths on all budgets, by the recipe of the quickstart."""
    config = PlanConfig(
        name="parents",
        tokens=settings.tokens,
        widths=settings.widths,
        min_tokens_per_parameter=2.0,
        warmup_fraction=0.05,
        model=ModelConfig(depth=2, n_heads=4, head_dim=16),
        data=DataConfig(source=settings.source),
        optim=OptimConfig(batch_size=BATCH_SIZE, lr=0.0035),
    )
    return make_plan(config)


def train_parents(settings: Settings) -> pd.DataFrame:
    """The run table of the parents."""
    plan = plan_parents(settings)
    print_plan(plan, settings.parents, timing=True, workers=settings.workers)
    return sweep(plan, settings.parents, workers=settings.workers)


def train_children(settings: Settings) -> list[Child]:
    """Train the models of all tasks, and return them."""
    children = list(list_children(settings))
    runs = {child.run.run_id: child.run for child in children}
    plan = Plan("children", tuple(runs.values()))
    print(f"{len(runs)} models on {len(settings.tasks)} tasks")
    sweep(plan, settings.children, workers=settings.workers)
    return children


def list_children(settings: Settings) -> Iterator[Child]:
    """Every model that is to be trained on a task."""
    parents = plan_parents(settings).runs
    most = max(settings.tokens)
    for choice in settings.tasks:
        count = count_examples(open_task(choice.spec), settings.task_tokens)
        maker = ChildMaker(settings, choice)
        for parent in parents:
            yield from maker.make(parent, "fine-tuned", count)
        for parent in parents:
            if parent.tokens >= 0.99 * most:
                yield from _list_comparisons(maker, parent, count)


def _list_comparisons(
    maker: ChildMaker, parent: RunConfig, count: int
) -> Iterator[Child]:
    """From scratch, fewer examples and adapters: what is done for one budget."""
    settings, choice = maker.settings, maker.choice
    yield from maker.make(parent, "from scratch", count)
    if choice.is_ladder:
        for divisor in settings.fewer:
            few = count // divisor
            yield from maker.make(parent, "fine-tuned", few, settings.fewer_epochs)
            yield from maker.make(parent, "from scratch", few, settings.fewer_epochs)
        available = len(open_task(choice.spec).train)
        many = min(available, settings.more * count)
        yield from maker.make(parent, "from scratch", many)
    if choice.spec in LORA_TASKS:
        yield from maker.make(parent, "adapters", count)
    is_middle = parent.model.width == settings.widths[len(settings.widths) // 2]
    if is_middle and choice.spec in RATES_TASKS:
        for rate in settings.rates:
            yield from maker.make(parent, "rate", count, rate=rate)


class ChildMaker(NamedTuple):
    """Makes the runs of one task.

    Attributes:
        settings: of the experiment.
        choice: the task.
    """

    settings: Settings
    choice: TaskChoice

    @property
    def task(self) -> TaskData:
        """Its examples."""
        return open_task(self.choice.spec)

    def make(
        self,
        parent: RunConfig,
        mode: str,
        examples: int,
        epochs: tuple[float, ...] = (),
        rate: float | None = None,
    ) -> Iterator[Child]:
        """A child for each number of epochs.

        Args:
            rate: learning rate over the parent's; by default that of the settings for
                fine-tuning, and 1 for adapters and from scratch.
        """
        epochs = epochs or (self.settings.epochs,)
        if rate is None:
            rate = self.settings.rate if mode == "fine-tuned" else 1.0
        config = FinetuneConfig(
            self.choice.spec,
            examples=(examples,),
            epochs=epochs,
            lr=rate * parent.optim.lr,
            batch_size=BATCH_SIZE,
            lora_rank=LORA_RANK if mode == "adapters" else None,
            from_scratch=mode == "from scratch",
        )
        folder: Path = self.settings.parents / parent.run_id
        for group in plan_finetuning(folder, config):
            for run, count in zip(group, sorted(epochs), strict=True):
                yield Child(run, self.choice, mode, examples, count)
