"""Print tables, plans and answers of the command line, as text or as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from analysis import Expectation
    from scaling.config.conversion import JsonObject
    from scaling.data import NearDuplicates
    from scaling.planning.cost import CostEstimate
    from scaling.planning.plan import Plan


MAIN_COLUMNS = (
    "run_id",
    "status",
    "budget",
    "width",
    "depth",
    "n_matmul",
    "tokens",
    "flops",
    "loss",
    "loss_se",
    "bits_per_byte",
)
"""The columns of the run table that fit on a screen."""

_CELL_COLUMNS = ["budget", "width", "depth", "tokens"]
_DISTINGUISHING_COLUMNS = ("architecture", "seed", "lr")
"""They are shown too where runs of one cell differ in them."""


def print_json(value: object) -> None:
    """Print indented JSON. A number that is not finite becomes null, since JSON has
    none.
    """
    print(json.dumps(null_nonfinite(value), indent=1, allow_nan=False))


def null_nonfinite(value: Any) -> Any:
    """Plain data with null for every number that is not finite."""
    if isinstance(value, dict):
        return {name: null_nonfinite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [null_nonfinite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_records(table: pd.DataFrame) -> list[JsonObject]:
    """Rows as plain JSON data, floats to the last digit."""
    return json.loads(table.to_json(orient="records", double_precision=15) or "[]")


def print_table(table: pd.DataFrame, as_json: bool) -> None:
    """Print one row per line, or JSON records."""
    if as_json:
        print_json(to_records(table))
    else:
        print(table.to_string(index=False, float_format=lambda x: f"{x:.5g}"))


def select_main_columns(table: pd.DataFrame, also: Sequence[str] = ()) -> pd.DataFrame:
    """The columns of a run table that fit on a screen, those that tell its runs apart,
    and those in `also`.
    """
    names: list[str] = list(MAIN_COLUMNS)
    for name in (*_find_distinguishing_columns(table), *also, "reason"):
        if name in table.columns and name not in names:
            names.append(name)
    return table[names].assign(run_id=table["run_id"].str[:8])


def _find_distinguishing_columns(table: pd.DataFrame) -> list[str]:
    """Columns in which runs differ that are alike in budget, shape and tokens."""
    cells = table.groupby(_CELL_COLUMNS, dropna=False)
    found = []
    for name in _DISTINGUISHING_COLUMNS:
        if name not in table.columns:
            continue
        counts = cells[name].nunique().to_numpy(int)
        if counts.max(initial=0) > 1:
            found.append(name)
    return found


def print_duplicates(out: Path, table: pd.DataFrame) -> None:
    """Say on standard error which configurations stand twice in a folder's run table."""
    from scaling.store.duplicates import describe_duplicates, find_duplicate_runs

    duplicates = find_duplicate_runs(out, table)
    if duplicates:
        print(f"{out}: {describe_duplicates(duplicates)}", file=sys.stderr)


def print_pairs(pairs: Mapping[str, object]) -> None:
    """Print a line per name, with its value or, in columns, its list of values."""
    rows = [
        (name, value if isinstance(value, list) else [value])
        for name, value in pairs.items()
    ]
    wide = max((len(name) for name, _ in rows), default=0)
    columns = [
        max(len(format_value(v)) for v in column)
        for column in zip(*(v for _, v in rows), strict=True)
    ]
    for name, values in rows:
        line = "  ".join(
            format_value(v).ljust(w) for v, w in zip(values, columns, strict=True)
        )
        print(f"{name:<{wide}}  {line}".rstrip())


def print_curve(history: pd.DataFrame) -> None:
    """Print a run's training loss over tokens, both on logarithmic axes."""
    from scaling.cli.terminal_plot import draw_curve

    if not {"tokens", "loss"} <= set(history.columns):
        print("\nno metrics yet")
        return
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    points = history[["tokens", "loss"]].astype(float)
    lines = draw_curve(
        points["tokens"].tolist(),
        points["loss"].tolist(),
        braille=encoding.startswith("utf"),
    )
    if lines:
        print("\ntraining loss, nats per token, over tokens")
        print("\n".join(lines))


def _find_near_duplicates(plan: Plan) -> list[tuple[str, NearDuplicates]]:
    """The sources of a plan, each with its near-duplicates across the split."""
    from scaling.data import find_near_duplicates
    from scaling.data.text.reading import get_reading

    splits = {}
    for data in (run.data for run in plan):
        splits[data.source, get_reading(data), data.heldout_fraction] = data
    return [(data.source, find_near_duplicates(data)) for data in splits.values()]


