"""Programs compiled for devices that need not be here, and what they take: ahead of
time, in a process of its own.

For a TPU slice the real training chunk is compiled by `libtpu`, which needs no TPU
(`jax.experimental.topologies`); for `cpu` on as many virtual devices. A GPU's compiler
needs a GPU: see `scaling.planning.memory`. The process of its own keeps libtpu's
messages, its lock and its crashes out of the caller's, and may have another number of
devices.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

from scaling.config import ConfigError, RunConfig, from_dict, to_dict
from scaling.planning import libtpu
from scaling.planning.hardware import Target


@dataclass(frozen=True)
class Footprint:
    """Bytes that a training chunk takes of one device: what goes in, comes out, shares
    its place, and comes and goes.

    `refused` is the compiler's message where the program exceeds the device's memory;
    the total is then what the message states.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    refused: str | None = None

    @property
    def total(self) -> int:
        """All at once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


class Compiler:
    """A process that compiles training chunks for one target, `cpu` or a TPU; use as a
    context.

    Raises:
        ConfigError: a TPU target, and libtpu is not installed or knows no such slice.
    """

    def __init__(self, target: Target) -> None:
        if target.kind == "tpu" and not libtpu.installed():
            remedy = f"compiling for a TPU needs libtpu: pip install 'scaling[{libtpu.EXTRA}]'"
            raise ConfigError(f"target {target.name!r}: {remedy}")
        self.target = target

    def __enter__(self) -> Compiler:
        target = self.target
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={target.devices}".strip()
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        }
        tpu = target.kind == "tpu"
        environment |= (
            {**libtpu.QUIET, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
            if tpu
            else {"XLA_FLAGS": flags}
        )
        self._log = tempfile.TemporaryFile("w+")
        pipes: Any = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": self._log,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scaling.planning.aot", target.name if tpu else ""],
            text=True,
            env=environment,
            **pipes,
        )
        return self

    def __exit__(self, *error: Any) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def footprint(
        self, run: RunConfig, devices: int, sharded: bool = False
    ) -> Footprint:
        """What the training chunk of a run takes of each of `devices` devices of the
        target.

        Data-parallel, the batch split over the devices; `sharded` splits parameters and
        the optimiser's state too.

        Raises:
            ConfigError: libtpu knows no such slice.
            RuntimeError: the compiler failed for another reason than memory.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        job = {"run": to_dict(run), "devices": devices, "sharded": sharded}
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            raise RuntimeError(
                f"the compiler for {self.target.name!r} died:\n{self._log.read()[-2000:]}"
            )
        answer = json.loads(line)
        if "topology" in answer:
            raise ConfigError(f"target {self.target.name!r}: {answer['topology']}")
        if "error" in answer:
            raise RuntimeError(
                f"compiling for {self.target.name!r} failed: {answer['error']}"
            )
        return Footprint(**answer)


# --- in the process of its own ----------------------------------------------------------------------------------


def main() -> None:
    """Read jobs as JSON lines, write footprints as JSON lines; the argument names a TPU
    slice, or is empty for CPU.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the log, not among the answers
    try:
        devices, failure = _devices(sys.argv[1]), None
    except Exception as error:  # of the slice; told with the first job
        devices, failure = [], f"{error}"
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = (
                {"topology": failure}
                if failure
                else _footprint(job, devices[: job["devices"]])
            )
        except Exception as error:  # whatever it is, the caller hears its name
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


def _devices(name: str) -> list[Any]:
    """The devices of a TPU slice, taken as one host's; without a name, this process'
    CPU devices.
    """
    import jax
    from jax.experimental import topologies

    if not name:
        return jax.devices("cpu")
    shape = [int(side) for side in name.partition(":")[2].split("x")]
    bounds = shape + [1] * (3 - len(shape))
    return list(
        topologies.get_topology_desc(
            name, platform="tpu", chips_per_host_bounds=bounds
        ).devices
    )


def _footprint(job: dict[str, Any], devices: list[Any]) -> dict[str, Any]:
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
        return dataclasses.asdict(_refusal(str(error), lowered.argument_bytes))
    kinds = ("argument", "output", "alias", "temp")
    return dataclasses.asdict(
        Footprint(*(getattr(stats, f"{kind}_size_in_bytes") for kind in kinds))
    )


def _refusal(message: str, arguments: int) -> Footprint:
    """The compiler's words: '... total memory required for HLO temporaries (20.42G)
    exceeds ...'.

    Whatever they call it, the figure includes the arguments: for a program that needs
    nothing else it is their size.
    """
    text = message.partition("\n")[0]
    found = re.search(r"\(([\d.]+)([KMGT])\)", text)
    scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    stated = round(float(found[1]) * scale[found[2]]) if found else 0
    return Footprint(arguments, 0, 0, max(0, stated - arguments), text)


if __name__ == "__main__":
    main()
