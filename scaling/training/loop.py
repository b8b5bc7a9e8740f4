"""The training loop: one trunk, many cooldowns.

Runs that differ only in their token budget share a trunk, the phase with a constant
learning rate. Each run leaves it at its branch step, cools down in its own directory,
is evaluated on the held-out slice and recorded. Everything is a function of the
configuration and the step, so a killed run resumes from its last checkpoint to the same
losses.

A `Trainer` is a generator of chunks. It yields the steps to train, and receives the
state and the metrics that they gave. The caller decides where they are trained:
`train_trunk` trains one trunk, and `scaling.training.packing` trains several in one
executable.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict, TypeVar

import jax
import numpy as np
from jaxtyping import UInt8

from scaling import data
from scaling.config import ConfigError, RunConfig, Trunk
from scaling.config.schedule import learning_rate_factor
from scaling.events import (
    Diverged,
    Finished,
    Progress,
    Repeated,
    Report,
    Restored,
    Started,
)
from scaling.model.family import require_segments
from scaling.model.flops import flops_per_token, forward_flops_per_token
from scaling.store import provenance, run_dirs
from scaling.store.parameters import PARAMETERS_FILE, write_parameters
from scaling.training import multihost, preemption
from scaling.training.checkpoint import Checkpoints
from scaling.training.heldout import (
    HeldoutLoss,
    describe_sources,
    evaluate_heldout,
)
from scaling.training.relatives import (
    open_executable,
    read_parent_params,
    read_relative_config,
    read_relative_params,
)
from scaling.training.rows import make_heldout_rows, open_training_rows
from scaling.training.sharding import StrategyName, choose_strategy
from scaling.training.step import (
    Chunk,
    ChunkMetrics,
    ChunkResult,
    Evaluation,
    State,
    StepRates,
    TrainState,
)

log = logging.getLogger(__name__)

Stage = Literal["trunk", "run"]

PackingMode = Literal["auto", "solo", "vmap", "map"]
"""How runs of one shape train in one process: at once ("vmap"), one after the other in
one executable ("map"), each in an executable of its own ("solo"), or as is fastest."""


@dataclass(frozen=True)
class LoopConfig:
    """How a run is executed; nothing here changes its outcome.

    Attributes:
        chunk_steps: Optimizer steps per dispatch.
        checkpoint_seconds: Time between two checkpoints.
        stall_seconds: Silence after which a device counts as hanging. It must be longer
            than any compilation.
        attempts: How often a trunk is tried whose process dies without progress.
        strategy: How devices share a run.
        pack: How runs of one shape train together if there are no workers.
        members: The largest number of runs that train together.
        keep_parameters: Whether the final parameters of each run are kept, as
            `parameters.safetensors` in its folder.
        sweep: Label of the run table.
    """

    chunk_steps: int = 16
    checkpoint_seconds: float = 30.0
    stall_seconds: float = 1800.0
    attempts: int = 3
    strategy: StrategyName = "auto"
    pack: PackingMode = "auto"
    members: int = 8
    keep_parameters: bool = True
    sweep: str = ""

    def __post_init__(self) -> None:
        if self.checkpoint_seconds < 0:
            raise ConfigError(
                f"loop.checkpoint_seconds = {self.checkpoint_seconds}: "
                "must not be negative"
            )
        if self.stall_seconds <= 0:
            raise ConfigError(
                f"loop.stall_seconds = {self.stall_seconds}: must be positive"
            )
        for name in ("attempts", "chunk_steps", "members"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"loop.{name} = {value}: must be at least 1")


_Value = TypeVar("_Value", covariant=True)
ChunkGenerator = Generator[Chunk, ChunkResult, _Value]
"""It yields the chunks to train, and receives the result of each."""


def materialize_state(state: State) -> TrainState:
    """The state itself, where it may still be among those of packed runs.

    It is valid until the next chunk is trained.
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
        trunk: The trunk.
        out: The folder of the sweep.
        loop: How it is executed.
        report: Receives the events of training: `Started`, `Restored`, `Progress`,
            `Diverged`, `Finished` and `Repeated`.

    Raises:
        ConfigError: the model does not fit the dataset.
        Preempted: the process will be killed soon; a checkpoint was saved.
    """
    pending = select_unfinished(trunk, out)
    if not pending:
        return
    trainer = Trainer(pending, out, loop, report)
    chunks = trainer.generate_chunks()
    with suppress(StopIteration):
        chunk = next(chunks)
        while True:
            chunk = chunks.send(trainer.executable.train(chunk))


def select_unfinished(trunk: Trunk, out: Path) -> list[RunConfig]:
    """The runs that have no result yet, in the order in which they leave the trunk."""
    finished = multihost.broadcast_from_process_0(
        run_dirs.are_finished(out, trunk.runs)
    )
    pending = [
        run for run, is_done in zip(trunk.runs, finished, strict=True) if not is_done
    ]
    return sorted(pending, key=lambda run: (run.branch_step, run.steps))


@dataclass(frozen=True)
class LoopState:
    """A state, its step, and the seconds of training that led to it."""

    step: int
    state: State
    seconds: float


class TrainedChunk(NamedTuple):
    """A chunk that was dispatched and whose metrics are not read yet.

    Attributes:
        stop: The step after its last one.
        count: Number of its steps.
        metrics: Its metrics, on the devices.
    """

    stop: int
    count: int
    metrics: ChunkMetrics


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
        self.rows = open_training_rows(
            run.model, self.dataset, run.optim.batch_size, run.data.seed
        )
        self.heldout = make_heldout_rows(run.model, self.dataset, run.eval_tokens)
        strategy = choose_strategy(
            loop.strategy, run.optim.batch_size, run.optim.accumulate
        )
        self.executable = open_executable(run, strategy, self.dataset)
        self.flops_per_step = flops_per_token(run.model) * run.batch_tokens
        self.trunk: LoopState | None = None
        self.trunk_diverged: LossNotFinite | None = None
        # Steps of the trunk that are trained or restored.
        self.trunk_steps_done = 0

    def generate_chunks(self) -> ChunkGenerator[None]:
        """Train all runs."""
        self.report(Started(self.trunk_id))
        for run in self.runs:
            yield from self._finish_run(run)

    def _finish_run(self, run: RunConfig) -> ChunkGenerator[None]:
        """Train a run to its end and record it.

        It is recorded as diverged if its loss is not finite.
        """
        if multihost.is_process_0():
            run_dirs.open_run(self.out, run)
        start = time.monotonic()
        pretraining_loss = math.nan
        measured = HeldoutLoss(Evaluation(float("nan"), float("nan"), 0), {})
        try:
            end = yield from self._cool_down_run(run)
            measured = self._evaluate(end)
            evaluation = measured.whole
            if not np.isfinite(evaluation.loss):
                raise LossNotFinite(run.steps)
            self._keep_parameters(run, end)
            pretraining_loss = self._measure_pretraining_loss(run, end)
            seconds = end.seconds
        except LossNotFinite as diverged:
            evaluation = measured.whole
            seconds = time.monotonic() - start
            self.report(Diverged(run.run_id, diverged.step))
        row = self._make_row(run, evaluation, seconds)
        if self.dataset.components:
            seen = self.rows.count_tokens_by_source(run.steps * run.batch_tokens)
            row["mixture"] = describe_sources(self.dataset, seen, measured.by_source)
        if run.parent is not None:
            row["pretraining_loss"] = pretraining_loss
        if run.teacher is not None:
            teacher = read_relative_config(run.teacher).model
            tokens = run.steps * run.batch_tokens
            row["teacher_flops"] = tokens * forward_flops_per_token(teacher)
        if self.dataset.train_examples is not None:
            row["examples"] = len(self.dataset.train_examples.ends)
        is_first_result = True
        if multihost.is_process_0():
            is_first_result = run_dirs.write_result(self.out, run, row)
        self.report(Finished(row) if is_first_result else Repeated(row))

    def _evaluate(self, end: LoopState) -> HeldoutLoss:
        """The loss of a trained model on the held-out slice."""
        limit = self.runs[0].eval_tokens
        state = materialize_state(end.state)
        return evaluate_heldout(
            self.executable, state, self.dataset, self.heldout, limit
        )

    def _keep_parameters(self, run: RunConfig, end: LoopState) -> None:
        """Write the final parameters of a run, before its result says that they exist."""
        if not self.loop.keep_parameters:
            return
        state = materialize_state(end.state)
        params = self.executable.strategy.gather(state.params)
        params = jax.device_get(self.executable.spec.make_model(params))
        if not multihost.is_process_0():
            return
        metadata = {
            "run_id": run.run_id,
            "step": str(end.step),
            "fingerprint": self.dataset.fingerprint,
        }
        tokenizer_hash = self.dataset.meta["tokenizer_hash"]
        if tokenizer_hash is not None:
            metadata["tokenizer_hash"] = tokenizer_hash
        path = run_dirs.run_dir(self.out, run) / PARAMETERS_FILE
        write_parameters(path, params, metadata)

    def _measure_pretraining_loss(self, run: RunConfig, end: LoopState) -> float:
        """The loss on the held-out text that the parent was trained on; NaN without a
        parent, or if that text is not there any more.
        """
        if run.parent is None:
            return math.nan
        parent = read_relative_config(run.parent)
        try:
            dataset = data.load_dataset(parent.data)
        except data.DataError as error:
            log.warning("the text of the parent %s: %s", run.parent.run, error)
            return math.nan
        windows = make_heldout_rows(run.model, dataset, parent.eval_tokens)
        executable = open_executable(run, self.executable.strategy, dataset)
        state = materialize_state(end.state)
        limit = parent.eval_tokens
        return evaluate_heldout(executable, state, dataset, windows, limit).whole.loss

    def _cool_down_run(self, run: RunConfig) -> ChunkGenerator[LoopState]:
        """Train a run from its own checkpoint, or from its trunk, to its last step."""
        folder = run_dirs.run_dir(self.out, run)
        checkpoints = Checkpoints(folder / "checkpoints")
        try:
            start = self._restore_checkpoint(checkpoints, run.steps)
            if start is not None:
                self._report_restored(
                    trunk_steps=min(start.step, run.branch_step),
                    cooldown_steps=max(0, start.step - run.branch_step),
                )
            if start is None or start.step < run.branch_step:
                trunk = yield from self._advance_trunk(run)
                # The copy may be donated while the trunk's own state stays valid.
                copy = self.executable.strategy.copy(trunk.state)
                start = LoopState(trunk.step, copy, trunk.seconds)
            return (
                yield from self._advance(
                    start,
                    run,
                    stage="run",
                    stop=run.steps,
                    folder=folder,
                    checkpoints=checkpoints,
                )
            )
        finally:
            checkpoints.close()

    def _advance_trunk(self, run: RunConfig) -> ChunkGenerator[LoopState]:
        """Train the trunk to the run's branch step."""
        if self.trunk_diverged is not None:
            raise self.trunk_diverged
        folder = run_dirs.trunk_dir(self.out, run)
        checkpoints = Checkpoints(
            folder / "checkpoints", protected=[run.branch_step for run in self.runs]
        )
        try:
            start = self.trunk
            if start is None:
                start = self._restore_checkpoint(checkpoints, run.branch_step)
            if start is None:
                start = LoopState(0, self._make_first_state(run), 0.0)
            else:
                self._report_restored(trunk_steps=start.step, cooldown_steps=0)
            has_steps_left = start.step < run.branch_step
            self.trunk = yield from self._advance(
                start,
                run,
                stage="trunk",
                stop=run.branch_step,
                folder=folder,
                checkpoints=checkpoints,
            )
            self.trunk_steps_done = max(self.trunk_steps_done, self.trunk.step)
            if has_steps_left:
                self._save_checkpoint(checkpoints, self.trunk)
        except LossNotFinite as diverged:
            self.trunk_diverged = diverged
            raise
        finally:
            checkpoints.close()
        return self.trunk

    def _make_first_state(self, run: RunConfig) -> TrainState:
        """The state before the first step: fresh, or with the parent's parameters, and
        with those of the teacher.
        """
        if run.parent is None and run.teacher is None:
            return self.executable.init(run.seed)
        spec = self.executable.spec
        model = spec.family.init(run.seed)
        if run.parent is not None:
            model = read_parent_params(run)
        teacher = None
        if run.teacher is not None:
            teacher = read_relative_params(run.teacher)
        state = spec.start_from(model, run.seed, teacher)
        return self.executable.strategy.place(jax.device_get(state))

    def _advance(
        self,
        start: LoopState,
        run: RunConfig,
        *,
        stage: Stage,
        stop: int,
        folder: Path,
        checkpoints: Checkpoints,
    ) -> ChunkGenerator[LoopState]:
        """Train to step `stop`.

        The metrics of a chunk are read after the next one was dispatched, so that the
        devices do not wait for the host.
        """
        started = time.monotonic() - start.seconds
        timer = multihost.Timer(self.loop.checkpoint_seconds)
        state = start.state
        step = start.step
        unread: TrainedChunk | None = None
        log = folder / "metrics.jsonl"
        while step < stop:
            count = min(self.loop.chunk_steps, stop - step)
            chunk = self._make_chunk(state, run, stage, step, count)
            state, metrics = yield chunk
            self._record_metrics(unread, run, log)
            step += count
            unread = TrainedChunk(step, count, metrics)
            is_preempted = not multihost.is_multihost() and preemption.is_requested()
            if (timer.is_due() or is_preempted) and step < stop:
                self._record_metrics(unread, run, log)
                unread = None
                seconds = time.monotonic() - started
                self._save_checkpoint(checkpoints, LoopState(step, state, seconds))
                timer.restart()
                if is_preempted:
                    raise preemption.Preempted
        self._record_metrics(unread, run, log)
        return LoopState(step, materialize_state(state), time.monotonic() - started)

    def _make_chunk(
        self, state: State, run: RunConfig, stage: Stage, step: int, count: int
    ) -> Chunk:
        S = self.loop.chunk_steps
        factor = learning_rate_factor(run, np.arange(step, step + S), stage)
        rates = StepRates(
            rate=np.asarray(factor * run.optim.lr, np.float32),
            decay=np.asarray(factor * run.optim.weight_decay, np.float32),
        )
        rows = self.executable.strategy.local_rows(run.optim.batch_size)
        return Chunk(
            state=state,
            batches=self.rows.batches(step, S, rows),
            rates=rates,
            count=np.int32(count),
            seed=np.uint32(run.seed),
        )

    def _record_metrics(
        self, chunk: TrainedChunk | None, run: RunConfig, log: Path
    ) -> None:
        """Wait for a chunk, append its mean metrics to the log, and report its steps.

        Raises:
            LossNotFinite: the loss of one of its steps is not finite.
        """
        if chunk is None:
            return
        gathered = self.executable.strategy.gather(chunk.metrics)
        metrics: dict[str, np.ndarray] = {}
        for name, values in gathered.items():
            metrics[name] = np.asarray(values, np.float64)[: chunk.count]
        is_finite = np.isfinite(metrics["loss"])
        if not is_finite.all():
            first = chunk.stop - chunk.count + int(np.argmin(is_finite))
            raise LossNotFinite(first)
        if multihost.is_process_0():
            line: dict[str, object] = {
                "step": chunk.stop,
                "tokens": chunk.stop * run.batch_tokens,
            }
            for name, values in metrics.items():
                line[name] = float(values.mean())
            run_dirs.append_metrics(log, [line])
        self.report(Progress(self.trunk_id, chunk.count * self.flops_per_step))

    def _save_checkpoint(self, checkpoints: Checkpoints, at: LoopState) -> None:
        state = self.executable.strategy.gather(materialize_state(at.state))
        fingerprint = bytes.fromhex(self.dataset.fingerprint)
        tree = make_checkpoint_tree(
            state, at.seconds, np.frombuffer(fingerprint, np.uint8)
        )
        checkpoints.save(at.step, tree)

    def _restore_checkpoint(
        self, checkpoints: Checkpoints, at_most: int
    ) -> LoopState | None:
        """The latest checkpoint at or before a step; None if there is none."""
        like = make_checkpoint_tree(self.executable.abstract_state)
        found = checkpoints.restore_latest(like, at_most)
        if found is None:
            return None
        step, tree = found
        self.dataset.check_trained_on(tree["text"].tobytes().hex(), self.runs[0].run_id)
        state = self.executable.strategy.place(tree["state"])
        return LoopState(step, state, float(tree["seconds"]))

    def _report_restored(self, *, trunk_steps: int, cooldown_steps: int) -> None:
        """Report the steps that a checkpoint has; those of the trunk only once."""
        new = max(0, trunk_steps - self.trunk_steps_done) + cooldown_steps
        self.trunk_steps_done = max(self.trunk_steps_done, trunk_steps)
        if new:
            self.report(Restored(self.trunk_id, new * self.flops_per_step))

    def _make_row(
        self, run: RunConfig, evaluation: Evaluation, seconds: float
    ) -> dict[str, object]:
        """The run's row of the run table."""
        tokens = run.steps * run.batch_tokens
        has_diverged = not np.isfinite(evaluation.loss)
        bits_per_token = evaluation.loss / math.log(2.0)
        unique_tokens = self.rows.count_unique(tokens)
        return {
            **run_dirs.describe_run(run),
            "sweep": self.loop.sweep,
            "fingerprint": self.dataset.fingerprint,
            "status": "diverged" if has_diverged else "finished",
            "unique_tokens": unique_tokens,
            "epochs": tokens / unique_tokens,
            **self.dataset.describe_invalid(),
            "loss": evaluation.loss,
            "loss_se": evaluation.loss_se,
            "bits_per_byte": bits_per_token / self.dataset.bytes_per_token,
            "diverged": has_diverged,
            "wall_seconds": seconds,
            **provenance.read_provenance(),
        }


