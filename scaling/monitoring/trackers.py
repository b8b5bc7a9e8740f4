"""Experiment trackers behind one small interface: TensorBoard, Weights & Biases, MLflow
and Trackio.

A tracker is told of one run: where it begins, its metrics by step, its row of the run
table. Columns keep their names, so that `analysis.from_wandb`, `from_mlflow`,
`from_tensorboard` and `from_trackio` read the table back; what is logged by step is
named `train/...`, because `loss` is the held-out loss and nothing else. Figures are of
no run: a tracker that was not told of one shows them in a run named `figures`. The
packages are extras, imported when asked for.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import io
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from scaling.config import ConfigError, RunConfig, to_dict
from scaling.store import run_dirs

Kind = Literal["tensorboard", "wandb", "mlflow", "trackio"]
_BATCH = 1000  # metrics that MLflow takes at once
_LONGEST = 6000  # characters of a parameter of MLflow
_FIGURES = "figures"


class Tracker(Protocol):
    """What is told of one run. A run that is paused may be started again, by another
    process too.
    """

    def start(self, run: RunConfig, again: bool) -> None:
        """Begin a run, or go on with one that was paused."""
        ...

    def log(self, steps: Mapping[int, Mapping[str, float]]) -> None:
        """Metrics by step, the steps in order and later than all before."""
        ...

    def finish(self, row: Mapping[str, Any]) -> None:
        """The run's row of the run table: it is over."""
        ...

    def pause(self) -> None:
        """Write what was logged, and leave the run unfinished."""
        ...

    def show(self, figures: Mapping[str, Path]) -> None:
        """Pictures by name, PNG files, in the run `figures` of the project."""
        ...


@dataclass(frozen=True)
class TrackerLocation:
    """Where a tracker keeps its runs: under a project's name, and in files below a
    folder if it has no server.
    """

    project: str
    folder: Path


_Made = TypeVar("_Made", bound=Callable[[TrackerLocation], Tracker])


@dataclass(frozen=True)
class _Registered:
    package: str  # that must be importable
    make: Callable[[TrackerLocation], Tracker]


_TRACKERS: dict[str, _Registered] = {}


def register_tracker(kind: Kind, package: str) -> Callable[[_Made], _Made]:
    """Register a class of trackers under its kind.

    A new tracker is a class with this decorator, and its name in `Kind`.

    Args:
        package: the Python package that it needs.
    """

    def register(make: _Made) -> _Made:
        _TRACKERS[kind] = _Registered(package, make)
        return make

    return register


def make_opener(kind: Kind, location: TrackerLocation) -> Callable[[], Tracker]:
    """A function that makes trackers of a kind.

    Raises:
        ConfigError: the package of the tracker is not installed.
    """
    tracker = _TRACKERS[kind]
    try:
        importlib.import_module(tracker.package)
    except ImportError as error:
        raise ConfigError(
            f"tracker {kind}: the package {tracker.package} cannot be imported "
            f"({error}); pip install 'scaling[{kind}]'"
        ) from None
    return functools.partial(tracker.make, location)


def select_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The columns of a row that are finite numbers; a truth value is none."""
    plain = {
        name: value
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {name: float(value) for name, value in plain.items() if math.isfinite(value)}


def select_known(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row that have a value."""
    return {
        name: value
        for name, value in run_dirs.replace_nonfinite(dict(row)).items()
        if value is not None
    }


