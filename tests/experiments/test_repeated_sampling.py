"""The law of coverage is recovered, and a budget buys the highest coverage."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.repeated_sampling import Sampled, choose_models, fit_coverage


def test_the_law_of_coverage_is_recovered() -> None:
    k = 2.0 ** np.arange(8)
    found = fit_coverage(k, np.exp(-2.5 * k**-0.4))
    assert found["a"] == pytest.approx(2.5, rel=1e-6)
    assert found["b"] == pytest.approx(0.4, rel=1e-6)
    assert found["scatter"] == pytest.approx(0.0, abs=1e-9)


def test_too_few_known_coverages_give_no_law() -> None:
    found = fit_coverage(np.array([1.0, 2.0, 4.0]), np.array([0.0, 0.001, 0.5]))
    assert np.isnan(found["b"])


def test_a_budget_buys_the_highest_coverage_it_affords() -> None:
    rows = [
        Sampled("a", 10, 1, 0.1, 0.0, 1.0),
        Sampled("a", 10, 8, 0.4, 0.0, 8.0),
        Sampled("b", 100, 1, 0.3, 0.0, 10.0),
        Sampled("b", 100, 8, 0.9, 0.0, 80.0),
    ]
    chosen = choose_models(rows, [0.5, 2.0, 20.0, 100.0])
    assert [row["n_matmul"] for row in chosen] == [10, 10, 100]
    assert [row["k"] for row in chosen] == [1, 8, 8]
