"""Examples that share a row do not see each other, and only their completions count."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config import ExpertConfig, ModelConfig, OptimConfig, RunConfig
from scaling.data.examples import Pair, encode_examples, pack_rows
from scaling.data.row_format import RowFormat
from scaling.data.tokenizers import ByteTokenizer
from scaling.training.step import (
    StepSpec,
    compute_gradient_sum,
    make_step_spec,
    token_losses,
)

CONTEXT = 32
PAIRS = [
    Pair("one", " 1"),
    Pair("two and", " 22"),
    Pair("", "x"),
    Pair("three thr", " 333"),
    Pair("long long prompt of an example", " 4"),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "rope": {},
    "learned positions": {"position": "learned"},
    "sinusoidal positions, scanned": {
        "position": "sinusoidal",
        "scan_layers": "always",
    },
    "recomputed": {"remat": True},
    "experts": {"experts": ExpertConfig(routed=4, per_token=2, granularity=2)},
    "unit scaling": {"parametrization": "umup", "norm": "nonparametric_rmsnorm"},
}


def make_spec(**changes: Any) -> StepSpec:
    model = ModelConfig(width=16, depth=2, n_heads=2, context=CONTEXT, **changes)
    return make_step_spec(
        RunConfig(model, optim=OptimConfig(batch_size=1)),
        row_format=RowFormat(has_examples=True),
    )


def make_rows(pairs: list[Pair]) -> jax.Array:
    arrays = encode_examples(ByteTokenizer(), pairs).list_arrays()
    return jnp.asarray(pack_rows(arrays, CONTEXT))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_packed_examples_equal_examples_alone(options: dict[str, Any]) -> None:
    """The sum of their losses and its gradient."""
    spec = make_spec(**options)
    params = spec.family.init(0)
    packed = make_rows(PAIRS)
    assert len(packed) < len(PAIRS)
    # The rows are padded to one number: gradients of unit scaling depend on it.
    alone = [make_rows([pair]) for pair in PAIRS]
    sums = [compute_gradient_sum(spec, params, rows, None) for rows in alone]
    loss, count, grads, _ = compute_gradient_sum(spec, params, packed, None)
    assert float(loss) == pytest.approx(sum(float(s[0]) for s in sums), rel=1e-5)
    assert float(count) == sum(float(s[1]) for s in sums)
    if spec.family.rules is not None and "parametrization" not in options:
        total = jax.tree.map(lambda *g: sum(g), *[s[2] for s in sums])
        close = jax.tree.map(
            lambda a, b: np.allclose(a, b, atol=1e-4, rtol=1e-3), total, grads
        )
        assert all(jax.tree.leaves(close))


def test_only_completions_and_their_ends_count() -> None:
    spec = make_spec()
    rows = make_rows(PAIRS[:2])
    _, weights = token_losses(spec, spec.family.init(0), rows)
    row = (np.asarray(rows[0]) & 255).tolist()
    counted = [row[i + 1] for i in np.flatnonzero(np.asarray(weights[0]))]
    assert counted in ([*b" 1", 0, *b" 22", 0], [*b" 22", 0, *b" 1", 0])


def test_a_prompt_of_another_example_changes_nothing() -> None:
    spec = make_spec()
    params = spec.family.init(1)
    first = make_rows([Pair("abc", " d"), Pair("efg", " h")])
    second = make_rows([Pair("xyz", " d"), Pair("efg", " h")])
    losses = [
        np.asarray(token_losses(spec, params, rows)[0]) for rows in (first, second)
    ]
    place = int(np.flatnonzero(np.asarray(first[0]) >> 30)[1])
    assert np.array_equal(losses[0][0, place:], losses[1][0, place:])
    assert not np.allclose(losses[0][0, :place], losses[1][0, :place])
