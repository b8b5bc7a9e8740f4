"""A task as a source of examples: `DataConfig(source="task:NAME")`."""

from __future__ import annotations

from collections.abc import Iterator

from scaling.data.examples import ExampleSplits
from scaling.data.sources import Source
from scaling.tasks.examples import list_pairs
from scaling.tasks.registry import open_task


def open_task_source(spec: str) -> Source:
    """The source of a task's examples.

    Raises:
        DataError: there is no such task, or its data cannot be used.
    """
    task = open_task(spec)

    def read_examples() -> ExampleSplits:
        return ExampleSplits(
            train=tuple(list_pairs(task.train)),
            heldout=tuple(list_pairs(task.heldout)),
        )

    def read_documents() -> Iterator[str]:
        for pair in (*list_pairs(task.train), *list_pairs(task.heldout)):
            yield pair.prompt + pair.completion

    return Source(
        documents=read_documents,
        signature=lambda: task.fingerprint,
        about={"task": task.about},
        examples=read_examples,
    )
