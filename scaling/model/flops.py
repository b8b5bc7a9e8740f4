"""Parameter counts and FLOPs: one definition, used by planner, trainer and run table.

Only matrix multiplications are counted, and they are counted exactly: 2 FLOPs per
weight and token in the forward pass, attention scores and values over the positions
that a token may see, the output head always, the embedding look-up never. Training
costs three times the forward pass, because the backward pass has two products for each
product of the forward pass. Kaplan's 6 N D (arXiv:2001.08361, section 2.1) is another
column of the run table: for small models and big vocabularies the two differ by tens of
per cent. A plan asks for the counts of each model many times; they are kept.
"""

from __future__ import annotations

import functools

from scaling.config import ArchitectureConfig, RunConfig, Trunk
from scaling.model.architecture import (
    Architecture,
    ParameterCounts,
    find_architecture,
)


def count_parameters(config: ArchitectureConfig) -> ParameterCounts:
    """Exact parameter counts of a model."""
    return _count_parameters(find_architecture(config), config)


def forward_flops_per_token(
    config: ArchitectureConfig, *, causal: bool = True
) -> float:
    """FLOPs of the forward pass per token of a full context.

    Args:
        config: The model.
        causal: Count the positions that a token attends to. Otherwise count those for
            which scores are computed, masked ones included.
    """
    return _count_forward_flops(find_architecture(config), config, causal)


@functools.lru_cache(maxsize=1024)
def _count_parameters(
    architecture: type[Architecture], config: ArchitectureConfig
) -> ParameterCounts:
    return architecture.count_parameters(config)


@functools.lru_cache(maxsize=1024)
def _count_forward_flops(
    architecture: type[Architecture], config: ArchitectureConfig, causal: bool
) -> float:
    return architecture.count_forward_flops(config, causal=causal)


def flops_per_token(config: ArchitectureConfig) -> float:
    """FLOPs of training per token: three times the causal forward pass."""
    return 3 * forward_flops_per_token(config)


def flops_per_step(run: RunConfig) -> float:
    """FLOPs of one step of a run."""
    return run.batch_tokens * flops_per_token(run.model)


def trunk_flops(trunk: Trunk) -> float:
    """FLOPs to train all runs of a trunk, its shared steps counted once."""
    return trunk.steps * trunk.batch_tokens * flops_per_token(trunk.model)
