"""The architectures of `transformers` that compute what models of this library compute.

All four have RMSNorm before each branch, rotary position embeddings in the half-split
layout, and no biases. They differ in the feed-forward block and in the norm of queries
and keys. A row says which options it serves and what its weights are called.
"""

from __future__ import annotations

from dataclasses import dataclass

from scaling.config import ConfigError, ModelConfig
from scaling.export.fold import USE_SAFETENSORS


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        model_type: The name in config.json.
        class_name: The class of `transformers`.
        is_gated: Whether the feed-forward block multiplies two projections.
        has_qk_norm: Whether queries and keys are normalized.
        norms: Names of the norms before attention and before the feed-forward block.
        width_is_multiple_of_heads: Whether the class rejects other widths.
        default_rope_theta: The base of the frequencies if config.json names none.
    """

    model_type: str
    class_name: str
    is_gated: bool
    has_qk_norm: bool
    norms: tuple[str, str] = ("input_layernorm", "post_attention_layernorm")
    width_is_multiple_of_heads: bool = False
    default_rope_theta: float = 10_000.0


ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("qwen3", "Qwen3ForCausalLM", is_gated=True, has_qk_norm=True),
    Architecture(
        "llama",
        "LlamaForCausalLM",
        is_gated=True,
        has_qk_norm=False,
        width_is_multiple_of_heads=True,
    ),
    Architecture(
        "apertus",
        "ApertusForCausalLM",
        is_gated=False,
        has_qk_norm=True,
        norms=("attention_layernorm", "feedforward_layernorm"),
        default_rope_theta=12_000_000.0,
    ),
    Architecture(
        "arcee",
        "ArceeForCausalLM",
        is_gated=False,
        has_qk_norm=False,
        width_is_multiple_of_heads=True,
    ),
)

HIDDEN_ACTS = {
    "gelu": "gelu_pytorch_tanh",
    "relu": "relu",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "relu2": "relu2",
    "geglu": "gelu_pytorch_tanh",
    "reglu": "relu",
    "swiglu": "silu",
    "glu": "sigmoid",
}
"""Activations of this library as `hidden_act` names them. GELU is its tanh form."""


def choose_architecture(config: ModelConfig) -> Architecture:
    """The architecture of `transformers` that computes what a model computes.

    Raises:
        ConfigError: an option has no counterpart there.
    """
    if config.norm not in ("rmsnorm", "nonparametric_rmsnorm"):
        _reject("model.norm", config.norm, "have 'rmsnorm'")
    if config.position != "rope":
        _reject("model.position", config.position, "have 'rope'")
    if not config.residual:
        _reject("model.residual", config.residual, "have skip connections")
    if config.activation not in HIDDEN_ACTS:
        known = ", ".join(HIDDEN_ACTS)
        _reject("model.activation", config.activation, f"have one of {known}")
    architecture = find_architecture(config.gated, config.qk_norm)
    is_multiple = config.width % config.heads == 0
    if architecture.width_is_multiple_of_heads and not is_multiple:
        raise ConfigError(
            f"model.width = {config.width}: {architecture.class_name} takes a multiple "
            f"of model.n_heads = {config.heads}; {USE_SAFETENSORS}"
        )
    return architecture


def find_architecture(is_gated: bool, has_qk_norm: bool) -> Architecture:
    """The row of a feed-forward block and of a norm of queries and keys."""
    for row in ARCHITECTURES:
        if (row.is_gated, row.has_qk_norm) == (is_gated, has_qk_norm):
            return row
    raise AssertionError("the table has a row for every pair")


def _reject(name: str, value: object, what_they_have: str) -> None:
    class_names = ", ".join(row.class_name for row in ARCHITECTURES)
    raise ConfigError(
        f"{name} = {value!r}: the architectures that can hold a model of this library "
        f"({class_names}) {what_they_have}; {USE_SAFETENSORS}"
    )
