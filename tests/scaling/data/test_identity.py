"""What a path stands for belongs to the data's identity: one table never mixes two."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import warnings
from pathlib import Path

import numpy as np
import pytest

from scaling import data
from scaling.config import DataConfig, ModelConfig, OptimConfig, RunConfig, Trunk
from scaling.data.identity import Part, combine_parts
from scaling.data.tokenizers import train_bpe
from scaling.events import Event, Progress
from scaling.execution.sweep import sweep
from scaling.store import run_dirs
from scaling.store.table import run_table
from scaling.training import loop

ROOT_WORDS = ("loss", "width", "depth", "token", "scale", "batch", "learning")


def write_source(folder: Path, seed: int = 0) -> Path:
    rng = random.Random(seed)
    folder.mkdir(exist_ok=True)
    lines = [
        json.dumps({"text": f"{i} " + " ".join(rng.choices(ROOT_WORDS, k=40))}) + "\n"
        for i in range(300)
    ]
    (folder / "text.jsonl").write_text("".join(lines))
    return folder


def write_tokenizer(path: Path, vocab: int) -> Path:
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghij", k=8)) for _ in range(400)]
    train_bpe(f"bpe:{vocab}", [" ".join(words)], path)
    return path


def make_runs(source: Path, tokenizer: str) -> list[RunConfig]:
    first = RunConfig(
        ModelConfig(width=8, depth=1, n_heads=2, vocab=512, context=16),
        DataConfig(str(source), tokenizer, heldout_fraction=0.1),
        OptimConfig(warmup_tokens=128),
        tokens=2560,
        eval_tokens=1024,
    )
    return [first, dataclasses.replace(first, tokens=3840)]


def train(runs: list[RunConfig], out: Path) -> None:
    sweep(runs, out, workers=0, show="quiet")


def change_stored_fingerprint(out: Path, run: RunConfig, fingerprint: str) -> None:
    path = run_dirs.run_dir(out, run) / "result.json"
    row = json.loads(path.read_text()) | {"fingerprint": fingerprint}
    path.write_text(json.dumps(row))


def test_a_single_part_is_its_own_fingerprint_and_each_part_counts() -> None:
    text = Part("data.source", "code", "aa")
    parts = [text, Part("data.tokenizer", "t.json", "bb")]
    assert combine_parts([text]) == "aa"
    assert combine_parts(parts) == hashlib.sha256(b"aabb").hexdigest()
    assert combine_parts([*parts, Part("model.parent", "p", "cc")]) != combine_parts(
        parts
    )


def test_bytes_and_synthetic_sources_keep_the_fingerprint_of_their_text(
    tmp_path: Path,
) -> None:
    source = str(write_source(tmp_path / "text"))
    plain = data.load_dataset(DataConfig(source, heldout_fraction=0.1))
    markov = data.load_dataset(
        DataConfig("markov:states=16,tokens=20000", tokenizer="bpe:300")
    )
    trained = data.load_dataset(DataConfig(source, "bpe:300", heldout_fraction=0.1))
    assert plain.fingerprint == plain.text_fingerprint == trained.text_fingerprint
    assert markov.fingerprint == markov.text_fingerprint
    assert trained.fingerprint != trained.text_fingerprint
    digest = trained.text_fingerprint + trained.meta["tokenizer_hash"]
    assert trained.fingerprint == hashlib.sha256(digest.encode()).hexdigest()


def test_losses_under_two_tokenizers_of_one_path_never_share_a_table(
    tmp_path: Path,
) -> None:
    source, out = write_source(tmp_path / "text"), tmp_path / "out"
    path = write_tokenizer(tmp_path / "tokenizer.json", 260)
    first, second = make_runs(source, str(path))
    train([first], out)
    write_tokenizer(path, 500)
    for runs in ([first], [second], [first, second]):
        with pytest.raises(data.DataError, match=r"data\.tokenizer = .*has changed"):
            train(runs, out)
    assert not run_dirs.is_finished(out, second)
    write_tokenizer(path, 260)
    train([first, second], out)
    assert run_dirs.is_finished(out, second)


def test_a_changed_source_is_rejected_beside_runs_that_are_not_of_the_plan(
    tmp_path: Path,
) -> None:
    source, out = write_source(tmp_path / "text"), tmp_path / "out"
    first, second = make_runs(source, "bytes")
    train([first], out)
    write_source(source, seed=1)
    with pytest.raises(data.DataError, match=r"data\.source = .*its text has changed"):
        train([second], out)


def test_another_heldout_sample_of_a_synthetic_source_is_no_change(
    tmp_path: Path,
) -> None:
    runs = make_runs(Path("markov:states=16,tokens=20000"), "bytes")
    other = dataclasses.replace(runs[0].data, heldout_fraction=0.5)
    train(runs[:1], tmp_path)
    train([dataclasses.replace(runs[1], data=other)], tmp_path)


def test_a_trunk_is_not_resumed_under_another_tokenizer(tmp_path: Path) -> None:
    source, out = write_source(tmp_path / "text"), tmp_path / "out"
    path = write_tokenizer(tmp_path / "tokenizer.json", 260)
    (run, _) = make_runs(source, str(path))

    class Killed(BaseException):
        pass

    seen: list[Progress] = []

    def report(event: Event) -> None:
        if isinstance(event, Progress):
            seen.append(event)
        if len(seen) == 3:
            raise Killed

    often = loop.LoopConfig(chunk_steps=4, checkpoint_seconds=0.0)
    with pytest.raises(Killed):
        loop.train_trunk(Trunk((run,)), out, often, report)
    folder = run_dirs.trunk_dir(out, run) / "checkpoints"
    assert any(folder.iterdir()) and not run_dirs.is_finished(out, run)
    write_tokenizer(path, 500)
    with pytest.raises(data.DataError, match=r"data\.tokenizer = .*has changed"):
        loop.train_trunk(Trunk((run,)), out, often, lambda event: None)


def write_two_fields(path: Path, title_seed: int = 2, bad: bytes = b"") -> Path:
    """Lines with a text, a title of other words, and some that are not UTF-8."""
    rng = random.Random(0)
    titles = random.Random(title_seed)
    lines = []
    for i in range(300):
        record = {
            "text": f"{i} " + " ".join(rng.choices(ROOT_WORDS, k=40)),
            "title": f"{i} " + " ".join(titles.choices(ROOT_WORDS, k=40)),
        }
        lines.append(json.dumps(record).encode() + b"\n")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(lines) + bad)
    return path


def test_runs_that_read_one_source_in_two_ways_are_told_apart(tmp_path: Path) -> None:
    """By their columns, and each is checked against the text that it was trained on."""
    out = tmp_path / "out"
    path = write_two_fields(tmp_path / "text" / "a.jsonl", bad=b'{"text": "\xe9"}\n')
    plain, longer = make_runs(path, "bytes")

    def change(run: RunConfig, **changes: str) -> RunConfig:
        config = dataclasses.replace(run.data, **changes)
        return dataclasses.replace(run, data=config)

    text = change(plain, invalid="skip")
    title = change(plain, invalid="skip", field="title")
    with pytest.warns(data.InvalidTextWarning, match="1 documents"):
        train([text], out)
    with pytest.warns(data.InvalidTextWarning, match="1 documents"):
        train([title], out)
    assert len({run.run_id for run in (plain, text, title)}) == 3
    table = run_table(out).set_index("run_id").loc[[text.run_id, title.run_id]]
    assert table["text_field"].tolist() == ["", "title"]
    assert table["invalid"].tolist() == ["skip", "skip"]
    assert table["skipped_documents"].tolist() == [1, 1]
    assert table["skipped_bytes"].tolist() == [len(b'{"text": "\xe9"}\n')] * 2
    assert table["fingerprint"].nunique() == 2
    # Another title leaves the text as it was.
    write_two_fields(path, title_seed=3)
    train([text, change(longer, invalid="skip")], out)
    with pytest.raises(data.DataError, match="its text has changed"):
        train([change(longer, invalid="skip", field="title")], out)
    with pytest.raises(data.DataError, match="its text has changed"):
        train([text, title], out)


@pytest.mark.parametrize("changed", ["text", "title"])
def test_a_reading_is_checked_though_another_gave_the_same_text(
    tmp_path: Path, changed: str
) -> None:
    """Whichever of two runs of one fingerprint is read first."""
    path, out = tmp_path / "a.jsonl", tmp_path / "out"

    def write_lines(words: dict[str, str]) -> None:
        lines = []
        for i in range(300):
            record = {name: f"{i} {word} " * 20 for name, word in words.items()}
            lines.append(json.dumps(record) + "\n")
        path.write_text("".join(lines))

    def read_field(run: RunConfig, name: str) -> RunConfig:
        config = dataclasses.replace(run.data, field=name)
        return dataclasses.replace(run, data=config)

    first, longer = make_runs(path, "bytes")
    write_lines({"text": "loss", "title": "loss"})
    train([read_field(first, name) for name in ("text", "title")], out)
    assert run_table(out)["fingerprint"].nunique() == 1
    write_lines({"text": "loss", "title": "loss", changed: "depth"})
    with pytest.raises(data.DataError, match="its text has changed"):
        train([read_field(longer, changed)], out)
    (other,) = {"text", "title"} - {changed}
    train([read_field(longer, other)], out)


def test_a_run_on_text_that_is_whole_says_nothing_of_how_it_was_read(
    tmp_path: Path,
) -> None:
    """Its row is as before the fields existed."""
    source, out = write_source(tmp_path / "text"), tmp_path / "out"
    run, _ = make_runs(source, "bytes")
    train([run], out)
    row = json.loads((run_dirs.run_dir(out, run) / "result.json").read_text())
    added = {"text_field", "encoding", "invalid", "skipped_documents", "skipped_bytes"}
    assert not added & set(row) and "replaced_characters" not in row


def test_a_fingerprint_of_the_text_alone_is_accepted_with_a_warning(
    tmp_path: Path,
) -> None:
    source, out = write_source(tmp_path / "text"), tmp_path / "out"
    path = write_tokenizer(tmp_path / "tokenizer.json", 260)
    first, second = make_runs(source, str(path))
    train([first], out)
    dataset = data.load_dataset(first.data)
    change_stored_fingerprint(out, first, dataset.text_fingerprint)
    with pytest.warns(data.UncheckedTokenizerWarning, match=r"data\.tokenizer = "):
        train([first, second], out)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        dataset.check_trained_on(dataset.text_fingerprint, first.run_id)
        dataset.check_trained_on(dataset.text_fingerprint, second.run_id)
    assert len({str(warning.message) for warning in caught}) == 1
    assert np.isfinite(
        json.loads((out / first.run_id / "result.json").read_text())["loss"]
    )
