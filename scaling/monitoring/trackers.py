"""Experiment trackers behind one small interface: TensorBoard, Weights & Biases, MLflow
and Trackio.

A tracker receives one run: its configuration, its metrics by step, and its row of the
run table. Columns keep their names, so that `analysis.from_wandb`, `from_mlflow`,
`from_tensorboard` and `from_trackio` read the table back. Metrics by step are named
`train/...`, because `loss` is the held-out loss and nothing else. Figures belong to no
run: a tracker that has not started one shows them in a run named `figures`. The
packages are extras, imported when a tracker needs them.
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
from typing import Literal, Protocol, TypeVar, runtime_checkable

from scaling.config import ConfigError, RunConfig, to_dict
from scaling.config.conversion import JsonObject
from scaling.store import run_dirs

Kind = Literal["tensorboard", "wandb", "mlflow", "trackio"]
StepMetrics = Mapping[int, Mapping[str, float]]
"""Metrics by step, then by name."""

_MLFLOW_BATCH = 1000  # metrics that MLflow takes at once
_MLFLOW_LONGEST = 6000  # characters of a parameter of MLflow
_FIGURES_RUN = "figures"


class Tracker(Protocol):
    """Receives one run. A run that is paused may be started again, also by another
    process.
    """

    def start(self, run: RunConfig, again: bool) -> None:
        """Begin a run, or continue one that was paused."""
        ...

    def log(self, steps: StepMetrics) -> None:
        """Write metrics. The steps are in order, and later than all steps before."""
        ...

    def finish(self, row: Mapping[str, object]) -> None:
        """Write the run's row of the run table, and end the run."""
        ...

    def pause(self) -> None:
        """Write what was logged, and leave the run unfinished."""
        ...

    def show(self, figures: Mapping[str, Path]) -> None:
        """Write PNG files by name, to the run `figures` of the project."""
        ...


@runtime_checkable
class TrackioRun(Protocol):
    """A run of the package trackio."""

    def log(self, metrics: Mapping[str, object], step: int | None = None) -> None:
        """Write metrics."""
        ...

    def finish(self) -> None:
        """End the run."""
        ...


@runtime_checkable
class WandBRun(Protocol):
    """A run of the package wandb."""

    summary: dict[str, object]

    def log(self, metrics: Mapping[str, object], step: int | None = None) -> None:
        """Write metrics."""
        ...

    def finish(self, exit_code: int) -> None:
        """End the run; any exit code but 0 marks it as failed."""
        ...


@dataclass(frozen=True)
class TrackerLocation:
    """Where a tracker keeps its runs.

    Attributes:
        project: the name of the project.
        folder: for the files of a tracker that has no server.
    """

    project: str
    folder: Path


TrackerClass = TypeVar("TrackerClass", bound=Callable[[TrackerLocation], Tracker])


@dataclass(frozen=True)
class TrackerEntry:
    """A tracker in the registry.

    Attributes:
        package: the Python package that it needs; None for none.
        make: its class.
    """

    package: str | None
    make: Callable[[TrackerLocation], Tracker]


_TRACKERS: dict[str, TrackerEntry] = {}


def register_tracker(
    kind: Kind, package: str | None = None
) -> Callable[[TrackerClass], TrackerClass]:
    """Register a class of trackers under its kind.

    A new tracker is a class with this decorator, and its name in `Kind`.

    Args:
        kind: the name of the tracker.
        package: the Python package that it needs; None for none.
    """

    def register(make: TrackerClass) -> TrackerClass:
        _TRACKERS[kind] = TrackerEntry(package, make)
        return make

    return register


def make_opener(kind: Kind, location: TrackerLocation) -> Callable[[], Tracker]:
    """A function that makes trackers of a kind.

    Raises:
        ConfigError: the package of the tracker is not installed.
    """
    tracker = _TRACKERS[kind]
    try:
        if tracker.package is not None:
            importlib.import_module(tracker.package)
    except ImportError as error:
        raise ConfigError(
            f"tracker {kind}: the package {tracker.package} cannot be imported "
            f"({error}); pip install 'scaling[{kind}]'"
        ) from None
    return functools.partial(tracker.make, location)


def select_numbers(row: Mapping[str, object]) -> dict[str, float]:
    """The columns of a row that are finite numbers; a boolean is not a number."""
    numbers = {}
    for name, value in row.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if math.isfinite(value):
            numbers[name] = float(value)
    return numbers