class CheckpointTree(TypedDict):
    """What a checkpoint holds. The keys are names on disk.

    Attributes:
        state: The state, on the host.
        seconds: Seconds of training that led to it.
        text: The sha256 of the dataset on which it was trained, as 32 bytes.
    """

    state: TrainState
    seconds: np.float64
    text: UInt8[np.ndarray, " 32"]


def make_checkpoint_tree(
    state: TrainState,
    seconds: float = 0.0,
    text: UInt8[np.ndarray, " 32"] | None = None,
) -> CheckpointTree:
    """The tree of a checkpoint; without `text`, with zeros in its place."""
    return {
        "state": state,
        "seconds": np.float64(seconds),
        "text": np.zeros(32, np.uint8) if text is None else text,
    }


def check_fits(run: RunConfig, dataset: data.Dataset) -> None:
    """Check that a model can be trained on a dataset.

    Raises:
        ConfigError: the vocabulary is too small, or the model cannot keep examples or
            documents apart.
        DataError: windows would cut documents of fixed length.
    """
    dataset.check_context(run.model.context)
    if dataset.has_examples:
        require_segments(run.model, "train on a task")
    if dataset.separator is not None:
        require_segments(run.model, "keep documents apart (data.separate_documents)")
    if run.model.vocab < dataset.vocab:
        raise ConfigError(
            f"model.vocab = {run.model.vocab}: source {run.data.source!r} has "
            f"{dataset.vocab} token ids: raise it to at least that"
        )
