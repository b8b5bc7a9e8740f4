"""The long table: every model on its tasks, measured once and kept in a file each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from experiments.downstream.settings import PERPLEXITY, Settings, TaskChoice
from experiments.downstream.training import Child
from scaling import TrainedModel, load, open_task
from scaling.inference.task_scorer import ModelScorer
from scaling.store.files import write_atomically
from scaling.tasks.evaluate import TaskResult, evaluate_task
from scaling.tasks.examples import TaskData
from scaling.tasks.registry import check_pretraining

SEPARATOR_BYTES = 2
"""Between the examples of a few-shot prompt."""
MOST_SHOTS = 2
TRAINED_MODES = ("fine-tuned", "from scratch", "adapters")


class Measurement(NamedTuple):
    """One model on one task.

    Attributes:
        folder: of the model's run.
        task: the task.
        mode: "zero-shot", "few-shot", or how the model was trained on the task.
        shots: solved examples in each prompt.
        examples: that the model was trained on.
        row: columns of the table that say which model it is.
    """

    folder: Path
    task: TaskChoice
    mode: str
    shots: int
    examples: int
    row: dict[str, object]

    def name_file(self, settings: Settings) -> Path:
        """The file of the measurement; its name holds all that decides the values."""
        limit = self.get_limit(settings)
        parts = [self.folder.name, self.task.spec, self.shots, limit]
        parts.append(settings.max_tokens)
        if self.is_trained and self.task.metric == "accuracy":
            parts.append("none")  # what log-probabilities are divided by
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return settings.evaluations / f"{digest[:16]}.json"

    @property
    def is_trained(self) -> bool:
        """Whether the model was trained on the task."""
        return self.mode in TRAINED_MODES

    def get_limit(self, settings: Settings) -> int:
        """The number of held-out examples."""
        return settings.documents if self.task is PERPLEXITY else settings.limit


def measure_all(
    settings: Settings, parents: pd.DataFrame, children: Sequence[Child]
) -> pd.DataFrame:
    """The long table, written to `table.csv`.

    Columns: task, mode, examples, shots, epochs, run_id, parent, width, n_matmul,
    pretraining_tokens, pretraining_loss (of the parent), metric, value, standard_error,
    chance, majority, uniform: the baselines, NaN where a metric has none.
    """
    planned = list(list_parent_measurements(settings, parents))
    planned += list_child_measurements(settings, parents, children)
    # Models of one shape share their compiled programs.
    planned.sort(key=lambda item: str(item.row["width"]).zfill(5))
    rows: list[dict[str, object]] = []
    for number, item in enumerate(planned):
        path = item.name_file(settings)
        if not path.exists():
            print(f"[{number + 1}/{len(planned)}] {item.task.title}, {item.mode}")
        for metric in read_or_measure(settings, item):
            shown = {"task": item.task.spec, "mode": item.mode, "shots": item.shots}
            rows.append(shown | item.row | metric)
    table = pd.DataFrame(rows)
    table.to_csv(settings.out / "table.csv", index=False)
    return table


def list_parent_measurements(
    settings: Settings, parents: pd.DataFrame
) -> Iterator[Measurement]:
    """The parents without training on tasks: zero-shot, and few-shot where two or one
    solved examples fit the context.
    """
    for parent in parents.to_dict("records"):
        folder = settings.parents / parent["run_id"]
        row = describe_parent(parent)
        for task in (*settings.tasks, PERPLEXITY):
            yield Measurement(folder, task, "zero-shot", 0, 0, row)
            if task is not PERPLEXITY:
                shots = choose_shots(open_task(task.spec), parent["context"])
                if shots:
                    yield Measurement(folder, task, "few-shot", shots, 0, row)


def describe_parent(parent: dict[str, object]) -> dict[str, object]:
    """The columns of the long table that say which parent it is."""
    return {
        "examples": 0,
        "epochs": 0.0,
        "run_id": parent["run_id"],
        "parent": parent["run_id"],
        "width": parent["width"],
        "n_matmul": parent["n_matmul"],
        "pretraining_tokens": parent["tokens"],
        "pretraining_loss": parent["loss"],
    }


def choose_shots(task: TaskData, context: int) -> int:
    """The most shots, two or one, with which the mean prompt of bytes fits a context;
    0 if not even one does.
    """
    sizes = []
    for example in task.train[:1000]:
        prompt, completion = example.pair
        sizes.append(len(f"{prompt}{completion}".encode()) + SEPARATOR_BYTES)
    mean = sum(sizes) / len(sizes)
    for shots in range(MOST_SHOTS, 0, -1):
        if (shots + 1) * mean <= context:
            return shots
    return 0


def list_child_measurements(
    settings: Settings, parents: pd.DataFrame, children: Sequence[Child]
) -> Iterator[Measurement]:
    """The children with all their examples; those with fewer have their loss in the run
    table.
    """
    known = {parent["run_id"]: parent for parent in parents.to_dict("records")}
    widest_budget = parents["tokens"].max()
    by_width = {}
    for parent in known.values():
        if parent["tokens"] == widest_budget:
            by_width[parent["width"]] = parent
    largest: dict[str, int] = {}
    for child in children:
        if child.mode == "fine-tuned":
            known_count = largest.get(child.task.spec, 0)
            largest[child.task.spec] = max(known_count, child.examples)
    for child in children:
        is_measured = child.mode in TRAINED_MODES
        if not is_measured or child.examples != largest[child.task.spec]:
            continue
        run = child.run
        if run.parent is not None:
            row = describe_parent(known[run.parent.run])
        else:
            row = describe_parent(by_width[run.model.width])
            row |= {"parent": "", "pretraining_tokens": 0, "pretraining_loss": None}
        row |= {"run_id": run.run_id, "examples": child.examples}
        row["epochs"] = child.epochs
        folder = settings.children / run.run_id
        yield Measurement(folder, child.task, child.mode, 0, child.examples, row)


def read_or_measure(settings: Settings, item: Measurement) -> list[dict[str, object]]:
    """The metrics of a measurement, from its file if it is there."""
    path = item.name_file(settings)
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    task = open_task(item.task.spec)
    model: TrainedModel = load(item.folder)
    check_pretraining(task, model.run.data)
    found = evaluate_task(
        task,
        ModelScorer(model),
        shots=item.shots,
        limit=item.get_limit(settings),
        max_tokens=settings.max_tokens,
    )
    metrics = list(list_metrics(found, item.is_trained))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(metrics))
    return metrics


def list_metrics(found: TaskResult, is_trained: bool) -> Iterator[dict[str, object]]:
    """A row for each metric, with its baselines.

    The accuracy of a model that was not trained on the task is that by the probability
    per byte: such a model finds long answers unlikely.
    """
    metrics = dict(found.metrics)
    per_byte = metrics.pop("accuracy_per_byte", None)
    if per_byte is not None and not is_trained:
        metrics["accuracy"] = per_byte
    for name, estimate in metrics.items():
        row: dict[str, object] = {
            "metric": name,
            "value": estimate.value,
            "standard_error": estimate.standard_error,
        }
        for baseline in ("chance", "majority", "uniform"):
            row[baseline] = found.baselines.get(baseline, {}).get(name)
        yield row


def tabulate_children(
    runs: pd.DataFrame, children: Sequence[Child], parents: pd.DataFrame
) -> pd.DataFrame:
    """The children with their loss, which the sweep has measured.

    Args:
        runs: their run table.
        parents: the run table of the parents.

    Returns:
        Columns task, mode, examples, epochs, rate (learning rate), width, n_matmul,
        pretraining_tokens (0 from scratch), loss (nats per token of the answers),
        loss_se, parent_loss and pretraining_loss (of the child, on the parent's text).
    """
    found = runs.set_index("run_id")
    known = parents.set_index("run_id")
    rows = []
    for child in children:
        run = found.loc[child.run.run_id]
        parent = child.run.parent
        row = {
            "task": child.task.spec,
            "mode": child.mode,
            "examples": child.examples,
            "epochs": child.epochs,
            "rate": run["lr"],
            "run_id": child.run.run_id,
            "width": run["width"],
            "n_matmul": run["n_matmul"],
            "pretraining_tokens": 0,
            "loss": run["loss"],
            "loss_se": run["loss_se"],
            "pretraining_loss": run["pretraining_loss"],
        }
        if parent is not None:
            row["pretraining_tokens"] = known.loc[parent.run, "tokens"]
            row["parent_loss"] = known.loc[parent.run, "loss"]
        rows.append(row)
    table = pd.DataFrame(rows)
    # The same run from scratch stands once for both budgets.
    return table.drop_duplicates(["mode", "run_id"], ignore_index=True)