def select_known(row: Mapping[str, object]) -> JsonObject:
    """The columns of a row that have a value."""
    finite = run_dirs.replace_nonfinite(dict(row))
    return {name: value for name, value in finite.items() if value is not None}


@register_tracker("tensorboard", package="tensorboardX")
class TensorBoard:
    """Event files in `FOLDER/tensorboard/<run id>`.

    They hold only numbers, of 32 bits.
    """

    def __init__(self, location: TrackerLocation) -> None:
        self.folder = location.folder / "tensorboard"

    def start(self, run: RunConfig, again: bool) -> None:
        from tensorboardX import SummaryWriter  # type: ignore

        self.last_step = run.steps
        self.writer = SummaryWriter(str(self.folder / run.run_id), flush_secs=10)
        if not again:
            config = json.dumps(to_dict(run), indent=1)
            self.writer.add_text("config", f"```json\n{config}\n```", 0)

    def log(self, steps: StepMetrics) -> None:
        for step, metrics in steps.items():
            for name, value in metrics.items():
                self.writer.add_scalar(name, value, step)

    def finish(self, row: Mapping[str, object]) -> None:
        flags = {
            name: float(value) for name, value in row.items() if isinstance(value, bool)
        }
        self.log({self.last_step: {**select_numbers(row), **flags}})
        self.pause()

    def pause(self) -> None:
        self.writer.close()

    def show(self, figures: Mapping[str, Path]) -> None:
        from matplotlib.image import imread
        from tensorboardX import SummaryWriter  # type: ignore

        with SummaryWriter(str(self.folder / _FIGURES_RUN)) as writer:
            for name, path in figures.items():
                # Floats; the fourth channel goes, since no part is transparent.
                pixels = imread(path)[..., :3]
                image = (255 * pixels).round().astype("uint8")
                writer.add_image(name, image, 0, dataformats="HWC")


@register_tracker("wandb", package="wandb")
class WandB:
    """Runs of a project of Weights & Biases, which keep their ids.

    With WANDB_MODE=offline they are written to `FOLDER/wandb`.
    """

    def __init__(self, location: TrackerLocation) -> None:
        self.location = location

    def start(self, run: RunConfig, again: bool) -> None:
        self.columns = select_known(run_dirs.describe_run(run))
        del self.columns["run_id"]
        config = {**self.columns, "config": to_dict(run)}
        self.run = self._open_run(run.run_id, run.run_id[:8], config)

    def _open_run(self, run_id: str, name: str, config: JsonObject) -> WandBRun:
        import wandb  # type: ignore

        settings = wandb.Settings(
            disable_git=True,
            save_code=False,
            silent=True,
            console="off",
            x_disable_stats=True,
            x_disable_meta=True,
        )
        return wandb.init(
            project=self.location.project,
            id=run_id,
            name=name,
            dir=str(self.location.folder),
            config=config,
            resume="allow",
            reinit="create_new",
            settings=settings,
        )

    def log(self, steps: StepMetrics) -> None:
        for step, metrics in steps.items():
            self.run.log(dict(metrics), step=step)

    def finish(self, row: Mapping[str, object]) -> None:
        summary = {
            name: value
            for name, value in select_known(row).items()
            if name not in ("run_id", *self.columns)
        }
        # W&B has a state of its own.
        status = summary.pop("status")
        self.run.summary.update(summary)
        self.run.finish(exit_code=0 if status == "finished" else 1)

    def pause(self) -> None:
        self.run.finish(exit_code=1)

    def show(self, figures: Mapping[str, Path]) -> None:
        import wandb  # type: ignore

        run = self._open_run(_FIGURES_RUN, _FIGURES_RUN, {})
        run.log({name: wandb.Image(str(path)) for name, path in figures.items()})
        # With another exit code it would be a finished run of the table.
        run.finish(exit_code=1)


