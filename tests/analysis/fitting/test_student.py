"""Student's t agrees with SciPy's, and the golden section finds a minimum."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special

from analysis.fitting.golden_section import minimize_between
from analysis.fitting.student import compute_quantile, compute_tail

DEGREES_OF_FREEDOM = (1, 2, 5, 20, 1001)


@pytest.mark.parametrize("dof", DEGREES_OF_FREEDOM)
def test_tails_are_those_of_f_with_one_degree_of_freedom(dof: int) -> None:
    t = np.concatenate([[0.0], np.geomspace(1e-4, 30, 50)])
    expected = scipy.special.fdtrc(1, dof, t**2)
    np.testing.assert_allclose(compute_tail(t, dof), expected, rtol=1e-11)


@pytest.mark.parametrize("dof", DEGREES_OF_FREEDOM)
@pytest.mark.parametrize("level", [0.01, 0.5, 0.9, 0.95, 0.999])
def test_quantiles_are_those_of_f_with_one_degree_of_freedom(
    dof: int, level: float
) -> None:
    expected = scipy.special.fdtri(1, dof, level)
    assert compute_quantile(dof, level) ** 2 == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("lowest", [-3.0, 0.2, 1.0])
def test_golden_sections_find_the_minimum_inside_and_at_an_end(lowest: float) -> None:
    found = minimize_between(lambda x: (x - lowest) ** 2, -1.0, 1.0)
    assert found == pytest.approx(np.clip(lowest, -1, 1), abs=1e-6)
