"""Approaches 1, 2 and 3 of Hoffmann et al. 2022 (arXiv:2203.15556) side by side, and
how biased approaches 1 and 2 are on these runs.

Approach 1 takes the lowest of straight pieces between a few sizes. Approach 2 fits a
parabola to a law that is none. The grid of sizes biases both even without noise. The
fitted surface shows by how much: the procedure is repeated at the same (N, D, C) with
the surface's own losses, for which the right answer is known.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from analysis.decisions.allocate import allocate, counted_flops_per_token
from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit
from analysis.hoffmann.envelope import Envelope, training_envelope
from analysis.hoffmann.isoflop import IsoFlop, format_size, isoflop

Interval = tuple[float, float]
Record = dict[str, str | int | float | bool | None]
"""A row of a table as plain data for JSON."""

UNKNOWN: Interval = (np.nan, np.nan)


@dataclass(frozen=True, eq=False)
class Approaches:
    """The approaches side by side.

    Attributes:
        table: one row per approach, with the columns of `ApproachRow`.
        bias: one row each for approaches 1 and 2, with the columns of `BiasRow`.
        disagreement: one row per pair of approaches, with the columns of `PairRow`.
        C: FLOPs at which N is compared.
        level: of the intervals.
        notes: why an approach is missing, and what limits the comparison.
    """

    table: pd.DataFrame
    bias: pd.DataFrame
    disagreement: pd.DataFrame
    C: float
    level: float
    notes: tuple[str, ...] = ()

    def records(self) -> dict[str, list[Record]]:
        """The three tables as plain data for JSON; unknown numbers are None."""
        return {
            "table": _list_records(self.table),
            "bias": _list_records(self.bias),
            "disagreement": _list_records(self.disagreement),
        }

    def __str__(self) -> str:
        lines = [f"approaches at {self.C:.3g} FLOPs ({self.level:.0%} intervals)"]
        for row in self.table.to_dict("records"):
            a = _format_estimate(row["a"], row["a_low"], row["a_high"])
            b = _format_estimate(row["b"], row["b_low"], row["b_high"])
            N = _format_estimate(row["N"], row["N_low"], row["N_high"], format_size)
            lines.append(
                f"  {row['approach']:<22} {row['rows']:>4} rows: a = {a}, b = {b}, "
                f"N* = {N}"
            )
        for row in self.bias.dropna(subset="a_bias").to_dict("records"):
            lines.append(
                f"  bias of approach {row['approach'][0]} on the fitted surface: "
                f"a {row['a_bias']:+.4f}, N* {row['N_bias_percent']:+.1f} %"
            )
        known = self.disagreement.dropna(subset="a_difference")
        for row in known.to_dict("records"):
            lines.append(
                f"  {row['pair']}: a differs by {row['a_difference']:+.3f} "
                f"({overlap_text(row['a_overlap'])}), N* by {row['N_percent']:+.1f} % "
                f"({overlap_text(row['N_overlap'])})"
            )
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class ApproachRow:
    """What one approach finds: a row of `Approaches.table`.

    Attributes:
        approach: number and name.
        rows: number of runs.
        C: FLOPs at which N is compared.
        a: exponent of N*(C), with its interval; NaN where unknown.
        b: exponent of D*(C), with its interval.
        N: parameters of the optimum at C, with its interval.
    """

    approach: str
    rows: int
    C: float
    a: float
    a_low: float
    a_high: float
    b: float
    b_low: float
    b_high: float
    N: float
    N_low: float
    N_high: float


@dataclass(frozen=True, kw_only=True)
class BiasRow:
    """What approach 1 or 2 makes of the fitted surface: a row of `Approaches.bias`.

    Attributes:
        approach: number and name.
        C: FLOPs at which N is compared.
        a_surface: exponent of N*(C) that the procedure finds on the surface.
        a_law: exponent that the law has.
        a_bias: the first minus the second.
        N_surface: optimum at C that the procedure finds on the surface.
        N_law: optimum that the law has.
        N_bias_percent: 100 (N_surface / N_law - 1).
    """

    approach: str
    C: float
    a_surface: float
    a_law: float
    a_bias: float
    N_surface: float
    N_law: float
    N_bias_percent: float


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """How far two approaches differ: a row of `Approaches.disagreement`.

    Attributes:
        pair: their numbers.
        C: FLOPs at which N is compared.
        a_difference: the first's a minus the second's.
        a_overlap: whether the intervals of a overlap; None where one is unknown.
        N_percent: 100 (first N / second N - 1).
        N_overlap: whether the intervals of N overlap; None where one is unknown.
    """

    pair: str
    C: float
    a_difference: float
    a_overlap: bool | None
    N_percent: float
    N_overlap: bool | None


def overlap_text(overlap: bool | None) -> str:
    """What is known of two intervals, in words."""
    if overlap is None:
        return "interval unknown"
    return "intervals overlap" if overlap else "intervals do not overlap"


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
        iso: approach 2. When None it is made from the fitted rows; where those do not
            allow it, it is missing from the tables and a note says why.
        fit: approach 3, whose a and b are those of the law under C = 6 N D.
        boot: the bootstrap of `fit`, for the intervals of approach 3.
        level: of the intervals.
        envelope: approach 1; made or missing as `iso` is.
        C: FLOPs at which N* is compared; the largest fitted when None.

    Raises:
        ValueError: the fitted law has no exponents a and b, or C is not positive.
    """
    if not {"a", "b"} <= set(fit.derived()):
        raise ValueError(
            f"law {fit.law.name!r} has no exponents a and b; "
            "fit law='chinchilla' for approach 3"
        )
    C = float(fit.compute.max() if C is None else C)
    if not (np.isfinite(C) and C > 0):
        raise ValueError(f"C is {C!r} FLOPs; it must be positive and finite")
    notes: list[str] = []
    runs = pd.DataFrame(dict(fit.data))
    if envelope is None:
        try:
            envelope = training_envelope(runs)
        except ValueError as error:
            notes.append(_explain_missing("approach 1", error))
    if iso is None:
        try:
            iso = isoflop(runs)
        except ValueError as error:
            notes.append(_explain_missing("approach 2", error))
    surface = _describe_surface(fit, boot, C, level, notes)
    rows: list[ApproachRow] = []
    biases: list[BiasRow] = []
    found = (("1, training envelope", envelope), ("2, IsoFLOP parabolas", iso))
    for name, approach in found:
        if approach is not None:
            if not np.isfinite(approach.a):
                notes += [f"approach {name[0]}: {note}" for note in approach.notes]
            rows.append(_describe_power_laws(name, approach, C, level))
            biases.append(_measure_bias(name, approach, fit, surface))
    rows.append(surface)
    pairs = [
        _compare_pair(first, second)
        for first, second in itertools.combinations(rows, 2)
    ]
    if pairs:
        notes += _explain_limits(fit)
    return Approaches(
        table=pd.DataFrame(rows),
        bias=_build_frame(biases, BiasRow),
        disagreement=_build_frame(pairs, PairRow),
        C=C,
        level=level,
        notes=tuple(notes),
    )


