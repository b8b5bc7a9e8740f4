"""The training loop: one trunk, many cooldowns.

All runs that differ only in their token budget share a constant-rate trunk. Each leaves
it at its branch step, cools down in its own directory, is evaluated on the held-out
slice and recorded. Everything is a function of the configuration and the step, so a run
that was killed resumes from its last checkpoint to the same losses.

A `Trainer` is a generator of chunks: it asks for steps to be trained and is sent the
state and metrics they gave. Who
drives it decides where: `train_trunk` alone, `scaling.training.packing` many at once in
one program.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from scaling import data
from scaling.config import ConfigError, RunConfig, Trunk
from scaling.events import (
    Diverged,
    Finished,
    Progress,
    Repeated,
    Report,
    Restored,
    Started,
)
from scaling.model.flops import flops_per_token
from scaling.schedule import learning_rate_factor
from scaling.store import provenance, run_dirs
from scaling.training import multihost, preemption
from scaling.training.checkpoint import Checkpoints
from scaling.training.sharding import StrategyName, choose_strategy
from scaling.training.step import (
    Chunk,
    Evaluation,
    StepRates,
    TrainState,
    get_executable,
)

Stage = Literal["trunk", "run"]
How = Literal["auto", "solo", "vmap", "map"]


@dataclass(frozen=True)
class LoopConfig:
    """How a run is executed; nothing here changes its outcome."""

    chunk_steps: int = 16  # optimiser steps per dispatch
    checkpoint_seconds: float = 30.0
    stall_seconds: float = 1800.0  # silence that is taken for a hanging device: longer than any compilation
    attempts: int = 3  # of a trunk whose process dies without progress
    strategy: StrategyName = "auto"
    pack: How = "auto"  # runs of one shape in one program, without workers: side by side, in turn, or not
    members: int = 8  # of such a pack, at most
    sweep: str = ""  # label of the run table

    def __post_init__(self) -> None:
        if self.checkpoint_seconds < 0:
            raise ConfigError(
                f"loop.checkpoint_seconds = {self.checkpoint_seconds}: must not be negative"
            )
        if self.stall_seconds <= 0:
            raise ConfigError(
                f"loop.stall_seconds = {self.stall_seconds}: must be positive"
            )
        if self.attempts < 1:
            raise ConfigError(f"loop.attempts = {self.attempts}: must be at least 1")
        if self.chunk_steps < 1:
            raise ConfigError(
                f"loop.chunk_steps = {self.chunk_steps}: must be at least 1"
            )
        if self.members < 1:
            raise ConfigError(f"loop.members = {self.members}: must be at least 1")


_R = TypeVar("_R", covariant=True)
Work = Generator[
    Chunk, tuple[Any, dict[str, Any]], _R
]  # what it yields is trained, the result sent back


def materialize(state: Any) -> Any:
    """A state that may have stayed among those it was trained with; valid until the
    next chunk.
    """
    return state() if callable(state) else state


class LossNotFinite(Exception):
    """The training loss is not finite at `step`."""

    def __init__(self, step: int) -> None:
        super().__init__(f"loss not finite at step {step}")
        self.step = step


def train_trunk(trunk: Trunk, out: Path, loop: LoopConfig, report: Report) -> None:
    """Train all unfinished runs of a trunk, in the order in which they leave it.

    Args:
        out: the folder of the sweep.
        report: receives the events of training: `Started`, `Restored`, `Progress`,
            `Diverged`, `Finished` and `Repeated`.

    Raises:
        ConfigError: the data do not fit the model.
        Preempted: the process was told to end; a checkpoint was saved before.
    """
    pending = select_unfinished(trunk, out)
    if not pending:
        return
    trainer = Trainer(pending, out, loop, report)
    work = trainer.work()
    with suppress(StopIteration):
        chunk = next(work)
        while True:
            chunk = work.send(trainer.program.train(chunk))


def select_unfinished(trunk: Trunk, out: Path) -> list[RunConfig]:
    """The runs that have no result yet, in the order in which they leave the trunk."""
    finished = multihost.broadcast_from_process_0(
        run_dirs.are_finished(out, trunk.runs)
    )
    pending = [
        run for run, is_done in zip(trunk.runs, finished, strict=True) if not is_done
    ]
    return sorted(pending, key=lambda run: (run.branch_step, run.steps))


class Trainer:
    """Trains the unfinished runs of one trunk in order of their branch step."""

    def __init__(
        self, runs: list[RunConfig], out: Path, loop: LoopConfig, report: Report
    ) -> None:
        run = runs[0]
        self.out = out
        self.loop = loop
        self.report = report
        self.runs = runs
        self.trunk_id = run.trunk_id
        self.dataset = data.load_dataset(run.data)
        multihost.assert_same_on_all(
            f"the text of data.source = {run.data.source!r}", self.dataset.fingerprint
        )
        check_fits(run, self.dataset)
        self._text = np.frombuffer(bytes.fromhex(self.dataset.fingerprint), np.uint8)
        self.windows = data.Windows(
            self.dataset.train, run.model.context, run.optim.batch_size, run.data.seed
        )
        self.heldout = data.heldout_windows(
            self.dataset.heldout, run.model.context, run.eval_tokens
        )
        strategy = choose_strategy(
            loop.strategy, run.optim.batch_size, run.optim.accumulate
        )
        self.program = get_executable(run, strategy, self.dataset.loss_range)
        self.flops_per_step = flops_per_token(run.model) * run.batch_tokens
        self.trunk: LoopState | None = None
        self.trunk_diverged: LossNotFinite | None = None
        self.done = 0  # steps of the trunk that are trained or restored

    def work(self) -> Work[None]:
        """Train the runs."""
        self.report(Started(self.trunk_id))
        for run in self.runs:
            yield from self._finish(run)

    def _finish(self, run: RunConfig) -> Work[None]:
        """Train a run to its end and record it, as diverged if its loss is no longer
        finite.
        """
        if multihost.is_process_0():
            run_dirs.open_run(self.out, run)
        start = time.monotonic()
        try:
            position = yield from self._cool_down(run)
            evaluation = self.program.evaluate(position.state, self.heldout)
            if not np.isfinite(evaluation.loss):
                raise LossNotFinite(run.steps)
            seconds = position.seconds
        except LossNotFinite as diverged:
            evaluation, seconds = (
                Evaluation(float("nan"), float("nan"), 0),
                time.monotonic() - start,
            )
            self.report(Diverged(run.run_id, diverged.step))
        row = self._row(run, evaluation, seconds)
        written = not multihost.is_process_0() or run_dirs.write_result(
            self.out, run, row
        )
        self.report(Finished(row) if written else Repeated(row))

    def _cool_down(self, run: RunConfig) -> Work[LoopState]:
        folder = run_dirs.run_dir(self.out, run)
        checkpoints = Checkpoints(folder / "checkpoints")
        try:
            position = self._restore(checkpoints, run.steps)
            if position is not None:
                self._credit(
                    min(position.step, run.branch_step),
                    max(0, position.step - run.branch_step),
                )
            if position is None or position.step < run.branch_step:
                trunk = yield from self._advance_trunk(run)
                position = LoopState(trunk.step, self._copy(trunk.state), trunk.seconds)
            return (
                yield from self._advance(
                    position, run, "run", run.steps, folder, checkpoints
                )
            )
        finally:
            checkpoints.close()

    def _advance_trunk(self, run: RunConfig) -> Work[LoopState]:
        """The trunk at the run's branch step."""
        if self.trunk_diverged is not None:
            raise self.trunk_diverged
        folder = run_dirs.trunk_dir(self.out, run)
        checkpoints = Checkpoints(
            folder / "checkpoints", protected=[run.branch_step for run in self.runs]
        )
        try:
            at = self.trunk or self._restore(checkpoints, run.branch_step)
            if at is not None:
                self._credit(at.step, 0)
            at = at or LoopState(0, self.program.init(run.seed), 0.0)
            fresh = at.step < run.branch_step
            self.trunk = yield from self._advance(
                at, run, "trunk", run.branch_step, folder, checkpoints
            )
            self.done = max(self.done, self.trunk.step)
            if fresh:
                self._save(checkpoints, self.trunk)
        except LossNotFinite as diverged:
            self.trunk_diverged = diverged
            raise
        finally:
            checkpoints.close()
        return self.trunk

    def _advance(
        self,
        at: LoopState,
        run: RunConfig,
        stage: Stage,
        stop: int,
        folder: Path,
        checkpoints: Checkpoints,
    ) -> Work[LoopState]:
        """Train to step `stop`. A chunk's metrics are read after the next one is
        dispatched.
        """
        started, timer = (
            time.monotonic() - at.seconds,
            multihost.Timer(self.loop.checkpoint_seconds),
        )
        state, step, unread = at.state, at.step, None
        log = folder / "metrics.jsonl"
        while step < stop:
            n = min(self.loop.chunk_steps, stop - step)
            state, metrics = yield self._chunk(state, run, stage, step, n)
            self._read(unread, run, log)
            step, unread = step + n, (step + n, n, metrics)
            preempted = not multihost.is_multihost() and preemption.requested()
            if (timer.due() or preempted) and step < stop:
                self._read(unread, run, log)
                unread = None
                self._save(
                    checkpoints, LoopState(step, state, time.monotonic() - started)
                )
                timer.restart()
                if preempted:
                    raise preemption.Preempted
        self._read(unread, run, log)
        return LoopState(step, materialize(state), time.monotonic() - started)

    def _chunk(
        self, state: Any, run: RunConfig, stage: Stage, step: int, n: int
    ) -> Chunk:
        S = self.loop.chunk_steps
        factor = learning_rate_factor(run, np.arange(step, step + S), stage)
        rates = StepRates(
            *(
                np.asarray(factor * peak, np.float32)
                for peak in (run.optim.lr, run.optim.weight_decay)
            )
        )
        batches = self.windows.batches(
            step, S, self.program.strategy.local_rows(run.optim.batch_size)
        )
        return Chunk(state, batches, rates, np.int32(n), np.uint32(run.seed))

    def _read(self, unread: Any, run: RunConfig, log: Path) -> None:
        """Wait for a chunk, record it, and stop where its loss is not finite."""
        if unread is None:
            return
        step, n, metrics = unread
        metrics = {
            name: np.asarray(values, np.float64)[:n]
            for name, values in self.program.strategy.gather(metrics).items()
        }
        finite = np.isfinite(metrics["loss"])
        if not finite.all():
            raise LossNotFinite(step - n + int(np.argmin(finite)))
        means = {name: float(values.mean()) for name, values in metrics.items()}
        if multihost.is_process_0():
            run_dirs.append_metrics(
                log, [{"step": step, "tokens": step * run.batch_tokens, **means}]
            )
        self.report(Progress(self.trunk_id, n * self.flops_per_step))

    def _save(self, checkpoints: Checkpoints, at: LoopState) -> None:
        state = self.program.strategy.gather(materialize(at.state))
        checkpoints.save(at.step, checkpoint_tree(state, at.seconds, self._text))

    def _restore(self, checkpoints: Checkpoints, at_most: int) -> LoopState | None:
        found = checkpoints.restore_latest(
            checkpoint_tree(self.program.abstract_state), at_most
        )
        if found is None:
            return None
        step, tree = found
        self.dataset.check_trained_on(tree["text"].tobytes().hex(), self.runs[0].run_id)
        return LoopState(
            step, self.program.strategy.place(tree["state"]), float(tree["seconds"])
        )

    def _credit(self, trunk: int, cooldown: int) -> None:
        """Report steps that need not be trained because a checkpoint has them; those of
        the trunk only once.
        """
        new = max(0, trunk - self.done) + cooldown
        self.done = max(self.done, trunk)
        if new:
            self.report(Restored(self.trunk_id, new * self.flops_per_step))

    def _copy(self, state: TrainState) -> TrainState:
        """A state that may be donated while the trunk's own lives on."""
        return self.program.strategy.copy(state)

    def _row(
        self, run: RunConfig, evaluation: Evaluation, seconds: float
    ) -> dict[str, Any]:
        tokens = run.steps * run.batch_tokens
        diverged = not np.isfinite(evaluation.loss)
        return {
            **run_dirs.describe_run(run),
            "sweep": self.loop.sweep,
            "fingerprint": self.dataset.fingerprint,
            "status": "diverged" if diverged else "finished",
            "unique_tokens": min(tokens, self.windows.tokens_per_epoch),
            "epochs": max(1.0, self.windows.epochs(tokens)),  # tokens / unique_tokens
            "loss": evaluation.loss,
            "loss_se": evaluation.loss_se,
            "bits_per_byte": evaluation.loss
            / math.log(2.0)
            / self.dataset.bytes_per_token,
            "diverged": diverged,
            "wall_seconds": seconds,
            **provenance.read_provenance(),
        }


@dataclass
class LoopState:
    """A state, its step, and the seconds of training that led to it."""

    step: int
    state: Any  # a TrainState; within a pack whatever stands for it
    seconds: float


def checkpoint_tree(
    state: Any, seconds: float = 0.0, text: np.ndarray | None = None
) -> dict[str, Any]:
    """What a checkpoint holds: a state, its seconds of training, and the sha256 of the
    text it was trained on.
    """
    return {
        "state": state,
        "seconds": np.float64(seconds),
        "text": np.zeros(32, np.uint8) if text is None else text,
    }


def check_fits(run: RunConfig, dataset: data.Dataset) -> None:
    """Whether a model can be trained on a data set.

    Raises:
        ConfigError: the vocabulary is too small.
        DataError: windows would cut documents of fixed length.
    """
    dataset.check_context(run.model.context)
    if run.model.vocab < dataset.vocab:
        remedy = f"source {run.data.source!r} has {dataset.vocab} token ids: raise it to at least that"
        raise ConfigError(f"model.vocab = {run.model.vocab}: {remedy}")
