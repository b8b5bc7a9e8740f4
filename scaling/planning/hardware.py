"""Machines that a plan may be priced for: their devices, memory and peak speed. No JAX
is loaded here.

Peaks are of dense matrix products accumulated in float32, without sparsity, at the
precision that JAX uses by default: float32 products run as TF32 on NVIDIA GPUs from
Ampere on and as one bfloat16 pass on TPUs (documentation of `jax.lax.Precision`). GPUs
without bfloat16 units (V100, T4) multiply bfloat16 as float32.

Sources, all of the vendors:

* A100, H100, H200, L4, L40S, V100, T4: NVIDIA's data sheet of each, where a footnote
marks figures with sparsity: they
  are halved here. B200: the HGX B200 data sheet, an eighth of the eight GPUs' figures,
  halved likewise.
* RTX 3090 and 4090: NVIDIA Ada GPU architecture whitepaper, appendix A.
* TPUs: Google Cloud's "TPU architecture" page of each generation, peak bfloat16 and HBM
per chip. The memory is
  what the compiler leaves to a program, by its own message where one is too large
  (libtpu 0.0.42.1). A v4 chip is two devices, one per core, as the compiler's topology
  has it, each with half the chip's memory and speed.
* Utilisation: large runs report 38-43 % of peak on H100 (Llama 3, arXiv:2407.21783,
table 4) and 46 % on TPU v4 (PaLM,
  arXiv:2204.02311, section 4.1). 40 % is the default, and a guess for models as small
  as most here.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from scaling.config import ConfigError, DType

UTILISATION = 0.4
GPU_SHARE = 0.75  # of a GPU's memory JAX takes for its programs, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise
_GIB = 2**30

# Name: memory in GB (10^9 bytes), peak TFLOP/s in bfloat16 and in float32.
GPUS: dict[str, tuple[float | int, float | int, float | int]] = {
    "a100-40gb": (40, 312, 156),
    "a100-80gb": (80, 312, 156),
    "h100": (80, 989, 495),  # SXM
    "h100-pcie": (80, 756, 378),
    "h200": (141, 989, 495),
    "b200": (180, 2250, 1125),
    "l4": (24, 121, 60),
    "l40s": (48, 362, 183),
    "v100-16gb": (16, 15.7, 15.7),  # SXM
    "v100-32gb": (32, 15.7, 15.7),
    "t4": (16, 8.1, 8.1),
    "rtx3090": (24, 71, 35.6),
    "rtx4090": (24, 165, 82.6),
}


@dataclass(frozen=True)
class TPU:
    """One generation of TPU, as the compiler sees it."""

    memory: float | int  # GiB of a device
    peak: float | int  # TFLOP/s of a device
    axes: int  # of a slice
    cores: int = 1  # devices per chip


TPUS = {
    "v4": TPU(15.25, 137.5, 3, 2),
    "v5e": TPU(15.75, 197, 2),
    "v5p": TPU(95.74, 459, 3),
    "v6e": TPU(31.25, 918, 2),
}


@dataclass(frozen=True)
class Target:
    """A machine to price a plan for.

    `memory` is in bytes per device, what a program may take; `peak` in FLOP/s per
    device, empty for `cpu`, whose speed is measured. `slice` is the shape of a TPU
    slice in chips.
    """

    kind: Literal["cpu", "gpu", "tpu"]
    name: str
    devices: int
    memory: float | int
    peak: dict[DType, float] = field(default_factory=dict)
    utilisation: float = UTILISATION
    slice: tuple[int, ...] = ()

    def seconds(
        self,
        flops: float | int,
        dtype: DType,
        devices: int,
        utilisation: float | int | None = None,
    ) -> float:
        """Seconds for so many FLOPs on `devices` of the devices, at a share
        `utilisation` of their peak.

        Raises:
            ConfigError: the utilisation is not in (0, 1], or the target states no peak.
        """
        used = self.utilisation if utilisation is None else utilisation
        if not 0 < used <= 1:
            raise ConfigError(f"utilisation = {used}: must lie in (0, 1]")
        if not self.peak:
            raise ConfigError(
                f"target {self.name!r}: no peak is stated, its speed is measured"
            )
        return flops / (devices * self.peak[dtype] * used)


def parse_target(text: str) -> Target:
    """A target by name: `cpu`, `gpu:NAME` or `gpu:NAME:COUNT`, or a TPU slice such as
    `v5e:2x2` or `v5p:2x2x1`.

    Raises:
        ConfigError: an unknown name, with those near it or all of them, or an
        impossible count or slice.
    """
    kind, _, rest = text.strip().lower().partition(":")
    if kind == "cpu" and not rest:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Target("cpu", "cpu", 1, memory)
    if kind == "gpu":
        return _gpu(text, rest)
    if kind in TPUS:
        return _slice(text, kind, rest)
    names = [
        "cpu",
        *(f"gpu:{name}" for name in GPUS),
        *(f"{name}:{_example(tpu)}" for name, tpu in TPUS.items()),
    ]
    if kind in GPUS:
        raise ConfigError(
            f"target {text!r}: unknown; did you mean 'gpu:{text.strip().lower()}'?"
        )
    raise ConfigError(
        f"target {text!r}: unknown; {_near(kind, {n.partition(':')[0]: n for n in names}, names)}"
    )


def _gpu(text: str, rest: str) -> Target:
    name, _, count = rest.partition(":")
    if name not in GPUS:
        raise ConfigError(
            f"target {text!r}: unknown; {_near(name, {n: f'gpu:{n}' for n in GPUS}, list(GPUS))}"
        )
    if count and not re.fullmatch(r"[1-9]\d*", count):
        raise ConfigError(
            f"target {text!r}: the number of devices {count!r} must be a whole number from 1"
        )
    gigabytes, bfloat16, float32 = GPUS[name]
    peak: dict[DType, float] = {"bfloat16": bfloat16 * 1e12, "float32": float32 * 1e12}
    return Target(
        "gpu", f"gpu:{rest}", int(count or 1), GPU_SHARE * gigabytes * 1e9, peak
    )


def _slice(text: str, name: str, rest: str) -> Target:
    tpu = TPUS[name]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)" + f"{{{tpu.axes - 1}}}", rest):
        remedy = (
            f"give a slice in chips with {tpu.axes} axes, e.g. '{name}:{_example(tpu)}'"
        )
        raise ConfigError(f"target {text!r}: {remedy}")
    shape = tuple(map(int, rest.split("x")))
    peak: dict[DType, float] = {"bfloat16": tpu.peak * 1e12, "float32": tpu.peak * 1e12}
    return Target(
        "tpu",
        f"{name}:{rest}",
        math.prod(shape) * tpu.cores,
        tpu.memory * _GIB,
        peak,
        slice=shape,
    )


def _example(tpu: TPU) -> str:
    return "2x2" if tpu.axes == 2 else "2x2x1"


def _near(word: str, known: dict[str, Any], names: list[str]) -> str:
    """What was meant perhaps, else all that there is."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    near = near or [name for name in known if word and name.startswith(word)]
    return (
        f"did you mean {' or '.join(repr(known[n]) for n in near)}?"
        if near
        else f"known: {', '.join(names)}"
    )
