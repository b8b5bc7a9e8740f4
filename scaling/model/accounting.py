"""What a decoder holds and computes, listed once per shape.

This is the one table that changes with an option that changes shapes (grouped-query
attention, for example). `scaling.model.flops` counts parameters and FLOPs from it, and
`scaling.planning.memory` counts bytes. A test holds it against the built model.

Symbols: D width, I width of all heads, F hidden units, V vocabulary, T context,
E experts.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from scaling.config import ModelConfig
from scaling.model.architecture import ParameterCounts
from scaling.model.kernels import (
    count_computed_positions,
    count_seen_positions,
    has_cudnn_attention,
)
from scaling.model.parametrization import (
    PRODUCT_ROLES,
    Role,
    find_parametrization_spec,
)

Place = Literal["embedding", "block", "later block", "final", "head"]
"""A later block is one after the first."""

_VECTORS_PER_NORM: dict[str, int] = {
    "rmsnorm": 1,  # gains
    "nonparametric_rmsnorm": 0,
    "layernorm": 2,  # gains and biases
    "none": 0,
}


@dataclass(frozen=True)
class WeightShape:
    """Parameters of one role and shape.

    Attributes:
        name: What they are.
        place: The embedding, each block or each later one, the final norm or the output
            head.
        role: Their role in the parametrization table.
        shape: The shape of one of them.
        copies: How many the model holds; in a block, how many one block holds.
        used: Of experts, stacked along the first axis, how many compute a token; None
            for all other parameters.
    """

    name: str
    place: Place
    role: Role
    shape: tuple[int, ...]
    copies: int = 1
    used: int | None = None

    @property
    def active_size(self) -> int:
        """Number of parameters of all copies that one token uses."""
        if self.used is None:
            return self.size
        return self.copies * self.used * math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        """Number of parameters of all copies."""
        return self.copies * math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether they multiply activations as a matrix."""
        return self.role in PRODUCT_ROLES


def list_weights(config: ModelConfig) -> list[WeightShape]:
    """All parameters of a model; those of a block are listed once."""
    D = config.width
    V = config.vocab
    inner = config.heads * config.key_dim
    shared = config.kv_heads * config.key_dim

    def in_block(
        name: str, role: Role, shape: tuple[int, ...], copies: int = 1
    ) -> WeightShape:
        return WeightShape(name, "block", role, shape=shape, copies=copies)

    sinks = []
    if config.attention_sink:
        sinks.append(in_block("attention sinks", "bias", (config.heads,)))
    mixes = []
    if config.value_residual:
        mixes.append(WeightShape("mix of values", "later block", "gain", shape=(2,)))
    gates = []
    if config.attention_gate:
        gates.append(in_block("attention gates", "hidden", (D, inner)))
    # The matrices of one product have the same input and are multiplied together.
    products = {
        "queries, keys, values": [
            in_block("queries", "hidden", (D, inner)),
            in_block("keys, values", "hidden", (D, shared), copies=2),
            *gates,
        ],
        "attention out": [in_block("attention out", "residual_out", (inner, D))],
        **_list_feed_forward(config),
    }
    shape = (config.input_ids, D)
    weights = [WeightShape("embedding", "embedding", "embedding", shape=shape)]
    if config.position == "learned":
        shape = (config.context, D)
        weights.append(WeightShape("positions", "embedding", "embedding", shape=shape))
    for matrices in products.values():
        weights += matrices
    weights += sinks
    weights += mixes
    weights += _list_routers(config)
    norms = 1 if config.parallel_blocks else 2
    weights += _list_norm("branch norms", "block", config.norm, size=D, copies=norms)
    weights += _list_norm(
        "query and key norms",
        "block",
        config.qk_norm_kind,
        size=config.key_dim,
        copies=2,
    )
    weights += _list_norm("final norm", "final", config.norm, size=D, copies=1)
    if not config.tied:
        weights.append(WeightShape("head", "head", "readout", shape=(D, V)))
    if find_parametrization_spec(config).learned_scales:
        for name, matrices in products.items():
            outputs = sum(matrix.copies * matrix.shape[-1] for matrix in matrices)
            experts = matrices[0].shape[:-2]
            scale = in_block(f"scale of {name}", "scale", (*experts, outputs))
            weights.append(dataclasses.replace(scale, used=matrices[0].used))
        weights.append(WeightShape("scale of head", "head", "scale", shape=(V,)))
    return weights


def _list_feed_forward(config: ModelConfig) -> dict[str, list[WeightShape]]:
    """The matrices of the feed-forward block, by the product that they share."""
    D = config.width
    projections = 2 if config.gated else 1
    experts = config.experts
    units = config.d_ff
    found: dict[str, list[WeightShape]] = {}
    if config.n_experts > 0:
        F = config.expert_units
        up = WeightShape(
            "experts in", "block", "expert_in", shape=(config.n_experts, D, F)
        )
        down = WeightShape(
            "experts out", "block", "expert_out", shape=(config.n_experts, F, D)
        )
        used = experts.per_token
        found["experts in"] = [dataclasses.replace(up, copies=projections, used=used)]
        found["experts out"] = [dataclasses.replace(down, used=used)]
        units = experts.shared * F
    if units > 0:
        up = WeightShape("feed-forward in", "block", "hidden", shape=(D, units))
        down = WeightShape(
            "feed-forward out", "block", "residual_out", shape=(units, D)
        )
        found["feed-forward in"] = [dataclasses.replace(up, copies=projections)]
        found["feed-forward out"] = [down]
    return found


