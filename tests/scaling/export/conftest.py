"""Models with parameters that no initialization gives, so that every gain, bias and
scale counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import ModelConfig
from scaling.model.architecture import Params
from scaling.model.family import build_family

BASE = ModelConfig(
    width=24, depth=2, n_heads=2, context=16, base_width=8, base_depth=1, ff_ratio=2.5
)

# At least one for each architecture and each multiplier that can be folded.
CASES: dict[str, dict[str, Any]] = {
    "qwen3": {"activation": "swiglu"},
    "qwen3, tied, muP": {
        "activation": "swiglu",
        "parametrization": "mup",
        "tied": True,
    },
    "qwen3, learned scales": {"activation": "geglu", "parametrization": "normalized"},
    "qwen3, weights of four bits": {"activation": "swiglu", "weight_bits": 4},
    "qwen3, grouped heads": {"activation": "swiglu", "n_kv_heads": 1},
    "qwen3, base of the frequencies": {"activation": "swiglu", "rope_base": 500.0},
    "llama": {"activation": "swiglu", "qk_norm": False},
    "llama, muP": {"activation": "swiglu", "qk_norm": False, "parametrization": "mup"},
    "llama, tied, weighted branches": {
        "activation": "reglu",
        "qk_norm": False,
        "tied": True,
        "parametrization": "completep",
    },
    "apertus": {},
    "apertus, no gains, own head size": {
        "norm": "nonparametric_rmsnorm",
        "parametrization": "mup",
        "n_heads": 5,
        "head_dim": 6,
    },
    "apertus, grouped heads, learned scales": {
        "n_heads": 4,
        "n_kv_heads": 2,
        "parametrization": "normalized",
    },
    "apertus, tied, learned scales": {"tied": True, "parametrization": "normalized"},
    "arcee, tied, scaled embedding": {
        "activation": "relu2",
        "qk_norm": False,
        "tied": True,
        "parametrization": "everett_mup_full",
    },
    "stablelm": {
        "norm": "layernorm",
        "activation": "glu",
        "qk_norm": False,
        "tied": True,
        "parametrization": "everett_mup_none",
    },
    "starcoder2": {
        "norm": "layernorm",
        "qk_norm": False,
        "head_dim": 8,
        "parametrization": "completep_half",
    },
}


def make_config(**changes: Any) -> ModelConfig:
    return dataclasses.replace(BASE, **changes)


def draw_params(config: ModelConfig, seed: int = 0) -> Params:
    rng = np.random.default_rng(seed)

    def add_noise(weight: jax.Array) -> jax.Array:
        noise = 0.1 * rng.standard_normal(weight.shape)
        return weight + jnp.asarray(noise, jnp.float32)

    return jax.tree.map(add_noise, build_family(config).init(0))


def draw_tokens(config: ModelConfig) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.integers(0, config.vocab, (2, config.context)).astype(np.int32)


def compute_logits(config: ModelConfig, params: Params) -> np.ndarray:
    """Logits of `draw_tokens`."""
    tokens = jnp.asarray(draw_tokens(config))
    params = jax.tree.map(jnp.asarray, params)
    return np.asarray(jax.jit(build_family(config).apply)(params, tokens))


@dataclasses.dataclass(frozen=True)
class Model:
    config: ModelConfig
    params: Params
    tokens: np.ndarray
    logits: np.ndarray


MakeTrained = Callable[..., Model]


@pytest.fixture(scope="session")
def make_trained() -> MakeTrained:
    """A model with changes, drawn once."""
    made: dict[str, Model] = {}

    def make(**changes: Any) -> Model:
        key = repr(sorted(changes.items()))
        if key not in made:
            config = make_config(**changes)
            params = draw_params(config)
            tokens = draw_tokens(config)
            made[key] = Model(config, params, tokens, compute_logits(config, params))
        return made[key]

    return make


@pytest.fixture(scope="session", params=list(CASES))
def case(request: pytest.FixtureRequest, make_trained: MakeTrained) -> Model:
    return make_trained(**CASES[request.param])
