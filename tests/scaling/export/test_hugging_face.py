"""An exported folder holds the same function, as its publishers define it, and an
imported one gives it back.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.flax import save_file as save_jax
from safetensors.numpy import load_file, save_file

from scaling.config import ConfigError
from scaling.data.tokenizers import ByteTokenizer
from scaling.export import export_hugging_face, import_hugging_face
from scaling.model.family import build_family

MakeTrained = Callable[..., Any]
Array = np.ndarray


# --- the architectures as `transformers` defines them, from the files alone ------------


def apply_act(name: str, x: Array) -> Array:
    if name == "silu":
        return x / (1 + np.exp(-x))
    if name == "sigmoid":
        return 1 / (1 + np.exp(-x))
    if name == "relu":
        return np.maximum(x, 0)
    if name == "relu2":
        return np.maximum(x, 0) ** 2
    assert name == "gelu_pytorch_tanh"
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def rotate_half(x: Array) -> Array:
    half = x.shape[-1] // 2
    return np.concatenate([-x[..., half:], x[..., :half]], axis=-1)


class Reference:
    """Llama, Qwen3, Apertus, Arcee, StableLM and Starcoder2 in float64."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
        assert all(tensor.dtype == np.float32 for tensor in tensors.values())
        self.tensors = {k: v.astype(np.float64) for k, v in tensors.items()}

    def linear(self, name: str, x: Array) -> Array:
        return x @ self.tensors[f"{name}.weight"].T

    def normalize(self, name: str, x: Array) -> Array:
        bias = self.tensors.get(f"{name}.bias")
        names = ("rms_norm_eps", "layer_norm_eps", "norm_epsilon")
        epsilon = next(self.config[name] for name in names if name in self.config)
        if bias is not None:
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
        x = x * self.tensors[f"{name}.weight"]
        return x if bias is None else x + bias

    def attend(self, name: str, x: Array) -> Array:
        batch, length, _ = x.shape
        heads = self.config["num_attention_heads"]
        size = self.config["head_dim"]
        q, k, v = (
            self.linear(f"{name}.{p}_proj", x).reshape(batch, length, -1, size)
            for p in "qkv"
        )
        if f"{name}.q_norm.weight" in self.tensors:
            q = self.normalize(f"{name}.q_norm", q)
            k = self.normalize(f"{name}.k_norm", k)
        assert k.shape[2] == self.config["num_key_value_heads"]
        k, v = (np.repeat(y, heads // k.shape[2], axis=2) for y in (k, v))
        q, k, v = (np.swapaxes(y, 1, 2) for y in (q, k, v))
        theta = self.config["rope_parameters"]["rope_theta"]
        inverse_frequency = 1.0 / theta ** (np.arange(0, size, 2) / size)
        frequencies = np.outer(np.arange(length), inverse_frequency)
        angles = np.concatenate([frequencies, frequencies], axis=-1)
        q = q * np.cos(angles) + rotate_half(q) * np.sin(angles)
        k = k * np.cos(angles) + rotate_half(k) * np.sin(angles)
        scores = q @ np.swapaxes(k, 2, 3) / np.sqrt(size)
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights = weights / weights.sum(-1, keepdims=True)
        y = np.swapaxes(weights @ v, 1, 2).reshape(batch, length, heads * size)
        return self.linear(f"{name}.o_proj", y)

    def feed_forward(self, name: str, x: Array) -> Array:
        act = self.config["hidden_act"]
        if f"{name}.gate_proj.weight" in self.tensors:
            gate = apply_act(act, self.linear(f"{name}.gate_proj", x))
            return self.linear(
                f"{name}.down_proj", gate * self.linear(f"{name}.up_proj", x)
            )
        if f"{name}.c_fc.weight" in self.tensors:
            return self.linear(
                f"{name}.c_proj", apply_act(act, self.linear(f"{name}.c_fc", x))
            )
        hidden = apply_act(act, self.linear(f"{name}.up_proj", x))
        return self.linear(f"{name}.down_proj", hidden)

    def __call__(self, tokens: Array) -> Array:
        norms = ("input_layernorm", "post_attention_layernorm")
        if self.config["model_type"] == "apertus":
            norms = ("attention_layernorm", "feedforward_layernorm")
        x = self.tensors["model.embed_tokens.weight"][tokens]
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            x = x + self.attend(
                f"{name}.self_attn", self.normalize(f"{name}.{norms[0]}", x)
            )
            x = x + self.feed_forward(
                f"{name}.mlp", self.normalize(f"{name}.{norms[1]}", x)
            )
        x = self.normalize("model.norm", x)
        if self.config["tie_word_embeddings"]:
            return self.linear("model.embed_tokens", x)
        return self.linear("lm_head", x)


@pytest.fixture
def checkpoint(make_trained: MakeTrained, tmp_path: Path) -> Path:
    model = make_trained(activation="swiglu")
    folder = tmp_path / "checkpoint"
    export_hugging_face(model.config, model.params, None, folder)
    return folder


def test_the_folder_holds_the_same_function(case: Any, tmp_path: Path) -> None:
    export_hugging_face(case.config, case.params, ByteTokenizer(), tmp_path / "out")
    logits = Reference(tmp_path / "out")(case.tokens)
    np.testing.assert_allclose(logits, case.logits, rtol=0, atol=1e-4)


def test_an_exported_model_comes_back(case: Any, tmp_path: Path) -> None:
    export_hugging_face(case.config, case.params, ByteTokenizer(), tmp_path / "out")
    config, params, tokenizer = import_hugging_face(tmp_path / "out")
    assert tokenizer == "bytes"
    assert config.activation == case.config.activation
    for name in (
        "width",
        "depth",
        "heads",
        "kv_heads",
        "rope_base",
        "key_dim",
        "d_ff",
        "vocab",
        "context",
    ):
        assert getattr(config, name) == getattr(case.config, name)
    shapes = jax.tree.map(jnp.shape, build_family(config).init(0))
    assert jax.tree.map(jnp.shape, params) == shapes
    logits = build_family(config).apply(params, jnp.asarray(case.tokens))
    np.testing.assert_allclose(logits, case.logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("parametrization", ["mup", "completep", "ntk_full"])
def test_another_parametrization_is_the_same_function_at_the_imported_shape(
    checkpoint: Path, make_trained: MakeTrained, parametrization: str
) -> None:
    model = make_trained(activation="swiglu")
    config, params, _ = import_hugging_face(checkpoint)
    config = dataclasses.replace(config, parametrization=parametrization)
    logits = build_family(config).apply(params, jnp.asarray(model.tokens))
    np.testing.assert_allclose(logits, model.logits, rtol=0, atol=2e-5)


# --- what cannot be exported ----------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "none"}, "model.norm = 'none'"),
        ({"position": "learned"}, "model.position = 'learned'"),
        ({"position": "sinusoidal"}, "model.position = 'sinusoidal'"),
        ({"residual": False}, "model.residual = False"),
        ({"norm": "layernorm"}, "model.qk_norm = True"),
        ({"parametrization": "unit"}, "model.parametrization = 'unit'"),
        ({"n_heads": 5, "head_dim": 4, "qk_norm": False}, "model.width = 24"),
        (
            {
                "norm": "layernorm",
                "qk_norm": False,
                "activation": "swiglu",
                "head_dim": 8,
            },
            "model.head_dim = 8",
        ),
    ],
)
def test_an_option_without_counterpart_is_named(
    make_trained: MakeTrained, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    model = make_trained(**changes)
    with pytest.raises(ConfigError, match=f"{message}.*'safetensors'"):
        export_hugging_face(model.config, model.params, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_into_a_folder_that_holds_something(
    make_trained: MakeTrained, tmp_path: Path
) -> None:
    model = make_trained()
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="name a new one"):
        export_hugging_face(model.config, model.params, None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# --- what cannot be imported ----------------------------------------------------------


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "n_kv_heads = 3: must divide"),
        ({"num_key_value_heads": 1}, "k_proj.weight: its shape"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps = 1e-05"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}},
            "rope_type = 'linear'",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            "rope_parameters = ",
        ),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'.*gelu_pytorch_tanh"),
        ({"model_type": "gpt2"}, "model_type = 'gpt2'.*qwen3, llama"),
        ({"num_hidden_layers": 3}, "model.layers.2"),
        ({"num_hidden_layers": 1}, "no place for 11 of the weights"),
        ({"intermediate_size": 61}, "mlp.gate_proj.weight: its shape"),
        ({"hidden_size": None}, "hidden_size = None"),
    ],
)
def test_a_checkpoint_that_computes_something_else_is_refused(
    checkpoint: Path, changes: dict[str, Any], message: str
) -> None:
    change_config(checkpoint, **changes)
    with pytest.raises(ConfigError, match=message):
        import_hugging_face(checkpoint)


