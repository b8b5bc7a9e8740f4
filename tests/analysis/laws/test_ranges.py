"""The range in which the solver searches a parameter holds what was published, and moves
with the units of the runs.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.laws.base import Law, Nonlinear
from analysis.laws.curves import CURVE_LAWS
from analysis.laws.library import LAWS
from tests.analysis.curves.conftest import TRUTH as CURVE_TRUTH
from tests.analysis.laws.test_formulas import MIDDLES, list_points
from tests.analysis.laws.test_library import TRUTH, family

# U is counted in tokens, as D is. The last is the target of most laws.
FACTORS = {"N": 3.0, "D": 7.0, "U": 7.0, "C": 5.0, "loss_0": 2.0, "loss": 2.0}
# 1 / N^alpha has the coefficient 1 beside (D_0/D)^beta, whatever the unit of N.
FACTORS_OF = {"distillation": {"D": 7.0}}
ALL_LAWS = {**LAWS, **CURVE_LAWS}


def find_truth(name: str) -> dict[str, float]:
    return CURVE_TRUTH[name] if name in CURVE_LAWS else TRUTH[family(name)]


def compute_unit(entry: Nonlinear, sizes: dict[str, float]) -> float:
    return math.prod(sizes[name] ** exponent for name, exponent in entry.unit)


@pytest.mark.parametrize("name", ALL_LAWS)
def test_a_range_holds_the_published_value(name: str) -> None:
    law, truth = ALL_LAWS[name], find_truth(name)
    # Parameters of one variable are published for tokens, and lie in their middle.
    sizes = MIDDLES | {"loss_0": 2.2}
    if name in LAWS and family(name) != name:
        sizes |= {variable: MIDDLES["D"] for variable in law.variables}
    if name in LAWS and law.target == "loss":
        point = {variable: sizes[variable] for variable in law.variables}
        sizes["loss"] = float(law.predict(truth, **point))
    for entry in law.nonlinear:
        unit = compute_unit(entry, sizes)
        assert entry.low * unit < truth[entry.name] < entry.high * unit, entry.name


@pytest.mark.parametrize("name", ALL_LAWS)
def test_scales_are_searched_by_their_logarithm(name: str) -> None:
    """What has a unit, and what may be ten thousand times as large."""
    for entry in ALL_LAWS[name].nonlinear:
        assert entry.low < entry.high
        if entry.log:
            assert entry.low > 0
        else:
            assert not entry.unit
            assert entry.low <= 0 or entry.high / entry.low < 1e4


def has_units(law: Law) -> bool:
    return any(entry.unit for entry in law.nonlinear)


@pytest.mark.parametrize("name", [name for name, law in LAWS.items() if has_units(law)])
def test_other_units_of_the_runs_are_other_coefficients(name: str) -> None:
    """Parameters that move as their units do leave every term what it was, but for a
    factor that its coefficient takes.
    """
    law, truth = LAWS[name], find_truth(name)
    points = list_points(law.variables)
    x = {v: np.array([point[v] for point in points]) for v in law.variables}
    factors = FACTORS_OF.get(name, FACTORS)
    scaled_x = {v: factors.get(v, 1.0) * values for v, values in x.items()}
    scaled = dict(truth)
    for entry in law.nonlinear:
        scaled[entry.name] *= compute_unit(entry, factors)
    for before, after in zip(
        law.terms(truth, x), law.terms(scaled, scaled_x), strict=True
    ):
        is_seen = np.asarray(before) > 1e-200
        ratio = np.asarray(after)[is_seen] / np.asarray(before)[is_seen]
        np.testing.assert_allclose(ratio, ratio[0] if ratio.ndim else ratio, rtol=1e-9)
    if law.link and any("loss" in dict(entry.unit) for entry in law.nonlinear):
        loss = law.predict(truth, **x)
        before = law.link.inverse(truth, loss)
        after = law.link.inverse(scaled, factors["loss"] * loss)
        np.testing.assert_allclose(after / before, after[0] / before[0], rtol=1e-9)
