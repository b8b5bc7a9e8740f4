"""The minimum of a function of one variable.

SciPy finds it too, and importing it takes longer than the fit of a small table.
"""

from __future__ import annotations

import math
from collections.abc import Callable

_GOLDEN = (math.sqrt(5) - 1) / 2


def minimize_between(
    function: Callable[[float], float], low: float, high: float, width: float = 1e-7
) -> float:
    """Where a function with one minimum between two points is lowest, to `width`, by
    golden sections (Kiefer 1953).
    """
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > width:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = function(right)
    return (low + high) / 2
