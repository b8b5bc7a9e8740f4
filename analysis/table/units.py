"""Units that a foreign table may be in, and their conversion to parameters, tokens,
FLOPs and nats per token.
"""

from __future__ import annotations

import math
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
    "teraflops": 1e12,
    "petaflops": 1e15,
    "exaflops": 1e18,
    "zettaflops": 1e21,
    "petaflop_days": 8.64e19,
}
LOSSES = ("nats", "bits", "perplexity")


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
