"""Warnings about rows that are kept: what is odd is named with its rows, and no number
changes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.table.runs import Runs, load_runs

SIZES = np.array([1e6, 2e6, 4e6, 8e6])
TOKENS = np.array([1e8, 4e8, 2e8, 3e8])


def _table(**columns: object) -> pd.DataFrame:
    """Four runs without any oddity, with `columns` added."""
    return pd.DataFrame({"N": SIZES, "D": TOKENS, "loss": [3.0, 2.9, 2.8, 2.7]}).assign(
        **columns
    )


def _note(runs: Runs, part: str) -> str:
    """The one warning that has `part`; "" when none has."""
    found = [note for note in runs.notes if part in note]
    assert len(found) <= 1
    return found[0] if found else ""


def test_a_sound_table_has_no_warning() -> None:
    sound = _table(
        schedule="cosine",
        tokenizer="bpe",
        vocab=50257,
        source="web",
        seed=0,
        status="finished",
        C=6 * SIZES * TOKENS,
    )
    sound = sound.assign(warmup_tokens=0.02 * TOKENS, cooldown_fraction=0.2)
    assert load_runs(sound).notes == ()


def test_exact_duplicates_are_kept_and_named() -> None:
    twice = pd.concat(
        [_table(seed=1), _table(seed=1).iloc[[1]], _table(seed=2).iloc[[0]]],
        ignore_index=True,
    )
    runs = load_runs(twice)
    assert len(runs) == 6
    assert _note(runs, "duplicates").startswith(
        "exact duplicates (N, D, C, loss, seed all equal): rows 1, 4; "
    )
    twice = twice.assign(unique_tokens=np.arange(1.0, 7.0))
    assert _note(load_runs(twice, U="unique_tokens"), "duplicates") == ""


def test_at_most_eight_rows_are_named() -> None:
    many = pd.concat([_table()] * 5, ignore_index=True)
    assert "rows 0, 1, 2, 3, 4, 5, 6, 7 and 12 more;" in _note(
        load_runs(many), "duplicates"
    )


def test_rows_are_named_by_their_place_in_the_source() -> None:
    bad_first = pd.concat(
        [_table().iloc[[0]].assign(loss=-1.0), _table(), _table().iloc[[3]]],
        ignore_index=True,
    )
    assert "rows 4, 5;" in _note(load_runs(bad_first), "duplicates")


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("schedule", ["wsd", "cosine", "wsd", "wsd"], "2 learning-rate schedules are mixed: wsd (3 rows), cosine"),
        ("tokenizer", ["a", "b", "b", None], "2 tokenizers are mixed: b (2 rows), a (1 row)"),
        ("vocab", [50257.0, 256.0, 50257.0, 50257.0], "2 vocabulary sizes are mixed: 50257 (3 rows), 256 (1 row)"),
        ("source", ["web", "web", "web", "code"], "2 data sources are mixed: web (3 rows), code (1 row)"),
    ],
)  # fmt: skip
def test_mixed_recipes_and_data_are_named_with_the_rows_of_the_minority(
    name: str, values: list, words: str
) -> None:
    runs = load_runs(_table(**{name: values}))
    (note,) = runs.notes
    assert note.startswith(words)
    minority = next(
        i for i, v in enumerate(values) if v is not None and values.count(v) == 1
    )
    assert note.endswith(f": row {minority}")


def test_a_mixed_column_that_is_a_variable_or_does_not_matter_is_no_oddity() -> None:
    sizes = _table(
        vocab=[1e3, 2e3, 4e3, 8e3],
        tokenizer=list("abcd"),
        bits_per_byte=[1.0, 0.9, 0.8, 0.7],
    )
    assert _note(load_runs(sizes), "vocabulary") != ""
    assert _note(load_runs(sizes, V="vocab"), "vocabulary") == ""
    assert load_runs(sizes, loss="bits_per_byte").notes == ()


def test_a_warm_up_or_cooldown_that_does_not_grow_with_the_run_is_named() -> None:
    note = _note(load_runs(_table(warmup_tokens=2e7)), "warm-up")
    assert "from 5 % (row 1) to 20 % (row 0) of its tokens" in note
    assert "arXiv:2406.19146" in note
    assert (
        load_runs(_table(warmup_tokens=0.05 * 1e8)).notes == ()
    )  # 5 % of a run at most
    assert "from 1.5 % (row 1) to 6 % (row 0)" in _note(
        load_runs(_table(warmup_tokens=0.06 * 1e8)), "warm-up"
    )
    assert (
        load_runs(_table(warmup_tokens=[1e7, 5e7, 2e7, "?"])).notes == ()
    )  # within a factor of 3
    cooldown = _note(
        load_runs(_table(cooldown_fraction=[0.2, 0.2, 0.0, 0.2])), "cooldown"
    )
    assert "from 0 % (row 2) to 20 % (row 0)" in cooldown


def test_one_ratio_of_tokens_to_parameters_is_named() -> None:
    assert "every run has D/N = 20:" in _note(load_runs(_table(D=20 * SIZES)), "D/N")
    assert load_runs(_table(D=SIZES * np.array([20, 20, 20, 22]))).notes == ()
    assert _note(load_runs(_table(D=20 * SIZES).iloc[:2]), "D/N") == ""


def test_rows_that_may_be_checkpoints_want_a_trunk(data_dir: Path) -> None:
    D = np.tile(np.linspace(1e8, 1e9, 8), 2)
    table = pd.DataFrame(
        {
            "N": np.repeat([1e6, 8e6], 8),
            "D": D,
            "loss": np.linspace(3, 2, 16),
            "who": ["x"] * 16,
        }
    )
    note = _note(load_runs(table), "checkpoints")
    assert note.startswith(
        "up to 8 values of D for one N without a trunk column (rows 0, 1, 2, 3, 4, 5, "
        "6, 7 and 8"
    )
    assert load_runs(table, trunk="who").notes == ()
    assert load_runs(table.assign(budget=6 * table["N"] * D)).notes == ()
    assert (
        load_runs(table.assign(name=[f"run{i}" for i in range(16)])).notes == ()
    )  # each a run of its own
    assert load_runs(table.drop(index=[0, 8])).notes == ()  # seven values: a grid
    assert (
        load_runs(
            data_dir / "epoch_chinchilla.csv", N="Model Size", C="Training FLOP"
        ).notes
        == ()
    )


def test_compute_that_is_not_6ND_is_named() -> None:
    exact = 6 * SIZES * TOKENS
    wrong = _note(load_runs(_table(C=exact * np.array([1.9, 0.6, 2.5, 0.4]))), "6*N*D")
    assert wrong.startswith("C (C) is 0.4 to 2.5 times 6*N*D in rows 2, 3:")
    assert "C (C) is 1e-15 times 6*N*D in rows 0, 1, 2, 3" in _note(
        load_runs(_table(C=exact / 1e15)), "6*N*D"
    )
    assert load_runs(_table(C=exact / 1e15), units={"C": "petaflops"}).notes == ()
    own = _table(C=3 * exact).rename(
        columns={"N": "n_matmul", "D": "tokens", "C": "flops"}
    )
    assert load_runs(own).notes == ()  # counted exactly, attention included


def test_runs_that_the_tracker_calls_crashed_are_named() -> None:
    note = _note(
        load_runs(_table(State=["finished", "crashed", "running", "finished"])), "State"
    )
    assert note.startswith("State is crashed or running in rows 1, 2:")
    assert load_runs(_table(state=["Ohio", "Utah", "Iowa", "Ohio"])).notes == ()


def test_warnings_survive_cells_that_are_no_scalars() -> None:
    runs = load_runs(
        _table(
            seed=[[1], [2], {"a": 1}, None],
            schedule=[["x"], ["y"], None, 3],
            State=[[1], None, 2, "x"],
        )
    )
    assert len(runs) == 4
