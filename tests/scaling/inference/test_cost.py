"""What is counted of inference is what training counts, and what the compiler sees."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from scaling.config import ConfigError, ModelConfig
from scaling.inference.cost import (
    count_cache_bytes,
    count_cost,
    count_forward_flops,
    measure_speed,
)
from scaling.inference.model import TrainedModel
from scaling.model.family import build_family
from scaling.model.flops import forward_flops_per_token

MakeTrained = Callable[..., TrainedModel]
CONFIG = ModelConfig(width=64, depth=2, n_heads=4, vocab=256, context=64)


def test_a_full_context_costs_what_training_counts_for_it() -> None:
    T = CONFIG.context
    found = count_forward_flops(CONFIG, 0, T, logits=T)
    assert found == pytest.approx(T * forward_flops_per_token(CONFIG))


def test_reading_and_writing_add_up_to_one_pass() -> None:
    """But for the logits, of which a prompt needs the last."""
    cost = count_cost(CONFIG, prompt_tokens=20, new_tokens=12, batch=3)
    whole = 3 * count_forward_flops(CONFIG, 0, 31, logits=12)
    assert cost.prefill_flops + cost.decode_flops == pytest.approx(whole)
    assert cost.flops_per_new_token == pytest.approx(whole / 36)


def test_a_written_token_costs_what_the_compiler_counts() -> None:
    """Within the operations that are no products of matrices."""
    family = build_family(CONFIG)
    params = family.init(0)
    length = CONFIG.context
    cache = family.make_cache(1, length)

    def write_one(params: dict, token: jax.Array, start: jax.Array) -> jax.Array:
        x, _ = family.extend(params, token, start, cache)
        return family.read_out(params, x)

    token = jnp.zeros((1, 1), jnp.int32)
    last = jnp.full(1, length - 1)
    program = jax.jit(write_one).lower(params, token, last).compile()
    analysis = program.cost_analysis()
    assert analysis is not None
    counted = count_forward_flops(CONFIG, length - 1, length, logits=1)
    assert counted <= analysis["flops"] < 1.1 * counted


def test_the_cache_has_the_bytes_that_are_counted() -> None:
    cache = build_family(CONFIG).make_cache(3, 40)
    held = sum(x.nbytes for x in jax.tree.leaves(cache))
    assert held == 3 * 40 * count_cache_bytes(CONFIG)
    assert count_cost(CONFIG, 30, 10, 3).cache_bytes == held


def test_speed_is_measured_for_any_batch(make_trained: MakeTrained) -> None:
    model = make_trained()
    speed = measure_speed(model.config, model.params, 8, 8, batch=3, rounds=1)
    assert speed.prefill_tokens_per_second > 0
    assert speed.decode_tokens_per_second > 0


def test_sequences_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match=r"= 80: must be at most model\.context = 64"):
        count_cost(CONFIG, 40, 40)
    with pytest.raises(ConfigError, match="new_tokens = 0"):
        count_cost(CONFIG, 40, 0)
