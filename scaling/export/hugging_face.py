"""Models as folders of Hugging Face's `transformers`, and such folders as models.

Both ways go through a model of the parametrization `sp` (`fold.py`): its weights are
those of an architecture of `architectures.py` under other names, with the two sides of
each matrix exchanged.

Axes: V vocabulary, D width, I width of all heads, K head dimension, F feed-forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scaling.config import ArchitectureConfig, ConfigError, ModelConfig, require_decoder
from scaling.config.activations import ACTIVATIONS
from scaling.config.conversion import JsonObject
from scaling.config.strict_json import parse_json
from scaling.data.tokenizers import Tokenizer
from scaling.export.architectures import (
    ARCHITECTURES,
    HIDDEN_ACTS,
    NORM_EPSILON,
    ROPE_THETA,
    Architecture,
    choose_architecture,
)
from scaling.export.fold import fold_multipliers
from scaling.export.safetensors_folder import FORMAT
from scaling.export.tokenizer_files import (
    TOKENIZER_FILE,
    name_tokenizer,
    write_json,
    write_tokenizer,
)
from scaling.model.architecture import Params
from scaling.model.matrices import fix_weight_bits
from scaling.store.files import open_empty_folder
from scaling.store.parameters import write_parameters

MODEL_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"


class ImportedModel(NamedTuple):
    """A checkpoint of `transformers` as a model of this library.

    Attributes:
        config: The shape and the options. The parametrization is `sp`, with the shape
            itself as the base shape: other parametrizations by ratios of sizes have the
            same multipliers there. The layers are not scanned.
        params: The parameters, float32, with blocks that are not stacked.
        tokenizer: The value of `data.tokenizer`: "bytes", or the path of the folder's
            tokenizer.json. None if the folder has none.
    """

    config: ModelConfig
    params: Params
    tokenizer: str | None


@dataclass(frozen=True)
class TensorPlace:
    """A parameter here and there.

    Attributes:
        name: Its name in `transformers`.
        path: Its place in the dictionary of parameters.
        shape: Its shape here.
        is_matrix: Whether `transformers` has its two sides exchanged.
    """

    name: str
    path: tuple[str | int, ...]
    shape: tuple[int, ...]
    is_matrix: bool = False


def list_tensors(architecture: Architecture, config: ModelConfig) -> list[TensorPlace]:
    """All parameters of an architecture."""
    D = config.width
    tensors = [
        TensorPlace("model.embed_tokens.weight", ("embedding",), (config.vocab, D)),
        *_list_norm_tensors(architecture, "model.norm", ("norm",), D),
    ]
    if not config.tied:
        head_shape = (D, config.vocab)
        tensors.append(TensorPlace("lm_head.weight", ("head",), head_shape, True))
    for layer in range(config.depth):
        tensors += _list_block_tensors(architecture, config, layer)
    return tensors


def _list_norm_tensors(
    architecture: Architecture, name: str, path: tuple[str | int, ...], size: int
) -> list[TensorPlace]:
    tensors = [TensorPlace(f"{name}.weight", (*path, "gain"), (size,))]
    if architecture.norm == "layernorm":
        tensors.append(TensorPlace(f"{name}.bias", (*path, "bias"), (size,)))
    return tensors


def _list_block_tensors(
    architecture: Architecture, config: ModelConfig, layer: int
) -> list[TensorPlace]:
    D = config.width
    F = config.d_ff
    I = config.heads * config.key_dim  # noqa: E741
    shared = config.kv_heads * config.key_dim
    prefix = f"model.layers.{layer}"
    block = ("blocks", layer)
    attention = (*block, "branches", 0)
    feed_forward = (*block, "branches", 1)
    tensors = []

    def add_matrix(
        name: str, path: tuple[str | int, ...], index: int, shape: tuple[int, int]
    ) -> None:
        full_path = (*path, "weights", index)
        place = TensorPlace(f"{prefix}.{name}.weight", full_path, shape, True)
        tensors.append(place)

    for branch, name in enumerate(architecture.norms):
        path = (*block, "norms", branch)
        tensors += _list_norm_tensors(architecture, f"{prefix}.{name}", path, D)
    outputs = {"q_proj": I, "k_proj": shared, "v_proj": shared}
    for index, (name, size) in enumerate(outputs.items()):
        add_matrix(f"self_attn.{name}", (*attention, "qkv"), index, (D, size))
    add_matrix("self_attn.o_proj", (*attention, "out"), 0, (I, D))
    if architecture.has_qk_norm:
        for name in ("q_norm", "k_norm"):
            full_name = f"{prefix}.self_attn.{name}.weight"
            gain_path = (*attention, name, "gain")
            tensors.append(TensorPlace(full_name, gain_path, (config.key_dim,)))
    for index, name in enumerate(architecture.up):
        add_matrix(f"mlp.{name}", (*feed_forward, "up"), index, (D, F))
    add_matrix(f"mlp.{architecture.down}", (*feed_forward, "down"), 0, (F, D))
    return tensors


# --- export ---------------------------------------------------------------------------


def export_hugging_face(
    config: ArchitectureConfig,
    params: Params,
    tokenizer: Tokenizer | None,
    folder: str | Path,
) -> Architecture:
    """Write a model as a folder that `transformers` loads.

    The folder then holds `config.json`, `generation_config.json`, `model.safetensors`
    (float32) and, if there is one, the tokenizer. Multipliers of the parametrization
    are folded into the weights, which are rounded first if `model.weight_bits` is set.
    The logits are those of this library up to rounding.

    Args:
        config: The shape and the options. A model that computes in bfloat16 is written
            in float32 too, and its logits then differ by the rounding of bfloat16.
        params: The parameters, with blocks that are not stacked.
        tokenizer: None for a source that emits ids.
        folder: It is created. It must be empty.

    Returns:
        The architecture that the folder names.

    Raises:
        ConfigError: the model is no decoder, an option of it has no counterpart in
            `transformers`, or the folder holds something.
    """
    decoder = require_decoder(config, "the export to transformers")
    architecture = choose_architecture(decoder)
    decoder, params = fix_weight_bits(decoder, params)
    plain, folded = fold_multipliers(decoder, params)
    folder = open_empty_folder(folder)
    separator = None if tokenizer is None else tokenizer.separator
    tokens: JsonObject = {}
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        tokens[role] = separator
    tensors = {}
    for place in list_tensors(architecture, plain):
        tensor = _read_path(folded, place.path)
        tensors[place.name] = tensor.T if place.is_matrix else tensor
    write_parameters(folder / MODEL_FILE, tensors, FORMAT)
    write_json(folder / "generation_config.json", tokens)
    if tokenizer is not None:
        write_tokenizer(tokenizer, folder, config.context)
    write_json(
        folder / "config.json", {**_describe_model(architecture, plain), **tokens}
    )
    return architecture


def _describe_model(architecture: Architecture, config: ModelConfig) -> JsonObject:
    """What config.json says of the shape."""
    return {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.key_dim,
        "hidden_act": HIDDEN_ACTS[config.activation],
        "max_position_embeddings": config.context,
        architecture.epsilon: NORM_EPSILON,
        # Version 5 of transformers reads the first, version 4 the second.
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "rope_theta": config.rope_base,
        "tie_word_embeddings": config.tied,
        "dtype": "float32",
        **architecture.required,
    }


def _read_path(params: Params, path: tuple[str | int, ...]) -> Any:
    for key in path:
        params = params[key]
    return params


# --- import ---------------------------------------------------------------------------


def import_hugging_face(folder: str | Path) -> ImportedModel:
    """Read a folder of `transformers`, for example as a parent for fine-tuning.

    Args:
        folder: It holds config.json and model.safetensors, in one file or several.

    Raises:
        ConfigError: the folder is incomplete, or the architecture or one of its options
            has no counterpart in this library.
    """
    folder = Path(folder)
    settings = _read_json(folder / "config.json")
    architecture = _find_architecture(settings)
    settings = {**architecture.defaults, **settings}
    _check_settings(settings, architecture)
    config = _read_config(settings, architecture)
    tensors = _read_tensors(folder)
    params: Params = {}
    for place in list_tensors(architecture, config):
        if place.name not in tensors:
            raise ConfigError(
                f"{folder}: the weights have no {place.name}; the checkpoint is "
                "incomplete, or config.json is of another one"
            )
        _write_path(params, place.path, _convert_tensor(tensors.pop(place.name), place))
    _check_leftover(folder, config, tensors)
    tokenizer_path = folder / TOKENIZER_FILE
    tokenizer = None
    if tokenizer_path.is_file():
        tokenizer = name_tokenizer(tokenizer_path)
    return ImportedModel(config, params, tokenizer)


def _read_json(path: Path) -> JsonObject:
    try:
        value = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; name a folder that `save_pretrained` wrote"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; download the file again") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: it holds no table; download the file again")
    return value


def _find_architecture(settings: JsonObject) -> Architecture:
    model_type = settings.get("model_type")
    for row in ARCHITECTURES:
        if row.model_type == model_type:
            return row
    known = ", ".join(row.model_type for row in ARCHITECTURES)
    raise ConfigError(f"model_type = {model_type!r}: the importable ones are {known}")


def _check_settings(settings: JsonObject, architecture: Architecture) -> None:
    """Refuse what this library does not compute."""
    found = {architecture.epsilon: settings.get(architecture.epsilon)}
    wanted: JsonObject = {architecture.epsilon: NORM_EPSILON}
    # Version 5 of transformers writes the first table, version 4 the second, with the
    # base of the frequencies beside it.
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(rope, dict) or any(isinstance(x, dict) for x in rope.values()):
        raise ConfigError(
            f"rope_parameters = {rope!r}: all layers of this library have the same "
            "frequencies; only such checkpoints can be imported"
        )
    found["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    wanted["rope_type"] = "default"
    share = rope.get("partial_rotary_factor") or settings.get("partial_rotary_factor")
    found["partial_rotary_factor"] = share or 1.0
    wanted["partial_rotary_factor"] = 1.0
    layer_types = settings.get("layer_types") or ["full_attention"]
    found["layer_types"] = sorted(set(layer_types))
    wanted["layer_types"] = ["full_attention"]
    for name, value in architecture.required.items():
        if name not in wanted:
            found[name] = settings.get(name, value)
            wanted[name] = value
    for name, value in wanted.items():
        if found[name] != value:
            raise ConfigError(
                f"{name} = {found[name]!r}: models of this library have {value!r}, and "
                "only such checkpoints can be imported"
            )


def _read_config(settings: JsonObject, architecture: Architecture) -> ModelConfig:
    def read_size(name: str) -> int:
        value = settings.get(name)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} = {value!r}: config.json must give the number")
        return value

    width = read_size("hidden_size")
    depth = read_size("num_hidden_layers")
    heads = read_size("num_attention_heads")
    kv_heads = heads
    if settings.get("num_key_value_heads") is not None:
        kv_heads = read_size("num_key_value_heads")
    head_dim = settings.get("head_dim")
    if head_dim is None and width % heads == 0:
        head_dim = width // heads
    return ModelConfig(
        width=width,
        depth=depth,
        n_heads=heads,
        n_kv_heads=None if kv_heads == heads else kv_heads,
        head_dim=None if head_dim == width / heads else head_dim,
        ff_ratio=read_size("intermediate_size") / width,
        vocab=read_size("vocab_size"),
        context=read_size("max_position_embeddings"),
        norm=architecture.norm,
        position="rope",
        rope_base=_read_rope_base(settings),
        activation=_read_activation(settings.get("hidden_act"), architecture),
        tied=bool(settings.get("tie_word_embeddings", False)),
        qk_norm=architecture.has_qk_norm,
        parametrization="sp",
        base_width=width,
        base_depth=depth,
        scan_layers="never",
    )


def _read_rope_base(settings: JsonObject) -> float:
    """The base of the frequencies. Version 5 of transformers writes it into a table."""
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    return float(rope.get("rope_theta") or settings.get("rope_theta") or ROPE_THETA)


def _read_activation(hidden_act: object, architecture: Architecture) -> str:
    # Two names of one function.
    aliases: dict[object, str] = {"swish": "silu", "gelu_new": "gelu_pytorch_tanh"}
    wanted = aliases.get(hidden_act, hidden_act)
    known = []
    for name, their_name in HIDDEN_ACTS.items():
        if ACTIVATIONS[name].is_gated == architecture.is_gated:
            known.append(their_name)
            if their_name == wanted:
                return name
    raise ConfigError(
        f"hidden_act = {hidden_act!r}: the importable ones are {', '.join(known)}"
    )


def _read_tensors(folder: Path) -> dict[str, jax.Array]:
    """All tensors by name."""
    # The NumPy reader of the package knows no bfloat16.
    from safetensors.flax import load_file

    files = [MODEL_FILE]
    if (folder / _INDEX_FILE).is_file():
        files = sorted(set(_read_json(folder / _INDEX_FILE)["weight_map"].values()))
    tensors: dict[str, jax.Array] = {}
    for name in files:
        path = folder / Path(name).name
        if not path.is_file():
            raise ConfigError(
                f"{path}: no such file; weights are read from safetensors alone: save "
                "the model with `save_pretrained` of transformers"
            )
        tensors |= load_file(path)
    return tensors


def _convert_tensor(tensor: jax.Array, place: TensorPlace) -> jax.Array:
    array = tensor.T if place.is_matrix else tensor
    if array.shape != place.shape:
        raise ConfigError(
            f"{place.name}: its shape is {tuple(tensor.shape)}, but config.json says "
            f"{place.shape[::-1] if place.is_matrix else place.shape}; the files are "
            "of two checkpoints"
        )
    return jnp.asarray(array, jnp.float32)


def _write_path(params: Params, path: tuple[str | int, ...], value: Any) -> None:
    for key in path[:-1]:
        params = params.setdefault(key, {})
    params[path[-1]] = value


def _check_leftover(
    folder: Path, config: ModelConfig, tensors: Mapping[str, object]
) -> None:
    """Refuse weights that the model would not read."""
    unread = []
    for name in tensors:
        # Old checkpoints hold the frequencies, and some a copy of a tied head.
        is_copy = config.tied and name == "lm_head.weight"
        if not is_copy and not name.endswith("rotary_emb.inv_freq"):
            unread.append(name)
    if unread:
        raise ConfigError(
            f"{folder}: this library has no place for {len(unread)} of the weights, "
            f"e.g. {unread[0]}; the checkpoint is of another architecture"
        )
