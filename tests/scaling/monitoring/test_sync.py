"""What is in the folder is written to a tracker once, whenever it is synced, and the
table is read back the same.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imsave

import analysis
from scaling.cli.main import main
from scaling.config import RunConfig
from scaling.monitoring import sync
from scaling.monitoring.sync import TrackerSync
from scaling.store import query, run_dirs
from scaling.store.table import run_table

MakeRun = Callable[..., RunConfig]
RecordRun = Callable[..., Path]
EXACT = (
    "N",
    "D",
    "C",
    "loss",
    "loss_se",
    "budget",
    "trunk",
    "lr",
    "width",
    "batch_tokens",
    "schedule",
    "bits_per_byte",
)


def log(folder: Path, *steps: int) -> None:
    folder.mkdir(exist_ok=True)
    lines = [
        {"step": step, "tokens": 64 * step, "loss": 3.0 - step / 100} for step in steps
    ]
    run_dirs.append_metrics(folder / "metrics.jsonl", lines)


@pytest.fixture
def runs(make_run: MakeRun) -> list[RunConfig]:
    """Runs of 20 steps that leave a trunk each at step 14."""
    return [make_run(seed=seed, budget=1e9 / 3) for seed in range(4)]


@pytest.fixture
def out(tmp_path: Path, runs: list[RunConfig], record: RecordRun) -> Path:
    """Two finished runs, one that diverged, one under way."""
    out = tmp_path / "mine"
    out.mkdir()
    for run in runs[:2]:
        # Numbers that a tracker must keep to the last bit.
        record(out, run, loss=1.1 + run.seed / 7, bits_per_byte=2 / 3)
        log(
            run_dirs.trunk_dir(out, run), 7, 14, 15
        )  # the last for a longer run of this trunk
        log(run_dirs.run_dir(out, run), 17, 20)
    record(out, runs[2], status="diverged", diverged=True, loss=None)
    run_dirs.open_run(out, runs[3])
    log(run_dirs.trunk_dir(out, runs[3]), 7)
    return out


class Told:
    """A tracker that remembers all calls to trackers of its kind."""

    def __init__(self, told: dict[str, list[Any]]) -> None:
        self.told = told

    def start(self, run: RunConfig, again: bool) -> None:
        self.events = self.told.setdefault(run.run_id, [])
        self.events.append("again" if again else "start")

    def log(self, steps: Mapping[int, Mapping[str, float]]) -> None:
        self.events += steps.items()

    def finish(self, row: Mapping[str, Any]) -> None:
        self.events.append(row["status"])

    def pause(self) -> None:
        self.events.append("pause")

    def show(self, figures: Mapping[str, Path]) -> None:
        self.told["figures"] = list(figures)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A PNG file of 3 x 2 pixels in a folder of its own."""
    path = tmp_path / "fit" / "frontier.png"
    path.parent.mkdir()
    imsave(path, np.linspace(0, 1, 18).reshape(2, 3, 3))
    return path


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    told: dict[str, list[Any]] = {}
    monkeypatch.setattr(sync, "make_opener", lambda kind, location: lambda: Told(told))
    return told


def steps(events: list[Any]) -> list[int]:
    return [event[0] for event in events if isinstance(event, tuple)]


def test_a_mirror_has_each_run_whole_and_once(out, runs, told):
    with contextlib.closing(TrackerSync(out, "wandb")) as first:
        assert first.update() == (9, 3)
        assert first.update() == (0, 0)
    before = json.dumps(told)
    with contextlib.closing(TrackerSync(out, "wandb")) as second:
        assert second.update() == (0, 0)
    assert json.dumps(told) == before
    for run in runs[:2]:
        events = told[run.run_id]
        assert (
            events[0] == "start"
            and events[-1] == "finished"
            and steps(events) == [7, 14, 17, 20]
        )
        assert events[1] == (7, {"train/tokens": 448.0, "train/loss": 2.93})
    assert told[runs[2].run_id] == ["start", "diverged"]
    assert told[runs[3].run_id] == [
        "start",
        (7, {"train/tokens": 448.0, "train/loss": 2.93}),
        "pause",
    ]


def test_a_run_goes_on_where_the_mirror_before_left_it(out, runs, told, record):
    run = runs[3]
    with contextlib.closing(TrackerSync(out, "wandb")) as first:
        first.update()
    log(
        run_dirs.trunk_dir(out, run), 7, 14
    )  # resumed from a checkpoint, step 7 is trained again
    with contextlib.closing(TrackerSync(out, "wandb")) as second:
        assert second.update() == (1, 0)
        log(run_dirs.run_dir(out, run), 20)
        record(out, run)
        assert second.update() == (1, 1)
    events = told[run.run_id]
    assert steps(events) == [7, 14, 20]
    assert [e for e in events if isinstance(e, str)] == [
        "start",
        "pause",
        "again",
        "finished",
    ]


