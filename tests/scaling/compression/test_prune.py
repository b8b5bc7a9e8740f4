"""Laws of pruning: what is removed is the smallest, stays removed, and is not stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scaling
from scaling.compression.heads import measure_loss_without, remove_heads
from scaling.compression.prune import (
    PruningConfig,
    count_sparse_bytes,
    prune_model,
    write_pruned,
)
from scaling.config import ConfigError
from scaling.inference.compressed import count_bytes, describe_origin, write_folder
from scaling.inference.model import TrainedModel
from scaling.model.family import build_family
from scaling.model.masks import mask_heads, mask_two_of_four
from scaling.model.matrices import list_matrices, read_matrices, replace_matrices
from scaling.store.files import StoreError

MakeModel = Callable[..., TrainedModel]
Compute = Callable[[TrainedModel], np.ndarray]


def read_all(model: TrainedModel) -> dict[str, np.ndarray]:
    names = list_matrices(model.config)
    matrices = read_matrices(model.params, names)
    return {name: np.asarray(matrix) for name, matrix in matrices.items()}


@pytest.mark.parametrize("scope", ["matrix", "global"])
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("tied", [False, True])
def test_the_smallest_weights_go(
    make_random: MakeModel, scope: str, sparsity: float, tied: bool
) -> None:
    model = make_random(tied=tied)
    settings = PruningConfig("magnitude", sparsity=sparsity, scope=scope)
    pruned = prune_model(model, settings)
    assert pruned.sparsity == pytest.approx(sparsity, abs=0.01)
    removed = []
    kept = []
    for name, matrix in read_all(pruned.model).items():
        before = read_all(model)[name]
        is_kept = matrix != 0
        assert np.array_equal(matrix[is_kept], before[is_kept])
        removed.append(np.abs(before[~is_kept]))
        kept.append(np.abs(before[is_kept]))
        if scope == "matrix" and sparsity > 0:
            assert removed[-1].max() <= kept[-1].min()
    if scope == "global" and sparsity > 0:
        assert np.concatenate(removed).max() <= np.concatenate(kept).min()


def test_two_of_each_four_inputs_stay(make_random: MakeModel) -> None:
    model = make_random()
    pruned = prune_model(model, PruningConfig("2:4"))
    assert pruned.sparsity == 0.5
    for name, matrix in read_all(pruned.model).items():
        fours = matrix.reshape(-1, 4, matrix.shape[1])
        assert np.all((fours != 0).sum(axis=1) == 2)
        before = np.abs(read_all(model)[name]).reshape(fours.shape)
        gone = np.where(fours == 0, before, 0.0).max(axis=1)
        stay = np.where(fours == 0, np.inf, before).min(axis=1)
        assert np.all(gone <= stay)


def test_inputs_that_are_no_multiple_of_four_are_named() -> None:
    with pytest.raises(ConfigError, match=r"head has 6 inputs, .* use 'magnitude'"):
        mask_two_of_four({"head": np.ones((6, 2), np.float32)})


HEADS = {
    "default": {},
    "heads of their own size": {"head_dim": 8},
    "muP": {"parametrization": "mup", "base_width": 8},
    "no norm of queries": {"parametrization": "mup", "qk_norm": False},
    "multipliers of the fan-in": {"parametrization": "mean_field_full"},
    "learned scales": {"parametrization": "normalized", "base_width": 8},
    "unit-scaled": {"parametrization": "umup", "norm": "nonparametric_rmsnorm"},
    "tied, attention sinks": {
        "tied": True,
        "activation": "swiglu",
        "attention_sink": True,
    },
}


@pytest.mark.parametrize("changes", HEADS.values(), ids=HEADS)
def test_removing_heads_is_masking_them(
    make_random: MakeModel, compute_logits: Compute, changes: dict[str, object]
) -> None:
    model = make_random(**changes)
    pruned = prune_model(model, PruningConfig("heads", heads=2))
    assert pruned.heads is not None
    assert [len(stay) for stay in pruned.heads] == [2, 2]
    smaller = pruned.shrink()
    assert smaller.config.heads == 2
    assert count_bytes(smaller.params) < count_bytes(model.params)
    expected = compute_logits(pruned.model)
    assert not np.allclose(expected, compute_logits(model), atol=1e-2)
    assert np.allclose(compute_logits(smaller), expected, atol=1e-4)
    shapes = jax.eval_shape(lambda: build_family(smaller.config).init(0))
    assert jax.tree.map(jnp.shape, smaller.params) == jax.tree.map(jnp.shape, shapes)


def test_heads_whose_scale_cannot_be_kept_are_named(make_random: MakeModel) -> None:
    model = make_random(parametrization="mup", norm="nonparametric_rmsnorm")
    pruned = prune_model(model, PruningConfig("heads", heads=2))
    with pytest.raises(ConfigError, match="queries have no gains"):
        pruned.shrink()


def test_layers_that_read_the_values_of_the_first_keep_its_heads(
    make_random: MakeModel, compute_logits: Compute
) -> None:
    """As one model without the other heads; different heads in a layer are refused."""
    model = make_random(value_residual=True)
    with pytest.raises(ConfigError, match=r"model.value_residual = True: .*write_pr"):
        remove_heads(model, ((0, 1), (0, 2)))
    smaller = remove_heads(model, ((0, 2), (0, 2)))
    matrices = read_all(model)
    masks = mask_heads(model.config, matrices, ((0, 2), (0, 2)))
    zeroed = {name: jnp.asarray(matrices[name] * mask) for name, mask in masks.items()}
    masked = model.replace_params(replace_matrices(model.params, zeroed))
    found, expected = compute_logits(smaller), compute_logits(masked)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_head_that_does_nothing_goes_first(make_random: MakeModel) -> None:
    model = make_random()
    for layer, idle in enumerate((2, 1)):
        out = model.params["blocks"][layer]["branches"][0]["out"]["weights"]
        rows = slice(4 * idle, 4 * idle + 4)
        out[0] = out[0].at[rows].set(1e-4 * out[0][rows])
    windows = np.random.default_rng(0).integers(0, 64, (8, 17)).astype(np.int32)
    for importance in ("norm", "loss"):
        settings = PruningConfig("heads", heads=1, importance=importance)
        pruned = prune_model(model, settings, windows)
        if importance == "norm":
            assert pruned.heads == ((0, 1, 3), (0, 2, 3))
    losses = measure_loss_without(model, windows)
    full = prune_model(model, PruningConfig(sparsity=0.0)).model
    idle = measure_loss_without(full, windows)[0, 2]
    assert losses[0, 2] == pytest.approx(idle)
    assert np.abs(losses - idle).max() > 1e-3


def test_at_least_one_head_stays(make_random: MakeModel) -> None:
    with pytest.raises(ConfigError, match=r"pruning.heads = 4: must lie in 1 to 3"):
        prune_model(make_random(), PruningConfig("heads", heads=4))
    with pytest.raises(ConfigError, match=r"pruning.sparsity = 1.0"):
        PruningConfig(sparsity=1.0)
    with pytest.raises(ConfigError, match="only 'heads' leaves smaller matrices"):
        prune_model(make_random()).shrink()


@pytest.mark.parametrize(
    "settings",
    [
        PruningConfig("magnitude", sparsity=0.75),
        PruningConfig("2:4"),
        PruningConfig("heads", heads=2),
    ],
)
def test_zeros_are_not_stored(
    make_random: MakeModel,
    compute_logits: Compute,
    tmp_path: Path,
    settings: PruningConfig,
) -> None:
    pruned = prune_model(make_random(), settings)
    model = pruned.model if pruned.heads is None else pruned.shrink()
    size = write_pruned(model, tmp_path / "model")
    expected = count_sparse_bytes(model)
    assert expected < count_bytes(pruned.model.params)
    assert expected < size < expected + 12_000
    found = scaling.load(tmp_path / "model")
    assert found.config == model.config
    assert np.array_equal(compute_logits(found), compute_logits(model))


def test_a_folder_without_integers_names_its_reader(
    make_random: MakeModel, tmp_path: Path
) -> None:
    from scaling.compression.quantize import read_quantized

    write_pruned(make_random(), tmp_path / "model")
    with pytest.raises(
        StoreError, match=r"holds a pruned model, .*open it with scaling.load"
    ):
        read_quantized(tmp_path / "model")


def test_a_folder_of_an_unknown_kind_is_refused(
    make_random: MakeModel, tmp_path: Path
) -> None:
    origin = describe_origin(make_random())
    write_folder(tmp_path / "model", origin, {}, {"kind": "ternary"})
    with pytest.raises(StoreError, match="kind 'ternary', which this version cannot"):
        scaling.load(tmp_path / "model")


def test_a_model_of_four_bits_is_rounded_before_it_is_pruned(
    trained_at_four_bits: TrainedModel,
) -> None:
    same = prune_model(trained_at_four_bits, PruningConfig(sparsity=0.0)).model
    assert same.config.weight_bits is None
    assert np.allclose(
        same.logits("red"), trained_at_four_bits.logits("red"), atol=1e-4
    )
