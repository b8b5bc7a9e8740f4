"""N of models that people have: parameters under every convention, and FLOPs.

    analysis.count_parameters("gpt2", width=768, depth=12, heads=12, vocab=50257)
    analysis.count_parameters("my_model/config.json")

A family says what its models have beside their matrices: biases, norms, learned
positions, whether the head is the embedding. To add one, add a row to `FAMILIES`; a
family of another layout of `config.json` also needs its names in `_NAMES`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from analysis.suggestions import did_you_mean
from analysis.table.readers import read_json_object


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only Transformer, as far as its parameters go.

    Attributes:
        width: of the activations between the layers.
        depth: number of layers.
        heads: of attention.
        vocab: tokens of the vocabulary.
        d_ff: hidden units of a feed-forward block, or of one expert. Default: 4 x width
            where the block has two matrices; one of three has no default.
        kv_heads: heads of keys and values. Default: heads.
        head_dim: of one head. Default: width / heads.
        positions: learned position embeddings; 0 where there are none.
        gated: whether a feed-forward block has three matrices.
        tied: whether the output head is the embedding.
        attention_bias: whether queries, keys and values have biases ("qkv"), the output
            as well ("all"), or none do.
        ff_bias: whether the matrices of a feed-forward block have biases.
        norms: number of norms of a layer.
        norm_parameters: vectors of a norm: 1 a scale, 2 a bias as well, 0 nothing.
        qk_norm: "head" where queries and keys have a norm that all heads share, "all"
            where it has a scale for each unit of all heads.
        experts: of a layer; 0 for a dense block.
        experts_per_token: of the routed ones.
        shared_d_ff: hidden units of the expert that computes all tokens; 0 for none.
        shared_gate: whether that expert has a gate.
    """

    width: int
    depth: int
    heads: int
    vocab: int
    d_ff: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    positions: int = 0
    gated: bool = False
    tied: bool = False
    attention_bias: Literal["none", "qkv", "all"] = "none"
    ff_bias: bool = False
    norms: int = 2
    norm_parameters: int = 1
    qk_norm: Literal["none", "head", "all"] = "none"
    experts: int = 0
    experts_per_token: int = 0
    shared_d_ff: int = 0
    shared_gate: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "vocab"):
            _check_count(name, getattr(self, name), least=1)
        for name in ("d_ff", "kv_heads", "head_dim"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name), least=1)
        for name in ("positions", "experts", "experts_per_token", "shared_d_ff"):
            _check_count(name, getattr(self, name), least=0)
        if self.d_ff is None and self.gated:
            raise ValueError(
                "d_ff is missing: a feed-forward block of three matrices has no usual "
                "size; give its hidden units"
            )
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(
                f"width {self.width} is no multiple of heads {self.heads}; give head_dim"
            )
        if bool(self.experts) != bool(self.experts_per_token):
            raise ValueError(
                f"experts is {self.experts} and experts_per_token is "
                f"{self.experts_per_token}; give both, or neither"
            )
        if self.experts_per_token > self.experts:
            raise ValueError(
                f"experts_per_token is {self.experts_per_token}, more than the "
                f"{self.experts} experts of a layer"
            )

    @property
    def attention_units(self) -> int:
        """Units of the queries of all heads."""
        return self.heads * (self.head_dim or self.width // self.heads)

    @property
    def kv_units(self) -> int:
        """Units of the keys of all heads."""
        return self.attention_units // self.heads * (self.kv_heads or self.heads)


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a model under every convention, by the names of the run table.

    Attributes:
        shape: what was counted.
        n_total: every parameter, those of all experts.
        n_non_embedding: without embeddings, positions and output head (Kaplan et al.
            2020, arXiv:2001.08361).
        n_matmul: weights that multiply the activations of a token: the matrices of the
            layers and the output head, whether it is tied to the embedding or not. Of
            experts, those that a token is computed by, and the router.
        n_active: parameters that one token uses: all but the experts that it is not
            computed by.
        kaplan: 12 x depth x width^2, which many papers call N.
    """

    shape: ModelShape
    n_total: int
    n_non_embedding: int
    n_matmul: int
    n_active: int
    kaplan: int

    def flops_per_token(
        self, context: int, *, causal: bool = True, training: bool = True
    ) -> float:
        """FLOPs of one token of a full context: of the matrices and of attention.

        2 for each weight of `n_matmul`, and 4 for each unit of attention and position
        that is attended to; training takes three times as many. 6 N D leaves attention
        out.

        Args:
            context: tokens of a sequence.
            causal: count the (context + 1) / 2 positions that a token attends to on
                average, not all, as Chowdhery et al. 2022 (arXiv:2204.02311) do.
            training: the backward pass too.

        Raises:
            ValueError: a context below 1.
        """
        _check_count("context", context, least=1)
        positions = (context + 1) / 2 if causal else context
        attention = 4 * self.shape.depth * self.shape.attention_units * positions
        forward = 2 * self.n_matmul + attention
        return float(3 * forward if training else forward)

    def __str__(self) -> str:
        lines = [f"{'n_total':<16} {self.n_total:>17,}  every parameter"]
        lines.append(f"{'n_active':<16} {self.n_active:>17,}  that one token uses")
        lines.append(
            f"{'n_matmul':<16} {self.n_matmul:>17,}  that multiply its activations"
        )
        lines.append(
            f"{'n_non_embedding':<16} {self.n_non_embedding:>17,}  without embeddings "
            "and head"
        )
        lines.append(f"{'kaplan':<16} {self.kaplan:>17,}  12 x depth x width^2")
        return "\n".join(lines)


_LLAMA: dict[str, Any] = {"gated": True}
_GPT: dict[str, Any] = {
    "attention_bias": "all",
    "ff_bias": True,
    "norm_parameters": 2,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {**_GPT, "tied": True, "positions": 1024},
    "gpt_neox": _GPT,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": {**_LLAMA, "attention_bias": "qkv"},
    "qwen3": {**_LLAMA, "qk_norm": "head"},
    "gemma": {**_LLAMA, "tied": True},
    "gemma2": {**_LLAMA, "tied": True, "norms": 4},
    "gemma3_text": {**_LLAMA, "tied": True, "norms": 4, "qk_norm": "head"},
    "olmo": {**_LLAMA, "norm_parameters": 0},
    "olmo2": {**_LLAMA, "qk_norm": "all"},
    "mixtral": _LLAMA,
    "qwen2_moe": {**_LLAMA, "attention_bias": "qkv", "shared_gate": True},
    "qwen3_moe": {**_LLAMA, "qk_norm": "head"},
    "olmoe": {**_LLAMA, "qk_norm": "all"},
}
"""What the models of a family have, by the `model_type` of config.json: the fields of
`ModelShape` that are not its defaults."""

_NAMES = {
    "width": ("hidden_size", "n_embd"),
    "depth": ("num_hidden_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_head"),
    "vocab": ("vocab_size",),
    "d_ff": ("moe_intermediate_size", "intermediate_size", "n_inner"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "tied": ("tie_word_embeddings",),
    "experts": ("num_local_experts", "num_experts"),
    "experts_per_token": ("num_experts_per_tok",),
    "shared_d_ff": ("shared_expert_intermediate_size",),
}
"""The names of the fields in config.json; of several, the first that is there."""

# What transformers assumes where config.json says nothing of the head.
_TIED_BY_DEFAULT = ("gpt2", "gemma", "gemma2", "gemma3_text")


def count_parameters(source: str | Path | Mapping[str, Any], **sizes: Any) -> ModelSize:
    """Count the parameters of a model, under every convention.

    Args:
        source: a family, "llama" or "llama-like", with its sizes; or the `config.json`
            of a model of Hugging Face, its path, its folder or its content.
        sizes: fields of `ModelShape`; beside a `config.json`, those that differ.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown family or field, a size that is missing or no positive
            whole number, or layers that are not all alike.
    """
    if isinstance(source, Mapping):
        given = _read_config(source, "the configuration")
    elif _names_family(str(source)):
        given = dict(_find_family(str(source).removesuffix("-like")))
    else:
        path = Path(source)
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(
                f"no config.json at {path}; give its path, or a family: "
                f"{', '.join(FAMILIES)}"
            )
        given = _read_config(read_json_object(path, "transformers"), str(path))
    known = [field.name for field in dataclasses.fields(ModelShape)]
    for name in sizes:
        if name not in known:
            raise ValueError(f"size {name!r}: {did_you_mean(name, known)}")
    given |= sizes
    missing = [name for name in known[:4] if given.get(name) is None]
    if missing:
        raise ValueError(f"sizes are missing: give {', '.join(missing)}")
    return count_shape(ModelShape(**given))


def _names_family(text: str) -> bool:
    """Whether a word is meant as a family and not as a path."""
    return text.removesuffix("-like") in FAMILIES or not (
        text.endswith(".json") or "/" in text or Path(text).exists()
    )


def _find_family(name: str) -> dict[str, Any]:
    if name not in FAMILIES:
        raise ValueError(f"model family {name!r}: {did_you_mean(name, list(FAMILIES))}")
    return FAMILIES[name]


def _read_config(config: Mapping[str, Any], label: str) -> dict[str, Any]:
    """The fields of `ModelShape` that a config.json gives."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ValueError(
            f"{label}: it has no model_type; give a family and the sizes instead"
        )
    given = dict(_find_family(model_type))
    given["tied"] = model_type in _TIED_BY_DEFAULT
    for name, candidates in _NAMES.items():
        for candidate in candidates:
            value = config.get(candidate)
            if value is not None:
                given[name] = value
                break
    if given.get("positions"):
        given["positions"] = config.get("n_positions", given["positions"])
    if config.get("attention_bias") and model_type == "llama":
        given["attention_bias"] = "all"
    if config.get("mlp_bias"):
        given["ff_bias"] = True
    _check_layers_alike(config, label)
    return given


