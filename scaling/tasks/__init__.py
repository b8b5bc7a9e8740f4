"""Tasks: what models are evaluated and fine-tuned on.

    task = open_task("addition:digits=2")
    result = evaluate_task(task, scorer, shots=2)

Nothing here needs JAX: a model plugs in as a `Scorer`.
"""

from __future__ import annotations

from scaling.tasks.chat import Message, format_chat, format_chat_prompt
from scaling.tasks.estimates import Estimate
from scaling.tasks.evaluate import Scorer, Scores, TaskResult, evaluate_task
from scaling.tasks.examples import (
    ChoiceExample,
    CompletionExample,
    Example,
    Pair,
    PerplexityExample,
    TaskData,
    TextOrigin,
    draw_shots,
    list_pairs,
    make_few_shot_prompt,
)
from scaling.tasks.files import read_task
from scaling.tasks.metrics import pass_at_k
from scaling.tasks.options import TaskOptions
from scaling.tasks.registry import (
    check_pretraining,
    list_tasks,
    open_task,
    register_task,
)
from scaling.tasks.split import split_examples

__all__ = [
    "ChoiceExample",
    "CompletionExample",
    "Estimate",
    "Example",
    "Message",
    "Pair",
    "PerplexityExample",
    "Scorer",
    "Scores",
    "TaskData",
    "TaskOptions",
    "TaskResult",
    "TextOrigin",
    "check_pretraining",
    "draw_shots",
    "evaluate_task",
    "format_chat",
    "format_chat_prompt",
    "list_pairs",
    "list_tasks",
    "make_few_shot_prompt",
    "open_task",
    "pass_at_k",
    "read_task",
    "register_task",
    "split_examples",
]
