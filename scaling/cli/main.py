"""The `scaling` command: from a command line to a verb.

The verbs are in the other modules of `scaling.cli`. This package alone uses `analysis`,
and imports it lazily: a verb that fits does not load Flax, and a verb that trains does
not load the fitting code. Exit status: 0 done; 1 the data cannot carry the answer;
2 wrong usage or configuration; 3 some runs failed, the others are kept;
130 interrupted, the same command resumes.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from scaling.cli.auto_sweep import AutoArgs
from scaling.cli.fit import FitArgs, PlotArgs, ReportArgs
from scaling.cli.plan_sweep import PlanArgs, SweepArgs, read_preset
from scaling.cli.predict import AuditArgs, CompareArgs, PredictArgs, SuggestArgs
from scaling.cli.runs import DiffArgs, RunsArgs, ShowArgs, TrackArgs, WatchArgs
from scaling.config import ConfigError
from scaling.suggestions import did_you_mean

VERBS: dict[str, type] = {
    "plan": PlanArgs,
    "sweep": SweepArgs,
    "auto": AutoArgs,
    "runs": RunsArgs,
    "show": ShowArgs,
    "diff": DiffArgs,
    "watch": WatchArgs,
    "track": TrackArgs,
    "fit": FitArgs,
    "plot": PlotArgs,
    "report": ReportArgs,
    "predict": PredictArgs,
    "suggest": SuggestArgs,
    "compare": CompareArgs,
    "audit": AuditArgs,
}
GROUPS = {
    "train": ("plan", "sweep", "auto"),
    "look at runs": ("runs", "show", "diff", "watch", "track"),
    "fit": ("fit", "plot", "report"),
    "use a fit": ("predict", "suggest", "compare", "audit"),
    "reproduce": ("reproduce",),
}
SHORT_FLAGS = {"--data": "--data.source"}  # of the verbs that train
RENAMED = {"next": "suggest"}  # verbs of the last release; they go with the next one

REPRODUCTIONS = {
    "documents": "scaling reproduce documents [--quick | --full] [--claims S1 S2 ...]",
    "literature": "scaling reproduce literature --data-dir DIR",
}


def run_reproduction(argv: Sequence[str]) -> int:
    """Reproduce published claims: `documents` tests those of five documents,
    `literature` refits scaling laws.

    Examples: scaling reproduce documents --quick
              scaling reproduce literature --data-dir DIR

    Raises:
        ConfigError: neither of the two.
    """
    if argv and argv[0] in ("-h", "--help"):
        text = run_reproduction.__doc__ or ""
        print(text.partition("Raises:")[0].rstrip())
        return 0
    if not argv or argv[0] not in REPRODUCTIONS:
        asked = argv[0] if argv else ""
        usages = "; ".join(f"`{usage}`" for usage in REPRODUCTIONS.values())
        raise ConfigError(f"reproduce {asked!r}: unknown; there is {usages}")
    module: Any = importlib.import_module(f"experiments.{argv[0]}.reproduce")
    return module.main(list(argv[1:])) or 0


def format_usage() -> str:
    """The verbs by group, each with the first sentence of its docstring."""
    verbs: dict[str, Any] = {**VERBS, "reproduce": run_reproduction}
    lines = ["usage: scaling VERB [--help] ...", "       scaling --version"]
    for group, names in GROUPS.items():
        lines += ["", f"{group}:"]
        for name in names:
            text = " ".join((verbs[name].__doc__ or "").split())
            summary = text.partition(". ")[0].partition(" Example")[0].rstrip(".")
            lines += textwrap.wrap(
                f"  {name:<9} {summary}.", width=88, subsequent_indent=" " * 12
            )
    return "\n".join(lines) + "\n"


def format_versions() -> str:
    """The versions of this package and of what it trains with, without importing them."""
    packages = ("scaling", "jax", "flax", "optax")
    return "\n".join(f"{name} {_find_version(name)}" for name in packages)


def _find_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def parse_command(argv: Sequence[str]) -> Callable[[], int]:
    """The verb that a command line asks for, with its arguments.

    Raises:
        SystemExit: wrong usage (2), `--help` or `--version` (0).
        ConfigError: an unknown preset, or one with an unknown key.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(format_usage(), end="")
        raise SystemExit(0 if argv else 2)
    if argv[0] == "--version":
        print(format_versions())
        raise SystemExit(0)
    name, rest = argv[0], list(argv[1:])
    if name == "reproduce":
        return lambda: run_reproduction(rest)
    if name in RENAMED:
        new = RENAMED[name]
        print(f"scaling {name} is now `scaling {new}`; use that", file=sys.stderr)
        name = new
    if name not in VERBS:
        hint = did_you_mean(name, [*VERBS, "reproduce"], label="verbs")
        print(f"unknown verb {name!r}; {hint}\n\n{format_usage()}", file=sys.stderr)
        raise SystemExit(2)
    verb = VERBS[name]
    options: dict[str, Any] = {}
    if name in GROUPS["train"]:
        rest = [SHORT_FLAGS.get(word, word) for word in rest]
        options["default"] = verb(config=read_preset(rest))
    return tyro.cli(verb, args=rest, prog=f"scaling {name}", **options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status."""
    from scaling.data import DataError
    from scaling.store.files import StoreError

    try:
        return parse_command(sys.argv[1:] if argv is None else argv)()
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return 130
    except (ConfigError, DataError, StoreError, FileNotFoundError) as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        from scaling.execution.base import explain_error

        print(f"scaling: {explain_error(error)}", file=sys.stderr)
        return 3
    except ValueError as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    raise SystemExit(main())
