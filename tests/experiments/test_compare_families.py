"""The comparison of families of models: what is planned, and how it is summarized."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from experiments import compare_families
from experiments.best_mixture import MixingLaw, find_best_share, fit_law
from experiments.compare_families import (
    FAMILIES,
    Families,
    average_octaves,
    keep_best_rates,
    plan_family,
)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_plans_three_rates_of_each_size(name: str) -> None:
    runs = plan_family(Families(budgets=(2e11,)), FAMILIES[name])
    cells: dict[tuple[int, int], set[float]] = {}
    for run in runs:
        cells.setdefault((run.model.width, run.tokens), set()).add(run.optim.lr)
    assert len(cells) >= 3
    assert {len(rates) for rates in cells.values()} == {3}
    assert {run.model.architecture for run in runs} == {FAMILIES[name].architecture}
    assert {run.model.context for run in runs} == {256}


def test_the_best_rate_of_each_cell_is_kept() -> None:
    table = pd.DataFrame(
        {
            "width": [16, 16, 16, 32, 32, 32],
            "budget": [1e9] * 6,
            "lr": [1.0, 2.0, 4.0, 1.0, 2.0, 4.0],
            "loss": [3.0, 2.0, 2.5, 3.0, 2.9, 2.8],
        }
    )
    best = keep_best_rates(table)
    assert best["lr"].tolist() == [2.0, 4.0]
    assert best["at_edge"].tolist() == [False, True]


def test_a_family_is_trained_beside_its_baseline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Muon on an LSTM is compared with AdamW on an LSTM."""
    trained: list[str] = []

    def train_sweeps(name: str, plans: dict[str, object], *rest: object) -> dict:
        trained.extend(plans)
        return {}

    monkeypatch.setattr(compare_families, "train_sweeps", train_sweeps)
    args = Families(families=("LSTM with Muon", "encoder"), budgets=(2e11,))
    compare_families.train_families(args)
    assert trained == ["decoder", "LSTM", "LSTM with Muon", "encoder"]


@pytest.mark.parametrize("length", [16, 100, 256])
def test_groups_of_positions_hold_each_position_once(length: int) -> None:
    """The mean of a line over its groups is that of their arithmetic middles."""
    ones = average_octaves(np.ones(length))
    assert np.array_equal(ones[1], np.ones(len(ones[0])))
    places, values = average_octaves(np.arange(1.0, length + 1))
    assert (np.diff(places) > 0).all() and (np.diff(values) > 0).all()
    assert places[:2].tolist() == values[:2].tolist() == [1.0, 2.0]


def test_a_mixing_law_is_recovered_with_its_best_share() -> None:
    share = np.linspace(0.1, 0.9, 9)
    first = MixingLaw(c=2.0, k=1.0, t=-6.0)
    second = MixingLaw(c=2.2, k=0.004, t=5.0)
    laws = tuple(fit_law(share, law.predict(share)) for law in (first, second))
    assert len(laws) == 2
    for law, true in zip(laws, (first, second), strict=True):
        assert law.t == pytest.approx(true.t, rel=0.02)
        assert law.predict(share) == pytest.approx(true.predict(share), abs=2e-3)
    # 6 exp(-6 s) = 0.02 exp(5 s)
    assert find_best_share(laws) == pytest.approx(np.log(300) / 11, abs=0.01)


def test_an_architecture_has_one_color_in_every_figure() -> None:
    """However many others are drawn; its variants are dashed."""
    losses = np.linspace(5.0, 4.0, 64)
    names = ["linear attention", "LSTM", "LSTM with Muon"]
    few = compare_families.plot_positions({"LSTM": losses})
    more = compare_families.plot_positions(dict.fromkeys(names, losses))
    alone = few.axes[0].lines[0]
    lines = more.axes[0].lines
    assert [line.get_color() for line in lines[1:]] == [alone.get_color()] * 2
    assert lines[0].get_color() != alone.get_color()
    assert [line.get_linestyle() for line in lines] == ["-", "-", "--"]
