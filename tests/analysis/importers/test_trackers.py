"""Tables from trackers: one row per run or per logged step, ids as text, nothing
sampled, nothing executed.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.table.runs import load_runs

CONFIG = {
    "model": {"params": 1e6, "heads": [2, 4]},
    "optim": {"lr": 1e-3},
    "tokens": 1e8,
    "_wandb": {"t": 1},
}


def _run(
    id: str,
    state: str = "finished",
    config: dict | None = None,
    summary: dict | None = None,
    steps: int = 3,
) -> Any:
    """Stands in for wandb's Run: `steps` logged steps, of which the last has no
    val_loss.
    """

    def scan_history(keys: list[str]) -> Iterator[dict[str, Any]]:
        logged = [
            {"_step": i, "tokens": 1e6 * (i + 1), "val_loss": 4.0 - 0.1 * i}
            for i in range(steps)
        ]
        logged[-1].pop("val_loss")
        return ({k: row[k] for k in keys} for row in logged if set(keys) <= set(row))

    return SimpleNamespace(
        id=id,
        name=f"run {id}",
        state=state,
        config=CONFIG if config is None else config,
        summary={"val_loss": 3.0, "tokens": 9.9e7, "_wandb": {}}
        if summary is None
        else summary,
        scan_history=scan_history,
    )


def test_wandb_runs_are_rows_with_flat_columns() -> None:
    table = analysis.from_wandb(
        _run(id, state) for id, state in (("007", "finished"), ("1e5", "crashed"))
    )
    assert list(table["run_id"]) == ["007", "1e5"]
    assert "trunk_id" not in table
    first = table.iloc[0]
    assert (first["model.params"], first["optim.lr"], first["model.heads"]) == (
        1e6,
        1e-3,
        "[2, 4]",
    )
    assert (first["tokens"], first["summary.tokens"], first["val_loss"]) == (
        1e8,
        9.9e7,
        3.0,
    )
    assert not [c for c in table if "_wandb" in c]
    runs = load_runs(table, N="model.params", D="tokens", loss="val_loss")
    assert list(runs.table["run_id"]) == ["007"]
    assert runs.reasons() == [(1, "status is 'crashed', not 'finished'")]


def test_wandb_names_that_are_taken_keep_their_part_before_them() -> None:
    own = {"name": "mine", "run_id": 3, "status": "x"}
    row = analysis.from_wandb(
        [_run("a", config=own, summary={"name": "theirs", "loss": "NaN"})]
    ).iloc[0]
    assert (row["name"], row["run_id"], row["status"]) == ("run a", "a", "finished")
    assert (
        row["config.name"],
        row["config.run_id"],
        row["summary.name"],
        row["loss"],
    ) == ("mine", 3, "theirs", "NaN")


def test_wandb_history_is_whole_and_its_rows_share_a_trunk() -> None:
    table = analysis.from_wandb(
        [_run("a", steps=1001), _run("b", steps=4)], history=["tokens", "val_loss"]
    )
    assert list(table["run_id"].value_counts()) == [1000, 3]
    assert (table["trunk_id"] == table["run_id"]).all()
    assert list(table["tokens"][:2]) == [1e6, 2e6]
    assert set(table["config.tokens"]) == {1e8}
    runs = load_runs(table, N="model.params", D="tokens", loss="val_loss")
    assert runs.columns["trunk"] == "trunk_id"
    assert runs.table["trunk"].nunique() == 2
    with pytest.raises(
        ValueError, match=r"no step of the runs given has all of \['val_loss'\]"
    ):
        analysis.from_wandb([_run("a", steps=1)], history="val_loss")
    with pytest.raises(ValueError, match="no run in the runs given"):
        analysis.from_wandb([])


def test_a_project_is_read_with_the_package_wandb(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    api = SimpleNamespace(runs=lambda path: asked.append(path) or [_run("a")])
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Api=lambda: api))
    assert len(analysis.from_wandb("us/sweep")) == 1
    assert asked == ["us/sweep"]
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises
    with pytest.raises(ImportError, match="pip install wandb"):
        analysis.from_wandb("us/sweep")


def test_a_table_exported_from_wandb_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "wandb_export.csv"
    path.write_text(
        '"Name","State","Notes","User","Created","model.params","tokens","val_loss"\n'
        '"warm-sun-1","finished","-","me","2026-01-01T00:00:00.000Z","1000000","100000000","3.25"\n'
        '"red, sky-2","crashed","","me","2026-01-01T00:00:00.000Z","2000000","100000000","3.5"\n'
        '"dry-leaf-3","finished","","me","2026-01-01T00:00:00.000Z","2000000","100000000",""\n'
    )
    runs = load_runs(path, N="model.params", D="tokens", loss="val_loss")
    assert list(runs.table["Name"]) == ["warm-sun-1", "red, sky-2"]
    assert list(runs.table["loss"]) == [3.25, 3.5]
    assert runs.reasons() == [(2, "val_loss is missing")]
    assert runs.notes[0].startswith("State is crashed in row 1:")


def test_mlflow_table_loses_its_prefixes_where_that_is_unambiguous() -> None:
    table = pd.DataFrame(
        {
            "run_id": ["1e5", "007"],
            "status": ["FINISHED", "FAILED"],
            "params.n_params": ["1000000", "2e6"],
            "params.tokens": ["100000000", "1e8"],
            "params.optimizer": ["adamw", "12"],
            "params.data_id": ["01", "02"],
            "params.depth": ["4", None],
            "metrics.val_loss": [3.0, 2.9],
            "metrics.tokens": [1e8, 9e7],
            "tags.mlflow.runName": ["a", "b"],
            "tags.commit": ["12", "13"],
        }
    )
    found = analysis.from_mlflow(table)
    assert list(found.columns) == [
        *(
            "run_id",
            "status",
            "n_params",
            "params.tokens",
            "optimizer",
            "data_id",
            "depth",
        ),
        *("val_loss", "metrics.tokens", "mlflow.runName", "commit"),
    ]
    assert list(found["run_id"]) == ["1e5", "007"]
    assert list(found["n_params"]) == [1e6, 2e6]
    assert found["depth"].iloc[0] == 4
    assert list(found["optimizer"]) == ["adamw", "12"]
    assert list(found["data_id"]) == ["01", "02"]
    assert list(found["commit"]) == ["12", "13"]
    assert table["params.n_params"].iloc[0] == "1000000"
    runs = load_runs(found, N="n_params", D="params.tokens", loss="val_loss")
    assert runs.reasons() == [(1, "status is 'failed', not 'finished'")]
    with pytest.raises(ValueError, match="lacks run_id or status"):
        analysis.from_mlflow(table.drop(columns="run_id"))
    with pytest.raises(ValueError, match="no run in DataFrame"):
        analysis.from_mlflow(table.iloc[:0])


SCHEMA = """
CREATE TABLE experiments (experiment_id INTEGER NOT NULL PRIMARY KEY, name VARCHAR(256) NOT NULL,
  artifact_location VARCHAR(256), lifecycle_stage VARCHAR(32), creation_time BIGINT, last_update_time BIGINT);
