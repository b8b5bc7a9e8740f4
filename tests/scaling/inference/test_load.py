"""A run's model can be opened from its folder alone, and is the model that was trained."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

import scaling
from scaling.cli.main import main
from scaling.config import ConfigError, DataConfig, RunConfig, Trunk
from scaling.data import DataError
from scaling.execution.sweep import sweep
from scaling.store import run_dirs
from scaling.store.files import StoreError
from scaling.store.parameters import (
    PARAMETERS_FILE,
    flatten_parameters,
    read_parameters,
    unflatten_parameters,
    write_parameters,
)
from scaling.training.cleanup import find_disposable_checkpoints, remove_checkpoints
from scaling.training.loop import LoopConfig, train_trunk

from .conftest import Sweep

LOOP = LoopConfig(chunk_steps=4, checkpoint_seconds=0.0)


def copy_sweep(text_sweep: Sweep, folder: Path) -> Path:
    return Path(shutil.copytree(text_sweep.out, folder / "sweep"))


def test_a_loaded_model_has_the_loss_that_its_run_recorded(text_sweep: Sweep) -> None:
    for _, row in text_sweep.table.iterrows():
        found = scaling.load(text_sweep.out, row["run_id"]).evaluate_heldout()
        assert found.loss == pytest.approx(row["loss"], rel=1e-6)
        assert found.loss_se == pytest.approx(row["loss_se"], rel=1e-5)
        assert found.bits_per_byte == pytest.approx(row["bits_per_byte"], rel=1e-6)


def test_a_run_is_found_by_its_folder_its_id_or_its_loss(text_sweep: Sweep) -> None:
    table = text_sweep.table
    run_id = table["run_id"].iloc[1]
    by_folder = scaling.load(text_sweep.out / run_id)
    assert by_folder.run.run_id == run_id
    assert scaling.load(text_sweep.out, run_id[:8]).run.run_id == run_id
    best = table.loc[table["loss"].idxmin(), "run_id"]
    opened = scaling.load(text_sweep.out, "best")
    assert opened.run.run_id == best
    assert best in repr(opened) and len(repr(opened)) < 300  # not its parameters
    with pytest.raises(ConfigError, match="holds 3 runs"):
        scaling.load(text_sweep.out)
    with pytest.raises(ConfigError, match="of another run"):
        scaling.load(text_sweep.out / run_id, "ffff")
    with pytest.raises(ConfigError, match="no such folder"):
        scaling.load(text_sweep.out / "nothing")


def test_every_checkpoint_of_a_run_and_its_trunk_opens(text_sweep: Sweep) -> None:
    """At the branch step two runs of a trunk are one model."""
    short, long, _ = text_sweep.runs
    branch = short.branch_step
    first = scaling.load(text_sweep.out, short.run_id, step=branch)
    second = scaling.load(text_sweep.out, long.run_id, step=branch)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), first.params, second.params)
    assert all(jax.tree.leaves(same))
    assert first.step == branch
    end = scaling.load(text_sweep.out, short.run_id)
    assert end.step == short.steps
    assert end.evaluate_heldout().loss < first.evaluate_heldout().loss
    with pytest.raises(ConfigError, match=r"step = 3: no checkpoint .* one of"):
        scaling.load(text_sweep.out, short.run_id, step=3)


def test_scanned_layers_open_as_a_list(text_sweep: Sweep) -> None:
    model = scaling.load(text_sweep.out, text_sweep.runs[2].run_id)
    assert not model.config.scanned
    assert sorted(model.params["blocks"]) == [0, 1]


def test_a_sweep_may_keep_no_parameters(text_sweep: Sweep, tmp_path: Path) -> None:
    run = text_sweep.runs[0]
    loop = dataclasses.replace(LOOP, keep_parameters=False, checkpoint_seconds=1e6)
    train_trunk(Trunk((run,)), tmp_path, loop, lambda event: None)
    assert not (tmp_path / run.run_id / PARAMETERS_FILE).exists()
    with pytest.raises(ConfigError, match="without keeping its parameters; step ="):
        scaling.load(tmp_path)


@pytest.mark.parametrize("pack", ["solo", "map"])
def test_packed_runs_keep_the_parameters_of_solo_runs(
    text_sweep: Sweep, tmp_path: Path, pack: str
) -> None:
    run = text_sweep.runs[0]
    runs = [run, dataclasses.replace(run, seed=1)]
    loop = dataclasses.replace(LOOP, pack=pack)
    sweep(runs, tmp_path, workers=0, loop=loop, show="quiet")
    found = scaling.load(tmp_path, run.run_id).params
    alone = scaling.load(text_sweep.out, run.run_id).params
    close = jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-5), found, alone)
    assert all(jax.tree.leaves(close))


def test_a_folder_that_moved_needs_no_source(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trained tokenizer is in the sweep's folder."""
    pytest.importorskip("tokenizers")
    texts = Path(shutil.copytree(text_folder, tmp_path / "texts"))
    model = scaling.ModelConfig(width=8, depth=1, n_heads=2, vocab=300, context=16)
    source = DataConfig(str(texts), "bpe:300", heldout_fraction=0.2)
    run = RunConfig(model, source, tokens=64 * 4, eval_tokens=256)
    sweep([run], tmp_path / "sweep", workers=0, loop=LOOP, show="quiet")
    before = scaling.load(tmp_path / "sweep").generate("red green", max_tokens=8)
    shutil.rmtree(texts)
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path / "empty"))
    moved = shutil.move(tmp_path / "sweep", tmp_path / "moved")
    after = scaling.load(moved).generate("red green", max_tokens=8)
    assert [str(text) for text in after] == [str(text) for text in before]