def _build_frame(
    rows: list[BiasRow] | list[PairRow], kind: type[BiasRow] | type[PairRow]
) -> pd.DataFrame:
    """The rows as a table, which has its columns even if there is no row."""
    columns = pd.Index(list(kind.__dataclass_fields__))
    return pd.DataFrame([asdict(row) for row in rows], columns=columns)


def _list_records(frame: pd.DataFrame) -> list[Record]:
    return [
        {str(name): _make_plain(value) for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _make_plain(value: object) -> str | int | float | bool | None:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    assert value is None or isinstance(value, (str, int, float))
    return value


def _explain_missing(approach: str, error: ValueError) -> str:
    """The note that an approach is missing because of an error."""
    text = str(error)
    return text if text.startswith(approach) else f"{approach}: {text}"


def _explain_limits(fit: Fit) -> list[str]:
    """What a reader of the comparison should know."""
    notes = [
        "the approaches share their runs: intervals that overlap do not show that they "
        "agree"
    ]
    if counted_flops_per_token(fit) is not None:
        notes.append(
            "C is not 6 N D in these runs: a and b of approach 3 hold for C = 6 N D, "
            "those of approaches 1 and 2 for C as counted, and their bias holds that "
            "difference too; N* of all three is at C as counted"
        )
    return notes


def _describe_power_laws(
    name: str, approach: Envelope | IsoFlop, C: float, level: float
) -> ApproachRow:
    """The row of approach 1 or 2."""
    N, _ = approach.optimum(C)
    (N_low, N_high), _ = approach.optimum_interval(C, level)
    a_low, a_high = approach.interval("a", level)
    b_low, b_high = approach.interval("b", level)
    return ApproachRow(
        approach=name,
        rows=len(approach.runs),
        C=C,
        a=approach.a,
        a_low=a_low,
        a_high=a_high,
        b=approach.b,
        b_low=b_low,
        b_high=b_high,
        N=float(N),
        N_low=float(N_low),
        N_high=float(N_high),
    )


def _describe_surface(
    fit: Fit, boot: Bootstrap | None, C: float, level: float, notes: list[str]
) -> ApproachRow:
    """The row of approach 3. A law without optimum adds a note."""
    a_low, a_high = b_low, b_high = UNKNOWN
    if boot is not None:
        a_low, a_high = boot.interval("a", level)
        b_low, b_high = boot.interval("b", level)
    N = np.nan
    N_low, N_high = UNKNOWN
    try:
        best = allocate(fit, C, boot, counted_flops_per_token(fit), level)
        N = best.N
        N_low, N_high = best.intervals.get("N", UNKNOWN)
    except ValueError as error:
        notes.append(f"approach 3 has no optimum: {error}")
    exponents = fit.derived()
    return ApproachRow(
        approach=f"3, {fit.law.name} surface",
        rows=fit.protocol.n_rows,
        C=C,
        a=exponents["a"],
        a_low=a_low,
        a_high=a_high,
        b=exponents["b"],
        b_low=b_low,
        b_high=b_high,
        N=float(N),
        N_low=float(N_low),
        N_high=float(N_high),
    )


def _measure_bias(
    name: str, approach: Envelope | IsoFlop, fit: Fit, surface: ApproachRow
) -> BiasRow:
    """What the procedure of approach 1 or 2 makes of the fitted law's own losses at its
    rows, beside what the law says.
    """
    points = {v: approach.runs[v].to_numpy(float) for v in fit.law.variables}
    found = approach.refit(np.asarray(fit.predict(**points), float))
    a = found["a"]
    N = float(np.exp(found["ln_G_N"] + a * np.log(surface.C)))
    return BiasRow(
        approach=name,
        C=surface.C,
        a_surface=a,
        a_law=surface.a,
        a_bias=a - surface.a,
        N_surface=N,
        N_law=surface.N,
        N_bias_percent=100 * (N / surface.N - 1),
    )


def _compare_pair(first: ApproachRow, second: ApproachRow) -> PairRow:
    return PairRow(
        pair=f"{first.approach[0]} and {second.approach[0]}",
        C=first.C,
        a_difference=first.a - second.a,
        a_overlap=_find_overlap(
            (first.a_low, first.a_high), (second.a_low, second.a_high)
        ),
        N_percent=100 * (first.N / second.N - 1),
        N_overlap=_find_overlap(
            (first.N_low, first.N_high), (second.N_low, second.N_high)
        ),
    )


def _find_overlap(first: Interval, second: Interval) -> bool | None:
    """Whether two intervals overlap; None where one is unknown."""
    if not np.isfinite([*first, *second]).all():
        return None
    return bool(first[0] <= second[1] and second[0] <= first[1])


def _format_exponent(value: float) -> str:
    return f"{value:.3f}"


def _format_estimate(
    value: float,
    low: float,
    high: float,
    write: Callable[[float], str] = _format_exponent,
) -> str:
    """A value with its interval in brackets, each as far as it is known."""
    if not np.isfinite(value):
        return "unknown"
    if not np.isfinite([low, high]).all():
        return write(value)
    return f"{write(value)} [{write(low)}, {write(high)}]"