@register_tracker("tensorboard", package="tensorboardX")
class TensorBoard:
    """Event files in `FOLDER/tensorboard/<run id>`. They hold numbers alone, of 32
    bits.
    """

    def __init__(self, location: TrackerLocation) -> None:
        self.location = location

    def start(self, run: RunConfig, again: bool) -> None:
        from tensorboardX import SummaryWriter  # type: ignore

        self.steps = run.steps
        self.writer = SummaryWriter(
            str(self.location.folder / "tensorboard" / run.run_id), flush_secs=10
        )
        if not again:
            self.writer.add_text(
                "config", f"```json\n{json.dumps(to_dict(run), indent=1)}\n```", 0
            )

    def log(self, steps: Mapping[int, Mapping[str, float]]) -> None:
        for step, metrics in steps.items():
            for name, value in metrics.items():
                self.writer.add_scalar(name, value, step)

    def finish(self, row: Mapping[str, Any]) -> None:
        truths = {
            name: float(value) for name, value in row.items() if isinstance(value, bool)
        }
        self.log({self.steps: {**select_numbers(row), **truths}})
        self.pause()

    def pause(self) -> None:
        self.writer.close()

    def show(self, figures: Mapping[str, Path]) -> None:
        from matplotlib.image import imread
        from tensorboardX import SummaryWriter  # type: ignore

        with SummaryWriter(
            str(self.location.folder / "tensorboard" / _FIGURES)
        ) as writer:
            for name, path in figures.items():
                pixels = imread(path)[..., :3]  # floats; ours have no transparent parts
                writer.add_image(
                    name, (255 * pixels).round().astype("uint8"), 0, dataformats="HWC"
                )


@register_tracker("wandb", package="wandb")
class WandB:
    """Runs of a project of Weights & Biases under their own ids; offline as WANDB_MODE
    says, then in `FOLDER/wandb`.
    """

    def __init__(self, location: TrackerLocation) -> None:
        self.location = location

    def start(self, run: RunConfig, again: bool) -> None:
        self.columns = {
            name: value
            for name, value in select_known(run_dirs.describe_run(run)).items()
            if name != "run_id"
        }
        self.run = self._begin(
            run.run_id, run.run_id[:8], {**self.columns, "config": to_dict(run)}
        )

    def _begin(self, run_id: str, name: str, config: dict[str, Any]) -> Any:
        import wandb  # type: ignore

        quiet: dict[str, Any] = {
            "silent": True,
            "console": "off",
            "x_disable_stats": True,
            "x_disable_meta": True,
        }
        return wandb.init(
            project=self.location.project,
            id=run_id,
            name=name,
            dir=str(self.location.folder),
            config=config,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(disable_git=True, save_code=False, **quiet),
        )

    def log(self, steps: Mapping[int, Mapping[str, float]]) -> None:
        for step, metrics in steps.items():
            self.run.log(dict(metrics), step=step)

    def finish(self, row: Mapping[str, Any]) -> None:
        rest = {
            name: value
            for name, value in select_known(row).items()
            if name not in ("run_id", *self.columns)
        }
        state = rest.pop("status")  # W&B has a state of its own
        self.run.summary.update(rest)
        self.run.finish(exit_code=0 if state == "finished" else 1)

    def pause(self) -> None:
        self.run.finish(exit_code=1)

    def show(self, figures: Mapping[str, Path]) -> None:
        import wandb  # type: ignore

        run = self._begin(_FIGURES, _FIGURES, {})
        run.log({name: wandb.Image(str(path)) for name, path in figures.items()})
        run.finish(exit_code=1)  # no finished run of the table


