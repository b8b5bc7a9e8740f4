"""Fine-tune trained models on a task: one trunk for each, cooled down after some epochs.

Every number of epochs is a run of its own, with the learning rate decayed to zero, and
the runs of a model share their trunk. They are trained in order of their length, until
the loss on the held-out examples has risen: early stopping between whole runs, which
resumes and repeats like any sweep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from scaling import data
from scaling.config import (
    ConfigError,
    DataConfig,
    OptimConfig,
    ParentConfig,
    RunConfig,
    SparsityPattern,
)
from scaling.data.tokenizers import is_bpe
from scaling.execution.config import ClusterConfig
from scaling.execution.sweep import sweep
from scaling.monitoring.progress import Show
from scaling.planning.plan import Plan
from scaling.store import query, run_dirs
from scaling.store.files import StoreError
from scaling.store.parameters import PARAMETERS_FILE, read_metadata
from scaling.store.table import run_table
from scaling.training.loop import LoopConfig

_WARMUP = 0.05
"""Share of the shortest run."""


@dataclass(frozen=True)
class FinetuneConfig:
    """How models are fine-tuned.

    Attributes:
        task: The task, a name or a file, as `scaling.tasks.open_task` takes it.
        examples: Numbers of training examples; each gives runs of its own. Empty means
            all examples.
        epochs: Numbers of passes over the examples, one run each.
        seeds: Of the order of the examples, of dropout, and of fresh parameters.
        patience: Runs in a row that may be no better than the best before them; then
            longer ones are not trained. None trains all.
        lr: Peak learning rate. None means `lr_factor` times the parent's.
        lr_factor: Over the parent's peak learning rate (docs/notes/downstream.md).
        batch_size: Rows of a step. A row holds as many examples as the context takes.
        lora_rank: Train adapters of this rank; None trains everything.
        from_scratch: Begin with fresh parameters of the parent's model: the control.
        sparsity: Remove this share of the parent's weights first, and keep them removed.
        pattern: Which weights; see `scaling.config.ParentConfig`.

    Raises:
        ConfigError: a value is out of range.
    """

    task: str
    examples: tuple[int, ...] = ()
    epochs: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
    seeds: tuple[int, ...] = (0,)
    patience: int | None = 1
    lr: float | None = None
    lr_factor: float = 1.0
    batch_size: int = 8
    lora_rank: int | None = None
    from_scratch: bool = False
    sparsity: float = 0.0
    pattern: SparsityPattern = "magnitude"

    def __post_init__(self) -> None:
        if not self.epochs or min(self.epochs) <= 0:
            raise ConfigError(f"epochs = {self.epochs}: give positive numbers")
        if not self.seeds:
            raise ConfigError("seeds: give at least one")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(
                f"patience = {self.patience}: must be at least 1, or None for no end"
            )
        for name in ("lr", "lr_factor"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} = {value}: must be positive")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size = {self.batch_size}: must be at least 1")
        if self.from_scratch and self.lora_rank is not None:
            raise ConfigError(
                f"lora_rank = {self.lora_rank}: adapters need a trained model; leave it "
                "or from_scratch out"
            )
        if self.from_scratch and self.sparsity > 0:
            raise ConfigError(
                f"sparsity = {self.sparsity}: only a trained model is pruned; leave it "
                "or from_scratch out"
            )


def finetune(
    parents: str | Path | Sequence[str | Path],
    config: FinetuneConfig,
    out: str | Path,
    *,
    workers: int | None = None,
    executor: ClusterConfig | None = None,
    loop: LoopConfig | None = None,
    show: Show = "auto",
    retry: bool = False,
) -> pd.DataFrame:
    """Fine-tune models, and return the run table of what was trained.

    It may be interrupted at any time and called again.

    Args:
        parents: Folders of finished runs.
        config: How they are fine-tuned.
        out: The folder of the new runs.
        workers: As for `scaling.sweep`, and so are the others.
        executor: A cluster to train on.
        loop: How to train.
        show: The display on standard error.
        retry: Whether to try again what has failed before.

    Raises:
        ConfigError, DataError, StoreError: a parent or the task cannot be used; nothing
            was started.
        SweepError: some runs failed; all others are finished and in the store.
    """
    out = Path(out)
    folders = [parents] if isinstance(parents, str | Path) else list(parents)
    groups: list[list[RunConfig]] = []
    for folder in folders:
        groups += plan_finetuning(Path(folder), config)
    trained: dict[str, RunConfig] = {}
    for level in range(len(config.epochs)):
        if not groups:
            break
        runs = [group[level] for group in groups]
        plan = Plan("finetune", tuple(runs))
        sweep(
            plan,
            out,
            workers=workers,
            executor=executor,
            loop=loop,
            show=show,
            retry=retry,
        )
        trained.update({run.run_id: run for run in runs})
        groups = [
            group for group in groups if may_improve(out, group, level, config.patience)
        ]
    return run_table(out, list(trained.values()))


def plan_finetuning(folder: Path, config: FinetuneConfig) -> list[list[RunConfig]]:
    """The runs of one parent: a list for each number of examples and seed, the shortest
    first.

    Raises:
        ConfigError, DataError, StoreError: the parent or the task cannot be used.
    """
    folder = folder.resolve()
    try:
        parent = query.read_config(folder.parent, folder.name)
    except query.UnreadableFile as error:
        raise StoreError(f"{error}; give the folder of a finished run") from None
    if not run_dirs.is_finished(folder.parent, parent):
        raise ConfigError(f"{folder}: the run is not finished; finish its sweep first")
    start = None
    if not config.from_scratch:
        start = ParentConfig(
            run=parent.run_id,
            folder=str(folder.parent),
            sparsity=config.sparsity,
            pattern=config.pattern,
        )
    groups = []
    for examples in config.examples or (None,):
        for seed in config.seeds:
            source = DataConfig(
                source=f"task:{config.task}",
                tokenizer=find_tokenizer(folder, parent),
                seed=seed,
                examples=examples,
            )
            groups.append(_make_group(parent, source, start, seed, config))
    return groups


def _make_group(
    parent: RunConfig,
    source: DataConfig,
    start: ParentConfig | None,
    seed: int,
    config: FinetuneConfig,
) -> list[RunConfig]:
    dataset = data.load_dataset(source)
    windows = dataset.make_windows(parent.model.context, config.batch_size, seed)
    rows = windows.tokens_per_epoch // windows.context
    batch_tokens = config.batch_size * parent.model.context
    steps = [math.ceil(e * rows / config.batch_size) for e in sorted(config.epochs)]
    optim = OptimConfig(
        optimizer=parent.optim.optimizer,
        lr=_choose_rate(parent, config),
        batch_size=config.batch_size,
        warmup_tokens=round(_WARMUP * steps[0] * batch_tokens),
        beta1=parent.optim.beta1,
        beta2=parent.optim.beta2,
        epsilon=parent.optim.epsilon,
        clip_norm=parent.optim.clip_norm,
        lora_rank=config.lora_rank,
    )
    runs = []
    for count in steps:
        run = RunConfig(
            model=parent.model,
            data=source,
            optim=optim,
            tokens=count * batch_tokens,
            seed=seed,
            parent=start,
        )
        runs.append(run)
    return runs


def _choose_rate(parent: RunConfig, config: FinetuneConfig) -> float:
    return parent.optim.lr * config.lr_factor if config.lr is None else config.lr


def find_tokenizer(folder: Path, parent: RunConfig) -> str:
    """The name of a parent's tokenizer: the file that its sweep kept, if it kept one.

    Raises:
        StoreError: there is no such file.
    """
    name = parent.data.tokenizer
    path = folder / PARAMETERS_FILE
    tokenizer_hash = (
        read_metadata(path).get("tokenizer_hash") if path.is_file() else None
    )
    if tokenizer_hash is not None:
        kept = folder.parent / run_dirs.name_tokenizer_file(tokenizer_hash)
        if kept.is_file():
            return str(kept)
    if is_bpe(name):
        raise StoreError(
            f"{folder}: the sweep kept no file of its tokenizer {name!r}; train it again "
            "with this version"
        )
    return name


def may_improve(
    out: Path, group: Sequence[RunConfig], level: int, patience: int | None
) -> bool:
    """Whether a longer run of a group is to be trained after that of a level."""
    if level + 1 >= len(group):
        return False
    if patience is None:
        return True
    losses = []
    for run in group[: level + 1]:
        loss = query.read_result(out, run.run_id)["loss"]
        losses.append(math.inf if loss is None else loss)
    best = losses.index(min(losses))
    return level - best < patience


def select_best(table: pd.DataFrame) -> pd.DataFrame:
    """Of each trunk the run of the lowest held-out loss: what early stopping keeps."""
    finished = table.loc[table["status"] == "finished"]
    best = finished.groupby("trunk_id", sort=False)["loss"].idxmin()
    return finished.loc[best].reset_index(drop=True)
