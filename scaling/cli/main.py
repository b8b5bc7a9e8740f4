"""The `scaling` command: from a command line to a verb.

The verbs are in the other modules of `scaling.cli`, of which only the one that is asked
for is imported. This package alone uses `analysis`, and imports it lazily: a verb that
fits does not load Flax, and a verb that trains does not load the fitting code. Exit
status: 0 done; 1 the data cannot carry the answer; 2 wrong usage or configuration; 3
some runs failed, the others are kept; 130 interrupted, the same command resumes.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

VERBS = {  # verb -> module of scaling.cli, and the class of its arguments
    "plan": "plan_sweep.PlanArgs",
    "sweep": "plan_sweep.SweepArgs",
    "auto": "auto_sweep.AutoArgs",
    "check-architecture": "check_architecture.CheckArchitectureArgs",
    "runs": "runs.RunsArgs",
    "show": "runs.ShowArgs",
    "diff": "runs.DiffArgs",
    "watch": "runs.WatchArgs",
    "track": "runs.TrackArgs",
    "generate": "models.GenerateArgs",
    "evaluate": "models.EvaluateArgs",
    "inference-cost": "models.InferenceCostArgs",
    "finetune": "finetune.FinetuneArgs",
    "export": "export.ExportArgs",
    "import": "export.ImportArgs",
    "compress": "compress.CompressArgs",
    "prune-checkpoints": "models.PruneCheckpointsArgs",
    "import-runs": "import_runs.ImportRunsArgs",
    "review": "review.ReviewArgs",
    "laws": "laws.LawsArgs",
    "fit": "fit.FitArgs",
    "plot": "fit.PlotArgs",
    "report": "fit.ReportArgs",
    "fit-curves": "fit_curves.FitCurvesArgs",
    "predict": "predict.PredictArgs",
    "suggest": "predict.SuggestArgs",
    "compare": "predict.CompareArgs",
    "audit": "predict.AuditArgs",
    "optimum": "optimum.OptimumArgs",
}
GROUPS = {
    "train": ("plan", "sweep", "auto"),
    "look at runs": ("runs", "show", "diff", "watch", "track"),
    "use a model": (
        "generate",
        "evaluate",
        "inference-cost",
        "finetune",
        "compress",
        "export",
        "import",
        "prune-checkpoints",
    ),
    "fit": (
        "import-runs",
        "review",
        "laws",
        "optimum",
        "fit",
        "plot",
        "report",
        "fit-curves",
    ),
    "use a fit": ("predict", "suggest", "compare", "audit"),
    "bring an architecture": ("check-architecture",),
    "reproduce": ("reproduce",),
}
SHORT_FLAGS = {  # of the verbs that train
    "--data": "--data.source",
    "--architecture": "--model.architecture",
}
RENAMED = {"next": "suggest"}  # verbs of the last release; they go with the next one
# Objects after which a verb that fits looks for unreachable ones. Its imports make some
# hundred thousand that stay, and looking at each, as Python does after every 700, takes a
# sixth of their time.
COLLECT_AFTER = 1_000_000

REPRODUCTIONS = {
    "documents": "scaling reproduce documents [--quick | --full] [--claims S1 S2 ...]",
    "literature": "scaling reproduce literature --data-dir DIR",
}


def expand_flag(word: str) -> str:
    """A word of a command line, with a short flag written out: --data X or --data=X."""
    flag, separator, value = word.partition("=")
    return SHORT_FLAGS.get(flag, flag) + separator + value


def load_verb(name: str) -> type:
    """The class of a verb's arguments."""
    module, _, arguments = VERBS[name].partition(".")
    return getattr(importlib.import_module(f"scaling.cli.{module}"), arguments)


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
    from scaling.config import ConfigError

    if not argv or argv[0] not in REPRODUCTIONS:
        asked = argv[0] if argv else ""
        usages = "; ".join(f"`{usage}`" for usage in REPRODUCTIONS.values())
        raise ConfigError(f"reproduce {asked!r}: unknown; there is {usages}")
    module: Any = importlib.import_module(f"experiments.{argv[0]}.reproduce")
    return module.main(list(argv[1:])) or 0


def format_usage() -> str:
    """The verbs by group, each with the first sentence of its docstring."""
    lines = ["usage: scaling VERB [--help] ...", "       scaling --version"]
    width = max(len(name) for names in GROUPS.values() for name in names)
    for group, names in GROUPS.items():
        lines += ["", f"{group}:"]
        for name in names:
            verb: Any = run_reproduction if name == "reproduce" else load_verb(name)
            text = " ".join((verb.__doc__ or "").split())
            summary = text.partition(". ")[0].partition(" Example")[0].rstrip(".")
            lines += textwrap.wrap(
                f"  {name:<{width}} {summary}.",
                width=88,
                subsequent_indent=" " * (width + 3),
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
        from scaling.config.suggestions import did_you_mean

        hint = did_you_mean(name, [*VERBS, "reproduce"], label="verbs")
        print(f"unknown verb {name!r}; {hint}\n\n{format_usage()}", file=sys.stderr)
        raise SystemExit(2)
    import tyro

    verb = load_verb(name)
    options: dict[str, Any] = {}
    if name in GROUPS["train"]:
        from scaling.cli.plan_sweep import read_preset

        rest = [expand_flag(word) for word in rest]
        options["default"] = verb(config=read_preset(rest))
    if name == "check-architecture":
        from scaling.cli.check_architecture import make_defaults

        options["default"] = make_defaults(rest)
    return tyro.cli(verb, args=rest, prog=f"scaling {name}", **options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of this process; returns its exit status."""
    if argv is None:
        argv = sys.argv[1:]
        if argv and argv[0] in (*GROUPS["fit"], *GROUPS["use a fit"]):
            gc.set_threshold(COLLECT_AFTER)
    try:
        return parse_command(argv)()
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return 130
    except (OSError, ValueError, RuntimeError) as error:
        return report_error(error)


def report_error(error: Exception) -> int:
    """Print what went wrong and return the exit status."""
    from scaling.config import ConfigError
    from scaling.data import DataError
    from scaling.store.files import StoreError

    if isinstance(error, ConfigError | DataError | StoreError | FileNotFoundError):
        status = 2
    else:
        status = 1 if isinstance(error, ValueError) else 3
    text = str(error)
    if isinstance(error, OSError) and status == 3:
        from scaling.execution.base import explain_error

        text = explain_error(error)
    print(f"scaling: {text}", file=sys.stderr)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