@register_tracker("mlflow", package="mlflow")
class MLflow:
    """Runs of an experiment, at MLFLOW_TRACKING_URI or in the database
    `FOLDER/mlflow.db`.

    MLflow gives ids of its own; a run of ours is known by its tag `scaling.run_id`, and
    is not begun twice.
    """

    def __init__(self, location: TrackerLocation) -> None:
        self.location = location

    def start(self, run: RunConfig, again: bool) -> None:
        columns = run_dirs.describe_run(run)
        self.steps, self.there = run.steps, set(columns)
        if self._begin(
            run.run_id, run.run_id[:8], {"config": json.dumps(to_dict(run))}
        ):
            self._columns(columns)

    def _begin(self, run_id: str, name: str, tags: dict[str, str]) -> bool:
        """Go on with a run of ours or begin it; whether it was begun."""
        from mlflow import MlflowClient  # type: ignore

        folder, server = (
            self.location.folder.resolve(),
            os.environ.get("MLFLOW_TRACKING_URI"),
        )
        self.client = MlflowClient(
            tracking_uri=server or f"sqlite:///{folder / 'mlflow.db'}"
        )
        there = self.client.get_experiment_by_name(self.location.project)
        if there is None:
            files = None if server else (folder / "mlflow-artifacts").as_uri()
            experiment = self.client.create_experiment(
                self.location.project, artifact_location=files
            )
        else:
            experiment = there.experiment_id
        found = list(
            self.client.search_runs(
                [experiment], f"tags.`scaling.run_id` = '{run_id}'", max_results=1
            )
        )
        if found:
            self.id = found[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
        else:
            tags = {"scaling.run_id": run_id, **tags}
            self.id = self.client.create_run(
                experiment, run_name=name, tags=tags
            ).info.run_id
        return not found

    def log(self, steps: Mapping[int, Mapping[str, float]]) -> None:
        from mlflow.entities import Metric  # type: ignore

        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, step)
            for step, row in steps.items()
            for name, value in row.items()
        ]
        for first in range(0, len(metrics), _BATCH):
            self.client.log_batch(self.id, metrics=metrics[first : first + _BATCH])

    def finish(self, row: Mapping[str, Any]) -> None:
        self._columns(
            {
                name: value
                for name, value in row.items()
                if name not in ("status", *self.there)
            }
        )
        self.client.set_terminated(
            self.id, "FINISHED" if row["status"] == "finished" else "FAILED"
        )

    def _columns(self, row: Mapping[str, Any]) -> None:
        """Numbers as metrics, which keep all digits, the rest as parameters."""
        from mlflow.entities import Param  # type: ignore

        values = select_numbers(row)
        self.log({self.steps: values})
        rest = {
            name: str(value)[:_LONGEST]
            for name, value in select_known(row).items()
            if name not in values
        }
        self.client.log_batch(
            self.id,
            params=[Param(name, value) for name, value in rest.items() if value],
        )

    def pause(self) -> None:
        self.client.set_terminated(self.id, "KILLED")

    def show(self, figures: Mapping[str, Path]) -> None:
        self._begin(_FIGURES, _FIGURES, {})
        for path in figures.values():
            self.client.log_artifact(self.id, str(path))
        self.pause()  # no finished run of the table


@register_tracker("trackio", package="trackio")
class Trackio:
    """Runs of a project of Trackio, in its own folder: TRACKIO_DIR, or where it keeps
    all projects.
    """

    def __init__(self, location: TrackerLocation) -> None:
        self.location = location

    def start(self, run: RunConfig, again: bool) -> None:
        self.steps = run.steps
        self.run = self._begin(
            run.run_id,
            {**select_known(run_dirs.describe_run(run)), "config": to_dict(run)},
        )

    def _begin(self, name: str, config: dict[str, Any]) -> Any:
        import trackio  # type: ignore

        own: Any = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        begin = functools.partial(
            trackio.init,
            self.location.project,
            name=name,
            config=config,
            resume="allow",
            **own,
        )
        with contextlib.redirect_stdout(
            io.StringIO()
        ):  # a sweep's own output is a table
            return contextvars.copy_context().run(
                begin
            )  # else it ends the run that was begun before

    def log(self, steps: Mapping[int, Mapping[str, float]]) -> None:
        for step, metrics in steps.items():
            self.run.log(dict(metrics), step=step)

    def finish(self, row: Mapping[str, Any]) -> None:
        self.run.log(select_known(row), step=self.steps)
        self.pause()

    def pause(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.run.finish()

    def show(self, figures: Mapping[str, Path]) -> None:
        import trackio  # type: ignore

        self.run = self._begin(_FIGURES, {})
        self.run.log({name: trackio.Image(str(path)) for name, path in figures.items()})
        self.pause()
