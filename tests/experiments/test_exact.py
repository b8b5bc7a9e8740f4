"""The references of the ground-truth experiment."""

from __future__ import annotations

import pandas as pd
import pytest

from experiments.exact import add_exact_columns, compute_ideal_surface, make_grid
from scaling import DataConfig
from scaling.data.synthetic.zipf_facts import ZipfFacts


def test_a_model_at_the_floor_has_no_excess_on_windows_without_noise() -> None:
    """All documents of a hierarchy are equally likely: the oracle's loss on any whole
    ones is the entropy.
    """
    plan = make_grid(
        DataConfig("hierarchy:documents=4000"),
        [16],
        [40_000, 60_000],
        34,
        16,
        eval_tokens=17_000,
    )
    assert {run.model.vocab for run in plan} == {9} and len(
        {run.trunk_id for run in plan}
    ) == 1
    runs = pd.DataFrame(
        {"run_id": [run.run_id for run in plan], "loss": [1.5, 1.4296160599]}
    )
    table = add_exact_columns(plan, runs)
    assert table["oracle"].tolist() == pytest.approx(table["floor"].tolist(), rel=1e-12)
    assert table["excess"].tolist() == pytest.approx(
        [1.5 - table["floor"].iloc[0], 0.0], abs=1e-9
    )


def test_the_ideal_surface_falls_in_both_directions_to_the_floor() -> None:
    facts = ZipfFacts(items=1024)
    grid = compute_ideal_surface(facts, [10, 100, 1024], [10, 100, 1000, 10**9]).pivot(
        index="N", columns="D", values="loss"
    )
    assert (grid.diff().dropna() < 0).all().all() and (
        grid.diff(axis=1).iloc[:, 1:] <= 0
    ).all().all()
    assert grid.iloc[-1, -1] == pytest.approx(facts.entropy, abs=1e-6)
