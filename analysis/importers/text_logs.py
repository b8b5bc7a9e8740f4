"""Runs from the text that trainers print, by one table of formats.

A new format is one row of `LOG_FORMATS`: its regular expressions, whose named groups
become columns, and a line for each, which the tests read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.importers.base import (
    HistoryKeeper,
    Importer,
    NamePattern,
    Row,
    TableBuilder,
    check_keep,
    check_path,
    join_parts,
    read_lines,
)
from analysis.suggestions import did_you_mean
from analysis.table.number_marks import read_number

LOG_SUFFIXES = (".log", ".txt", ".out")
"""Files of a folder that are read."""

# Colors of a terminal.
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_N = r"[-+0-9.,eEnaif]+"


@dataclass(frozen=True)
class LogFormat:
    """How a trainer prints its progress.

    Attributes:
        patterns: one for each kind of line; named groups are columns, `step` among
            them.
        samples: a line for each pattern.
        metrics: the losses among the columns.
    """

    patterns: tuple[str, ...]
    samples: tuple[str, ...]
    metrics: tuple[str, ...]


LOG_FORMATS: dict[str, LogFormat] = {
    "nanogpt": LogFormat(
        patterns=(
            rf"^iter (?P<step>\d+): loss (?P<loss>{_N})",
            rf"^step (?P<step>\d+): train loss (?P<train_loss>{_N}), "
            rf"val loss (?P<val_loss>{_N})",
        ),
        samples=(
            "iter 100: loss 3.2104, time 135.20ms, mfu 41.20%",
            "step 500: train loss 2.9871, val loss 3.0012",
        ),
        metrics=("loss", "train_loss", "val_loss"),
    ),
    "nanochat": LogFormat(
        patterns=(
            rf"^step (?P<step>\d+)/\d+ .*?\| loss: (?P<loss>{_N})",
            rf"^Step (?P<step>\d+) \| Validation bpb: (?P<val_bpb>{_N})",
        ),
        samples=(
            "step 00010/21400 (0.05%) | loss: 9.123456 | lrm: 1.00 | dt: 120.00ms",
            "Step 00250 | Validation bpb: 1.2345",
        ),
        metrics=("loss", "val_bpb"),
    ),
    "megatron": LogFormat(
        patterns=(
            rf"iteration\s+(?P<step>\d+)/\s*\d+ \| consumed samples:\s*"
            rf"(?P<samples>\d+) \|.*?learning rate: (?P<lr>{_N}) \|"
            rf".*?lm loss: (?P<loss>{_N})",
            # The loss on the test set has such a line too.
            rf"validation loss at iteration (?P<step>\d+) (?:on validation set )?\|"
            rf".*?lm loss value: (?P<val_loss>{_N})",
        ),
        samples=(
            " [2025-01-01 12:00:00] iteration      100/  500000 | consumed samples:"
            "        25600 | elapsed time per iteration (ms): 1234.5 | learning rate: "
            "1.500000E-04 | global batch size:   256 | lm loss: 6.543210E+00 | loss "
            "scale: 1.0 | grad norm: 1.234 |",
            " validation loss at iteration 1000 | lm loss value: 3.123456E+00 | lm "
            "loss PPL: 2.272466E+01 |",
        ),
        metrics=("loss", "val_loss"),
    ),
    "torchtitan": LogFormat(
        patterns=(
            rf"(?<!validate )step:\s*(?P<step>\d+)\s+loss:\s*(?P<loss>{_N})",
            rf"validate step:\s*(?P<step>\d+)\s+loss:\s*(?P<val_loss>{_N})",
        ),
        samples=(
            "[titan] 2025-01-01 00:00:00,000 - root - INFO - step: 10  loss:  7.1234  "
            "grad_norm:  1.2345  memory: 10.00GiB(10.53%)  tps: 5,000",
            "[titan] 2025-01-01 00:00:00,000 - root - INFO - validate step: 10  loss:  "
            "7.1021  memory: 10.00GiB(10.53%)  tps: 5,000",
        ),
        metrics=("loss", "val_loss"),
    ),
}
"""Format -> how its lines are read."""


def from_text_log(
    path: str | Path,
    format: str,
    names: str | None = None,
    metric: str | None = None,
    keep: str = "last",
) -> pd.DataFrame:
    """Runs from the text that a trainer printed: one file, or a folder of them.

    The columns are run_id, which is the file's path without suffix; trunk_id with
    `keep="all"`; the fields of the name; the named groups of the format's expressions,
    as numbers; and `status` if a file cannot be used, with the reason. Losses are in
    the trainer's own unit. Files are read line by line: of a long log only the kept
    rows are held. A step that was printed twice, by a run that was restarted, counts as
    it was printed last. A number at the very end of a file, without a line feed, is
    left out, since it may be the beginning of one.

    Args:
        path: a file, or a folder with .log, .txt and .out files below it.
        format: one of `LOG_FORMATS` ("nanogpt", "nanochat", "megatron", "torchtitan");
            or a regular expression whose named groups are columns, such as
            "step (?P<step>[0-9]+) loss (?P<loss>[0-9.]+)".
        names: pattern of the run_id, such as "d{depth}_w{width}".
        metric: the column that is last or lowest. It may be left out where a log has
            only one loss.
        keep: which rows of a run: the "last" with the metric, the one where it is
            "lowest", or "all".

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: an argument is wrong, there is no file, or none can be used.
    """
    root = check_path(path, "a log, or a folder of logs")
    log_format = _find_format(format)
    check_keep(keep)
    if metric is not None and metric not in log_format.metrics:
        raise ValueError(
            f"metric={metric!r} is no loss of format {format!r}; "
            + did_you_mean(metric, log_format.metrics)
        )
    pattern = None if names is None else NamePattern("names", names)
    files = [root]
    if root.is_dir():
        files = [one for one in root.rglob("*") if one.suffix in LOG_SUFFIXES]
    if not files:
        raise ValueError(
            f"{root}: no {', '.join(LOG_SUFFIXES)} file in it or below it; "
            "give the folder of the logs"
        )
    table = TableBuilder(str(root))
    for file in sorted(files):
        base = root if root.is_dir() else root.parent
        run_id = file.relative_to(base).with_suffix("").as_posix()
        own: Row = {"run_id": run_id}
        if keep == "all":
            own["trunk_id"] = run_id
        fields: Row = {}
        try:
            fields = fields if pattern is None else pattern.read(run_id)
            rows = _read_log(file, log_format, metric, keep)
        except (ValueError, OSError) as error:
            table.reject(own | fields, str(error))
            continue
        for row in rows:
            table.add(join_parts(own, name=fields, history=row))
    return table.build()


def _find_format(format: str) -> LogFormat:
    """The format of a name, or of a regular expression.

    Raises:
        ValueError: it is neither.
    """
    if format in LOG_FORMATS:
        return LOG_FORMATS[format]
    if "(?P<" not in format:
        raise ValueError(
            f"format={format!r} is no known format and has no named group; "
            f"{did_you_mean(format, LOG_FORMATS)} Or give a regular expression such as "
            "'step (?P<step>[0-9]+) loss (?P<loss>[0-9.]+)'"
        )
    try:
        groups = list(re.compile(format).groupindex)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(
            f"format={format!r:.80} is no regular expression: {error}"
        ) from None
    taken = [name for name in groups if name in ("run_id", "trunk_id", "status")]
    if taken:
        raise ValueError(
            f"format={format!r:.80}: {taken[0]} is a column of its own; "
            "call the group otherwise"
        )
    metrics = tuple(name for name in groups if name not in ("step", "tokens"))
    if not metrics:
        raise ValueError(
            f"format={format!r:.80} names no loss; name a group (?P<loss>)"
        )
    return LogFormat(patterns=(format,), samples=(), metrics=metrics)


def _read_log(
    path: Path, log_format: LogFormat, metric: str | None, keep: str
) -> list[Row]:
    """The kept rows of one file.

    Raises:
        ValueError: no line is of the format, or there is no such metric.
    """
    patterns = [re.compile(pattern) for pattern in log_format.patterns]
    history = HistoryKeeper(keep, metric, lambda name: name in log_format.metrics)
    n_read = 0
    for line in read_lines(path):
        text = _COLOR.sub("", line)
        for pattern in patterns:
            found = pattern.search(text)
            if found is None:
                continue
            if found.end() == len(text) and not text.endswith("\n"):
                # No line feed follows: the last number may have been cut off.
                break
            row = _read_groups(found)
            if row:
                history.add(row)
                n_read += 1
            break
    if n_read == 0:
        raise ValueError(f"no line of {path.name} is of the format")
    return history.rows()


def _read_groups(found: re.Match[str]) -> Row:
    """The named groups of a line as numbers; empty where one is none, as in a line that
    was cut off.
    """
    row: Row = {}
    for name, text in found.groupdict().items():
        if text is None:
            continue
        number = read_number(text.rstrip(",."), ".")
        if number is None:
            return {}
        row[name] = int(number) if name == "step" and number.is_integer() else number
    return row


IMPORTER = Importer(
    name="text-log",
    reads="what a trainer printed: nanoGPT, nanochat, Megatron-LM, torchtitan, or by a "
    "regular expression",
    read=from_text_log,
)
