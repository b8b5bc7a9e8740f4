"""Units that a foreign table may be in, and their conversion to parameters, tokens,
FLOPs and nats per token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.suggestions import did_you_mean

COUNTS: dict[str, float] = {
    "ones": 1.0,
    "thousands": 1e3,
    "millions": 1e6,
    "billions": 1e9,
    "trillions": 1e12,
}
FLOPS: dict[str, float] = {
    "flops": 1.0,
    "gigaflops": 1e9,
    "teraflops": 1e12,
    "petaflops": 1e15,
    "exaflops": 1e18,
    "zettaflops": 1e21,
    "petaflop_days": 8.64e19,
}
LOSSES = ("nats", "bits", "perplexity")

# How headers write these units. Letters that two units could mean are left out: "m" is
# no million, and "TFLOP/s" is a rate.
_WRITTEN_COUNTS = {
    "ones": "ones",
    "thousands": "k|K|thousands?|1e3|10^3",
    "millions": "M|mn|millions?|1e6|10^6",
    "billions": "B|G|bn|billions?|1e9|10^9",
    "trillions": "T|tn|trillions?|1e12|10^12",
}
_WRITTEN_FLOPS = {
    "flops": "flops?",
    "gigaflops": "gflops?|gigaflops?|1e9|10^9",
    "teraflops": "tflops?|teraflops?|1e12|10^12",
    "petaflops": "pflops?|petaflops?|1e15|10^15",
    "exaflops": "eflops?|exaflops?|1e18|10^18",
    "zettaflops": "zflops?|zettaflops?|1e21|10^21",
    "petaflop_days": "pf-?days?|pflops?-?days?|pflop/s-?days?|petaflops?[-_]days?"
    "|petaflop/s-days?",
}
_WRITTEN_LOSSES = {
    "nats": "nats?",
    "bits": "bits?",
    "perplexity": "ppl|perplexity",
}
# What is counted, behind a unit: "M tokens", "nats/token".
_COUNTED = re.compile(
    r"(?P<unit>.*?)(?:\s+of)?\s*\b(?:params?|parameters?|tokens?|toks?)", re.IGNORECASE
)
_PER_TOKEN = re.compile(r"(?P<unit>.*?)\s*(?:/|\bper)\s*(?:token|tok)", re.IGNORECASE)
_BRACKETED = re.compile(
    r"(?P<name>.*\S)\s*(\((?P<round>[^()]+)\)|\[(?P<square>[^][]+)\])"
)


def check_units(units: Mapping[str, str], columns: Mapping[str, str]) -> dict[str, str]:
    """The units as given, if each is known and belongs to a column that was read.

    Args:
        units: canonical name -> unit.
        columns: canonical name -> source column.

    Raises:
        ValueError: a name has no column or takes no unit, or a unit is unknown. The
            message names the nearest ones.
    """
    without_unit = ("trunk", "seed", "weight", "loss_se")
    with_unit = [name for name in columns if name not in without_unit]
    for name, unit in units.items():
        if name == "loss_se":
            raise ValueError(
                f"units: loss_se={unit!r}; loss_se is in the unit of the loss: "
                "give units={'loss': ...}"
            )
        if name not in with_unit:
            raise ValueError(
                f"units: {name!r} is no column that was read; "
                + did_you_mean(name, with_unit, most=2)
            )
        known = list_units(name)
        if unit not in known:
            raise ValueError(
                f"units: {name}={unit!r} is no unit of {name}; "
                + did_you_mean(unit, known, most=2)
            )
    return dict(units)


def list_units(name: str) -> tuple[str, ...]:
    """The units that a canonical column may be in."""
    if name == "loss":
        return LOSSES
    return tuple(_unit_factors(name))


def split_header_unit(column: str) -> tuple[str, str]:
    """(name, text in the brackets at its end) of a column: "Params (M)" is Params, M.

    The text is "" where the name ends in no bracket.
    """
    found = _BRACKETED.fullmatch(column.strip())
    if found is None:
        return column, ""
    return found["name"], (found["round"] or found["square"]).strip()


def parse_unit(name: str, text: str) -> str | None:
    """The unit of a canonical column that a header writes so; None if it is none.

    Args:
        name: canonical name, such as "N".
        text: as "M", "B tokens" or "nats/token".
    """
    unit = text.strip().strip("()[]").strip()
    if name in ("loss", "loss_se"):
        found = _PER_TOKEN.fullmatch(unit)
        unit = unit if found is None else found["unit"]
        return _match_unit(unit, _WRITTEN_LOSSES, re.IGNORECASE)
    if name in ("C", "budget"):
        return _match_unit(unit, _WRITTEN_FLOPS, re.IGNORECASE)
    found = _COUNTED.fullmatch(unit)
    if found is not None:
        unit = found["unit"] or "ones"
    return _match_unit(unit, _WRITTEN_COUNTS)


def is_unit(text: str) -> bool:
    """Whether a text is a unit of some canonical column."""
    return any(parse_unit(name, text) is not None for name in ("N", "C", "loss"))


def join_header_units(
    units: Mapping[str, str], columns: Mapping[str, str], written: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The units that the caller gave and those that the header says, and notes on the
    latter.

    Args:
        units: canonical name -> unit, as the caller gave them.
        columns: canonical name -> source column.
        written: source column -> unit, as a row below the header writes it.

    Raises:
        ValueError: a header contradicts the caller or its own row of units.
    """
    joined = dict(units)
    notes: list[str] = []
    for name, column in columns.items():
        if name in ("trunk", "seed", "weight"):
            continue
        unit, text = _find_header_unit(name, column, written.get(column, ""))
        if unit is None:
            continue
        if name == "loss_se":
            _check_error_unit(column, unit, joined.get("loss", "nats"))
            continue
        stated = units.get(name, unit)
        if stated != unit:
            raise ValueError(
                f"units: {name}={stated!r}, but the header of {column!r} says {text!r},"
                f" {unit}; leave out the unit of {name}, or correct the header"
            )
        if name not in units:
            joined[name] = unit
            notes.append(f"{column} is in {unit}, as its header says")
    return joined, tuple(notes)