def _check_layers_alike(config: Mapping[str, Any], label: str) -> None:
    """Raise ValueError where some layers have experts and others none."""
    step = config.get("decoder_sparse_step", 1)
    dense = config.get("mlp_only_layers") or []
    if step != 1 or dense:
        raise ValueError(
            f"{label}: decoder_sparse_step is {json.dumps(step)} and mlp_only_layers is "
            f"{json.dumps(dense)}; models whose layers differ are not counted"
        )


def count_shape(shape: ModelShape) -> ModelSize:
    """The parameters of a shape."""
    width, depth = shape.width, shape.depth
    queries, keys = shape.attention_units, shape.kv_units
    attention = width * (2 * queries + 2 * keys)
    matrices = 3 if shape.gated else 2
    block = matrices * width * (shape.d_ff or 4 * width)
    shared = matrices * width * shape.shared_d_ff
    router = width * shape.experts + (width if shape.shared_gate else 0)
    used = block * max(1, shape.experts_per_token) + shared + router
    stored = block * max(1, shape.experts) + shared + router
    vectors = _count_vectors(shape)
    final_norm = shape.norm_parameters * width
    embedding = shape.vocab * width
    head = 0 if shape.tied else embedding
    positions = shape.positions * width
    n_non_embedding = depth * (attention + stored + vectors) + final_norm
    n_total = n_non_embedding + embedding + head + positions
    return ModelSize(
        shape=shape,
        n_total=n_total,
        n_non_embedding=n_non_embedding,
        n_matmul=depth * (attention + used) + embedding,
        n_active=n_total - depth * (stored - used),
        kaplan=12 * depth * width**2,
    )


def _count_vectors(shape: ModelShape) -> int:
    """Biases and norms of one layer."""
    queries, keys = shape.attention_units, shape.kv_units
    vectors = shape.norms * shape.norm_parameters * shape.width
    if shape.attention_bias != "none":
        vectors += queries + 2 * keys
    if shape.attention_bias == "all":
        vectors += shape.width
    if shape.ff_bias:
        hidden = shape.d_ff or 4 * shape.width
        vectors += shape.width + hidden * (2 if shape.gated else 1)
    if shape.qk_norm == "head":
        vectors += 2 * (queries // shape.heads)
    if shape.qk_norm == "all":
        vectors += queries + keys
    return vectors


def _check_count(name: str, value: object, least: int) -> None:
    """Raise ValueError unless a size is a whole number that is large enough."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; give a whole number of {least} or more")