def test_figures_are_shown_by_the_names_of_their_files(out, told, picture, capsys):
    argv = ["track", str(out), "--to", "wandb", "--images"]
    assert main([*argv, str(picture.parent)]) == 0
    assert told["figures"] == ["frontier"] and "1 figures" in capsys.readouterr().out
    assert (
        main([*argv, str(picture), str(picture.parent)]) == 0
    )  # one file, told of twice
    twin = picture.parent / "more" / "frontier.png"
    twin.parent.mkdir()
    twin.write_bytes(picture.read_bytes())
    for wrong, message in (
        (picture.parent / "law.json", "law.json: not a PNG file"),
        (twin, "have one name"),
    ):
        assert main([*argv, str(picture), str(wrong)]) == 2
        assert message in capsys.readouterr().err


def test_the_old_flag_for_images_still_works_and_says_so(out, told, picture, capsys):
    assert main(["track", str(out), "--to", "wandb", "--figures", str(picture)]) == 0
    assert told["figures"] == ["frontier"]
    assert "--images" in capsys.readouterr().err


def test_projects_and_kinds_are_mirrored_apart(out, told):
    for kind, project in (("wandb", None), ("wandb", "other/../x"), ("mlflow", None)):
        with contextlib.closing(TrackerSync(out, kind, project)) as one:
            assert one.update() == (9, 3)
    assert len(list((out / "tracked").iterdir())) == 3


def test_damage_costs_its_run_alone(out, runs, told):
    (out / runs[0].run_id / "result.json").write_text("[")
    (out / runs[1].run_id / "config.json").write_text("[")
    with contextlib.closing(TrackerSync(out, "wandb")) as one:
        assert one.update() == (1, 1)


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"a": 3}', '{"a": {"step": "x", "finished": true}}']
)
def test_a_damaged_memory_is_named_not_begun_anew(out, told, content, tmp_path):
    path = tmp_path / "state.json"
    path.write_text(content)
    with pytest.raises(query.UnreadableFile, match=r"state\.json"):
        TrackerSync(out, "wandb", state=path)


def test_a_sweep_is_mirrored_to_its_last_step(out, runs, told, record):
    with sync.sync_during_sweep(out, ("wandb",), seconds=60.0):
        log(run_dirs.run_dir(out, runs[3]), 20)
        record(out, runs[3])
    assert told[runs[3].run_id][-1] == "finished" and steps(told[runs[3].run_id]) == [
        7,
        20,
    ]


def test_a_tracker_that_fails_stops_no_sweep(out, told, monkeypatch, capsys):
    monkeypatch.setattr(Told, "start", lambda self, run, again: 1 / 0)
    with sync.sync_during_sweep(out, ("wandb",), seconds=0.001):
        trained = True
    assert trained
    assert (
        f"`scaling track {out} --to wandb` syncs what is missing"
        in capsys.readouterr().err
    )


def test_a_tracker_that_is_not_installed_is_named(out, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "trackio", None)  # importing it raises
    assert main(["track", str(out), "--to", "trackio"]) == 2
    assert "pip install 'scaling[trackio]'" in capsys.readouterr().err


# --- trackers that are there ------------------------------------------------------------------------------------


def track(kind: str, out: Path, *figures: Path) -> None:
    """Sync a folder with a package that may be missing."""
    package = {"tensorboard": "tensorboardX"}.get(kind, kind)
    pytest.importorskip(
        package,
        reason=f"the package {package} is not installed: pip install 'scaling[{kind}]'",
    )
    flags = ["--images", *map(str, figures)] if figures else []
    assert main(["track", str(out), "--to", kind, *flags]) == 0