def test_damage_is_noticed(text_sweep: Sweep, tmp_path: Path) -> None:
    out = copy_sweep(text_sweep, tmp_path)
    path = out / text_sweep.runs[0].run_id / PARAMETERS_FILE
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(StoreError, match="checksum"):
        scaling.load(path.parent)
    path.write_bytes(whole[:200])
    with pytest.raises(StoreError, match="cannot be read"):
        scaling.load(path.parent)
    other = out / text_sweep.runs[2].run_id / PARAMETERS_FILE
    shutil.copy(other, path)
    with pytest.raises(StoreError, match="another model"):
        scaling.load(path.parent)
    config = path.parent / "config.json"
    config.write_text(json.dumps({"model": {"width": "no"}}))
    with pytest.raises(StoreError, match=r"config\.json"):
        scaling.load(path.parent)


def test_a_tree_of_parameters_survives_its_file(tmp_path: Path) -> None:
    tree = {
        "blocks": {0: {"w": np.ones((2, 3), np.float32)}, 1: {"w": np.zeros(4)}},
        "head": np.arange(5, dtype=np.int8),
        "scalar": np.float32(2.0),
    }
    assert unflatten_parameters(flatten_parameters(tree)).keys() == tree.keys()
    write_parameters(tmp_path / "a.safetensors", tree, {"run_id": "x"})
    found, metadata = read_parameters(tmp_path / "a.safetensors")
    assert metadata == {"run_id": "x"}
    same = jax.tree.map(
        lambda a, b: np.array_equal(a, b) and np.asarray(a).dtype == b.dtype,
        tree,
        found,
    )
    assert all(jax.tree.leaves(same))


def test_a_changed_text_is_no_held_out_slice(text_folder: Path, tmp_path: Path) -> None:
    texts = Path(shutil.copytree(text_folder, tmp_path / "texts"))
    model = scaling.ModelConfig(width=8, depth=1, n_heads=2, context=16)
    source = DataConfig(str(texts), heldout_fraction=0.2)
    run = RunConfig(model, source, tokens=64 * 4, eval_tokens=256)
    sweep([run], tmp_path / "sweep", workers=0, loop=LOOP, show="quiet")
    (texts / "00.txt").write_text("other words")
    with pytest.raises(DataError, match="changed"):
        scaling.load(tmp_path / "sweep").evaluate_heldout()


# --- removing checkpoints -------------------------------------------------------------


def test_removing_checkpoints_loses_no_model(text_sweep: Sweep, tmp_path: Path) -> None:
    """Not even that of a run whose parameters only its last checkpoint holds."""
    out = copy_sweep(text_sweep, tmp_path)
    losses = {}
    for run in text_sweep.runs:
        losses[run.run_id] = scaling.load(out, run.run_id).evaluate_heldout().loss
    found = find_disposable_checkpoints(out)
    assert {item.folder.parent.name for item in found} == set(losses)
    assert all(item.bytes > 0 for item in found)
    for item in found:
        remove_checkpoints(item)
    assert find_disposable_checkpoints(out) == []
    assert list(out.glob("trunk-*/checkpoints"))
    for item in find_disposable_checkpoints(out, trunks=True):
        remove_checkpoints(item)
    assert not list(out.glob("*/checkpoints"))
    for run_id, loss in losses.items():
        assert scaling.load(out, run_id).evaluate_heldout().loss == loss


def test_checkpoints_that_a_run_needs_stay(text_sweep: Sweep, tmp_path: Path) -> None:
    """Those of an unfinished run and of its trunk, and those of a run that kept nothing
    else.
    """
    out = copy_sweep(text_sweep, tmp_path)
    short, long, scanned = text_sweep.runs
    (out / short.run_id / "result.json").unlink()
    (out / long.run_id / PARAMETERS_FILE).unlink()
    names = {item.folder.parent.name for item in find_disposable_checkpoints(out, True)}
    assert names == {scanned.run_id, run_dirs.trunk_dir(out, scanned).name}
    assert find_disposable_checkpoints(out / "nothing") == []


@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_a_run_that_cannot_be_read_keeps_every_trunk(
    text_sweep: Sweep, tmp_path: Path, name: str
) -> None:
    out = copy_sweep(text_sweep, tmp_path)
    run_id = text_sweep.runs[0].run_id
    (out / run_id / name).write_text("{")
    kept = {item.folder.parent.name for item in find_disposable_checkpoints(out, True)}
    assert kept == {run.run_id for run in text_sweep.runs[1:]}


