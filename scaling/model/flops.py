"""Parameter counts and FLOPs: one definition, used by planner, trainer and run table.

Only matrix multiplications are counted, and they are counted exactly: 2 FLOPs per
weight and token in the forward pass, attention scores and values over the positions
that a token may see, the output head always, the embedding look-up never. Training
costs three times the forward pass, because the backward pass has two products for each
product of the forward pass. Kaplan's 6 N D (arXiv:2001.08361, section 2.1) is another
column of the run table: for small models and big vocabularies the two differ by tens of
per cent.
"""

from __future__ import annotations

from dataclasses import dataclass

from scaling.config import ModelConfig, RunConfig, Trunk
from scaling.model.accounting import (
    list_attention_products,
    list_weights,
    sum_seen_positions,
)
from scaling.model.kernels import count_computed_positions


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters, under every convention in use.

    Attributes:
        n_total: Every parameter.
        n_non_embedding: Without embeddings, positions and output head (Kaplan et al.
            2020).
        n_matmul: Weights that multiply activations: the matrices of the blocks and the
            output head, whether it is tied to the embedding or not.
    """

    n_total: int
    n_non_embedding: int
    n_matmul: int


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Exact parameter counts of a model."""
    total = 0
    non_embedding = 0
    block_matrices = 0
    for weight in list_weights(config):
        size = weight.size
        if weight.place == "block":
            size *= config.depth
            if weight.is_matrix:
                block_matrices += size
        total += size
        if weight.place in ("block", "final"):
            non_embedding += size
    return ParameterCounts(
        n_total=total,
        n_non_embedding=non_embedding,
        n_matmul=block_matrices + config.vocab * config.width,
    )


def forward_flops_per_token(config: ModelConfig, *, causal: bool = True) -> float:
    """FLOPs of the forward pass per token of a full context.

    Args:
        config: The model.
        causal: Count the positions that a token attends to: t + 1 at position t, which
            is (T + 1) / 2 on average, or those of its window. Otherwise count the
            positions for which `scaling.model.kernels` computes scores, masked ones
            included.
    """
    length = config.context
    if causal:
        positions = sum_seen_positions(config, 0, length) / length
    else:
        positions = config.depth * count_computed_positions(length)
    widths = sum(product.width for product in list_attention_products(config))
    return float(2 * count_parameters(config).n_matmul + 2 * positions * widths)


def flops_per_token(config: ModelConfig) -> float:
    """FLOPs of training per token: three times the causal forward pass."""
    return 3 * forward_flops_per_token(config)


def flops_per_step(run: RunConfig) -> float:
    """FLOPs of one step of a run."""
    return run.batch_tokens * flops_per_token(run.model)


def trunk_flops(trunk: Trunk) -> float:
    """FLOPs to train all runs of a trunk, its shared steps counted once."""
    return trunk.steps * trunk.batch_tokens * flops_per_token(trunk.model)
