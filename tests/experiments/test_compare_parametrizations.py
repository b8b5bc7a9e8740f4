"""What the comparison of parametrizations computes, on made-up tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from experiments.compare_parametrizations import Comparison, compare_at_equal_size


def table(saved: float) -> pd.DataFrame:
    """Losses of a power law in D with a level per width; `mup` needs `saved` times
    fewer tokens.
    """
    rows = []
    for name, factor in (("sp", 1.0), ("mup", saved)):
        for width in (32, 64, 128):
            rows += [
                {
                    "parametrization": name,
                    "width": width,
                    "tokens": D,
                    "loss": 9.0 * width**-0.1 * (factor * D) ** -0.1,
                }
                for D in (1e5, 2e5, 4e5)
            ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("saved", [0.25, 1.0, 1.5])
def test_the_multiplier_at_equal_size_is_the_share_of_tokens_saved(
    saved: float,
) -> None:
    """Within the ladder of runs and beyond either end of it."""
    found = compare_at_equal_size(Comparison(names=("sp", "mup")), table(saved)).iloc[0]
    widths = found[["width 32", "width 64", "width 128"]].to_numpy(float)
    np.testing.assert_allclose(widths, saved, rtol=1e-6)
    assert found["low"] == pytest.approx(saved) == found["high"]


def test_the_interval_follows_the_scatter_between_widths() -> None:
    runs = table(1.0)
    runs.loc[(runs["parametrization"] == "mup") & (runs["width"] == 64), "loss"] *= 1.05
    found = compare_at_equal_size(Comparison(names=("sp", "mup")), runs).iloc[0]
    assert found["low"] < found["multiplier"] < 1.0 < found["high"]
