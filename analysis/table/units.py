"""Units that a foreign table may be in, and their conversion to parameters, tokens,
FLOPs and nats per token.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

COUNTS: dict[str, float] = {
    "ones": 1.0,
    "thousands": 1e3,
    "millions": 1e6,
    "billions": 1e9,
    "trillions": 1e12,
}
FLOPS: dict[str, float] = {
    "flops": 1.0,
    "teraflops": 1e12,
    "petaflops": 1e15,
    "exaflops": 1e18,
    "zettaflops": 1e21,
    "petaflop_days": 8.64e19,
}
LOSSES = ("nats", "bits", "perplexity")


def checked_units(
    units: Mapping[str, str], columns: Mapping[str, str]
) -> dict[str, str]:
    """`units` when each is known and belongs to a column that was read.

    Args:
        units: canonical name -> unit.
        columns: canonical name -> source column.

    Raises:
        ValueError: a name that has no column or takes no unit, or an unknown unit; the
        nearest are named.
    """
    able = [
        name for name in columns if name not in ("trunk", "seed", "weight", "loss_se")
    ]
    for name, unit in units.items():
        if name == "loss_se":
            raise ValueError(
                f"units: loss_se={unit!r}; loss_se is in the unit of the loss: give units={{'loss': ...}}"
            )
        if name not in able:
            raise ValueError(
                f"units: {name!r} is no column that was read{_near(name, able)}"
            )
        if unit not in (known := _known(name)):
            raise ValueError(
                f"units: {name}={unit!r} is no unit of {name}{_near(unit, known)}"
            )
    return dict(units)


def convert(
    read: Mapping[str, pd.Series], units: Mapping[str, str]
) -> dict[str, pd.Series]:
    """Numbers in parameters, tokens, FLOPs and nats per token, from numbers in `units`.

    A perplexity p is ln(p) nats, its standard error s is s/p nats; bits are multiplied
    by ln 2.
    """
    out = dict(read)
    for name, unit in units.items():
        if name == "loss":
            out |= _nats(read, unit)
        elif (factor := _factor(name, unit)) != 1:
            out[name] = read[name] * factor
    return out


def _nats(read: Mapping[str, pd.Series], unit: str) -> dict[str, pd.Series]:
    loss, error = read["loss"], read.get("loss_se")
    if unit == "bits":
        out = {"loss": loss * math.log(2.0)}
        return out if error is None else out | {"loss_se": error * math.log(2.0)}
    if unit == "perplexity":
        with np.errstate(divide="ignore", invalid="ignore"):
            out = {"loss": pd.Series(np.log(loss.to_numpy()), index=loss.index)}
        return out if error is None else out | {"loss_se": error / loss}
    return {}


def _known(name: str) -> tuple[str, ...]:
    if name == "loss":
        return LOSSES
    return tuple(FLOPS if name in ("C", "budget") else COUNTS)


def _factor(name: str, unit: str) -> float:
    return (FLOPS if name in ("C", "budget") else COUNTS)[unit]


def _near(word: str, known: tuple[str, ...] | list[str]) -> str:
    near = difflib.get_close_matches(word.lower(), known, n=2, cutoff=0.5)
    near = near or [name for name in known if name.lower() == word.lower()]
    return (
        f"; did you mean {' or '.join(near)}?"
        if near
        else f"; use one of: {', '.join(known)}"
    )
