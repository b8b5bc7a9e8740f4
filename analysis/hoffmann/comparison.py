"""Approaches 1, 2 and 3 of Hoffmann et al. 2022 (arXiv:2203.15556) side by side, and
how biased 1 and 2 are here.

Approach 1 takes the lowest of straight pieces between a few sizes, approach 2 a
parabola where the law is none:
both are biased by the grid of sizes even without noise. How much follows from the
fitted surface: the same procedure on the same (N, D, C), with the surface's own losses,
gives an answer whose truth is known.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.decisions.allocate import allocate, counted_flops_per_token
from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit
from analysis.hoffmann.envelope import Envelope, training_envelope
from analysis.hoffmann.isoflop import IsoFlop, isoflop, size_text

UNKNOWN = (np.nan, np.nan)


@dataclass(frozen=True, eq=False)
class Approaches:
    """The approaches side by side.

    Attributes:
        table: one row per approach: approach, rows, then a, b and N (parameters, the
        optimum at C) with
            a_low, a_high, ...: their intervals at `level`, NaN where unknown.
        bias: one row each for approaches 1 and 2, on the fitted surface without noise:
        a_surface and N_surface
            (what the procedure finds there), a_law and N_law (what the law has), a_bias
            (their difference) and N_bias_percent (100 (N_surface / N_law - 1)).
        disagreement: one row per pair of approaches: a_difference (first minus second),
        a_overlap (whether the
            intervals overlap; None where one is unknown), N_percent (first over second,
            minus 1), N_overlap.
        C: FLOPs at which N is compared. level: of the intervals.
        notes: why an approach is missing, and what limits the comparison.
    """

    table: pd.DataFrame
    bias: pd.DataFrame
    disagreement: pd.DataFrame
    C: float
    level: float
    notes: tuple[str, ...] = ()

    def records(self) -> dict[str, list[dict[str, Any]]]:
        """The three tables as plain data for JSON; unknown numbers are None."""

        def plain(value: Any) -> Any:
            value = value.item() if isinstance(value, np.generic) else value
            return (
                None if isinstance(value, float) and not np.isfinite(value) else value
            )

        frames = {
            "table": self.table,
            "bias": self.bias,
            "disagreement": self.disagreement,
        }
        return {
            name: [
                {str(k): plain(v) for k, v in row.items()}
                for row in frame.to_dict("records")
            ]
            for name, frame in frames.items()
        }

    def __str__(self) -> str:
        lines = [f"approaches at {self.C:.3g} FLOPs ({self.level:.0%} intervals)"]
        for row in self.table.to_dict("records"):
            a, b = (f"{row[v]:.3f}{_ends(row, v, '{:.3f}'.format)}" for v in ("a", "b"))
            N = size_text(row["N"]) + _ends(row, "N", size_text)
            lines.append(
                f"  {row['approach']:<22} {row['rows']:>4} rows: a = {a}, b = {b}, N* = {N}"
            )
        for row in self.bias.to_dict("records"):
            lines.append(
                f"  bias of approach {row['approach'][0]} on the fitted surface: a {row['a_bias']:+.4f}, "
                f"N* {row['N_bias_percent']:+.1f} %"
            )
        for row in self.disagreement.to_dict("records"):
            lines.append(
                f"  {row['pair']}: a differs by {row['a_difference']:+.3f} ({overlap_text(row['a_overlap'])}), "
                f"N* by {row['N_percent']:+.1f} % ({overlap_text(row['N_overlap'])})"
            )
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def overlap_text(overlap: bool | None) -> str:
    """What is known of two intervals, in words."""
    return (
        "interval unknown"
        if overlap is None
        else "intervals overlap"
        if overlap
        else "intervals do not overlap"
    )


def compare_approaches(
    iso: IsoFlop | None,
    fit: Fit,
    boot: Bootstrap | None = None,
    level: float = 0.90,
    *,
    envelope: Envelope | None = None,
    C: float | None = None,
) -> Approaches:
    """Exponents of N*(C) and D*(C) and the optimum at C by approaches 1, 2 and 3, their
    bias and disagreement.

    Args:
        iso, envelope: approach 2 and 1; made from the fitted rows when left out, and
        missing from the tables, with
            the reason among the notes, where those rows do not allow it.
        fit, boot: approach 3, whose a and b are those of the law under C = 6 N D.
        C: FLOPs at which N* is compared; the largest fitted when left out.

    Raises:
        ValueError: the fitted law has no exponents a and b, or C is not positive.
    """
    exponents = fit.derived()
    if not {"a", "b"} <= set(exponents):
        raise ValueError(
            f"law {fit.law.name!r} has no exponents a and b; fit law='chinchilla' for approach 3"
        )
    C = float(fit.compute.max() if C is None else C)
    if not (np.isfinite(C) and C > 0):
        raise ValueError(f"C is {C!r} FLOPs; it must be positive and finite")
    notes: list[str] = []
    envelope = envelope or _or_note(training_envelope, fit, "approach 1", notes)
    iso = iso or _or_note(isoflop, fit, "approach 2", notes)
    found = {"1, training envelope": envelope, "2, IsoFLOP parabolas": iso}
    present = {name: way for name, way in found.items() if way is not None}
    rows = [_power_law_row(name, way, C, level) for name, way in present.items()]
    surface = _surface_row(fit, boot, C, level, notes)
    bias = pd.DataFrame(
        [_bias_row(name, way, fit, surface, C) for name, way in present.items()],
        columns=pd.Index(_BIAS),
    )
    pairs = [
        _pair(first, second)
        for first, second in itertools.combinations([*rows, surface], 2)
    ]
    notes += _limits(fit) if pairs else []
    return Approaches(
        pd.DataFrame([*rows, surface]),
        bias,
        pd.DataFrame(pairs, columns=pd.Index(_PAIR)),
        C,
        level,
        tuple(notes),
    )


_BIAS = [
    "approach",
    "C",
    "a_surface",
    "a_law",
    "a_bias",
    "N_surface",
    "N_law",
    "N_bias_percent",
]
_PAIR = ["pair", "C", "a_difference", "a_overlap", "N_percent", "N_overlap"]


def _limits(fit: Fit) -> list[str]:
    """What a reader of the comparison should know."""
    notes = [
        "the approaches share their runs: intervals that overlap do not show that they agree"
    ]
    if counted_flops_per_token(fit) is not None:
        notes.append(
            "C is not 6 N D in these runs: a and b of approach 3 hold for C = 6 N D, those of approaches 1 and 2 for C "
            "as counted, and their bias holds that difference too; N* of all three is at C as counted"
        )
    return notes


def _or_note(make: Any, fit: Fit, name: str, notes: list[str]) -> Any:
    """The approach on the fitted rows, or None and a note that says why."""
    try:
        return make(pd.DataFrame(dict(fit.data)))
    except ValueError as error:
        text = str(error)
        notes.append(text if text.startswith(name) else f"{name}: {text}")
        return None


def _row(
    name: str,
    rows: int,
    C: float,
    values: Mapping[str, tuple[float, tuple[float, float]]],
) -> dict[str, Any]:
    out: dict[str, Any] = {"approach": name, "rows": rows, "C": C}
    for quantity, (value, (low, high)) in values.items():
        out |= {
            quantity: float(value),
            f"{quantity}_low": float(low),
            f"{quantity}_high": float(high),
        }
    return out


def _power_law_row(
    name: str, way: Envelope | IsoFlop, C: float, level: float
) -> dict[str, Any]:
    N, _ = way.optimum(C)
    ends, _ = way.optimum_interval(C, level)
    exponents = {v: (getattr(way, v), way.interval(v, level)) for v in ("a", "b")}
    return _row(
        name,
        len(way.runs),
        C,
        exponents | {"N": (float(N), (float(ends[0]), float(ends[1])))},
    )


def _surface_row(
    fit: Fit, boot: Bootstrap | None, C: float, level: float, notes: list[str]
) -> dict[str, Any]:
    exponents = fit.derived()
    values = {
        v: (exponents[v], boot.interval(v, level) if boot is not None else UNKNOWN)
        for v in ("a", "b")
    }
    try:
        best = allocate(fit, C, boot, counted_flops_per_token(fit), level)
        values["N"] = (best.N, best.intervals.get("N", UNKNOWN))
    except ValueError as error:
        notes.append(f"approach 3 has no optimum: {error}")
        values["N"] = (np.nan, UNKNOWN)
    return _row(f"3, {fit.law.name} surface", fit.protocol.n_rows, C, values)


def _bias_row(
    name: str, way: Envelope | IsoFlop, fit: Fit, surface: Mapping[str, Any], C: float
) -> dict[str, float | str]:
    """What the procedure of approach 1 or 2 makes of the fitted law's own losses at its
    rows, beside the law.
    """
    points = {v: way.runs[v].to_numpy(float) for v in fit.law.variables}
    found = way.refit(np.asarray(fit.predict(**points), float))
    N = float(np.exp(found["ln_G_N"] + found["a"] * np.log(C)))
    values = (
        found["a"],
        surface["a"],
        found["a"] - surface["a"],
        N,
        surface["N"],
        100 * (N / surface["N"] - 1),
    )
    return dict(zip(_BIAS, (name, C, *values), strict=True))


def _pair(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    def overlap(name: str) -> bool | None:
        ends = [
            row[f"{name}_{end}"] for row in (first, second) for end in ("low", "high")
        ]
        if not np.isfinite(ends).all():
            return None
        return bool(ends[0] <= ends[3] and ends[2] <= ends[1])

    return {
        "pair": f"{first['approach'][0]} and {second['approach'][0]}",
        "C": first["C"],
        "a_difference": first["a"] - second["a"],
        "a_overlap": overlap("a"),
        "N_percent": 100 * (first["N"] / second["N"] - 1),
        "N_overlap": overlap("N"),
    }


def _ends(row: Mapping[Any, Any], name: str, write: Any) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f" [{write(low)}, {write(high)}]" if np.isfinite([low, high]).all() else ""
