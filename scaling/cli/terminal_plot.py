"""A curve in a terminal: eight dots to a character, as braille has them; stars where
the terminal has no braille.

Both axes are logarithmic, as losses and tokens are read; points that have no logarithm
are left out, and those that share a column of dots are averaged.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

_DOTS = (
    (0x01, 0x08),
    (0x02, 0x10),
    (0x04, 0x20),
    (0x40, 0x80),
)  # of U+2800, by row and column
_SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def draw_curve(
    x: Sequence[float],
    y: Sequence[float],
    *,
    width: int = 64,
    height: int = 14,
    braille: bool = True,
) -> list[str]:
    """The lines of a picture of a curve with its axes, `width` by `height` characters;
    [] without two points.
    """
    points = [
        (math.log(a), math.log(b))
        for a, b in zip(x, y, strict=True)
        if _has_logarithm(a) and _has_logarithm(b)
    ]
    if len(points) < 2 or min(points)[0] == max(points)[0]:
        return []
    across, up = (2, 4) if braille else (1, 1)
    W, H = width * across, height * up
    left, right = min(points)[0], max(points)[0]
    columns: dict[int, list[float]] = {}
    for a, b in sorted(points):
        columns.setdefault(round((a - left) / (right - left) * (W - 1)), []).append(b)
    means = {column: sum(values) / len(values) for column, values in columns.items()}
    low, high = min(means.values()), max(means.values())
    spots = [
        (column, round((high - b) / ((high - low) or 1.0) * (H - 1)))
        for column, b in means.items()
    ]
    cells = [[0] * width for _ in range(height)]
    for column, row in _connect_dots(spots):
        mark = _DOTS[row % 4][column % 2] if braille else 1
        cells[row // up][column // across] |= mark
    labels = [
        math.exp(high - (high - low) * i / (height - 1))
        if height > 1
        else math.exp(high)
        for i in range(height)
    ]
    lines = []
    for i, cell in enumerate(cells):
        text = "".join(chr(0x2800 + c) if braille else " *"[c] for c in cell)
        label = f"{labels[i]:8.3f}" if i in (0, height // 2, height - 1) else " " * 8
        lines.append(f"{label} {'┤' if braille else '|'}{text}".rstrip())
    middle = format_short(math.exp((left + right) / 2))
    ends = format_short(math.exp(left)), format_short(math.exp(right))
    gap = width - len(ends[0]) - len(ends[1]) - len(middle)
    before = max(1, width // 2 - len(ends[0]) - len(middle) // 2)
    return [
        *lines,
        f"{'':10}{ends[0]}{' ' * before}{middle}{' ' * max(1, gap - before)}{ends[1]}",
    ]


def format_short(value: float) -> str:
    """A count in three digits."""
    for unit, suffix in _SUFFIXES:
        if value >= unit:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}"


def _has_logarithm(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _connect_dots(spots: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """The dots of the line through some dots."""
    found = set(spots)
    for (c0, r0), (c1, r1) in itertools.pairwise(spots):
        n = max(abs(c1 - c0), abs(r1 - r0))
        found |= {
            (c0 + round((c1 - c0) * k / n), r0 + round((r1 - r0) * k / n))
            for k in range(1, n)
        }
    return found
