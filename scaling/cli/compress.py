"""The verb of the `scaling` command that makes a trained model smaller: compress."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from scaling.cli.models import ModelArgs
from scaling.cli.output import print_json
from scaling.config import ConfigError

if TYPE_CHECKING:
    from scaling.compression.losses import LossChange
    from scaling.inference.model import TrainedModel


@dataclass(frozen=True)
class CompressArgs:
    """Round or prune a trained model, write it, and measure what that costs.

    Examples: scaling compress runs/mine --run d20d --bits 4 --method gptq --out small
              scaling compress runs/mine --run d20d --pattern 2:4 --out small
              scaling compress runs/mine --run d20d --heads 1 --bits 4 --out small
    """

    model: Annotated[ModelArgs, tyro.conf.arg(name="")]
    out: Path
    """The folder to write. It must be new or empty."""
    bits: int | None = None
    """Round weights to so many bits, 2 to 8."""
    group_size: int | None = None
    """Of --bits: inputs that share a scale. Default: all inputs of an output."""
    method: Literal["nearest", "gptq"] = "nearest"
    """Of --bits. gptq keeps the outputs on training text near."""
    scale: Literal["absmax", "error"] = "absmax"
    """Of --bits: by the largest weight, or of the least squared error."""
    embedding: bool = False
    """Of --bits: also the embedding."""
    sparsity: float | None = None
    """Remove this share of the weights, the smallest ones."""
    scope: Literal["matrix", "global"] = "matrix"
    """Of --sparsity: compare weights within a matrix, or over all matrices."""
    pattern: Literal["2:4"] | None = None
    """Remove the two smallest of each four weights."""
    heads: int | None = None
    """Remove so many attention heads of each layer; the matrices become smaller."""
    importance: Literal["norm", "loss"] = "norm"
    """Of --heads: by the norm of a head's output weights, or by the loss without it."""
    json: bool = False

    def __call__(self) -> int:
        from scaling.compression.losses import (
            compare_windows,
            measure_heldout_windows,
        )
        from scaling.inference.compressed import count_bytes

        self._check_choices()
        with self.model.open_model() as model:
            before = measure_heldout_windows(model)
            smaller, size = self._compress(model)
            change = compare_windows(before, measure_heldout_windows(smaller))
        answer = {
            "out": str(self.out),
            "bytes_before": count_bytes(model.params),
            "bytes_after": size,
            "loss_before": change.loss - change.increase,
            "loss_after": change.loss,
            "loss_increase": change.increase,
            "loss_increase_se": change.increase_se,
        }
        if self.json:
            print_json(answer)
        else:
            print_change(self.out, count_bytes(model.params), size, change)
        return 0

    def _check_choices(self) -> None:
        chosen = []
        for name in ("sparsity", "pattern", "heads"):
            if getattr(self, name) is not None:
                chosen.append(f"--{name}")
        if len(chosen) > 1:
            raise ConfigError(f"{', '.join(chosen)}: choose one of them")
        if not chosen and self.bits is None:
            raise ConfigError(
                "nothing to compress by; give --bits, --sparsity, --pattern or --heads"
            )
        if self.method == "gptq" and chosen in (["--sparsity"], ["--pattern"]):
            raise ConfigError(
                f"--method gptq: it moves removed weights away from zero; leave "
                f"{chosen[0]} out, or use --method nearest"
            )

    def _compress(self, model: TrainedModel) -> tuple[TrainedModel, int]:
        """The compressed model as a plain one, and the size of its file in bytes."""
        from scaling.compression.prune import PruningConfig, prune_model, write_pruned
        from scaling.compression.quantize import (
            QuantizationConfig,
            quantize_model,
            write_quantized,
        )

        settings = None
        if self.sparsity is not None:
            settings = PruningConfig(
                "magnitude", sparsity=self.sparsity, scope=self.scope
            )
        elif self.pattern is not None:
            settings = PruningConfig(self.pattern)
        elif self.heads is not None:
            settings = PruningConfig(
                "heads", heads=self.heads, importance=self.importance
            )
        if settings is not None:
            pruned = prune_model(model, settings)
            model = pruned.model if pruned.heads is None else pruned.shrink()
        if self.bits is None:
            return model, write_pruned(model, self.out)
        quantized = quantize_model(
            model,
            QuantizationConfig(
                bits=self.bits,
                group_size=self.group_size,
                method=self.method,
                scale=self.scale,
                embedding=self.embedding,
            ),
        )
        return quantized.dequantize(), write_quantized(quantized, self.out)


def print_change(out: Path, before: int, after: int, change: LossChange) -> None:
    """Print what a compression saved and what it cost."""
    print(f"{out}: {after:,} bytes on disk; {before:,} bytes as float32 before")
    print(f"loss before    {change.loss - change.increase:.5f} nats per token")
    print(f"loss after     {change.loss:.5f} nats per token")
    print(f"increase       {change.increase:.5f} ± {change.increase_se:.5f}")