def same(table: Any, out: Path, run_id: str = "run_id", exact: bool = True) -> None:
    """Whether a tracker's table gives the runs that the run table gives."""
    found, wanted = (
        analysis.load_runs(table).table,
        analysis.load_runs(run_table(out)).table,
    )
    found, wanted = (
        found.set_index(run_id).sort_index(),
        wanted.set_index("run_id").sort_index(),
    )
    assert list(found.index) == list(wanted.index) and len(found) == 2
    for name in EXACT if exact else ("N", "D", "C", "loss", "budget", "lr"):
        if exact:
            assert list(found[name]) == list(wanted[name]), name
        else:
            assert list(found[name]) == pytest.approx(list(wanted[name]), rel=1e-7), (
                name
            )


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_the_same_numbers(out, runs, picture):
    pytest.importorskip(
        "tensorboard",
        reason="reading needs the package tensorboard: pip install 'scaling[import]'",
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track("tensorboard", out, picture)
    (image,) = (
        EventAccumulator(str(out / "tensorboard" / "figures"))
        .Reload()
        .Images("frontier")
    )
    assert (image.width, image.height) == (3, 2)
    last = ["n_matmul", "tokens", "flops", "loss", "budget", "lr", "diverged"]
    table = analysis.from_tensorboard(out / "tensorboard", last)
    assert (
        len(table) == 3
    )  # also the one that diverged: it is refused for its missing loss
    same(table, out, exact=False)
    curves = analysis.from_tensorboard(out / "tensorboard", ["train/loss"])
    assert list(curves.loc[curves["run_id"] == runs[0].run_id, "step"]) == [
        7,
        14,
        17,
        20,
    ]


def wandb_records(path: Path, record: RecordRun) -> Iterator[Any]:
    """The records of an offline run: LevelDB's log, whose blocks of 32 KiB begin with a
    header of 7 bytes.
    """
    from wandb.proto import wandb_internal_pb2

    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole = (whole if kind in (3, 4) else b"") + content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record


def offline_run(path: Path, record: RecordRun) -> Any:
    """What W&B's server would make of an offline run."""
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    run, state, history = "", "running", []
    for record in wandb_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run.run_id
            config |= {
                item.key: json.loads(item.value_json)
                for item in record.run.config.update
            }
        elif kind == "summary":
            summary |= {
                item.key: json.loads(item.value_json)
                for item in record.summary.update
                if item.key
            }
        elif kind == "history":
            history.append(record.history.step.num)
        elif kind == "exit":
            state = "failed" if record.exit.exit_code else "finished"
    return SimpleNamespace(
        id=run, name=run, state=state, config=config, summary=summary, steps=history
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_reads_the_same_table(out, runs, monkeypatch, picture):
    monkeypatch.setenv("WANDB_MODE", "offline")
    track("wandb", out, picture)
    assert [
        path.name[:8]
        for path in out.glob("wandb/offline-run-*-figures/files/media/images/*.png")
    ] == ["frontier"]
    for _ in range(100):  # W&B's own process may still be writing the last file
        found = [
            offline_run(path)
            for path in sorted(out.glob("wandb/offline-run-*/run-[0-9a-f]*.wandb"))
        ]
        found = [run for run in found if run.id != "figures"]
        if len(found) == 4 and all(run.state != "running" for run in found):
            break
        time.sleep(0.1)
    assert {run.id: run.state for run in found} == {
        run.run_id: state
        for run, state in zip(
            runs, ("finished", "finished", "failed", "failed"), strict=True
        )
    }
    assert [run.steps for run in found if run.id == runs[0].run_id] == [[7, 14, 17, 20]]
    same(analysis.from_wandb(found), out)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_the_same_table_and_begins_no_run_twice(
    out, runs, monkeypatch, picture
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    track("mlflow", out)
    for path in (out / "tracked").iterdir():
        path.unlink()  # even where what was mirrored is forgotten
    track("mlflow", out, picture)
    assert [
        path.read_bytes() for path in out.glob("mlflow-artifacts/*/artifacts/*")
    ] == [picture.read_bytes()]
    table = analysis.from_mlflow(out / "mlflow.db")
    table = table.loc[table["name"] != "figures"]
    states = dict(zip(table["params.run_id"], table["status"], strict=True))
    assert states == dict(
        zip(
            [run.run_id for run in runs],
            ("finished", "finished", "failed", "killed"),
            strict=True,
        )
    )
    same(table, out, run_id="params.run_id")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trackio_reads_the_same_table(out, runs, monkeypatch, tmp_path, picture):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    track("trackio", out, picture)
    base = tmp_path / "trackio" / "mine.db"
    table = analysis.from_trackio(base)
    assert set(table["run_id"]) == {*(run.run_id for run in runs), "figures"}
    same(table, out)
    curve = analysis.from_trackio(base, ["step", "train/loss"])
    assert list(curve.loc[curve["run_id"] == runs[0].run_id, "step"]) == [7, 14, 17, 20]
    assert len(list((tmp_path / "trackio").rglob("*.png"))) == 1