def _find_header_unit(name: str, column: str, below: str) -> tuple[str | None, str]:
    """(unit, as written) of a column by its name or by the row below it.

    Raises:
        ValueError: the two differ.
    """
    in_name = split_header_unit(column)[1]
    by_name = parse_unit(name, in_name) if in_name else None
    by_row = parse_unit(name, below) if below else None
    if by_name is not None and by_row is not None and by_name != by_row:
        raise ValueError(
            f"{column!r}: its name says {in_name!r} and the row below says {below!r}; "
            "correct one of them"
        )
    if by_name is not None:
        return by_name, in_name
    return by_row, below


def _check_error_unit(column: str, unit: str, loss_unit: str) -> None:
    if unit != loss_unit:
        raise ValueError(
            f"{column!r} is in {unit} and the loss in {loss_unit}; a standard error is "
            "in the unit of its loss: correct the header, or say units={'loss': ...}"
        )


def _match_unit(
    text: str, written: Mapping[str, str], flags: re.RegexFlag = re.NOFLAG
) -> str | None:
    for unit, spellings in written.items():
        if re.fullmatch(spellings.replace("^", r"\^"), text, flags):
            return unit
    return None


def convert_units(
    columns: Mapping[str, pd.Series], units: Mapping[str, str]
) -> dict[str, pd.Series]:
    """The columns in parameters, tokens, FLOPs and nats per token.

    A perplexity p is ln(p) nats and its standard error s is s/p nats. Bits are
    multiplied by ln 2.

    Args:
        columns: canonical name -> numbers as the source has them.
        units: canonical name -> unit, of the columns to convert. The column `loss_se`
            is converted with `loss`.
    """
    converted = dict(columns)
    for name, unit in units.items():
        if name == "loss":
            converted |= _convert_loss(columns, unit)
            continue
        factor = _unit_factors(name)[unit]
        if factor != 1:
            converted[name] = columns[name] * factor
    return converted


def _convert_loss(columns: Mapping[str, pd.Series], unit: str) -> dict[str, pd.Series]:
    """`loss`, and `loss_se` if the table has it, in nats per token."""
    loss = columns["loss"]
    error = columns.get("loss_se")
    converted: dict[str, pd.Series] = {}
    if unit == "bits":
        converted["loss"] = loss * math.log(2.0)
        if error is not None:
            converted["loss_se"] = error * math.log(2.0)
    elif unit == "perplexity":
        with np.errstate(divide="ignore", invalid="ignore"):
            converted["loss"] = pd.Series(np.log(loss.to_numpy()), index=loss.index)
        if error is not None:
            converted["loss_se"] = error / loss
    return converted


def _unit_factors(name: str) -> dict[str, float]:
    """Unit -> factor to parameters, tokens or FLOPs, of a column other than the loss."""
    return FLOPS if name in ("C", "budget") else COUNTS
