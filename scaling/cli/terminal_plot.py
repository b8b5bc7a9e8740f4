"""Draw a curve in a terminal, on logarithmic axes.

A braille character holds two columns and four rows of dots, so a picture has eight dots
to a character. Where the terminal has no braille, a star stands for one point.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

BRAILLE = 0x2800  # the empty pattern; each dot of a character sets one bit
BRAILLE_BITS = (
    (0x01, 0x08),
    (0x02, 0x10),
    (0x04, 0x20),
    (0x40, 0x80),
)  # by row and column of the dot
SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))

Dot = tuple[int, int]  # (column, row); row 0 is the top


@dataclass(frozen=True)
class _Curve:
    """The dots of a curve and the range of its axes, in natural logarithms."""

    dots: list[Dot]
    left: float
    right: float
    low: float
    high: float


def draw_curve(
    x: Sequence[float],
    y: Sequence[float],
    *,
    width: int = 64,
    height: int = 14,
    braille: bool = True,
) -> list[str]:
    """Draw y over x, both on logarithmic axes.

    A point that is not positive and finite is left out. Points that share a column of
    dots are averaged, in the logarithm of y.

    Args:
        x: of the points, in any order.
        y: of the points.
        width: of the picture without its axes, in characters.
        height: of the picture without its axes, in characters.
        braille: use braille characters; else stars.

    Returns:
        The lines of the picture and of its axes. No lines if the points have fewer than
        two distinct x.
    """
    points = []
    for x_value, y_value in zip(x, y, strict=True):
        if _has_logarithm(x_value) and _has_logarithm(y_value):
            points.append((math.log(x_value), math.log(y_value)))
    if len({log_x for log_x, _ in points}) < 2:
        return []
    if braille:
        curve = _place_dots(points, columns=2 * width, rows=4 * height)
        rows = _write_braille(_connect_dots(curve.dots), width, height)
    else:
        curve = _place_dots(points, columns=width, rows=height)
        rows = _write_stars(_connect_dots(curve.dots), width, height)
    axis = "┤" if braille else "|"
    lines = []
    for i, row in enumerate(rows):
        label = _label_row(i, height, curve)
        lines.append(f"{label} {axis}{row}".rstrip())
    lines.append(_label_columns(width, curve))
    return lines


def format_short(value: float) -> str:
    """A count in three digits, such as 524k."""
    for unit, suffix in SUFFIXES:
        if value >= unit:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}"


def _has_logarithm(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _place_dots(
    points: Sequence[tuple[float, float]], columns: int, rows: int
) -> _Curve:
    """One dot in each column that has points, at their mean height."""
    ordered = sorted(points)
    left = ordered[0][0]
    right = ordered[-1][0]
    heights: dict[int, list[float]] = {}
    for log_x, log_y in ordered:
        column = round((log_x - left) / (right - left) * (columns - 1))
        heights.setdefault(column, []).append(log_y)
    means = {column: sum(values) / len(values) for column, values in heights.items()}
    low = min(means.values())
    high = max(means.values())
    span = (high - low) or 1.0  # a flat curve lies in the top row
    dots = []
    for column, mean in means.items():
        row = round((high - mean) / span * (rows - 1))
        dots.append((column, row))
    return _Curve(dots=dots, left=left, right=right, low=low, high=high)


def _connect_dots(dots: Sequence[Dot]) -> set[Dot]:
    """The dots and those on the straight lines between neighbors."""
    found = set(dots)
    for (column_0, row_0), (column_1, row_1) in itertools.pairwise(dots):
        across = column_1 - column_0
        down = row_1 - row_0
        steps = max(abs(across), abs(down))
        for k in range(1, steps):
            column = column_0 + round(across * k / steps)
            row = row_0 + round(down * k / steps)
            found.add((column, row))
    return found


def _write_braille(dots: set[Dot], width: int, height: int) -> list[str]:
    patterns = [[0] * width for _ in range(height)]
    for column, row in dots:
        patterns[row // 4][column // 2] |= BRAILLE_BITS[row % 4][column % 2]
    lines = []
    for line in patterns:
        lines.append("".join(chr(BRAILLE + pattern) for pattern in line))
    return lines


def _write_stars(dots: set[Dot], width: int, height: int) -> list[str]:
    characters = [[" "] * width for _ in range(height)]
    for column, row in dots:
        characters[row][column] = "*"
    return ["".join(line) for line in characters]


def _label_row(i: int, height: int, curve: _Curve) -> str:
    """The value of y beside the first, the middle and the last row; else blanks."""
    if i not in (0, height // 2, height - 1):
        return " " * 8
    down = i / (height - 1) if height > 1 else 0.0
    value = math.exp(curve.high - (curve.high - curve.low) * down)
    return f"{value:8.3f}"


def _label_columns(width: int, curve: _Curve) -> str:
    """The first, the middle and the last value of x below the picture."""
    first = format_short(math.exp(curve.left))
    middle = format_short(math.exp((curve.left + curve.right) / 2))
    last = format_short(math.exp(curve.right))
    spaces = width - len(first) - len(middle) - len(last)
    before = max(1, width // 2 - len(first) - len(middle) // 2)
    after = max(1, spaces - before)
    return f"{'':10}{first}{' ' * before}{middle}{' ' * after}{last}"
