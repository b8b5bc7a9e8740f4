"""The verb of the `scaling` command that fine-tunes trained models: finetune."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from scaling.cli.fit import Positional
from scaling.cli.output import print_json, print_table, to_records
from scaling.cli.plan_sweep import TrainingArgs
from scaling.config import ConfigError, SparsityPattern

if TYPE_CHECKING:
    import pandas as pd

    from scaling.execution.finetune import FinetuneConfig

_SHOWN = (
    "run_id",
    "parent",
    "n_matmul",
    "examples",
    "epochs",
    "seed",
    "loss",
    "loss_se",
    "pretraining_loss",
)


@dataclass(frozen=True)
class FinetuneArgs:
    """Train models further on the examples of a task.

    Examples: scaling finetune runs/quickstart --run best --task my_task.jsonl --out runs/mine
              scaling finetune runs/quickstart --run all --task addition --out runs/addition
    """  # noqa: E501

    path: Positional[Path]
    """The folder of a sweep or of a run."""
    task: str
    """A task's name, or a .jsonl, .csv or .parquet file of prompts and completions, of
    texts and labels, or of messages."""
    run: str | None = None
    """In a sweep's folder, the beginning of the run's id; best: the lowest loss; all:
    every finished run."""
    out: Path = Path("runs/finetuned")
    examples: tuple[int, ...] = ()
    """Numbers of training examples; each gives runs of its own. Default: all."""
    epochs: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
    """Numbers of passes over the examples. Each is a run of its own, off a shared
    trunk."""
    seeds: tuple[int, ...] = (0,)
    patience: int = 1
    """Longer runs are not trained once so many in a row were no better on the held-out
    examples; 0: train all."""
    lr: float | None = None
    """Peak learning rate. Default: --lr-factor times the parent's."""
    lr_factor: float = 1.0
    """Over the parent's peak learning rate."""
    batch_size: int = 8
    """Rows of a step; a row holds as many examples as the context takes."""
    lora_rank: int | None = None
    """Train adapters of this rank instead of all parameters."""
    from_scratch: bool = False
    """Begin with fresh parameters: the control."""
    sparsity: float = 0.0
    """Remove this share of the parent's weights first, and keep them at zero."""
    pattern: SparsityPattern = "magnitude"
    """Of --sparsity: the smallest weights, two of each four (--sparsity 0.5), or whole
    attention heads."""
    training: Annotated[TrainingArgs, tyro.conf.arg(name="")] = field(
        default_factory=TrainingArgs
    )
    show: Literal["best", "all"] = "best"
    """Of each model the run of the lowest held-out loss, or all."""
    json: bool = False

    def __call__(self) -> int:
        from scaling.execution.finetune import finetune, select_best

        table = finetune(
            self._list_parents(),
            self.make_config(),
            self.out,
            **self.training.get_keywords(),
        )
        if self.show == "best":
            table = select_best(table)
        if self.json:
            print_json(to_records(table))
        else:
            print_finetuned(table)
        return 0

    def make_config(self) -> FinetuneConfig:
        """The settings of the fine-tuning."""
        from scaling.execution.finetune import FinetuneConfig

        names = [field.name for field in dataclasses.fields(FinetuneConfig)]
        settings = {name: getattr(self, name) for name in names}
        settings["patience"] = self.patience or None
        return FinetuneConfig(**settings)

    def _list_parents(self) -> list[Path]:
        from scaling.inference.load import find_run_folder
        from scaling.store.table import run_table

        if self.run != "all":
            return [find_run_folder(self.path, self.run)]
        table = run_table(self.path)
        finished = table.loc[table["status"] == "finished", "run_id"]
        if finished.empty:
            raise ConfigError(f"{self.path}: no finished run below this folder")
        return [self.path / run_id for run_id in finished]


def print_finetuned(table: pd.DataFrame) -> None:
    """Print the columns of fine-tuned runs that fit on a screen."""
    shown = table[list(_SHOWN)]
    ids = {name: table[name].str[:8] for name in ("run_id", "parent")}
    print_table(shown.assign(**ids), as_json=False)
