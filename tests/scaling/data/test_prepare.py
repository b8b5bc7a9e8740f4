"""Laws of the token cache: a function of the set of documents, whole or absent, split
by document.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling.config import DataConfig
from scaling.data import (
    DataError,
    Dataset,
    InvalidTextWarning,
    load_dataset,
    load_tokenizer,
    prepare,
)
from scaling.data.tokenizers import ByteTokenizer

Documents = list[str]


@pytest.fixture
def texts() -> Documents:
    rng = random.Random(0)
    words = ["loss", "width", "depth", "token", "naïve", "scale", "\n"]
    return [
        f"{i}: " + " ".join(rng.choices(words, k=rng.randint(5, 60)))
        for i in range(400)
    ]


def write(folder: Path, texts: Documents, files: int = 3) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        lines = (json.dumps({"text": text}) + "\n" for text in texts[number::files])
        (folder / f"{number}.jsonl").write_text("".join(lines))
    return str(folder)


def config(source: str, **changes: Any) -> DataConfig:
    return DataConfig(**{"source": source, "heldout_fraction": 0.1, **changes})


def documents(ids: np.ndarray) -> Documents:
    return bytes(ids.astype(np.uint8)).decode().split("\0")[:-1]


def entries(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.name != "index"]


def same(a: Dataset, b: Dataset) -> bool:
    return np.array_equal(a.train, b.train) and np.array_equal(a.heldout, b.heldout)


def test_all_documents_are_there_once(tmp_path: Path, texts: Documents) -> None:
    data = load_dataset(
        config(write(tmp_path / "text", [*texts, *texts[:50]])), tmp_path / "cache"
    )
    assert sorted(documents(data.train) + documents(data.heldout)) == sorted(texts)
    assert data.meta["duplicates"] == 50 and data.meta["documents"] == len(texts)
    assert data.vocab == 256 and data.bytes_per_token == 1.0 and data.entropy is None


def test_the_cache_does_not_depend_on_the_order_of_documents(
    tmp_path: Path, texts: Documents
) -> None:
    cache = tmp_path / "cache"
    one = load_dataset(config(write(tmp_path / "one", texts)), cache)
    two = load_dataset(config(write(tmp_path / "two", texts[::-1], files=5)), cache)
    assert one.fingerprint == two.fingerprint and same(one, two)
    assert len(entries(cache)) == 1  # the very same files
    assert (
        load_dataset(config(write(tmp_path / "three", texts[1:])), cache).fingerprint
        != one.fingerprint
    )


def test_heldout_is_disjoint_and_stable_when_documents_are_added(
    tmp_path: Path, texts: Documents
) -> None:
    few = load_dataset(config(write(tmp_path / "few", texts[:200])), tmp_path / "cache")
    many = load_dataset(config(write(tmp_path / "many", texts)), tmp_path / "cache")
    assert not set(documents(many.train)) & set(documents(many.heldout))
    assert set(documents(few.heldout)) == set(documents(many.heldout)) & set(
        texts[:200]
    )
    wider = load_dataset(
        config(write(tmp_path / "many", texts), heldout_fraction=0.3),
        tmp_path / "cache",
    )
    assert set(documents(many.heldout)) < set(documents(wider.heldout))
    assert (
        0.04 < len(documents(many.heldout)) / len(texts) < 0.18
    )  # 0.1 within four standard errors


def test_a_second_call_reads_no_text(
    tmp_path: Path, texts: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "text", texts)
    first = load_dataset(config(source), tmp_path / "cache")

    def no_reading(*_: object) -> None:
        raise AssertionError("the text was read again")

    monkeypatch.setattr(prepare.Spool, "fill", no_reading)
    assert same(load_dataset(config(source), tmp_path / "cache"), first)


def test_a_changed_file_is_read_again(tmp_path: Path, texts: Documents) -> None:
    source = write(tmp_path / "text", texts)
    first = load_dataset(config(source), tmp_path / "cache")
    write(
        tmp_path / "text", [text.replace("loss", "ssol") for text in texts]
    )  # same sizes
    second = load_dataset(config(source), tmp_path / "cache")
    assert second.fingerprint != first.fingerprint
    assert any("ssol" in text for text in documents(second.train))


@pytest.mark.parametrize("damage", ["truncate", "delete", "meta", "folder"])
def test_a_damaged_entry_is_built_again(
    tmp_path: Path, texts: Documents, damage: str
) -> None:
    cache, setting = tmp_path / "cache", config(write(tmp_path / "text", texts))
    before = load_dataset(setting, cache)
    ids = np.array(before.train)
    (entry,) = entries(cache)
    if damage == "truncate":
        os.truncate(entry / "train.bin", 100)
    elif damage == "delete":
        (entry / "heldout.bin").unlink()
    elif damage == "meta":
        (entry / "meta.json").write_text('{"files": ')
    else:
        for path in entry.iterdir():
            path.unlink()
    after = load_dataset(setting, cache)
    np.testing.assert_array_equal(after.train, ids)
    assert entries(cache) == [entry]


def test_a_damaged_index_does_no_harm(tmp_path: Path, texts: Documents) -> None:
    cache, setting = tmp_path / "cache", config(write(tmp_path / "text", texts))
    before = load_dataset(setting, cache)
    for path in (cache / "index").iterdir():
        path.write_text("{")
    assert same(load_dataset(setting, cache), before)


def test_processes_preparing_the_same_source_agree(
    tmp_path: Path, texts: Documents
) -> None:
    """Two at once, released together by a file; each must read whole, equal files."""
    source, cache, go = (
        write(tmp_path / "text", texts),
        tmp_path / "cache",
        tmp_path / "go",
    )
    script = f"""
