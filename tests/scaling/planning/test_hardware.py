"""Names of hardware: what they mean, and what the error for a wrong one says."""

from __future__ import annotations

import pytest

from scaling.config import ConfigError
from scaling.planning.hardware import GPUS, TPUS, parse_hardware


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_is_hardware_that_multiplies_bfloat16_no_slower(name: str) -> None:
    one, eight = parse_hardware(f"gpu:{name}"), parse_hardware(f"GPU:{name}:8")
    assert (one.devices, eight.devices, one.memory) == (1, 8, eight.memory)
    assert one.peak["bfloat16"] >= one.peak["float32"] > 1e12


@pytest.mark.parametrize("name", TPUS)
def test_a_slice_has_the_speed_of_its_chips(name: str) -> None:
    """A v4 chip is two devices: a slice's peak is of chips, however many devices they
    are.
    """
    chip = {"v4": 275e12, "v5e": 197e12, "v5p": 459e12, "v6e": 918e12}[name]
    slices = [
        parse_hardware(f"{name}:{shape}")
        for shape in (("2x2", "4x4") if TPUS[name].axes == 2 else ("2x2x1",))
    ]
    assert [s.devices * s.peak["bfloat16"] for s in slices] == [
        chip * n for n in (4, 16)
    ][: len(slices)]


def test_seconds_are_flops_over_peak_and_utilization() -> None:
    hardware = parse_hardware("gpu:a100-80gb:8")
    assert hardware.seconds(
        8 * 312e12, "bfloat16", 8, utilization=0.5
    ) == pytest.approx(2.0)
    assert hardware.seconds(8 * 312e12, "float32", 8, utilization=0.5) == pytest.approx(
        4.0
    )
    assert hardware.seconds(312e12, "bfloat16", 1) == pytest.approx(
        1 / hardware.utilization
    )
    for utilization in (0.0, 1.2, -1):
        with pytest.raises(ConfigError, match=r"utilization = .*must lie in \(0, 1\]"):
            hardware.seconds(1.0, "bfloat16", 1, utilization)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu:a100", "did you mean .*'gpu:a100-80gb' or 'gpu:a100-40gb'"),
        ("gpu:h10", "did you mean 'gpu:h100'"),
        ("h100", "did you mean 'gpu:h100'"),
        ("gpu:zx81", "known: gpu:a100-40gb, .*rtx4090"),
        ("gpu", "known: gpu:a100-40gb"),
        ("v5f:2x2", "did you mean .*'v5e:2x2'"),
        ("abacus", "known: cpu, gpu:a100-40gb, .*v6e:2x2"),
        ("gpu:h100:0", "number of devices '0'"),
        ("v5e:2x2x2", "2 axes, e.g. 'v5e:2x2'"),
        ("v5p:2x2", "3 axes, e.g. 'v5p:2x2x1'"),
        ("v5e:0x2", "2 axes"),
        ("cpu:8", "unknown"),
    ],
)
def test_unknown_hardware_names_what_is_similar(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"hardware '{text}': .*{message}"):
        parse_hardware(text)