def print_plan(
    plan: Plan,
    out: Path,
    *,
    timing: bool,
    workers: int | None,
    expected: Expectation | None = None,
    near_duplicates: bool = False,
    as_json: bool = False,
) -> None:
    """Print a plan's table of runs, the rejected sizes, what of its text cannot be used
    and, if asked, what of it is held out and nearly trained on, its FLOPs, the intervals
    that it is expected to give and its estimated time.
    """
    from scaling.execution.sweep import (
        drop_finished,
        estimate_seconds,
        prepare_data,
    )

    data = prepare_data(plan)
    table = plan.table(data.train_tokens)
    duplicates = _find_near_duplicates(plan) if near_duplicates else []
    seconds = estimate_seconds(plan, out, workers) if timing else None
    if as_json:
        rejected = []
        for run, reason in plan.skipped:
            entry = {
                "width": run.model.width,
                "budget": run.budget,
                "reason": reason,
            }
            rejected.append(entry)
        answer = {
            "runs": to_records(table),
            "refused": rejected,
            "flops": plan.flops,
            "expected": [] if expected is None else expected.to_records(),
            "seconds": seconds,
        }
        if near_duplicates:
            answer["near_duplicates"] = [
                {"source": source, **dataclasses.asdict(found)}
                for source, found in duplicates
            ]
        print_json(answer)
        return
    shown = table.drop(columns=["trunk_id"]).assign(run_id=table["run_id"].str[:8])
    seeds = [run.seed for run in plan.runs]
    if len(set(seeds)) > 1:
        shown.insert(1, "seed", seeds)
    print_table(shown, as_json=False)
    for run, reason in plan.skipped:
        print(f"rejected: budget {run.budget or float('nan'):.3g}, {reason}")
    repeated = sum(row["repeated_tokens"] > 0 for row in to_records(table))
    if repeated:
        print(f"{repeated} runs repeat tokens: the stream has {data.train_tokens:,}")
    for source, description in data.invalid.items():
        print(f"{source}: {description}")
    for source, found in duplicates:
        print(f"{source}: {found}")
    alone = table["flops"].sum()
    share = f"{plan.flops / alone:.0%} of training each alone"
    print(
        f"{len(plan)} runs on {len(plan.trunks())} trunks, {plan.flops:.3g} FLOPs "
        f"({share})"
    )
    if expected is not None:
        print(expected)
    if plan.rates_follow_tokens:
        print(
            "the learning rate of a size depends on its tokens, so that its runs share "
            "no trunk and each is trained from its start"
        )
    if seconds is not None:
        left = len(drop_finished(plan, out))
        print(f"{left} left to train: about {seconds / 60:.1f} minutes on this machine")


def print_rejected_widths(plan: Plan) -> None:
    """Say on standard error which sizes a plan leaves out, in a line for each budget."""
    widths: dict[float | None, list[int]] = {}
    for run, _ in plan.skipped:
        widths.setdefault(run.budget, []).append(run.model.width)
    for budget, rejected in widths.items():
        where = "" if budget is None else f" at {budget:.3g} FLOPs"
        named = ", ".join(str(width) for width in sorted(set(rejected)))
        print(
            f"rejected{where}: width {named}; `scaling plan` says why",
            file=sys.stderr,
        )


def print_cost(cost: CostEstimate, as_json: bool = False) -> None:
    """Print what a plan takes of some hardware.

    That is a row per shape, what would make each fit, the time, and where the numbers
    come from.
    """
    hardware = cost.hardware
    table = cost.table
    if as_json:
        answer = {
            "target": {
                "name": hardware.name,
                "devices": hardware.devices,
                "memory": hardware.memory,
                "peak": hardware.peak,
            },
            "shapes": to_records(table),
            "utilisation": cost.utilization,
            "seconds": cost.seconds,
            "rule": cost.rule,
        }
        print_json(answer)
        return
    shown = table.assign(GiB_per_device=table["bytes_per_device"] / 2**30)
    columns = [
        "width",
        "depth",
        "n_total",
        "batch_size",
        "micro_batch",
        "devices",
        "GiB_per_device",
        "fits",
    ]
    print_table(
        shown.loc[
            :, [*columns, "flops_per_step", "seconds_per_step", "steps", "seconds"]
        ],
        as_json=False,
    )
    for row in to_records(table.loc[~table["fits"]]):
        shape = f"width {row['width']}, depth {row['depth']}"
        if row["message"]:
            print(f"{shape}: {row['message']}")
        if row["remedy"] is None:
            print(
                f"{shape}: does not fit, even with remat, smaller micro-batches and "
                "fsdp "
                "over these devices"
            )
        else:
            gib = row["remedy_bytes"] / 2**30
            print(f"{shape}: fits with {row['remedy']}: {gib:.3g} GiB per device")
    fitting = f"{table['fits'].sum()} of {len(table)} shapes fit"
    memory = f"{hardware.devices} x {hardware.memory / 2**30:.4g} GiB"
    print(f"{hardware.name}: {memory}; {fitting}")
    if math.isfinite(cost.seconds):
        stated = ""
        if cost.utilization is not None:
            stated = f" at a utilization of {cost.utilization:g}"
        print(f"about {cost.seconds / 3600:.3g} hours{stated}")
    print(cost.rule)


def format_value(value: object) -> str:
    """A number to six digits, a list of them, or text."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(format_value(v) for v in value) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
