"""Hardware that a plan's cost can be estimated for: devices, memory and peak speed.
This module does not load JAX.

Peaks are of dense matrix products accumulated in float32, without sparsity, at the
precision that JAX uses by default: float32 products run as TF32 on NVIDIA GPUs from
Ampere on and as one bfloat16 pass on TPUs (documentation of `jax.lax.Precision`). GPUs
without bfloat16 units (V100, T4) multiply bfloat16 as float32.

Sources, all published by the vendors:

* A100, H100, H200, L4, L40S, V100, T4: the NVIDIA data sheet of each. Where a footnote
  marks a figure as one with sparsity, half of it is used. B200: the HGX B200 data
  sheet, an eighth of the figures for eight GPUs, halved for the same reason.
* RTX 3090 and 4090: NVIDIA Ada GPU architecture whitepaper, appendix A.
* TPUs: the "TPU architecture" page of Google Cloud for each generation, peak bfloat16
  and HBM per chip. The memory is what the compiler leaves to a program, taken from its
  message for a program that is too large (libtpu 0.0.42.1). A v4 chip counts as two
  devices, one per core, as in the compiler's topology, each with half the chip's memory
  and speed.
* Utilization: large runs report 38-43 % of peak on H100 (Llama 3, arXiv:2407.21783,
  table 4) and 46 % on TPU v4 (PaLM, arXiv:2204.02311, section 4.1). The default is
  40 %, a guess for models as small as most here.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from typing import Literal

from scaling.config import ConfigError, DType
from scaling.config.suggestions import did_you_mean

UTILIZATION = 0.4

# JAX takes this share of a GPU's memory for its programs, unless the variable
# XLA_PYTHON_CLIENT_MEM_FRACTION sets another.
GPU_SHARE = 0.75
_GIB = 2**30


@dataclass(frozen=True)
class GPU:
    """One model of GPU, from its data sheet."""

    gigabytes: float | int  # 10^9 bytes
    bfloat16: float | int  # TFLOP/s
    float32: float | int  # TFLOP/s


GPUS = {
    "a100-40gb": GPU(40, bfloat16=312, float32=156),
    "a100-80gb": GPU(80, bfloat16=312, float32=156),
    "h100": GPU(80, bfloat16=989, float32=495),  # SXM
    "h100-pcie": GPU(80, bfloat16=756, float32=378),
    "h200": GPU(141, bfloat16=989, float32=495),
    "b200": GPU(180, bfloat16=2250, float32=1125),
    "l4": GPU(24, bfloat16=121, float32=60),
    "l40s": GPU(48, bfloat16=362, float32=183),
    "v100-16gb": GPU(16, bfloat16=15.7, float32=15.7),  # SXM
    "v100-32gb": GPU(32, bfloat16=15.7, float32=15.7),
    "t4": GPU(16, bfloat16=8.1, float32=8.1),
    "rtx3090": GPU(24, bfloat16=71, float32=35.6),
    "rtx4090": GPU(24, bfloat16=165, float32=82.6),
}


@dataclass(frozen=True)
class TPU:
    """One generation of TPU, as the compiler sees it."""

    memory: float | int  # GiB of a device
    peak: float | int  # TFLOP/s of a device
    axes: int  # of a slice
    cores: int = 1  # devices per chip


TPUS = {
    "v4": TPU(memory=15.25, peak=137.5, axes=3, cores=2),
    "v5e": TPU(memory=15.75, peak=197, axes=2),
    "v5p": TPU(memory=95.74, peak=459, axes=3),
    "v6e": TPU(memory=31.25, peak=918, axes=2),
}


@dataclass(frozen=True)
class Hardware:
    """A machine to estimate the cost of a plan for.

    Attributes:
        devices: number of devices that may share a run.
        memory: bytes per device that a program may take.
        peak: FLOP/s per device, by dtype; empty for `cpu`, whose speed is measured.
        utilization: share of the peak that training reaches.
        slice: shape of a TPU slice in chips; empty for other hardware.
    """

    kind: Literal["cpu", "gpu", "tpu"]
    name: str
    devices: int
    memory: float | int
    peak: dict[DType, float] = field(default_factory=dict)
    utilization: float = UTILIZATION
    slice: tuple[int, ...] = ()

    def seconds(
        self,
        flops: float | int,
        dtype: DType,
        devices: int,
        utilization: float | int | None = None,
    ) -> float:
        """Seconds that a number of FLOPs takes.

        Args:
            devices: how many of the devices share the work.
            utilization: share of their peak that is reached; None for the default.

        Raises:
            ConfigError: the utilization is not in (0, 1], or no peak is known.
        """
        used = self.utilization if utilization is None else utilization
        if not 0 < used <= 1:
            raise ConfigError(f"utilization = {used}: must lie in (0, 1]")
        if not self.peak:
            raise ConfigError(
                f"hardware {self.name!r}: has no stated peak, its speed is measured"
            )
        return flops / (devices * self.peak[dtype] * used)


def parse_hardware(text: str) -> Hardware:
    """Hardware by name: `cpu`, `gpu:NAME` or `gpu:NAME:COUNT`, or a TPU slice such as
    `v5e:2x2` or `v5p:2x2x1`.

    Raises:
        ConfigError: the name is unknown, or the count or slice is impossible. The
        message names similar hardware, or all of it.
    """
    name = text.strip().lower()
    kind, _, rest = name.partition(":")
    if kind == "cpu" and not rest:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Hardware(kind="cpu", name="cpu", devices=1, memory=memory)
    if kind == "gpu":
        return _parse_gpu(text, rest)
    if kind in TPUS:
        return _parse_tpu_slice(text, kind, rest)
    if kind in GPUS:
        raise ConfigError(f"hardware {text!r}: unknown; did you mean 'gpu:{name}'?")
    examples = {"cpu": "cpu"}
    for gpu in GPUS:
        examples[f"gpu:{gpu}"] = f"gpu:{gpu}"
    for generation, tpu in TPUS.items():
        examples[generation] = f"{generation}:{_example_slice(tpu)}"
    hint = did_you_mean(kind, examples, most=3)
    raise ConfigError(f"hardware {text!r}: unknown; {hint}")


def _parse_gpu(text: str, rest: str) -> Hardware:
    """GPUs from `NAME` or `NAME:COUNT`; `text` is the whole name, for messages."""
    name, _, count = rest.partition(":")
    if name not in GPUS:
        hint = did_you_mean(name, {known: f"gpu:{known}" for known in GPUS}, most=3)
        raise ConfigError(f"hardware {text!r}: unknown; {hint}")
    if count and not re.fullmatch(r"[1-9]\d*", count):
        raise ConfigError(
            f"hardware {text!r}: the number of devices {count!r} must be a whole "
            f"number from 1"
        )
    gpu = GPUS[name]
    return Hardware(
        kind="gpu",
        name=f"gpu:{rest}",
        devices=int(count or 1),
        memory=GPU_SHARE * gpu.gigabytes * 1e9,
        peak={"bfloat16": gpu.bfloat16 * 1e12, "float32": gpu.float32 * 1e12},
    )


def _parse_tpu_slice(text: str, generation: str, rest: str) -> Hardware:
    """A TPU slice from its shape in chips, such as `2x2`."""
    tpu = TPUS[generation]
    shape_pattern = r"[1-9]\d*(x[1-9]\d*)" + f"{{{tpu.axes - 1}}}"
    if not re.fullmatch(shape_pattern, rest):
        raise ConfigError(
            f"hardware {text!r}: give a slice in chips with {tpu.axes} axes, "
            f"e.g. '{generation}:{_example_slice(tpu)}'"
        )
    shape = tuple(int(side) for side in rest.split("x"))
    return Hardware(
        kind="tpu",
        name=f"{generation}:{rest}",
        devices=math.prod(shape) * tpu.cores,
        memory=tpu.memory * _GIB,
        peak={"bfloat16": tpu.peak * 1e12, "float32": tpu.peak * 1e12},
        slice=shape,
    )


def _example_slice(tpu: TPU) -> str:
    return "2x2" if tpu.axes == 2 else "2x2x1"