def _list_routers(config: ModelConfig) -> list[WeightShape]:
    """The router of a block and its biases, which have no learned scales."""
    E = config.n_experts
    if E == 0:
        return []
    weights = [WeightShape("router", "block", "router", shape=(config.width, E))]
    if config.experts.balancing == "bias":
        weights.append(WeightShape("biases", "block", "router_bias", shape=(E,)))
    return weights


def _list_norm(
    name: str, place: Place, kind: str, *, size: int, copies: int
) -> list[WeightShape]:
    gain: Role = "final_gain" if place == "final" else "gain"
    bias: Role = "final_bias" if place == "final" else "bias"
    roles: tuple[Role, ...] = (gain, bias)
    return [
        WeightShape(name, place, role, shape=(size,), copies=copies)
        for role in roles[: _VECTORS_PER_NORM[kind]]
    ]


@dataclass(frozen=True)
class AttentionProduct:
    """A product of two activations in each block.

    Attributes:
        name: What it computes.
        width: Multiplications per query and position that the query sees.
    """

    name: str
    width: int


def list_attention_products(config: ModelConfig) -> list[AttentionProduct]:
    """The products of activations in a block."""
    inner = config.heads * config.key_dim
    return [AttentionProduct("scores", inner), AttentionProduct("values", inner)]


def sum_seen_positions(config: ModelConfig, start: int, stop: int) -> float:
    """Positions that those from `start` to `stop` - 1 see, summed over the layers."""
    total = 0.0
    for kind in config.layer_kinds:
        window = config.window if kind == "w" else None
        total += count_seen_positions(start, stop, window, config.prefix_tokens)
    prefix = config.prefix_tokens
    total += config.future_tokens * count_seen_positions(start, stop, None, prefix)
    return total


@dataclass(frozen=True)
class SavedActivation:
    """An activation that a block keeps for the backward pass on a GPU.

    Attributes:
        name: What it is.
        values: Numbers per token, in the precision of the computation.
    """

    name: str
    values: int


def list_saved_activations(config: ModelConfig) -> list[SavedActivation]:
    """What a block keeps for its gradient.

    These are the operands and results of its products, and the residual stream. XLA
    recomputes all elementwise functions.
    """
    D = config.width
    F = config.active_units
    inner = config.heads * config.key_dim
    shared = config.kv_heads * config.key_dim
    inputs = D if config.parallel_blocks else 2 * D
    saved = [
        SavedActivation("queries, keys, values", inner + 2 * shared),
        SavedActivation("input of attention out", inner),
        SavedActivation("attention branch", D),
        SavedActivation("hidden units", (3 if config.gated else 2) * F),
        SavedActivation("feed-forward branch", D),
        SavedActivation("residual stream before each norm", inputs),
    ]
    if config.n_experts > 0:
        # In float32: the input of the router, and the scores.
        halves = 2 if config.dtype == "bfloat16" else 1
        routed = 2 * config.experts.per_token * D
        router = halves * (D + config.n_experts)
        saved.append(SavedActivation("inputs and outputs of the experts", routed))
        saved.append(SavedActivation("router", router))
    if config.attention_gate:
        saved.append(
            SavedActivation("attention gates and what they multiply", 2 * inner)
        )
    if config.value_residual:
        saved.append(SavedActivation("values as mixed", shared))
    if config.qk_norm or config.position == "rope":
        saved.append(SavedActivation("queries and keys as multiplied", inner + shared))
    if config.norm != "none":
        saved.append(SavedActivation("normalized inputs of both branches", inputs))
    prefix = config.prefix_tokens
    is_fused = has_cudnn_attention(config.dtype, config.key_dim)
    if config.attention_sink or prefix > 0 or not is_fused:
        scores = round(config.heads * count_computed_positions(config.context, prefix))
        saved.append(SavedActivation("attention scores", scores))
    return saved


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Exact parameter counts of a decoder."""
    total = 0
    active = 0
    non_embedding = 0
    block_matrices = 0
    readouts = 1 + config.future_tokens
    for weight in list_weights(config):
        copies = {
            "block": config.trained_layers,
            "later block": config.depth - 1,
        }.get(weight.place, 1)
        size = copies * weight.size
        if weight.place == "block" and weight.is_matrix:
            block_matrices += copies * weight.active_size
        total += size
        active += copies * weight.active_size
        if weight.place in ("block", "later block", "final"):
            non_embedding += size
    return ParameterCounts(
        n_total=total,
        n_non_embedding=non_embedding,
        n_matmul=block_matrices + readouts * config.vocab * config.width,
        n_active=active if config.n_experts > 0 else None,
    )


def count_forward_flops(config: ModelConfig, *, causal: bool = True) -> float:
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
        prefix = config.prefix_tokens
        positions = config.trained_layers * count_computed_positions(length, prefix)
    widths = sum(product.width for product in list_attention_products(config))
    return float(2 * count_parameters(config).n_matmul + 2 * positions * widths)


def count_layer_bytes(config: ModelConfig) -> int:
    """Bytes per token that a layer keeps for its gradient on a GPU."""
    values = sum(activation.values for activation in list_saved_activations(config))
    return values * (2 if config.dtype == "bfloat16" else 4)