CREATE TABLE runs (run_uuid VARCHAR(32) NOT NULL PRIMARY KEY, name VARCHAR(250), source_type VARCHAR(20),
  source_name VARCHAR(500), entry_point_name VARCHAR(50), user_id VARCHAR(256), status VARCHAR(9), start_time BIGINT,
  end_time BIGINT, deleted_time BIGINT, source_version VARCHAR(50), lifecycle_stage VARCHAR(20),
  artifact_uri VARCHAR(200), experiment_id INTEGER);
CREATE TABLE params (key VARCHAR(250) NOT NULL, value VARCHAR(8000) NOT NULL, run_uuid VARCHAR(32) NOT NULL);
CREATE TABLE tags (key VARCHAR(250) NOT NULL, value VARCHAR(8000), run_uuid VARCHAR(32) NOT NULL);
CREATE TABLE latest_metrics (key VARCHAR(250) NOT NULL, value FLOAT NOT NULL, timestamp BIGINT, step BIGINT NOT NULL,
  is_nan BOOLEAN NOT NULL, run_uuid VARCHAR(32) NOT NULL);
INSERT INTO experiments (experiment_id, name) VALUES (1, 'sweep');
"""


def _database(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as base:
        base.executescript(SCHEMA)
        for i, (run, status, stage) in enumerate(
            [("2e9", "FINISHED", "active"), ("b", "FINISHED", "active"), ("c", "FINISHED", "active"),
             ("d", "KILLED", "active"), ("e", "FINISHED", "deleted")]
        ):  # fmt: skip
            base.execute(
                "INSERT INTO runs (run_uuid, name, status, start_time, "
                "lifecycle_stage, experiment_id) "
                "VALUES (?, ?, ?, ?, ?, 1)",
                (run, f"run {run}", status, i, stage),
            )
            params = [
                ("n_params", str(10**6 * (i + 1))),
                ("tokens", "1e8"),
                ("optimizer", "adamw"),
            ]
            base.executemany(
                "INSERT INTO params VALUES (?, ?, ?)", [(*p, run) for p in params]
            )
            value, is_nan = {"b": (0.0, 1), "c": (1.7976931348623157e308, 0)}.get(
                run, (3.0, 0)
            )
            base.execute(
                "INSERT INTO latest_metrics VALUES ('val_loss', ?, 0, 5, ?, ?)",
                (value, is_nan, run),
            )
            base.execute("INSERT INTO tags VALUES ('mlflow.user', 'me', ?)", (run,))
        base.commit()
    return path


@pytest.mark.parametrize("prefix", ["", "sqlite:///"])
def test_mlflow_database_is_read_without_mlflow(tmp_path: Path, prefix: str) -> None:
    path = _database(tmp_path / "ml flow.db")
    before = path.read_bytes()
    table = analysis.from_mlflow(f"{prefix}{path}")
    assert list(table["run_id"]) == [
        "2e9",
        "b",
        "c",
        "d",
    ]  # the deleted run is left out
    assert list(table["name"]) == ["run 2e9", "run b", "run c", "run d"]
    assert set(table["experiment"]) == {"sweep"}
    assert list(table["n_params"]) == [1e6, 2e6, 3e6, 4e6]
    assert np.isnan(table["val_loss"][1]) and np.isposinf(table["val_loss"][2])
    runs = load_runs(table, N="n_params", D="tokens", loss="val_loss")
    assert list(runs.table["run_id"]) == ["2e9"]
    assert [why for _, why in runs.reasons()] == [
        "val_loss is missing",
        "val_loss is infinite",
        "status is 'killed', not 'finished'",
    ]
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["ml flow.db"]


TRACKIO = """
CREATE TABLE metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, timestamp TEXT NOT NULL,
  run_name TEXT NOT NULL, step INTEGER NOT NULL, metrics TEXT NOT NULL);