import hashlib, pathlib, sys, time
from scaling.config import DataConfig
from scaling.data import load_dataset
print("ready", flush=True)
while not pathlib.Path({str(go)!r}).exists():
    time.sleep(0.001)
data = load_dataset(DataConfig(source={source!r}, heldout_fraction=0.1), pathlib.Path({str(cache)!r}))
print(hashlib.sha256(bytes(data.train) + bytes(data.heldout)).hexdigest())
"""
    command = [sys.executable, "-c", script]
    workers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for worker in workers:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    go.touch()
    outputs = {worker.communicate(timeout=60)[0] for worker in workers}
    assert [worker.returncode for worker in workers] == [0, 0]
    assert len(outputs) == 1 and len(outputs.pop()) == 65
    assert len(entries(cache)) == 1  # nothing left behind


def test_a_killed_writer_leaves_no_entry(
    tmp_path: Path, texts: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, setting = tmp_path / "cache", config(write(tmp_path / "text", texts))

    def killed(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_write_ids", killed)
        with pytest.raises(KeyboardInterrupt):
            load_dataset(setting, cache)
    assert entries(cache) == []
    assert len(load_dataset(setting, cache).train) > 0


def test_unique_tokens_is_a_prefix(tmp_path: Path, texts: Documents) -> None:
    source = write(tmp_path / "text", texts)
    whole = load_dataset(config(source), tmp_path / "cache")
    part = load_dataset(config(source, unique_tokens=1000), tmp_path / "cache")
    np.testing.assert_array_equal(part.train, whole.train[:1000])
    assert len(part.heldout) == len(whole.heldout)
    with pytest.raises(
        DataError, match=r"unique_tokens = 100000000: the training stream has"
    ):
        load_dataset(config(source, unique_tokens=10**8), tmp_path / "cache")


def test_too_little_heldout_text_names_a_fraction_that_works(
    tmp_path: Path, texts: Documents
) -> None:
    source = write(tmp_path / "text", texts)
    for fraction in (0.005, 1e-9):
        with pytest.raises(
            DataError, match=r"use more text, or set data.heldout_fraction = "
        ) as caught:
            load_dataset(config(source, heldout_fraction=fraction), tmp_path / "cache")
        proposed = float(
            str(caught.value).split("set data.heldout_fraction = ")[1].split()[0]
        )
        data = load_dataset(
            config(source, heldout_fraction=proposed), tmp_path / "cache"
        )
        assert 8192 <= len(data.heldout) < 12_000


def test_too_few_documents_name_the_remedy(tmp_path: Path, texts: Documents) -> None:
    source = write(tmp_path / "three", texts[:3])
    for fraction, name in ((1e-6, "held-out"), (1 - 1e-6, "training")):
        with pytest.raises(
            DataError,
            match=f"none of the 3 documents .* {name} slice; use more text, or",
        ):
            load_dataset(config(source, heldout_fraction=fraction), tmp_path / "cache")


def test_a_source_without_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no text in it"):
        load_dataset(config(write(tmp_path / "blank", ["", ""])), tmp_path / "cache")


def test_documents_that_cannot_be_stored_are_counted(
    tmp_path: Path, texts: Documents
) -> None:
    source = write(tmp_path / "text", [*texts, "nul \0 byte", "lone \ud800"])
    with pytest.warns(InvalidTextWarning, match="2 documents .* byte 0"):
        data = load_dataset(config(source), tmp_path / "cache")
    assert data.meta["skipped"] == 2 and data.meta["documents"] == len(texts)
    counts = {"skipped_documents": 2, "skipped_bytes": 18}
    assert data.describe_invalid() == counts


def test_bpe_is_trained_on_training_documents_and_kept(
    tmp_path: Path, texts: Documents
) -> None:
    source, cache = write(tmp_path / "text", texts), tmp_path / "cache"
    setting = config(source, tokenizer="bpe:300")
    data = load_dataset(setting, cache)
    tokenizer = load_tokenizer(setting, cache)
    assert (
        data.vocab == tokenizer.vocab == 300
        and data.meta["tokenizer_hash"] == tokenizer.hash
    )
    plain = load_dataset(config(source), cache)
    assert tokenizer.decode(data.heldout) == ByteTokenizer().decode(plain.heldout)
    # one byte for each separator, so that bits per byte compare between tokenizers
    assert data.bytes_per_token == pytest.approx(
        len(plain.heldout) / len(data.heldout), rel=1e-15
    )


def test_a_tokenizer_file_gives_the_same_ids_as_its_training(
    tmp_path: Path, texts: Documents
) -> None:
    source, cache = write(tmp_path / "text", texts), tmp_path / "cache"
    trained = load_dataset(config(source, tokenizer="bpe:300"), cache)
    (path,) = cache.glob("*/tokenizer.json")
    assert same(load_dataset(config(source, tokenizer=str(path)), cache), trained)


def test_the_cache_folder_follows_the_environment(
    tmp_path: Path, texts: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path / "elsewhere"))
    load_dataset(config(write(tmp_path / "text", texts)))
    assert len(entries(tmp_path / "elsewhere")) == 1


def test_code_is_prepared_within_seconds(tmp_path: Path) -> None:
    start = time.perf_counter()
    data = load_dataset(DataConfig(), tmp_path)
    assert time.perf_counter() - start < 15  # measured 0.6 s alone on two cores
    assert len(data.train) > 30e6 and len(data.heldout) > 262_144
    assert data.fingerprint == load_dataset(DataConfig(), tmp_path).fingerprint


def test_synthetic_sources_are_cached_alike(tmp_path: Path) -> None:
    setting = DataConfig(
        source="zipf_facts:items=64,examples=2000", heldout_fraction=0.1
    )
    data = load_dataset(setting, tmp_path)
    assert same(load_dataset(setting, tmp_path), data) and len(entries(tmp_path)) == 1
    assert (
        data.document_length == 4
        and data.loss_range == (17, 33)
        and np.isnan(data.bytes_per_token)
    )
    data.check_context(12)
    with pytest.raises(
        DataError, match=r"model.context = 10: must be a multiple of 4.*use 8"
    ):
        data.check_context(10)
    other = load_dataset(
        DataConfig(source=setting.source + ",seed=1", heldout_fraction=0.1), tmp_path
    )
    assert other.fingerprint != data.fingerprint
    with pytest.raises(DataError, match="has no tokenizer"):
        load_tokenizer(setting, tmp_path)
