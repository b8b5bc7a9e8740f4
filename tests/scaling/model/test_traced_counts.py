"""Products of small programs, counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from scaling.config import ConfigError
from scaling.model.traced_counts import TracedCounts, count_products

X = jnp.ones((3, 4))
W = jnp.ones((4, 4))
V = jnp.ones((4, 5))
FLOAT = 4  # bytes
ONE = 2 * 3 * 4 * 4  # FLOPs of X @ W


def count(function: Callable, *inputs: jax.Array) -> TracedCounts:
    """Of a function whose last input is an activation."""
    return count_products(jax.make_jaxpr(function)(*inputs), activations=1)


def test_two_flops_a_multiplication_and_each_activation_once() -> None:
    found = count(lambda w, v, x: (x @ w) @ v, W, V, X)
    assert found.flops == ONE + 2 * 3 * 4 * 5
    # The input, what is between the products, and the output.
    assert found.activation_bytes == FLOAT * (12 + 12 + 15)
    both = count(lambda w, x: jnp.tanh(x @ w) @ w + (x @ w), W, X)
    assert both.flops == 3 * ONE
    # The input, both results that differ in name alone, the hyperbola and its product.
    assert both.activation_bytes == FLOAT * 12 * 5


def test_products_of_parameters_are_no_activations() -> None:
    found = count(lambda w, v, x: jnp.sum(w @ v) + x, W, V, X)
    assert found == TracedCounts(flops=2.0 * 4 * 4 * 5)


def test_a_scan_counts_as_often_as_it_runs() -> None:
    def run(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda h, _: (h @ w, None), x, length=7)[0]

    found = count(run, W, X)
    assert found == TracedCounts(7.0 * ONE, 7.0 * FLOAT * 24)


def test_what_a_step_hands_on_depends_on_what_it_saw() -> None:
    """The state of a recurrent network begins as zeros, which are no activation."""

    def run(w: jax.Array, x: jax.Array) -> jax.Array:
        def step(h: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(h @ w + row), None

        return jax.lax.scan(step, jnp.zeros(4), x)[0]

    found = count(run, W, X)
    assert found == TracedCounts(3.0 * 2 * 16, 3.0 * FLOAT * 8)


def test_every_state_of_a_step_may_depend_on_what_it_saw() -> None:
    """The second is what the product reads; the first depends on nothing."""

    def run(w: jax.Array, x: jax.Array) -> jax.Array:
        def step(
            state: tuple[jax.Array, jax.Array], row: jax.Array
        ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            halved, seen = state
            return (halved / 2, seen + row), seen @ w + halved @ w

        start = (jnp.ones(4), jnp.zeros(4))
        return jax.lax.scan(step, start, x)[1]

    found = count(run, W, X)
    assert found == TracedCounts(3.0 * 4 * 16, 3.0 * FLOAT * 8)


def test_calls_inside_are_opened() -> None:
    inner = jax.jit(lambda w, x: x @ w)
    assert count(lambda w, x: inner(w, x), W, X) == count(lambda w, x: x @ w, W, X)


@pytest.mark.parametrize("dear_first", [True, False])
def test_of_a_conditional_the_most_expensive_branch_counts(dear_first: bool) -> None:
    branches = [lambda w, x: x @ w @ w, lambda w, x: x @ w]
    if not dear_first:
        branches.reverse()
    found = count(lambda w, x: jax.lax.cond(x[0, 0] > 0, *branches, w, x), W, X)
    assert found == TracedCounts(2.0 * ONE, FLOAT * 36.0)


def test_a_loop_of_unknown_length_may_hold_no_product() -> None:
    def run(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 9.0, lambda x: x @ w, x)

    with pytest.raises(ConfigError, match="a loop whose length is not known"):
        count(run, W, X)

    def add(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 9.0, lambda x: x + 1, x) @ w

    assert count(add, W, X).flops == ONE


def test_convolutions_and_products_of_groups() -> None:
    """Each output of a convolution reads three places of two channels."""
    signal, kernel = jnp.ones((1, 2, 8)), jnp.ones((5, 2, 3))
    convolve = lambda k, x: jax.lax.conv_general_dilated(x, k, (1,), "SAME")
    assert count(convolve, kernel, signal).flops == 2 * 5 * 8 * (2 * 3)
    sizes = jnp.array([1, 2])
    experts = jnp.ones((2, 4, 5))
    grouped = lambda w, x: jax.lax.ragged_dot(x, w, sizes)
    assert count(grouped, experts, X).flops == 2 * 3 * 4 * 5