CREATE TABLE configs (id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, run_name TEXT NOT NULL,
  config TEXT NOT NULL, created_at TEXT NOT NULL, UNIQUE(run_id));
"""


def _trackio(path: Path, *runs: tuple[str, str, str, list[str]]) -> Path:
    """A database of runs: own id, name, configuration, what each step logged."""
    with closing(sqlite3.connect(path)) as base:
        base.executescript(TRACKIO)
        for own_id, name, config, steps in runs:
            base.execute(
                "INSERT INTO configs VALUES (NULL, ?, ?, ?, '')", (own_id, name, config)
            )
            for step, metrics in enumerate(steps):
                base.execute(
                    "INSERT INTO metrics VALUES (NULL, ?, '', ?, ?, ?)",
                    (own_id, name, step, metrics),
                )
        base.commit()
    return path


def test_trackio_database_is_read_without_trackio(tmp_path: Path) -> None:
    image = '{"_type": "trackio.image", "file_path": "x.png"}'
    steps = [
        '{"val_loss": 4.0, "tokens": 100}',
        f'{{"val_loss": 3.0, "tokens": 200, "curve": {image}}}',
        '{"lr": 0.1}',
    ]
    path = _trackio(
        tmp_path / "project.db",
        ("11", "007", '{"optim": {"lr": 0.5}, "n_params": 1000}', steps),
        ("12", "twin", '{"n_params": 2000}', ['{"val_loss": "NaN"}']),
        ("13", "twin", '{"n_params": 3000}', ['{"val_loss": "Infinity", "tokens": 1}']),
    )
    before = path.read_bytes()
    table = analysis.from_trackio(path)
    assert list(table["run_id"]) == ["007", "12", "13"] and list(table["name"]) == [
        "007",
        "twin",
        "twin",
    ]
    assert (
        table["val_loss"][0] == 3.0
        and np.isnan(table["val_loss"][1])
        and np.isposinf(table["val_loss"][2])
    )
    assert (
        table["optim.lr"][0] == 0.5 and table["lr"][0] == 0.1 and "curve" not in table
    )
    curve = analysis.from_trackio(str(path), ["step", "val_loss", "tokens"])
    assert list(curve["step"]) == [0, 1, 0] and list(curve["tokens"]) == [100, 200, 1]
    assert list(curve["trunk_id"]) == ["007", "007", "13"]
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [
        "project.db"
    ]
    with pytest.raises(
        ValueError,
        match=r"no step .* has all of \['val_loss', 'lr'\]; name keys .* in one call",
    ):
        analysis.from_trackio(path, ["val_loss", "lr"])


@pytest.mark.parametrize("config", ["[1]", "{", '"text"'])
def test_a_file_that_is_no_trackio_database_is_an_error(
    tmp_path: Path, config: str
) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"PROJECT\.db in the folder of TRACKIO_DIR"
    ):
        analysis.from_trackio(tmp_path / "absent.db")
    for path in (
        _database(tmp_path / "mlflow.db"),
        _trackio(tmp_path / "odd.db", ("1", "a", config, [])),
    ):
        with pytest.raises(ValueError, match=r"is not a Trackio database"):
            analysis.from_trackio(path)
    with pytest.raises(ValueError, match="no run in"):
        analysis.from_trackio(_trackio(tmp_path / "empty.db"))


def test_a_file_that_is_no_mlflow_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database" * 100)
    with pytest.raises(ValueError, match=r"text\.db is not an MLflow database"):
        analysis.from_mlflow(tmp_path / "text.db")
    with closing(sqlite3.connect(tmp_path / "other.db")) as base:
        base.execute("CREATE TABLE runs (a)")
    with pytest.raises(
        ValueError, match=r"other\.db is not an MLflow database: no such table"
    ):
        analysis.from_mlflow(str(tmp_path / "other.db"))
    with pytest.raises(FileNotFoundError, match=r"no MLflow database at .*absent\.db"):
        analysis.from_mlflow(tmp_path / "absent.db")
    assert not (tmp_path / "absent.db").exists()


Points = list[tuple[int, dict[str, float]]]


def _events(
    folder: Path, points: Points, at: float = 0.0, new_style: bool = False
) -> Path:
    """An event file of TensorBoard with `points`: (step, scalars); its path."""
    pytest.importorskip("tensorboard", reason='needs pip install "scaling[import]"')
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    from tensorboard.util.tensor_util import make_tensor_proto

    def value(tag: str, number: float) -> Any:
        if not new_style:
            return summary_pb2.Summary.Value(tag=tag, simple_value=number)
        plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="scalars")
        meta = summary_pb2.SummaryMetadata(plugin_data=plugin)
        return summary_pb2.Summary.Value(
            tag=tag, tensor=make_tensor_proto(np.float32(number)), metadata=meta
        )

    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    writer = EventFileWriter(str(folder), filename_suffix=f".{at:09.0f}")
    for i, (step, scalars) in enumerate(points):
        summary = summary_pb2.Summary(
            value=[value(tag, number) for tag, number in scalars.items()]
        )
        writer.add_event(event_pb2.Event(wall_time=at + i, step=step, summary=summary))
    writer.close()
    (path,) = set(folder.iterdir()) - before
    return path


def test_tensorboard_scalars_are_rows_by_run_and_step(tmp_path: Path) -> None:
    many: Points = [
        (i, {"loss": 4.0, "tokens": 1e6 * i}) for i in range(1, 12_001)
    ]  # more than its reservoir holds
    _events(tmp_path / "a" / "train", many)
    _events(
        tmp_path / "2",
        [(1, {"loss": 3.5}), (2, {"loss": 3.25, "tokens": 2e6})],
        new_style=True,
    )
    (tmp_path / "empty").mkdir()
    table = analysis.from_tensorboard(tmp_path)
    assert list(table["run_id"].value_counts().items()) == [
        ("a/train", 12_000),
        ("2", 2),
    ]
    assert (table["trunk_id"] == table["run_id"]).all()
    second = table[table["run_id"] == "2"]
    assert list(second["step"]) == [1, 2]
    assert list(second["loss"]) == [3.5, 3.25]
    assert np.isnan(second["tokens"].iloc[0])
    runs = load_runs(table.assign(N=1e6), D="tokens")
    assert runs.reasons() == [(0, "tokens is missing")]
    assert runs.table["trunk"].nunique() == 2


def test_a_restarted_run_keeps_the_later_of_two_steps(tmp_path: Path) -> None:
    _events(
        tmp_path / "run",
        [(1, {"loss": 4.0}), (2, {"loss": 3.5}), (3, {"loss": 3.0})],
        at=100.0,
    )
    _events(
        tmp_path / "run",
        [(2, {"loss": 3.6}), (3, {"loss": 3.1}), (4, {"loss": 2.9})],
        at=200.0,
    )
    table = analysis.from_tensorboard(tmp_path)
    assert list(table["step"]) == [1, 2, 3, 4]
    assert list(table["loss"]) == pytest.approx([4.0, 3.6, 3.1, 2.9])


def test_tensorboard_scalars_can_be_chosen_and_torn_files_are_read(
    tmp_path: Path,
) -> None:
    points: Points = [
        (1, {"loss": 4.0, "lr": 1.0}),
        (2, {"lr": 0.5}),
        (3, {"loss": 3.0}),
    ]
    path = _events(tmp_path / "run", points)
    _events(tmp_path / "other", [(1, {"lr": 1.0})])
    path.write_bytes(path.read_bytes()[:-3])
    table = analysis.from_tensorboard(tmp_path, scalars=["loss"])
    assert table.to_dict("records") == [
        {"run_id": "run", "trunk_id": "run", "step": 1, "loss": 4.0}
    ]
    with pytest.raises(
        ValueError, match=r"none of the scalars \['los'\]; it has: loss"
    ):
        analysis.from_tensorboard(tmp_path, scalars=["los"])


def test_a_folder_without_events_or_package_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder at .*absent"):
        analysis.from_tensorboard(tmp_path / "absent")
    with pytest.raises(ValueError, match="no event file"):
        analysis.from_tensorboard(tmp_path)
    (tmp_path / "events.out.tfevents.1").write_bytes(b"")
    monkeypatch.setitem(
        sys.modules, "tensorboard.backend.event_processing.event_accumulator", None
    )
    with pytest.raises(ImportError, match=r'pip install "scaling\[import\]"'):
        analysis.from_tensorboard(tmp_path)


def test_the_readers_of_trackers_import_no_tracker_until_asked() -> None:
    code = "import analysis, sys; analysis.from_wandb, analysis.load_runs;"
    code += "print([m for m in ('wandb', 'mlflow', 'tensorboard', 'jax') if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"
