"""Attention heads: which matter least, and the model without them.

Axes: D width, K head dimension, H heads, L layers, O outputs, M windows of T1 tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from scaling.compression.calibration import draw_calibration_windows
from scaling.config import ConfigError, ModelConfig, require_decoder
from scaling.inference.model import TrainedModel
from scaling.inference.scoring import Row, sum_losses
from scaling.model.architecture import Params
from scaling.model.family import build_family
from scaling.model.masks import (
    Heads,
    keep_best_heads,
    list_masked_rows,
    list_units,
    measure_output_norms,
)
from scaling.model.matrices import read_matrices, replace_matrices
from scaling.model.parametrization import bind_parametrization


def choose_heads(
    model: TrainedModel,
    removed: int,
    importance: Literal["norm", "loss"],
    calibration: Int[np.ndarray, "M T1"] | None,
    calibration_tokens: int,
) -> Heads:
    """The heads that stay when each layer loses the least important ones.

    Raises:
        ConfigError: no head would stay.
    """
    decoder = require_decoder(model.config, "pruning heads")
    heads = decoder.heads
    if not 0 < removed < heads:
        raise ConfigError(
            f"pruning.heads = {removed}: must lie in 1 to {heads - 1}; the model has "
            f"{heads} heads"
        )
    if importance == "norm":
        scores = measure_output_norms(decoder, model.params)
    else:
        if calibration is None:
            calibration = draw_calibration_windows(model, calibration_tokens)
        scores = measure_loss_without(model, calibration)
    return keep_best_heads(scores, removed)


def measure_loss_without(
    model: TrainedModel, windows: Int[np.ndarray, "M T1"]
) -> Float[np.ndarray, "L H"]:
    """The mean loss on some windows without each head alone, in nats per token."""
    config = require_decoder(model.config, "pruning heads")
    rows = [Row(0, window.astype(np.int32)) for window in windows]
    tokens = len(windows) * (windows.shape[1] - 1)
    losses = np.zeros((config.depth, config.heads))
    everything = tuple(range(config.heads))
    for layer in range(config.depth):
        for head in range(config.heads):
            stay = [everything] * config.depth
            stay[layer] = tuple(other for other in everything if other != head)
            params = _silence_heads(config, model.params, tuple(stay))
            losses[layer, head] = sum_losses(config, params, rows, 1)[0] / tokens
    return losses


def _silence_heads(config: ModelConfig, params: Params, heads: Heads) -> Params:
    masked = list_masked_rows(config, heads)
    silenced = {}
    for name, matrix in read_matrices(params, list(masked)).items():
        silenced[name] = jnp.asarray(matrix).at[masked[name]].set(0.0)
    return replace_matrices(params, silenced)


def remove_heads(model: TrainedModel, heads: Heads) -> TrainedModel:
    """The model with the given heads alone, as smaller matrices.

    The number of heads enters some forward multipliers and attention scales. The output
    weights and the gains of the queries make up for what they change by, so the
    function is that of the model whose other heads write nothing.

    Args:
        model: A trained model without `model.weight_bits`.
        heads: The heads that stay, as many in every layer.

    Raises:
        ConfigError: the layers do not keep equally many heads, or other heads where
            they share values; heads share their keys and values; or the attention scale
            changes and queries have a norm without gains.
    """
    config = require_decoder(model.config, "removing heads")
    if config.kv_heads != config.heads:
        raise ConfigError(
            f"model.n_kv_heads = {config.kv_heads}: {config.heads} heads share their "
            "keys and values, so that no smaller matrix holds the rest; keep the zeros "
            "of PrunedModel.model, and write it by write_pruned"
        )
    counts = {len(stay) for stay in heads}
    if len(counts) != 1:
        raise ConfigError(
            f"heads = {heads}: every layer must keep equally many; mask them instead"
        )
    if config.value_residual and len(set(heads)) > 1:
        raise ConfigError(
            f"model.value_residual = True: the heads {heads} that stay differ between "
            "layers, and later ones read the values of the first by head; keep the zeros "
            "of PrunedModel.model, and write it by write_pruned"
        )
    smaller = dataclasses.replace(config, n_heads=counts.pop(), head_dim=config.key_dim)
    old = bind_parametrization(config)
    new = bind_parametrization(smaller)
    old_scale = old.scale_attention(config.key_dim, config.base_key_dim)
    new_scale = new.scale_attention(smaller.key_dim, smaller.base_key_dim)
    query_factor = old_scale / new_scale
    output_factor = _read_output_multiplier(config) / _read_output_multiplier(smaller)
    blocks = {}
    for layer, stay in enumerate(heads):
        units = list_units(config, stay)
        block = model.params["blocks"][layer]
        attention = _shrink_attention(block["branches"][0], units, output_factor)
        if config.attention_sink:
            attention["sink"] = attention["sink"][np.asarray(stay)]
        if query_factor != 1.0:
            _scale_queries(config, attention, query_factor)
        branches = {**block["branches"], 0: attention}
        blocks[layer] = {**block, "branches": branches}
    params = {**model.params, "blocks": blocks}
    return dataclasses.replace(model, config=smaller, params=params)


def _read_output_multiplier(config: ModelConfig) -> float:
    """The forward multiplier of the matrices that write the outputs of heads."""
    rules = build_family(dataclasses.replace(config, scan_layers="never")).rules
    rule = rules["blocks"][0]["branches"][0]["out"]["weights"][0]
    return rule.multiplier


def _shrink_attention(
    attention: Params, units: Int[np.ndarray, " units"], output_factor: float
) -> dict[str, Params]:
    """The parameters of an attention branch for some of its units."""
    qkv = dict(attention["qkv"])
    matrices = attention["qkv"]["weights"]
    qkv["weights"] = {place: matrix[:, units] for place, matrix in matrices.items()}
    if "scale" in qkv:
        scales = qkv["scale"].reshape(len(matrices), -1)
        qkv["scale"] = scales[:, units].ravel()
    rows = output_factor * attention["out"]["weights"][0][units]
    out = {**attention["out"], "weights": {0: rows}}
    return {**attention, "qkv": qkv, "out": out}


def _scale_queries(config: ModelConfig, attention: Params, factor: float) -> None:
    """Multiply the queries of an attention branch in place of its scores."""
    if "gain" in attention.get("q_norm", {}):
        gain = factor * attention["q_norm"]["gain"]
        attention["q_norm"] = {**attention["q_norm"], "gain": gain}
        return
    if config.qk_norm_kind != "none":
        raise ConfigError(
            f"model.norm = {config.norm!r}: the attention scale depends on the number "
            "of heads, and queries have no gains to make up for it; mask the heads "
            "instead"
        )
    weights = attention["qkv"]["weights"]
    attention["qkv"]["weights"] = {**weights, 0: factor * weights[0]}