# --- the verbs ------------------------------------------------------------------------


def run_verb(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def test_the_verbs_print_what_the_functions_return(
    text_sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = scaling.load(text_sweep.out, "best")
    where = (str(text_sweep.out), "--run", "best")
    prompts = ("generate", *where, "--prompt", "red ", "--max-tokens", "20")
    text = model.generate("red ", max_tokens=20)[0]
    assert run_verb(capsys, *prompts) == f"{text}\n"
    answer = json.loads(run_verb(capsys, *prompts, "--json", "--samples", "2"))
    assert answer[0]["text"] == text.text
    heldout = json.loads(run_verb(capsys, "evaluate", *where, "--json"))
    assert heldout["loss"] == pytest.approx(text_sweep.table["loss"].min(), rel=1e-6)
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "a.txt").write_text("red green")
    (folder / "b.txt").write_text("blue one two")
    table = tmp_path / "losses.csv"
    flags = ("--data", str(folder), "--json", "--per-document", str(table))
    found = json.loads(run_verb(capsys, "evaluate", *where, *flags))
    expected = model.loss(["red green", "blue one two"])
    assert found["loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert len(pd.read_csv(table)) == 2
    rows = tmp_path / "rows.csv"
    rows.write_text('id,body\n1,red green\n2\n3,"blue one two"\n')
    how = ("--data.field", "body", "--data.invalid", "skip", "--json")
    assert main(["evaluate", *where, "--data", str(rows), *how]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["loss"] == pytest.approx(found["loss"], rel=1e-6)
    assert "rows.csv: 1 left out (first: line 3" in captured.err


def test_a_dry_run_removes_nothing(
    text_sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy_sweep(text_sweep, tmp_path)
    before = sorted(out.rglob("*"))
    text = run_verb(capsys, "prune-checkpoints", str(out), "--dry-run")
    assert "would be freed in 3 folders" in text
    assert sorted(out.rglob("*")) == before
    assert "freed in 3 folders" in run_verb(capsys, "prune-checkpoints", str(out))
    assert len(sorted(out.rglob("*"))) < len(before)


def test_a_run_is_exported_from_its_folder(
    text_sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For transformers, and as plain files with the parameters of the run."""
    where = (str(text_sweep.out), "--run", text_sweep.runs[2].run_id)
    hf = ("--out", str(tmp_path / "hf"), "--json")
    written = json.loads(run_verb(capsys, "export", *where, *hf))
    assert written["class_name"] == "ApertusForCausalLM"
    assert "model.safetensors" in written["files"]
    plain = ("--out", str(tmp_path / "plain"), "--format", "safetensors")
    assert PARAMETERS_FILE in run_verb(capsys, "export", *where, *plain)
    found, _ = read_parameters(tmp_path / "plain" / PARAMETERS_FILE)
    model = scaling.load(text_sweep.out, text_sweep.runs[2].run_id)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), found, model.params)
    assert all(jax.tree.leaves(same))


def test_a_conversation_is_the_prompt_of_its_next_answer(
    text_sweep: Sweep,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = scaling.load(text_sweep.out, "best")
    monkeypatch.setattr("sys.stdin", io.StringIO("red?\n\nblue?\n"))
    settings = ("--temperature", "0", "--max-tokens", "6")
    printed = run_verb(
        capsys, "generate", str(text_sweep.out), "--run", "best", "--chat", *settings
    )
    answers = []
    prompt = "User: red?\nAssistant:"
    for question in ("blue?", None):
        found = model.generate(prompt, temperature=0.0, max_tokens=6, stop="\nUser:")[
            0
        ].text.strip()
        answers.append(found)
        prompt = f"{prompt} {found or '...'}\nUser: {question}\nAssistant:"
    assert printed == "".join(f"Assistant: {answer}\n" for answer in answers)


def test_a_checkpoint_becomes_a_run(
    text_sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has the logits of the model that was exported, and can be a parent."""
    model = scaling.load(text_sweep.out, "best")
    scaling.export_hugging_face(
        model.config, model.params, model.tokenizer, tmp_path / "hf"
    )
    out = tmp_path / "imported"
    printed = run_verb(capsys, "import", str(tmp_path / "hf"), "--out", str(out))
    imported = scaling.load(out)
    assert Path(printed.strip()).name == imported.run.run_id
    assert np.allclose(imported.logits("red"), model.logits("red"), atol=1e-4)
    again = scaling.import_run(tmp_path / "hf", out)
    assert again.name == imported.run.run_id
    config = scaling.FinetuneConfig("addition:digits=1", epochs=(1.0,))
    table = scaling.finetune(
        again, config, tmp_path / "tuned", workers=0, loop=LOOP, show="quiet"
    )
    assert table["parent"].tolist() == [imported.run.run_id]
    assert math.isnan(table["pretraining_loss"][0])
