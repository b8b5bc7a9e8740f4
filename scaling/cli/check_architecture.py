"""The verb of the `scaling` command that checks an architecture: check-architecture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from scaling.cli.fit import Positional
from scaling.cli.output import print_json
from scaling.config import ArchitectureConfig, ConfigError
from scaling.config.architecture import find_config_class

_DEVICES = 8


def make_defaults(words: Sequence[str]) -> CheckArchitectureArgs | None:
    """The arguments of the verb before its flags are read, whose class depends on the
    architecture; None to show the help.

    Raises:
        ConfigError: the first word is no architecture.
    """
    if not words or words[0] in ("-h", "--help"):
        return None
    if words[0].startswith("-"):
        raise ConfigError(
            f"check-architecture {words[0]!r}: give the architecture first, as in "
            "check-architecture lstm --model.width 48"
        )
    return CheckArchitectureArgs(words[0], make_small_model(words[0]))


def make_small_model(name: str) -> ArchitectureConfig:
    """A small configuration of an architecture.

    Raises:
        ConfigError: there is no such architecture, or it does not accept these sizes.
    """
    cls = find_config_class(name, "architecture")
    return cls(width=32, depth=2, vocab=64, context=32, base_width=32)


@dataclass(frozen=True)
class CheckArchitectureArgs:
    """Check an architecture on small models: that no token is seen before its place, that
    strategies agree, that a resumed run equals an uninterrupted one, and more. It takes
    some minutes.

    Examples: scaling check-architecture lstm
              PYTHONPATH=. scaling check-architecture my_models:MyModel --model.width 48
    """

    architecture: Positional[str]
    """decoder, lstm, ..., or package.module:Class."""
    model: ArchitectureConfig
    """Sizes and options. The defaults are small."""
    json: Annotated[bool, tyro.conf.arg(help="Print the results as JSON.")] = False

    def __call__(self) -> int:
        import jax

        # As many virtual devices, unless this machine has an accelerator.
        jax.config.update("jax_num_cpu_devices", _DEVICES)

        from scaling.execution.conformance import check_architecture

        results = []
        for result in check_architecture(self.model):
            results.append(result)
            if not self.json:
                print(
                    f"{result.verdict:<7}  {result.law}: {result.finding}", flush=True
                )
        if self.json:
            print_json([dataclasses.asdict(result) for result in results])
        return int(any(result.verdict == "failed" for result in results))
