"""Laws of tasks by name: registered, of a file, misspelled, and seen in training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scaling.config import DataConfig
from scaling.data.errors import DataError
from scaling.tasks import registry
from scaling.tasks.examples import CompletionExample, TaskData, TextOrigin
from scaling.tasks.options import TaskOptions
from scaling.tasks.registry import (
    check_pretraining,
    list_tasks,
    open_task,
    register_task,
)

EXAMPLE = CompletionExample("a", "b")

# The library registers its tasks once, and tests put a copy in the registry's place.
registry.load_library()


def test_a_new_task_is_one_decorated_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "TASKS", dict(registry.TASKS))

    @register_task("mine", "size")
    def open_mine(options: TaskOptions) -> TaskData:
        size = options.read_integer("size", 1, least=1, most=9)
        return TaskData("mine", "completion", (), (EXAMPLE,) * size)

    assert "mine" in list_tasks()
    task = open_task("mine:size=3")
    assert task.name == "mine:size=3" and len(task.heldout) == 3
    wrong = {
        "mine:size=0": "task = 'mine:size=0': option size = '0': must be a whole",
        "mine:size=x": "must be a whole number from 1 to 9",
        "mine:size=" + "9" * 5000: "must be a whole number",
        "mine:siez=1": "unknown option 'siez'; did you mean 'size'",
        "mine:size": "must read key=value",
    }
    for spec, message in wrong.items():
        with pytest.raises(DataError, match=message):
            open_task(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("adition", "task = 'adition': unknown task; did you mean 'addition'"),
        ("adition:digits=2", "did you mean 'addition'"),
        ("no/such.jsonl", "no such file"),
        ("addition:reversed=yes", "option reversed = 'yes': known: true, false"),
        ("addition:heldout_fraction=0", "must be a number above 0"),
        ("addition:heldout_fraction=nan", "must be a number above 0"),
        ("name_translation:to=xx", "option to = 'xx'"),
        ("perplexity", "needs the option source"),
    ],
)
def test_misspelled_tasks_name_the_fix(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_task(spec)


def test_a_file_is_a_task_with_options(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "completion": f"{i} x"} for i in range(60)]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = open_task(str(path))
    assert task.name == str(path) and len(task.train) + len(task.heldout) == 60
    every = open_task(f"{path}:heldout_fraction=1,metrics=exact_match+bleu")
    assert len(every.heldout) == 60 and every.metrics == ("exact_match", "bleu")
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "new", "completion": "x"}')
    assert len(open_task(f"{path}:heldout={other}").heldout) == 1
    with pytest.raises(DataError, match="did you mean 'heldout'"):
        open_task(f"{path}:heldotu={other}")


@pytest.mark.parametrize(("is_fixed", "times"), [(True, 1), (False, 2)])
def test_a_fixed_task_is_opened_once(
    monkeypatch: pytest.MonkeyPatch, is_fixed: bool, times: int
) -> None:
    monkeypatch.setattr(registry, "TASKS", dict(registry.TASKS))
    opened: list[str] = []

    @register_task("mine", "size", is_fixed=is_fixed)
    def open_mine(options: TaskOptions) -> TaskData:
        opened.append(options.spec)
        return TaskData("mine", "completion", (), (EXAMPLE,))

    first, second = open_task("mine:size=1"), open_task("mine:size=1")
    assert first.fingerprint == second.fingerprint and len(opened) == times
    assert open_task("mine:size=2").name == "mine:size=2"
    assert len(opened) == times + 1


def test_a_model_trained_on_held_out_documents_is_found(tmp_path: Path) -> None:
    task = TaskData(
        "t",
        "completion",
        (),
        (EXAMPLE,),
        origin=TextOrigin("sotu", heldout_fraction=0.2),
    )
    check_pretraining(task, DataConfig("sotu", heldout_fraction=0.2))
    check_pretraining(task, DataConfig("code", heldout_fraction=0.02))
    with pytest.raises(DataError, match=r"data.heldout_fraction = 0.1; train with at"):
        check_pretraining(task, DataConfig("sotu", heldout_fraction=0.1))
    (tmp_path / "a.txt").write_text("text")
    here = TaskData(
        "t", "completion", (), (EXAMPLE,), origin=TextOrigin(str(tmp_path), 0.2)
    )
    with pytest.raises(DataError, match="the model was trained on some of these"):
        check_pretraining(here, DataConfig(f"{tmp_path}/../{tmp_path.name}"))


def test_tasks_need_no_jax() -> None:
    code = (
        "import sys; from scaling.tasks import open_task; open_task('addition'); "
        "sys.exit(bool({'jax', 'flax', 'sacrebleu', 'rouge_score'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