def test_settings_that_are_left_out_have_the_values_of_transformers(
    make_trained: MakeTrained, tmp_path: Path
) -> None:
    """Apertus rescales its frequencies unless its file says otherwise."""
    model = make_trained()
    export_hugging_face(model.config, model.params, None, tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    settings = json.loads(path.read_text())
    del settings["rope_parameters"], settings["rope_theta"]
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="rope_type = 'llama3'"):
        import_hugging_face(tmp_path / "out")


def test_weights_in_several_files_and_in_bfloat16_are_read(checkpoint: Path) -> None:
    whole = import_hugging_face(checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    weight_map = {}
    for i, name in enumerate(sorted(tensors)):
        file_name = f"model-{i % 2}.safetensors"
        weight_map[name] = file_name
    for file_name in ("model-0.safetensors", "model-1.safetensors"):
        part = {}
        for name, tensor in tensors.items():
            if weight_map[name] == file_name:
                part[name] = jnp.asarray(tensor, jnp.bfloat16)
        save_jax(part, checkpoint / file_name)
    index = {"metadata": {}, "weight_map": weight_map}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    parts = import_hugging_face(checkpoint)
    rounded = jax.tree.map(
        lambda w: w.astype(jnp.bfloat16).astype(jnp.float32), whole.params
    )
    for a, b in zip(
        jax.tree.leaves(parts.params), jax.tree.leaves(rounded), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_buffers_of_old_checkpoints_are_ignored(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors[name] = np.ones(6, np.float32)
    save_file(tensors, checkpoint / "model.safetensors")
    assert import_hugging_face(checkpoint).tokenizer is None


def test_a_missing_file_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        import_hugging_face(tmp_path)
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model\.safetensors: no such file"):
        import_hugging_face(checkpoint)
