"""Training programs compiled ahead of time for devices that need not be present, and
the memory they take.

For a TPU slice `libtpu` compiles the real training chunk, which needs no TPU
(`jax.experimental.topologies`); for `cpu` the chunk is compiled for as many virtual
devices. A GPU's compiler needs a GPU: see `scaling.planning.memory`. Compilation runs
in a child process. That keeps libtpu's messages, its lock and its crashes away from the
caller, and the child may have another number of devices.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from scaling.config import ConfigError, RunConfig, from_dict, to_dict
from scaling.planning import libtpu
from scaling.planning.hardware import Hardware
from scaling.training.child import Child, make_python_command, open_output_for_messages

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Footprint:
    """Bytes that a training chunk takes of one device.

    Attributes:
        aliased: bytes of outputs that reuse the memory of arguments.
        rejection: the compiler's message where the program exceeds the memory of the
            device; `total` is then the size that the message states.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    rejection: str | None = None

    @property
    def total(self) -> int:
        """Bytes that are in use at once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


class Compiler:
    """A child process that compiles training chunks for `cpu` or a TPU slice; use it as
    a context.

    Raises:
        ConfigError: the hardware is a TPU and libtpu is not installed.
    """

    def __init__(self, hardware: Hardware) -> None:
        if hardware.kind == "tpu" and not libtpu.is_installed():
            raise ConfigError(
                f"hardware {hardware.name!r}: compiling for a TPU needs libtpu: "
                f"pip install 'scaling[{libtpu.EXTRA}]'"
            )
        self.hardware = hardware

    def __enter__(self) -> Compiler:
        variables = {
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        }
        if self.hardware.kind == "tpu":
            slice_name = self.hardware.name
            variables |= {**libtpu.QUIET, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        else:
            slice_name = ""
            flags = os.environ.get("XLA_FLAGS", "")
            count = f"--xla_force_host_platform_device_count={self.hardware.devices}"
            variables["XLA_FLAGS"] = f"{flags} {count}".strip()
        self._log = tempfile.TemporaryFile("w+")
        command = make_python_command("scaling.planning.aot", slice_name)
        self._child = Child(command, self._log, variables)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._child.kill()
        self._log.close()

    def footprint(
        self, run: RunConfig, devices: int, sharded: bool = False
    ) -> Footprint:
        """What the training chunk of a run takes of each device.

        Args:
            devices: number of devices that share the batch.
            sharded: whether they split parameters and optimizer state too.

        Raises:
            ConfigError: libtpu knows no such slice.
            RuntimeError: the compiler failed for another reason than memory.
        """
        name = self.hardware.name
        job = {"run": to_dict(run), "devices": devices, "sharded": sharded}
        self._child.send(job)
        answer = self._child.receive()
        if answer is None:
            self._log.seek(0)
            raise RuntimeError(
                f"the compiler for {name!r} died:\n{self._log.read()[-2000:]}"
            )
        if "topology" in answer:
            raise ConfigError(f"hardware {name!r}: {answer['topology']}")
        if "error" in answer:
            raise RuntimeError(f"compiling for {name!r} failed: {answer['error']}")
        return Footprint(**answer)


# --- the child process ----------------------------------------------------------------


def main() -> None:
    """Read jobs as JSON lines and write footprints as JSON lines.

    The argument names a TPU slice, or is empty for CPU.
    """
    answers = open_output_for_messages()
    devices: list[Any] = []
    failure: str | None = None
    try:
        devices = _find_devices(sys.argv[1])
    except Exception as error:  # the slice is unknown: answer every job with it
        failure = f"{error}"
    for line in sys.stdin:
        job = json.loads(line)
        answer: dict[str, Any]
        if failure:
            answer = {"topology": failure}
        else:
            try:
                footprint = _compile_footprint(job, devices[: job["devices"]])
                answer = dataclasses.asdict(footprint)
            except Exception as error:  # the caller raises it, the child lives on
                answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


def _find_devices(slice_name: str) -> list[Any]:
    """The devices of a TPU slice, as if one host had them all; without a name, the CPU
    devices of this process.
    """
    import jax
    from jax.experimental import topologies

    if not slice_name:
        return jax.devices("cpu")
    shape = [int(side) for side in slice_name.partition(":")[2].split("x")]
    bounds = shape + [1] * (3 - len(shape))
    topology = topologies.get_topology_desc(
        slice_name, platform="tpu", chips_per_host_bounds=bounds
    )
    return list(topology.devices)


def _compile_footprint(job: dict[str, Any], devices: list[Any]) -> Footprint:
    import jax

    from scaling.training.loop import LoopConfig
    from scaling.training.lowering import lower_for_devices

    run = from_dict(RunConfig, job["run"])
    lowered = lower_for_devices(run, devices, LoopConfig().chunk_steps, job["sharded"])
    try:
        stats: Any = lowered.stages.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _read_rejection(str(error), lowered.argument_bytes)
    return Footprint(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
    )


def _read_rejection(message: str, arguments: int) -> Footprint:
    """A footprint from the compiler's message, which says '... total memory required
    for HLO temporaries (20.42G) exceeds ...'.

    The stated size includes the arguments, although the message speaks of temporaries:
    for a program that needs nothing else it is the size of the arguments.
    """
    text = message.partition("\n")[0]
    found = re.search(r"\(([\d.]+)([KMGT])\)", text)
    stated = round(float(found[1]) * _UNITS[found[2]]) if found else 0
    return Footprint(
        arguments=arguments,
        outputs=0,
        aliased=0,
        temporaries=max(0, stated - arguments),
        rejection=text,
    )


if __name__ == "__main__":
    main()
