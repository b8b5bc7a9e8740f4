"""Parameter counts and FLOPs: one definition, used by planner, trainer and run table.

Matrix multiplications are counted exactly and nothing else is: 2 FLOPs per weight and
token forward, attention scores and values over the positions a token may see, the
output head always, the embedding look-up never. Training costs three times the forward
pass (the backward pass has two products for each of the forward's). Kaplan's 6ND
(arXiv:2001.08361, section 2.1) is another column of the run table, not the truth: for
small models and big vocabularies the two differ by tens of per cent.
"""

from __future__ import annotations

from dataclasses import dataclass

from scaling.config import ModelConfig
from scaling.model.kernels import count_computed_positions
from scaling.model.parametrization import find_parametrization_spec

_NORM_VECTORS = {
    "rmsnorm": 1,
    "nonparametric_rmsnorm": 0,
    "layernorm": 2,
    "none": 0,
}  # gains and biases


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters, under every convention in use."""

    n_total: int  # every parameter
    n_non_embedding: (
        int  # without embeddings, positions and output head (Kaplan et al. 2020)
    )
    n_matmul: int  # weights that multiply activations: the blocks' matrices and the output head, tied or not


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Exact parameter counts of a model."""
    inner = config.heads * config.key_dim
    feed_forward = (3 if config.gated else 2) * config.width * config.d_ff
    block_matrices = 4 * config.width * inner + feed_forward
    per_norm = _NORM_VECTORS[config.norm] * config.width
    block_gains = 2 * per_norm + 2 * _NORM_VECTORS[config.qk_norm_kind] * config.key_dim
    table = config.vocab * config.width
    positions = config.context * config.width if config.position == "learned" else 0
    learned = find_parametrization_spec(config).learned_scales
    block_scales = (
        3 * inner + (2 if config.gated else 1) * config.d_ff + 2 * config.width
        if learned
        else 0
    )
    blocks = config.depth * (block_matrices + block_gains + block_scales) + per_norm
    return ParameterCounts(
        n_total=blocks
        + positions
        + table * (1 if config.tied else 2)
        + (config.vocab if learned else 0),
        n_non_embedding=blocks,
        n_matmul=config.depth * block_matrices + table,
    )


def forward_flops_per_token(config: ModelConfig, *, causal: bool = True) -> float:
    """FLOPs of the forward pass per token of a full context.

    With `causal`, position t attends to t + 1 positions: (T + 1) / 2 on average.
    Without, to as many as `scaling.model.kernels` computes scores for, those it masks
    among them.
    """
    seen = (
        (config.context + 1) / 2 if causal else count_computed_positions(config.context)
    )
    attention = 2 * 2 * seen * config.heads * config.key_dim  # scores and values
    return float(2 * count_parameters(config).n_matmul + config.depth * attention)


def flops_per_token(config: ModelConfig) -> float:
    """FLOPs of training per token: three times the causal forward pass."""
    return 3 * forward_flops_per_token(config)
