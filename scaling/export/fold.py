"""The same model without multipliers.

A parametrization multiplies the outputs of matrices by constants, and some learn a
scale for each output. Other libraries know neither. Both are linear, so they can be
multiplied into the weights, and the model computes the same function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from scaling.config import ConfigError, ModelConfig, Norm, UnitMultipliers
from scaling.export.architectures import USE_SAFETENSORS
from scaling.model.architecture import Params
from scaling.model.parametrization import Parametrization, bind_parametrization


def fold_multipliers(config: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """The same function as a model of the parametrization `sp`.

    Args:
        config: The shape and the options.
        params: The parameters, with blocks that are not stacked: `params["blocks"]`
            has one entry for each layer.

    Returns:
        The configuration and the parameters of the folded model, NumPy arrays in
        float32. RMSNorm without gains becomes RMSNorm with gains of 1. A head that is
        tied to the embedding stays tied, unless its columns have learned scales.

    Raises:
        ConfigError: the layers are stacked, or the parametrization weights the skip
            connections or is unit-scaled.
    """
    rules = bind_parametrization(config)
    _check_foldable(config, rules, params)
    blocks = {}
    for layer in range(config.depth):
        blocks[layer] = _fold_block(config, rules, params["blocks"][layer], layer)
    embedding_multiplier = rules.rule("embedding", config.vocab).multiplier
    readout = rules.rule("readout", config.width, config.base_width)
    final_norm = _fold_norm(config.norm, params.get("norm"), config.width)
    folded: dict[str, Any] = {
        "embedding": _scale_array(params["embedding"], embedding_multiplier),
        "blocks": blocks,
    }
    is_tied = config.tied and "head_scale" not in params
    if is_tied:
        # The table carries the multiplier of the embedding. The last norm makes up for
        # what the head's own multiplier differs from it.
        ratio = readout.multiplier / embedding_multiplier
        for name, vector in final_norm.items():
            final_norm[name] = _scale_array(vector, ratio)
    else:
        head = np.asarray(params["embedding"]).T if config.tied else params["head"]
        head_scale = params.get("head_scale")
        folded["head"] = _scale_columns([head], readout.multiplier, head_scale)[0]
    folded["norm"] = final_norm
    plain = dataclasses.replace(
        config,
        norm="layernorm" if config.norm == "layernorm" else "rmsnorm",
        tied=is_tied,
        parametrization="sp",
        base_width=config.width,
        base_depth=config.depth,
        unit=UnitMultipliers(),
        zero_init_outputs=False,
        scan_layers="never",
    )
    return plain, folded


def _check_foldable(
    config: ModelConfig, rules: Parametrization, params: Params
) -> None:
    name = f"model.parametrization = {config.parametrization!r}"
    if config.norm == "none":
        raise ConfigError(
            f"model.norm = {config.norm!r}: multipliers are folded where blocks have "
            f"norms; {USE_SAFETENSORS}"
        )
    plain = ModelConfig()
    for option in ("attention_sink", "parallel_blocks", "value_residual", "prefix"):
        value = getattr(config, option)
        if value != getattr(plain, option):
            raise ConfigError(
                f"model.{option} = {value}: the folded model does not have it; "
                f"{USE_SAFETENSORS}"
            )
    if 0 not in params["blocks"]:
        raise ConfigError(
            f"model.scan_layers = {config.scan_layers!r}: the layers are stacked; "
            "unstack them first"
        )
    if rules.ops.reads_unit_multipliers:
        raise ConfigError(
            f"{name}: unit scaling weights the skip connections, which no weight can "
            f"hold; {USE_SAFETENSORS}"
        )
    for branch in range(2 * config.depth):
        skip = rules.residual(branch).skip
        if skip is not None and skip != 1.0:
            raise ConfigError(
                f"{name}: it weights the skip connections by {skip:.6g}, which no "
                f"weight can hold; {USE_SAFETENSORS}"
            )


def _fold_block(
    config: ModelConfig, rules: Parametrization, block: Params, layer: int
) -> Params:
    attention = block["branches"][0]
    feed_forward = block["branches"][1]
    inner = config.heads * config.key_dim
    heads_grow = config.n_heads is None or config.head_dim is None
    hidden = rules.rule("hidden", config.width, config.base_width).multiplier
    attention_out = rules.rule(
        "residual_out", inner, config.base_width if heads_grow else inner
    ).multiplier
    base_d_ff = config.d_ff * config.base_width / config.width
    down = rules.rule("residual_out", config.d_ff, base_d_ff).multiplier
    attention_weight = float(rules.residual(2 * layer).branch)
    feed_forward_weight = float(rules.residual(2 * layer + 1).branch)
    # Relative to the usual 1 / sqrt(head dimension). It moves to the gains of the
    # queries; where these are not normalized, to their weights.
    score_scale = rules.scale_attention(config.key_dim, config.base_key_dim)
    score_factor = score_scale * config.key_dim**0.5

    qkv = _fold_linear(attention["qkv"], hidden)
    folded_attention: dict[str, Any] = {
        "qkv": qkv,
        "out": _fold_linear(attention["out"], attention_out * attention_weight),
    }
    if config.qk_norm:
        for name, factor in (("q_norm", score_factor), ("k_norm", 1.0)):
            norm = _fold_norm(config.qk_norm_kind, attention.get(name), config.key_dim)
            folded_attention[name] = {"gain": _scale_array(norm["gain"], factor)}
    else:
        qkv["weights"][0] = _scale_array(qkv["weights"][0], score_factor)
    folded_feed_forward = {
        "up": _fold_linear(feed_forward["up"], hidden),
        "down": _fold_linear(feed_forward["down"], down * feed_forward_weight),
    }
    norms = {}
    for branch in (0, 1):
        norm = block.get("norms", {}).get(branch)
        norms[branch] = _fold_norm(config.norm, norm, config.width)
    return {
        "norms": norms,
        "branches": {0: folded_attention, 1: folded_feed_forward},
    }


def _fold_linear(linear: Params, multiplier: float) -> dict[str, Any]:
    matrices = [linear["weights"][i] for i in range(len(linear["weights"]))]
    folded = _scale_columns(matrices, multiplier, linear.get("scale"))
    return {"weights": dict(enumerate(folded))}


def _scale_columns(
    matrices: list[Any], multiplier: float, scale: Any
) -> list[Float[np.ndarray, "I _"]]:
    """Matrices of one product, with a factor for all and a scale for each output."""
    folded = []
    start = 0
    for matrix in matrices:
        end = start + matrix.shape[1]
        factor = np.float64(multiplier)
        if scale is not None:
            factor = factor * np.asarray(scale, np.float64)[None, start:end]
        folded.append(_scale_array(matrix, factor))
        start = end
    return folded


def _scale_array(array: Any, factor: float | np.ndarray) -> Float[np.ndarray, ...]:
    """The product, rounded to float32 once."""
    product = np.asarray(array, np.float64) * factor
    return np.ascontiguousarray(product, np.float32)


def _fold_norm(kind: Norm, norm: Mapping[str, Any] | None, size: int) -> dict[str, Any]:
    """The vectors of a norm; gains of 1 where it has none."""
    if norm is None or kind == "nonparametric_rmsnorm":
        return {"gain": np.ones(size, np.float32)}
    return {name: np.asarray(vector, np.float32) for name, vector in norm.items()}
