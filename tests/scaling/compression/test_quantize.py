"""Laws of quantized models: stored to the bit, near the original, cheaper to hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

import scaling
from scaling import data
from scaling.compression.calibration import (
    draw_calibration_windows,
    measure_moments,
    record_inputs,
)
from scaling.compression.losses import compare_windows, measure_heldout_windows
from scaling.compression.quantize import (
    QuantizationConfig,
    quantize_model,
    read_quantized,
    write_quantized,
)
from scaling.config import ConfigError
from scaling.inference.compressed import count_bytes
from scaling.inference.model import TrainedModel
from scaling.model.matrices import list_matrices, read_matrices
from scaling.store.files import StoreError

MakeModel = Callable[..., TrainedModel]
Compute = Callable[[TrainedModel], np.ndarray]


def get_loss(model: TrainedModel) -> float:
    losses = measure_heldout_windows(model)
    return losses.nats.sum() / losses.tokens.sum()


def measure_output_error(
    before: TrainedModel, after: TrainedModel, windows: np.ndarray
) -> float:
    """The mean squared error of the outputs of all matrices over that of no outputs,
    for the inputs of the original model.
    """
    names = list_matrices(before.config)
    moments = measure_moments(before.config, before.params, windows)
    old = read_matrices(before.params, names)
    new = read_matrices(after.params, names)
    total = 0.0
    for name in names:
        moment = moments[name.partition(".weights.")[0]]
        change = np.asarray(new[name] - old[name], np.float64)
        error = np.sum(change * (moment @ change))
        matrix = np.asarray(old[name], np.float64)
        total += error / np.sum(matrix * (moment @ matrix))
    return total


@pytest.mark.parametrize("tied", [False, True])
def test_every_matrix_that_multiplies_activations_is_listed(
    make_random: MakeModel, tied: bool
) -> None:
    model = make_random(tied=tied, activation="swiglu")
    names = list_matrices(model.config)
    matrices = read_matrices(model.params, names)
    counted = scaling.count_parameters(model.config).n_matmul
    assert sum(matrix.size for matrix in matrices.values()) == counted
    assert ("embedding" in names) == tied
    assert "embedding" in list_matrices(model.config, embedding=True)


def test_eight_bits_change_little_and_two_bits_much(trained: TrainedModel) -> None:
    before = measure_heldout_windows(trained)
    increases = []
    for bits in (8, 6, 4, 3, 2):
        quantized = quantize_model(trained, QuantizationConfig(bits=bits))
        after = measure_heldout_windows(quantized.dequantize())
        increases.append(compare_windows(before, after).increase)
    assert abs(increases[0]) < 0.01
    assert increases[1:] == sorted(increases[1:])
    assert increases[-1] > 0.1


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group_size", [None, 8])
def test_gptq_beats_rounding_to_nearest_in_output_error(
    trained: TrainedModel, bits: int, group_size: int | None
) -> None:
    """On the calibration text, and on held-out text of the same source."""
    seen = draw_calibration_windows(trained, 8192)
    heldout = data.load_dataset(trained.run.data).heldout
    other = data.heldout_windows(heldout, trained.context, 4096)
    models = {}
    for method in ("nearest", "gptq"):
        settings = QuantizationConfig(bits, group_size, method)
        models[method] = quantize_model(trained, settings, seen).dequantize()
    for windows in (seen, other):
        nearest = measure_output_error(trained, models["nearest"], windows)
        assert measure_output_error(trained, models["gptq"], windows) < 0.9 * nearest


def test_gptq_of_uncorrelated_inputs_rounds_to_nearest() -> None:
    from scaling.compression.gptq import quantize_with_moments
    from scaling.compression.grid import round_to_integers

    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((12, 5)).astype(np.float32)
    scales = np.full_like(matrix, 0.3)
    moments = np.diag(rng.uniform(0.1, 2.0, 12))
    found = quantize_with_moments(matrix, scales, moments, 4, 0.01)
    assert np.array_equal(found, round_to_integers(matrix, scales, 4))


def test_inputs_that_are_never_active_do_no_harm() -> None:
    from scaling.compression.gptq import quantize_with_moments
    from scaling.compression.grid import round_to_integers

    matrix = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    scales = np.full_like(matrix, 0.3)
    found = quantize_with_moments(matrix, scales, np.zeros((4, 4)), 4, 0.01)
    assert np.array_equal(found, round_to_integers(matrix, scales, 4))


def test_recording_inputs_leaves_the_model_as_it_is(
    make_random: MakeModel, compute_logits: Compute
) -> None:
    model = make_random()
    before = compute_logits(model)
    tokens = jax.numpy.zeros((1, 16), jax.numpy.int32)
    inputs = record_inputs(model.config, model.params, tokens)
    assert list(inputs)[:4] == [
        "blocks.0.branches.0.qkv",
        "blocks.0.branches.0.out",
        "blocks.0.branches.1.up",
        "blocks.0.branches.1.down",
    ]
    assert list(inputs)[-1] == "head"
    assert np.array_equal(compute_logits(model), before)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("changes", [{}, {"tied": True}, {"activation": "swiglu"}])
def test_what_is_written_is_read_to_the_bit(
    make_random: MakeModel,
    compute_logits: Compute,
    tmp_path: Path,
    bits: int,
    changes: dict[str, object],
) -> None:
    settings = QuantizationConfig(bits=bits, group_size=8, embedding=True)
    model = quantize_model(make_random(**changes), settings)
    size = write_quantized(model, tmp_path / "model")
    found = read_quantized(tmp_path / "model")
    assert found.settings == settings
    assert found.nbytes == model.nbytes
    assert model.nbytes < size < model.nbytes + 12_000
    for name, matrix in model.matrices.items():
        assert np.array_equal(found.matrices[name].packed, matrix.packed)
        assert np.array_equal(found.matrices[name].scales, matrix.scales)
    expected = compute_logits(model.dequantize())
    assert np.array_equal(compute_logits(found.dequantize()), expected)
    assert np.array_equal(compute_logits(scaling.load(tmp_path / "model")), expected)


def test_matrices_take_the_bytes_of_their_bits(make_random: MakeModel) -> None:
    model = make_random(width=32)
    matmul = scaling.count_parameters(model.config).n_matmul
    outputs = sum(
        matrix.shape[1]
        for matrix in read_matrices(model.params, list_matrices(model.config)).values()
    )
    for bits in (3, 4, 8):
        quantized = quantize_model(model, QuantizationConfig(bits=bits))
        saved = count_bytes(model.params) - quantized.nbytes
        assert saved == 4 * matmul - matmul * bits / 8 - 2 * outputs


def test_a_read_model_writes_text(trained: TrainedModel, tmp_path: Path) -> None:
    write_quantized(quantize_model(trained, QuantizationConfig(8)), tmp_path / "model")
    found = scaling.load(tmp_path / "model")
    assert found.fingerprint == trained.fingerprint is not None
    assert found.run == trained.run
    (text,) = found.generate("red ", max_tokens=5, temperature=0.0)
    assert len(text.tokens) == 5


def test_a_damaged_folder_is_refused(make_random: MakeModel, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_quantized(quantize_model(make_random()), folder)
    with pytest.raises(ConfigError, match="not an empty folder"):
        write_quantized(quantize_model(make_random()), folder)
    file = folder / "compressed.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))
    for read in (read_quantized, scaling.load):
        with pytest.raises(StoreError, match="checksum"):
            read(folder)
    file.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        read_quantized(folder)


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ConfigError, match=r"quantization.bits = 9: must lie in 2 to 8"):
        QuantizationConfig(bits=9)
    with pytest.raises(ConfigError, match=r"quantization.group_size = 0"):
        QuantizationConfig(group_size=0)


# --- quantization-aware training ------------------------------------------------------


def test_storing_a_model_of_four_bits_at_four_bits_changes_nothing(
    trained_at_four_bits: TrainedModel,
) -> None:
    settings = QuantizationConfig(bits=4, scale_dtype="float32")
    stored = quantize_model(trained_at_four_bits, settings).dequantize()
    assert stored.config.weight_bits is None
    assert get_loss(stored) == pytest.approx(get_loss(trained_at_four_bits), rel=1e-5)


def test_a_run_with_weight_bits_loads_as_it_was_evaluated(
    sweep_folder: Path, trained_at_four_bits: TrainedModel
) -> None:
    table = scaling.run_table(sweep_folder).set_index("run_id")
    row = table.loc[trained_at_four_bits.run.run_id]
    assert row["weight_bits"] == 4
    assert table["weight_bits"].isna().sum() == 1
    assert get_loss(trained_at_four_bits) == pytest.approx(row["loss"], rel=1e-5)
    logits = trained_at_four_bits.logits("red")
    (text,) = trained_at_four_bits.generate("red", max_tokens=1, temperature=0.0)
    assert text.tokens[0] == logits[-1].argmax()


def test_training_at_four_bits_beats_rounding_afterwards(
    trained: TrainedModel, trained_at_four_bits: TrainedModel
) -> None:
    rounded = quantize_model(trained, QuantizationConfig(bits=4)).dequantize()
    assert get_loss(trained_at_four_bits) < get_loss(rounded)


def test_eight_bits_train_as_well_and_two_bits_worse(sweep_folder: Path) -> None:
    table = scaling.run_table(sweep_folder)
    assert (table["status"] == "finished").all()
    full = table[table["weight_bits"].isna()].iloc[0]
    losses = table.set_index("weight_bits")["loss"]
    noise = 2 * full["loss_se"]
    assert losses[8] == pytest.approx(full["loss"], abs=noise)
    assert losses[2] > full["loss"] + noise
