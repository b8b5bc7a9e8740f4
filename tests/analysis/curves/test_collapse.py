"""Curves of one shape collapse; a size that is tuned otherwise leaves the curve."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import analysis

E = 1.5
SIZES = (1e6, 3e6, 1e7, 3e7, 1e8)


def make_curves(
    noise: float = 0.0, other_shape: float = 0.0, seed: int = 0
) -> analysis.Curves:
    """Runs of five sizes, 20 tokens per parameter, whose excess loss is one curve times a
    power of the size. The fourth may have another curve.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for i, size in enumerate(SIZES):
        steps = 1000 * (i + 1)
        step = np.arange(steps // 100, steps + 1, steps // 100)
        x = step / steps
        excess = (0.2 * x**-0.5 + 0.1 * (1 - x)) * (size / 1e6) ** -0.15
        if i == 3:
            excess = excess * np.exp(other_shape * (1 - x))
        loss = E + excess * np.exp(noise * rng.standard_normal(len(x)))
        lr = 1e-3 * np.maximum(1 - x, 0.01)
        parts.append(
            pd.DataFrame({"run": f"{size:.0e}", "step": step, "lr": lr, "loss": loss})
        )
    return analysis.load_curves(pd.concat(parts, ignore_index=True))


def test_one_shape_collapses_to_the_last_digits() -> None:
    found = analysis.check_collapse(make_curves(), E)
    assert found.spread < 1e-12
    assert found.off == ()
    np.testing.assert_allclose(found.normalized[:, -1], 1.0)
    # By hand: the excess loss of the runs over that in the last bin. A bin holds a mean.
    excess = 0.2 * found.x**-0.5 + 0.1 * (1 - found.x)
    expected = excess / excess[-1]
    np.testing.assert_allclose(found.normalized[0], expected, rtol=0.005)


def test_where_a_run_logs_does_not_matter() -> None:
    curves = make_curves()
    is_kept = (curves.table["run"] != "1e+07") | (curves.table["step"] % 90 == 0)
    rare = analysis.load_curves(
        curves.table.loc[is_kept, ["run", "step", "lr", "loss"]]
    )
    found = analysis.check_collapse(rare, E)
    assert len(rare.get_rows("1e+07")) == 33
    assert found.table.set_index("run").loc["1e+07", "deviation"] < 0.01


def test_the_size_that_is_tuned_otherwise_is_named() -> None:
    found = analysis.check_collapse(make_curves(0.01, other_shape=0.2), E)
    assert found.off == ("3e+07",)
    row = found.table.set_index("run").loc["3e+07"]
    # The mean of 0.2 (1 - x) over x from 0.1 to 1.
    assert row["signed"] == pytest.approx(0.09, abs=0.02)
    assert "3e+07" in str(found)
    assert "leaves the curve" in str(found)


def test_noise_alone_names_no_size() -> None:
    named = 0
    deviations = []
    noises = []
    for seed in range(20):
        found = analysis.check_collapse(make_curves(0.02, seed=seed), E)
        named += len(found.off)
        deviations.append(found.table["deviation"].mean())
        noises.append(found.table["noise"].mean())
    assert named == 0
    # The median of four others is noisy, too.
    assert 1.0 < np.mean(deviations) / np.mean(noises) < 1.4


def test_what_cannot_be_compared_is_named() -> None:
    curves = make_curves()
    with pytest.raises(ValueError, match=r"0 runs can be used.*is not above E = 9"):
        analysis.check_collapse(curves, 9.0)
    with pytest.raises(ValueError, match="3 runs can be used, and of fewer than 4"):
        analysis.check_collapse(curves.take(curves.runs[:3]), E)
    with pytest.raises(ValueError, match=r"first is 1\.5; give a share of training"):
        analysis.check_collapse(curves, E, first=1.5)
    schedules = {"1e+08": analysis.Schedule.constant(1e-3, 10_000)}
    table = curves.table.drop(columns="source_row")
    longer = analysis.load_curves(table, schedules=schedules)
    found = analysis.check_collapse(longer, E)
    (reason,) = found.rejected["reason"]
    assert "no loss between" in reason
    assert "of its 10000 steps" in reason