@register_tracker("mlflow", package="mlflow")
class MLflow:
    """Runs of an experiment, at MLFLOW_TRACKING_URI or in the database
    `FOLDER/mlflow.db`.

    MLflow chooses the ids of its runs. The tag `scaling.run_id` holds the id of ours,
    so that no run is created twice.
    """

    def __init__(self, location: TrackerLocation) -> None:
        self.location = location

    def start(self, run: RunConfig, again: bool) -> None:
        columns = run_dirs.describe_run(run)
        self.last_step = run.steps
        self.written = set(columns)
        tags = {"config": json.dumps(to_dict(run))}
        is_new = self._open_run(run.run_id, run.run_id[:8], tags)
        if is_new:
            self._write_columns(columns)

    def _open_run(self, run_id: str, name: str, tags: dict[str, str]) -> bool:
        """Continue a run of ours, or create it.

        Returns:
            Whether it was created.
        """
        from mlflow import MlflowClient  # type: ignore

        folder = self.location.folder.resolve()
        server = os.environ.get("MLFLOW_TRACKING_URI")
        database = f"sqlite:///{folder / 'mlflow.db'}"
        self.client = MlflowClient(tracking_uri=server or database)
        known = self.client.get_experiment_by_name(self.location.project)
        if known is None:
            files = None if server else (folder / "mlflow-artifacts").as_uri()
            experiment = self.client.create_experiment(
                self.location.project, artifact_location=files
            )
        else:
            experiment = known.experiment_id
        query = f"tags.`scaling.run_id` = '{run_id}'"
        found = list(self.client.search_runs([experiment], query, max_results=1))
        if found:
            self.mlflow_id = found[0].info.run_id
            self.client.update_run(self.mlflow_id, status="RUNNING")
            return False
        tags = {"scaling.run_id": run_id, **tags}
        created = self.client.create_run(experiment, run_name=name, tags=tags)
        self.mlflow_id = created.info.run_id
        return True

    def log(self, steps: StepMetrics) -> None:
        from mlflow.entities import Metric  # type: ignore

        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, step)
            for step, row in steps.items()
            for name, value in row.items()
        ]
        for start in range(0, len(metrics), _MLFLOW_BATCH):
            batch = metrics[start : start + _MLFLOW_BATCH]
            self.client.log_batch(self.mlflow_id, metrics=batch)

    def finish(self, row: Mapping[str, object]) -> None:
        new = {
            name: value
            for name, value in row.items()
            if name not in ("status", *self.written)
        }
        self._write_columns(new)
        state = "FINISHED" if row["status"] == "finished" else "FAILED"
        self.client.set_terminated(self.mlflow_id, state)

    def _write_columns(self, row: Mapping[str, object]) -> None:
        """Write numbers as metrics, which keep all digits, and the rest as parameters."""
        from mlflow.entities import Param  # type: ignore

        numbers = select_numbers(row)
        self.log({self.last_step: numbers})
        parameters = []
        for name, value in select_known(row).items():
            text = str(value)[:_MLFLOW_LONGEST]
            if name not in numbers and text:
                parameters.append(Param(name, text))
        self.client.log_batch(self.mlflow_id, params=parameters)

    def pause(self) -> None:
        self.client.set_terminated(self.mlflow_id, "KILLED")

    def show(self, figures: Mapping[str, Path]) -> None:
        self._open_run(_FIGURES_RUN, _FIGURES_RUN, {})
        for path in figures.values():
            self.client.log_artifact(self.mlflow_id, str(path))
        # With another state it would be a finished run of the table.
        self.pause()


@register_tracker("trackio", package="trackio")
class Trackio:
    """Runs of a project of Trackio, in its own folder: TRACKIO_DIR, or where it keeps
    all projects.
    """

    def __init__(self, location: TrackerLocation) -> None:
        self.location = location

    def start(self, run: RunConfig, again: bool) -> None:
        self.last_step = run.steps
        columns = select_known(run_dirs.describe_run(run))
        config = {**columns, "config": to_dict(run)}
        self.run = self._open_run(run.run_id, config)

    def _open_run(self, name: str, config: JsonObject) -> TrackioRun:
        import trackio  # type: ignore

        open_run = functools.partial(
            trackio.init,
            self.location.project,
            name=name,
            config=config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        # What Trackio prints must not mix with the output of a sweep, which is a table.
        with contextlib.redirect_stdout(io.StringIO()):
            # In the context of this thread it would end the run that was opened before.
            return contextvars.copy_context().run(open_run)

    def log(self, steps: StepMetrics) -> None:
        for step, metrics in steps.items():
            self.run.log(dict(metrics), step=step)

    def finish(self, row: Mapping[str, object]) -> None:
        self.run.log(select_known(row), step=self.last_step)
        self.pause()

    def pause(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.run.finish()

    def show(self, figures: Mapping[str, Path]) -> None:
        import trackio  # type: ignore

        self.run = self._open_run(_FIGURES_RUN, {})
        images = {name: trackio.Image(str(path)) for name, path in figures.items()}
        self.run.log(images)
        self.pause()
