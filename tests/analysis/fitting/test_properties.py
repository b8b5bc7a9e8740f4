"""What a fit must not depend on: order, units, how weight is split over rows; and that
no table breaks it.

Every example is a fit. All tables have at most 32 rows, so that one compiled program
serves.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from analysis import Fit, fit, load_runs

Sweep = Callable[..., pd.DataFrame]
OBJECTIVES = st.sampled_from(["huber", "least_squares"])
SEEDS = st.integers(0, 3)  # few, so that what is compared with is fitted once
FEW = settings(deadline=None, max_examples=8, derandomize=True)
AT = {"N": np.array([3e7, 1e9, 1e11]), "D": np.array([1e10, 1e9, 2e12])}

Whole = Callable[[int, str], tuple[pd.DataFrame, Fit]]


@pytest.fixture(scope="module")
def whole(sweep: Sweep) -> Whole:
    """(table, its fit) by seed and objective."""
    known: dict[tuple[int, str], tuple[pd.DataFrame, Fit]] = {}

    def make(seed: int, objective: str) -> tuple[pd.DataFrame, Fit]:
        if (seed, objective) not in known:
            table = sweep(noise=0.01, seed=seed)
            known[seed, objective] = (
                table,
                fit(table, objective=objective, allow_unidentified=True),
            )
        return known[seed, objective]

    return make


def predictions_agree(first: Fit, second: Fit, N: float = 1.0, D: float = 1.0) -> None:
    np.testing.assert_allclose(
        second.predict(N=N * AT["N"], D=D * AT["D"]), first.predict(**AT), rtol=1e-6
    )
    assert second.objective == pytest.approx(first.objective, rel=1e-8)


@FEW
@given(seed=SEEDS, objective=OBJECTIVES, order=st.permutations(range(28)))
def test_order(whole: Whole, seed: int, objective: str, order: list[int]) -> None:
    table, found = whole(seed, objective)
    predictions_agree(
        found, fit(table.iloc[order], objective=objective, allow_unidentified=True)
    )


@FEW
@given(
    seed=SEEDS,
    objective=OBJECTIVES,
    powers=st.tuples(st.floats(-6, 6), st.floats(-6, 6)),
)
def test_units_of_N_and_D(
    whole: Whole, seed: int, objective: str, powers: tuple[float, float]
) -> None:
    table, found = whole(seed, objective)
    N, D = (10.0**p for p in powers)
    scaled = table.assign(N=N * table["N"], D=D * table["D"])
    predictions_agree(
        found, fit(scaled, objective=objective, allow_unidentified=True), N, D
    )


@FEW
@given(
    seed=SEEDS,
    objective=OBJECTIVES,
    rows=st.lists(st.integers(0, 27), min_size=1, max_size=4, unique=True),
    share=st.floats(0.01, 0.99),
)
def test_splitting_a_runs_weight_over_copies(
    whole: Whole, seed: int, objective: str, rows: list[int], share: float
) -> None:
    table, found = whole(seed, objective)
    kept = table.assign(w=np.where(np.isin(np.arange(28), rows), share, 1.0))
    copies = pd.concat([kept, table.iloc[rows].assign(w=1 - share)])
    runs = load_runs(copies, weight="w")
    predictions_agree(found, fit(runs, objective=objective, allow_unidentified=True))


@FEW
@given(
    seed=SEEDS,
    objective=OBJECTIVES,
    unit=st.sampled_from(["petaflops", "exaflops", "petaflop_days"]),
)
def test_units_of_C(whole: Whole, seed: int, objective: str, unit: str) -> None:
    """N comes from C and D here, so that C is in the fit."""
    table, found = whole(seed, objective)
    flops = {"petaflops": 1e15, "exaflops": 1e18, "petaflop_days": 8.64e19}[unit]
    foreign = pd.DataFrame(
        {"C": table["C"] / flops, "D": table["D"], "loss": table["loss"]}
    )
    runs = load_runs(foreign, units={"C": unit})
    assert runs.columns["C"] == f"C [{unit}]"
    predictions_agree(found, fit(runs, objective=objective, allow_unidentified=True))


VALUES = st.one_of(
    st.floats(1e-3, 1e12),
    st.sampled_from([1.0, 2.0, 1e6, 1e9, 3.0]),
    st.sampled_from(
        [0.0, -1.0, float("nan"), float("inf"), 1e-300, 1e300, 5e-324, "x", None]
    ),
)


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    """1 to 32 rows; mostly sound numbers, of any size and with repeats; then a few
    cells of anything.
    """
    rows, rng = (
        draw(st.integers(1, 32)),
        np.random.default_rng(draw(st.integers(0, 2**32 - 1))),
    )
    spread = draw(st.sampled_from([0.0, 1e-9, 0.01, 1.0, 30.0]))
    table = pd.DataFrame(
        {
            name: 10.0 ** (spread * rng.uniform(-1, 1, rows))
            for name in ("N", "D", "loss")
        }
    )
    table = (
        table.iloc[rng.integers(0, rows, rows)].reset_index(drop=True)
        if draw(st.booleans())
        else table
    )
    table = table.astype(object)
    for name in draw(st.lists(st.sampled_from(["N", "D", "loss"]), max_size=4)):
        table.loc[draw(st.integers(0, rows - 1)), name] = draw(VALUES)
    return table


@pytest.mark.filterwarnings(
    "default::RuntimeWarning"
)  # losses over hundreds of decades overflow in a covariance
@settings(
    deadline=None, max_examples=15, derandomize=True, phases=(Phase.generate,)
)  # shrinking takes minutes
@given(
    table=tables(),
    objective=st.sampled_from(["huber", "least_squares", "lad"]),
    residual=st.sampled_from(["log", "raw"]),
    noise=st.sampled_from(["constant", "growing"]),
    quantile=st.sampled_from([0.5, 0.1]),
    anyway=st.booleans(),
)
def test_junk_is_fitted_or_refused_with_a_reason(
    table: pd.DataFrame,
    objective: str,
    residual: str,
    noise: str,
    quantile: float,
    anyway: bool,
) -> None:
    try:
        found = fit(
            load_runs(table),
            objective=objective,
            residual=residual,
            noise=noise,
            quantile=quantile,
            allow_unidentified=anyway,
        )
    except ValueError as error:
        assert str(error)
    else:
        assert all(np.isfinite(value) and value >= 0 for value in found.params.values())
        assert found.certificate.ok or anyway or str(found).count("NOT OK") == 1
        assert Fit.from_json(found.to_json()).params == found.params
