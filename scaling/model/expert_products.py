"""The products of a mixture of experts: each row is multiplied by the matrices of its own
expert, and none is left out.

On an accelerator they are `jax.lax.ragged_dot` over rows that are sorted by expert. On a
CPU that takes as long as if every expert computed every row. There the rows of each
expert are laid out in an equal number of slots, which are multiplied as a batch, and the
rows for which an expert has no slot left are computed in blocks by a loop. The loop runs
as often as there are such blocks, which is never where the experts share the rows well.

Axes: N tokens, A experts of a token, E experts, C slots of an expert, I and O the two
sides of a matrix, D width, R rows (N x A, those of one token next to each other), S all
slots.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from scaling.model.sharding_axes import split_experts

Product = Callable[[Array, Array], Array]
"""Rows (G, C, I) and the matrices (G, I, O) of G experts to rows (G, C, O)."""

Spread = Callable[[Array], Array]
"""Vectors (G, O) of G experts to what rows (G, C, O) are multiplied by."""

Compute = Callable[[Array, PyTree, Product, Spread], Array]
"""What experts compute: rows (G, C, D), the weights of G experts with a leading axis G,
and how the two are multiplied."""

SLOTS_OVER_FAIR_SHARE = 1.25
"""Slots of each expert over its share of the rows if all had equally many."""

_OVERFLOW_ROWS = 64
"""Rows of a block of those that found no slot."""


_counts_products = contextvars.ContextVar("_counts_products", default=False)


@contextlib.contextmanager
def count_each_row_once() -> Iterator[None]:
    """Programs that are traced inside the block multiply each row once, whatever the
    device: those whose products are counted and that are never run.
    """
    token = _counts_products.set(True)
    try:
        yield
    finally:
        _counts_products.reset(token)


def has_ragged_product() -> bool:
    """Whether `jax.lax.ragged_dot` computes each row once."""
    return _counts_products.get() or jax.default_backend() != "cpu"


def apply_experts(
    compute: Compute,
    x: Float[Array, "N D"],
    weights: PyTree[Float[Array, "E ..."]],
    chosen: Int[Array, "N A"],
    counts: Int[Array, " E"],
) -> Float[Array, "N A D"]:
    """What each token's experts compute of it.

    Args:
        compute: What an expert computes.
        x: The tokens.
        weights: Of all experts.
        chosen: The experts of each token.
        counts: The number of tokens of each expert.
    """
    rows = chosen.reshape(-1)
    order = jnp.argsort(rows, stable=True).astype(jnp.int32)
    y: Array
    if has_ragged_product():
        y = _apply_ragged(compute, x, weights, rows, order, counts)
    else:
        y = _apply_in_slots(compute, x, weights, _plan_slots(order, counts))
    return y.reshape(*chosen.shape, -1)


def _apply_ragged(
    compute: Compute,
    x: Float[Array, "N D"],
    weights: PyTree[Float[Array, "E ..."]],
    rows: Int[Array, " R"],
    order: Int[Array, " R"],
    counts: Int[Array, " E"],
) -> Float[Array, "R D"]:
    """All rows in one product, sorted by expert."""
    per_token = len(rows) // len(x)
    places = jnp.argsort(order)
    inputs = _move_rows(x, order // per_token, places.reshape(len(x), per_token))

    def multiply(x: Array, weight: Array) -> Array:
        return jax.lax.ragged_dot(x[0], weight, counts)[None]

    def spread(vector: Array) -> Array:
        return vector[rows[order]][None]

    y = compute(inputs[None], weights, multiply, spread)
    return _move_rows(y[0], places, order[:, None])


# --- slots ----------------------------------------------------------------------------


class _Plan(NamedTuple):
    """Which row is where.

    Attributes:
        row_of_slot: The row in each slot, those of an expert next to each other; the
            number of rows where a slot is free.
        slot_of_row: The slot of each row; the number of slots where it has none.
        order: All rows, sorted by expert.
        starts: For each expert, where its rows without a slot begin in that order.
        stops: For each expert, where they end.
    """

    row_of_slot: Int[Array, " S"]
    slot_of_row: Int[Array, " R"]
    order: Int[Array, " R"]
    starts: Int[Array, " E"]
    stops: Int[Array, " E"]


def count_slots(rows: int, experts: int) -> int:
    """The slots of each expert for some rows of all experts together."""
    return max(1, min(rows, math.ceil(SLOTS_OVER_FAIR_SHARE * rows / experts)))


def _plan_slots(order: Int[Array, " R"], counts: Int[Array, " E"]) -> _Plan:
    """Give the rows of each expert its slots, in their order."""
    rows = len(order)
    slots = count_slots(rows, len(counts))
    stops = jnp.cumsum(counts)
    firsts = stops - counts
    slot = jnp.arange(slots)[None]
    row_of_slot = order.at[firsts[:, None] + slot].get(mode="fill", fill_value=0)
    row_of_slot = jnp.where(slot < counts[:, None], row_of_slot, rows).reshape(-1)
    all_slots = len(row_of_slot)
    slot_of_row = jnp.full(rows, all_slots, jnp.int32)
    slot_of_row = slot_of_row.at[row_of_slot].set(
        jnp.arange(all_slots, dtype=jnp.int32), mode="drop"
    )
    return _Plan(
        row_of_slot=row_of_slot,
        slot_of_row=slot_of_row,
        order=order,
        starts=jnp.minimum(firsts + slots, stops),
        stops=stops,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply_in_slots(
    compute: Compute,
    x: Float[Array, "N D"],
    weights: PyTree[Float[Array, "E ..."]],
    plan: _Plan,
) -> Float[Array, "R D"]:
    """The rows that have a slot as one batch, and the others in blocks.

    The gradient is written by hand, so that the loop adds to the gradients of the batch
    in place.
    """
    y = _multiply_slots(compute, x, weights, plan)
    return _set_overflow(compute, y, x, weights, plan)


def _apply_forward(
    compute: Compute, x: Array, weights: PyTree, plan: _Plan
) -> tuple[Array, tuple[Callable[[Array], tuple], Array, PyTree, _Plan]]:
    def multiply(x: Array, weights: PyTree) -> Array:
        return _multiply_slots(compute, x, weights, plan)

    y, pull = jax.vjp(multiply, x, weights)
    y = _set_overflow(compute, y, x, weights, plan)
    return y, (pull, x, weights, plan)


def _apply_backward(
    compute: Compute,
    saved: tuple[Callable[[Array], tuple], Array, PyTree, _Plan],
    dy: Array,
) -> tuple[Array, PyTree, _Plan]:
    pull, x, weights, plan = saved
    gradients = pull(dy)
    dx, dweights = _add_overflow_gradients(compute, gradients, dy, x, weights, plan)
    return dx, dweights, jax.tree.map(_no_gradient, plan)


_apply_in_slots.defvjp(_apply_forward, _apply_backward)


def _multiply_slots(
    compute: Compute,
    x: Float[Array, "N D"],
    weights: PyTree[Float[Array, "E ..."]],
    plan: _Plan,
) -> Float[Array, "R D"]:
    """The rows that have a slot, and zeros for the others."""
    experts = len(plan.stops)
    per_token = len(plan.order) // len(x)
    token_of_slot = plan.row_of_slot // per_token  # of a free slot, one too many
    slots_of_token = plan.slot_of_row.reshape(len(x), per_token)
    inputs = _move_rows(x, token_of_slot, slots_of_token)
    inputs = split_experts(inputs.reshape(experts, -1, x.shape[1]))
    y = split_experts(compute(inputs, weights, batched_product, _spread_over_slots))
    y = y.reshape(len(plan.row_of_slot), -1)
    return _move_rows(y, plan.slot_of_row, plan.row_of_slot[:, None])


def _spread_over_slots(vector: Float[Array, "G O"]) -> Float[Array, "G 1 O"]:
    return vector[:, None]


@jax.custom_vjp
def _move_rows(
    x: Float[Array, "a D"], index: Int[Array, " b"], inverse: Int[Array, "a m"]
) -> Float[Array, "b D"]:
    """Row index[i] of x for each i; zeros where there is no such row.

    The gradient is gathered as well, because XLA is slow at scattering on CPU.

    Args:
        x: Rows.
        index: Which of them are taken.
        inverse: Where each of them is taken; b where it is taken less often.
    """
    del inverse
    return x.at[index].get(mode="fill", fill_value=0)


def _move_forward(
    x: Array, index: Array, inverse: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _move_rows(x, index, inverse), (index, inverse)


def _move_backward(
    saved: tuple[Array, Array], dy: Array
) -> tuple[Array, np.ndarray, np.ndarray]:
    index, inverse = saved
    dx = dy.at[inverse].get(mode="fill", fill_value=0).sum(axis=1)
    return dx, _no_gradient(index), _no_gradient(inverse)


_move_rows.defvjp(_move_forward, _move_backward)


def _no_gradient(integers: Array) -> np.ndarray:
    return np.zeros(integers.shape, jax.dtypes.float0)


@jax.custom_vjp
def batched_product(
    x: Float[Array, "G C I"], weights: Float[Array, "G I O"]
) -> Float[Array, "G C O"]:
    """Multiply the rows of each expert by its matrix."""
    return _contract_batch(x, weights, 2, 1)


def _batched_forward(x: Array, weights: Array) -> tuple[Array, tuple[Array, Array]]:
    return batched_product(x, weights), (x, weights)


def _batched_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, weights = saved
    return _contract_batch(dy, weights, 2, 2), _contract_batch(x, dy, 1, 1)


batched_product.defvjp(_batched_forward, _batched_backward)


def _contract_batch(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((0,), (0,))))


# --- rows without a slot --------------------------------------------------------------


def _set_overflow(
    compute: Compute,
    y: Float[Array, "R D"],
    x: Float[Array, "N D"],
    weights: PyTree[Float[Array, "E ..."]],
    plan: _Plan,
) -> Float[Array, "R D"]:
    """The rows y with those that have no slot computed."""
    per_token = len(y) // len(x)
    blocks = _list_blocks(plan)

    def compute_block(i: Array, y: Array) -> Array:
        expert, rows = blocks.locate(i)
        inputs = x.at[rows // per_token].get(mode="fill", fill_value=0)
        outputs = _compute_block(compute, inputs, _take_expert(weights, expert))
        return y.at[rows].set(outputs, mode="drop")

    return jax.lax.fori_loop(0, blocks.count, compute_block, y)


def _add_overflow_gradients(
    compute: Compute,
    gradients: tuple[Array, PyTree],
    dy: Float[Array, "R D"],
    x: Float[Array, "N D"],
    weights: PyTree[Float[Array, "E ..."]],
    plan: _Plan,
) -> tuple[Float[Array, "N D"], PyTree[Float[Array, "E ..."]]]:
    """The gradients of x and the weights with those of each block, whose activations
    are computed again.
    """
    per_token = len(dy) // len(x)
    blocks = _list_blocks(plan)

    def add_block(i: Array, total: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        dx, dweights = total
        expert, rows = blocks.locate(i)
        tokens = rows // per_token
        inputs = x.at[tokens].get(mode="fill", fill_value=0)
        outputs = functools.partial(_compute_block, compute)
        _, pull = jax.vjp(outputs, inputs, _take_expert(weights, expert))
        dinputs, dexpert = pull(dy.at[rows].get(mode="fill", fill_value=0))
        dx = dx.at[tokens].add(dinputs, mode="drop")
        dweights = jax.tree.map(lambda w, d: w.at[expert].add(d), dweights, dexpert)
        return dx, dweights

    return jax.lax.fori_loop(0, blocks.count, add_block, gradients)


class _Blocks(NamedTuple):
    """The rows without a slot in blocks, each of one expert.

    Attributes:
        count: Number of blocks.
        ends: For each expert, the number of blocks of it and of those before.
        plan: Which row is where.
    """

    count: Int[Array, ""]
    ends: Int[Array, " E"]
    plan: _Plan

    def locate(self, i: Array) -> tuple[Array, Array]:
        """The expert of a block and its rows; one too many where it has no more."""
        order = self.plan.order
        expert = jnp.searchsorted(self.ends, i, side="right")
        blocks_before = jnp.where(expert > 0, self.ends[expert - 1], 0)
        first = self.plan.starts[expert] + (i - blocks_before) * _OVERFLOW_ROWS
        places = first + jnp.arange(_OVERFLOW_ROWS)
        rows = order.at[places].get(mode="fill", fill_value=0)
        return expert, jnp.where(places < self.plan.stops[expert], rows, len(order))


def _list_blocks(plan: _Plan) -> _Blocks:
    ends = jnp.cumsum(-(-(plan.stops - plan.starts) // _OVERFLOW_ROWS))
    return _Blocks(count=ends[-1], ends=ends, plan=plan)


def _take_expert(weights: PyTree, expert: Array) -> PyTree:
    return jax.tree.map(lambda weight: weight[expert], weights)


def _compute_block(
    compute: Compute, inputs: Float[Array, "b D"], weights: PyTree
) -> Float[Array, "b D"]:
    """What one expert computes of some rows."""
    alone = jax.tree.map(lambda weight: weight[None], weights)
    return compute(inputs[None], alone, batched_product, _spread_over_slots)[0]
