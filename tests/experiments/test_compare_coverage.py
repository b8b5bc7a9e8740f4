"""The multiplier that simulated pairs of sweeps have by their making."""

from __future__ import annotations

import pytest

from experiments.compare_coverage import (
    SIZE,
    find_multiplier,
    improve_recipe,
    steepen_recipe,
)
from experiments.coverage import TRUTH


@pytest.mark.parametrize("C", [1e11, 1e13])
def test_efficiencies_multiply(C: float) -> None:
    """A run of C FLOPs is worth one of N D C where parameters count N times and tokens D
    times.
    """
    assert find_multiplier(TRUTH, C) == pytest.approx(1)
    assert find_multiplier(improve_recipe(1.1, 1.4), C) == pytest.approx(1.54, rel=1e-6)


def test_a_steeper_recipe_gains_with_size() -> None:
    steep = steepen_recipe(0.05)
    terms = [law["A"] * SIZE ** -law["alpha"] for law in (TRUTH, steep)]
    assert terms[0] == pytest.approx(terms[1])
    assert find_multiplier(steep, 1e13) > find_multiplier(steep, 1e12) > 1
