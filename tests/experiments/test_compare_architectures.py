"""The multiplier of an option is that by which its runs were made better."""

from __future__ import annotations

import pandas as pd
import pytest

from experiments.compare_architectures import (
    ARMS,
    DEFAULT,
    SAME_CACHE,
    Architectures,
    format_table,
    list_comparisons,
    measure_model,
    measure_multipliers,
    plan_arm,
)
from experiments.multipliers import Interval, plot_multipliers
from scaling.store.run_dirs import describe_run

GATE = "gated attention"


def make_table(args: Architectures, name: str, efficiency: float) -> pd.DataFrame:
    """The runs of an arm, each of whose tokens is worth `efficiency` of the default's."""
    rows = []
    for run in plan_arm(args, ARMS[name]):
        row = describe_run(run)
        n, d = row["n_matmul"], row["tokens"] * efficiency
        loss = 0.6 + 25 / n**0.35 + 60 / d**0.33
        rows.append({**row, "loss": loss, "status": "finished", "diverged": False})
    return pd.DataFrame(rows)


def test_every_arm_is_another_model_of_the_same_sizes_and_tokens() -> None:
    args = Architectures()
    default = plan_arm(args, ARMS[DEFAULT])
    ids = set()
    for arm in ARMS.values():
        runs = plan_arm(args, arm)
        for run, other in zip(runs, default, strict=True):
            assert run.model.width == other.model.width
            assert run.tokens == other.tokens and run.seed == other.seed
        ids.add(runs[0].run_id)
    assert len(ids) == len(ARMS)


@pytest.mark.slow
def test_an_option_worth_its_tokens_twice_has_the_multiplier_two() -> None:
    """At equal weights; the FLOPs that the gate adds are charged."""
    args = Architectures(budgets=(1e11, 2.8e11, 8e11, 1.6e12))
    tables = {
        DEFAULT: make_table(args, DEFAULT, 1.0),
        "logits capped at 30": make_table(args, "logits capped at 30", 2.0),
        "layer norm": make_table(args, "layer norm", 1.0),
    }
    better, equal = measure_multipliers(tables, draws=50)
    assert better.shares_shape and equal.shares_shape
    assert better.multiplier == pytest.approx(2.0, rel=0.1)
    assert equal.multiplier == pytest.approx(1.0, rel=0.01)
    assert better.low <= better.multiplier <= better.high
    table = format_table([better, equal])
    assert "| layer norm | 1.00 [" in table
    intervals = [
        Interval(row.arm, row.multiplier, row.low, row.high) for row in (equal, better)
    ]
    (ax,) = plot_multipliers(intervals, DEFAULT).axes
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [equal.arm, better.arm]  # the best at the top


def test_shared_heads_are_also_compared_at_equal_bytes_of_the_cache() -> None:
    pairs = list_comparisons([DEFAULT, "1 head of keys and values", "1 head"])
    assert pairs == [
        ("1 head of keys and values", DEFAULT),
        ("1 head", DEFAULT),
        ("1 head of keys and values", "1 head"),
    ]
    assert list_comparisons([DEFAULT, "1 head"]) == [("1 head", DEFAULT)]
    for name, baseline in SAME_CACHE.items():
        sizes = [measure_model(ARMS[arm]) for arm in (name, baseline)]
        assert sizes[0]["cache_bytes"] == sizes[1]["cache_bytes"]
        assert sizes[0]["flops"] > sizes[1]["flops"]


def test_the_sizes_of_an_arm_are_counted() -> None:
    default = measure_model(ARMS[DEFAULT])
    shared = measure_model(ARMS["1 head of keys and values"])
    assert shared["cache_bytes"] == default["cache_bytes"] / 4
    assert shared["parameters"] < default["parameters"]
    assert measure_model(ARMS[GATE])["flops"] > default["flops"]
    window = measure_model(ARMS["windows of 32 in every other layer"])
    assert window["parameters"] == default["parameters"]
    assert window["flops"] < default["flops"]


def test_an_unknown_arm_is_named() -> None:
    with pytest.raises(ValueError, match="'gate' is unknown"):
        Architectures(arms=("gate",))
