"""The architectures of `transformers` that compute what models of this library compute.

All have a norm before each branch, rotary position embeddings in the half-split layout
over the whole head, attention scores over sqrt(head dimension), and matrices without
biases. They differ in the norm, in the feed-forward block and in whether queries and
keys are normalized. A row says which options it serves and what its weights are called.

To add an architecture of this kind, add a row to `ARCHITECTURES`. The rows were written
from the classes of transformers 5.24.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from scaling.config import ConfigError, ModelConfig, Norm
from scaling.config.conversion import JsonObject
from scaling.config.identity import get_introduced_default, is_first_field

USE_SAFETENSORS = "export it with the format 'safetensors', which holds any model"

NORM_EPSILON = 1e-6
ROPE_THETA = 10_000.0
"""Base of the frequencies of rotary position embeddings."""

_NO_BIASES: JsonObject = {"attention_bias": False, "mlp_bias": False}


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        model_type: The name in config.json.
        class_name: The class of `transformers`.
        norm: The norm before each branch.
        is_gated: Whether the feed-forward block multiplies two projections.
        has_qk_norm: Whether queries and keys are normalized, by RMSNorm.
        norms: Names of the norms before attention and before the feed-forward block.
        up: Names of the matrices into the feed-forward block. The activation is
            applied to the product of the first.
        down: Name of the matrix out of it.
        epsilon: Name of the setting of the norms' epsilon.
        sizes: Which sizes the class takes. "any"; "multiple": the width must be a
            multiple of the number of heads; "width": all heads together must be as wide
            as the model.
        required: Settings of config.json that hold for every model of this library.
        defaults: The values of `transformers` for settings that config.json leaves
            out, where they are not those of this library.
    """

    model_type: str
    class_name: str
    norm: Norm
    is_gated: bool
    has_qk_norm: bool
    norms: tuple[str, str] = ("input_layernorm", "post_attention_layernorm")
    up: tuple[str, ...] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    epsilon: str = "rms_norm_eps"
    sizes: Literal["any", "multiple", "width"] = "any"
    required: Mapping[str, object] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)


ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        "qwen3",
        "Qwen3ForCausalLM",
        norm="rmsnorm",
        is_gated=True,
        has_qk_norm=True,
        required={"attention_bias": False, "use_sliding_window": False},
        defaults={"rms_norm_eps": 1e-6, "head_dim": 128},
    ),
    Architecture(
        "llama",
        "LlamaForCausalLM",
        norm="rmsnorm",
        is_gated=True,
        has_qk_norm=False,
        sizes="multiple",
        required=_NO_BIASES,
        defaults={"rms_norm_eps": 1e-6},
    ),
    Architecture(
        "apertus",
        "ApertusForCausalLM",
        norm="rmsnorm",
        is_gated=False,
        has_qk_norm=True,
        norms=("attention_layernorm", "feedforward_layernorm"),
        up=("up_proj",),
        required={"attention_bias": False},
        defaults={
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "llama3", "rope_theta": 12_000_000.0},
        },
    ),
    Architecture(
        "arcee",
        "ArceeForCausalLM",
        norm="rmsnorm",
        is_gated=False,
        has_qk_norm=False,
        up=("up_proj",),
        sizes="multiple",
        required=_NO_BIASES,
        defaults={"rms_norm_eps": 1e-5},
    ),
    Architecture(
        "stablelm",
        "StableLmForCausalLM",
        norm="layernorm",
        is_gated=True,
        has_qk_norm=False,
        epsilon="layer_norm_eps",
        sizes="width",
        required={
            "partial_rotary_factor": 1.0,
            "use_qkv_bias": False,
            "qk_layernorm": False,
            "use_parallel_residual": False,
        },
        defaults={"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25},
    ),
    Architecture(
        "starcoder2",
        "Starcoder2ForCausalLM",
        norm="layernorm",
        is_gated=False,
        has_qk_norm=False,
        up=("c_fc",),
        down="c_proj",
        epsilon="norm_epsilon",
        required={"use_bias": False, "sliding_window": None},
        defaults={
            "norm_epsilon": 1e-5,
            "use_bias": True,
            "tie_word_embeddings": True,
        },
    ),
)

_LATER = ("weight_bits", "n_kv_heads", "rope_base")
"""The options of later versions that can be exported. A new one is refused until it is
here."""

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
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        is_known = is_first_field(ModelConfig, option) or option.name in _LATER
        if not is_known and value != get_introduced_default(option):
            _reject(f"model.{option.name}", value, "do not have it")
    if config.norm == "none":
        _reject("model.norm", config.norm, "have 'rmsnorm' or 'layernorm'")
    if config.position != "rope":
        _reject("model.position", config.position, "have 'rope'")
    if not config.residual:
        _reject("model.residual", config.residual, "have skip connections")
    if config.activation not in HIDDEN_ACTS:
        known = ", ".join(HIDDEN_ACTS)
        _reject("model.activation", config.activation, f"have one of {known}")
    # Norms without gains are norms whose gains are 1.
    norm = "layernorm" if config.norm == "layernorm" else "rmsnorm"
    wanted = (norm, config.gated, config.qk_norm)
    for row in ARCHITECTURES:
        if (row.norm, row.is_gated, row.has_qk_norm) == wanted:
            _check_sizes(row, config)
            return row
    what_they_have = f"do not have it with model.norm = {config.norm!r}"
    _reject("model.qk_norm", config.qk_norm, what_they_have)


def _check_sizes(row: Architecture, config: ModelConfig) -> None:
    inner = config.heads * config.key_dim
    if row.sizes == "width" and inner != config.width:
        raise ConfigError(
            f"model.head_dim = {config.head_dim!r}: {row.class_name} takes heads that "
            f"are together as wide as model.width = {config.width}; {USE_SAFETENSORS}"
        )
    if row.sizes == "multiple" and config.width % config.heads != 0:
        raise ConfigError(
            f"model.width = {config.width}: {row.class_name} takes a multiple of "
            f"model.n_heads = {config.heads}; {USE_SAFETENSORS}"
        )


def _reject(name: str, value: object, what_they_have: str) -> NoReturn:
    class_names = ", ".join(row.class_name for row in ARCHITECTURES)
    raise ConfigError(
        f"{name} = {value!r}: the architectures of transformers that can hold a model "
        f"of this library ({class_names}) {what_they_have}; {USE_SAFETENSORS}"
    )
