"""Laws of the plan: the runs cost what the budgets say, what is refused is listed, and
the price is what is paid.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling.config import ConfigError, ModelConfig, OptimConfig, RunConfig, Trunk
from scaling.model.flops import count_parameters, flops_per_token, trunk_flops
from scaling.planning.lr_rules import rescale_optim
from scaling.planning.plan import (
    Plan,
    PlanConfig,
    grid_plan,
    isoflop_plan,
    make_plan,
)

BUDGETS = [2e11, 6e11, 2e12]
WIDTHS = (24, 32, 40, 48, 56, 64, 80, 96)
MODEL = ModelConfig(depth=2, n_heads=4, ff_ratio=4.0, vocab=256, context=128)
OPTIM = OptimConfig(
    batch_size=4, warmup_tokens=65_536, cooldown_fraction=0.3
)  # steps of 512 tokens


def isoflop(**options: Any) -> Plan:
    base = {
        "budgets": BUDGETS,
        "sizes_per_budget": 4,
        "widths": WIDTHS,
        "model": MODEL,
        "optim": OPTIM,
    }
    return isoflop_plan(**{**base, **options})


def grid(widths: list[int], tokens: list[int], **options: Any) -> Plan:
    return grid_plan(widths, tokens, **{"model": MODEL, "optim": OPTIM, **options})


def test_every_budget_has_its_sizes_and_costs_what_it_says_to_within_a_step() -> None:
    plan = isoflop()
    assert len(plan) == len(BUDGETS) * 4
    for budget in BUDGETS:
        runs = [run for run in plan if run.budget == budget]
        assert len({run.model.width for run in runs}) == 4
        for run in runs:
            per_step = flops_per_token(run.model) * run.batch_tokens
            assert (
                -per_step
                <= run.steps * per_step - budget
                <= 0.5 * flops_per_token(run.model)
            )


def test_the_sizes_of_a_budget_surround_the_center() -> None:
    """Chosen nearest to the stated tokens per parameter, so no unchosen width is nearer
    than a chosen one.
    """
    plan = isoflop(tokens_per_parameter=30.0, min_steps=1, min_tokens_per_parameter=0.0)
    for budget in BUDGETS:

        def distance(width: int, budget: float = budget) -> float:
            model = dataclasses.replace(MODEL, width=width)
            return abs(
                np.log(
                    budget
                    / flops_per_token(model)
                    / count_parameters(model).n_matmul
                    / 30.0
                )
            )

        chosen = {run.model.width for run in plan if run.budget == budget}
        assert max(map(distance, chosen)) <= min(
            distance(width) for width in WIDTHS if width not in chosen
        )


def test_a_size_is_one_trunk_across_budgets() -> None:
    plan = isoflop()
    by_width: dict[int, set[str]] = {}
    for run in plan:
        by_width.setdefault(run.model.width, set()).add(run.trunk_id)
    assert all(len(trunks) == 1 for trunks in by_width.values())
    assert len(plan.trunks()) == len(by_width) < len(plan)
    assert len({run.run_id for run in plan}) == len(plan)
    costs = [trunk_flops(trunk) for trunk in plan.trunks()]
    assert costs == sorted(costs, reverse=True)


def test_a_plan_costs_its_trunks_once_and_every_cooldown() -> None:
    optim = dataclasses.replace(OPTIM, cooldown_fraction=0.25)
    runs = [RunConfig(MODEL, optim=optim, tokens=steps * 512) for steps in (400, 800)]
    assert Trunk(tuple(runs)).steps == 600 + 100 + 200
    assert Plan("two", tuple(runs)).flops == 900 * 512 * flops_per_token(MODEL)
    cosine = [
        dataclasses.replace(r, optim=dataclasses.replace(r.optim, schedule="cosine"))
        for r in runs
    ]
    assert Plan("alone", tuple(cosine)).flops == 1200 * 512 * flops_per_token(MODEL)


def test_grid_is_a_rectangle() -> None:
    plan = grid(widths=[24, 32], tokens=[500_000, 1_000_000], seeds=(0, 1))
    cells = {(run.model.width, run.tokens, run.seed) for run in plan}
    assert cells == {
        (w, t, s) for w in (24, 32) for t in (500_000, 1_000_000) for s in (0, 1)
    }
    assert len(plan) == 8 and all(run.budget is None for run in plan)


def test_the_largest_budget_may_take_fewer_seeds() -> None:
    """The first ones, so that its runs share the trunks of the smaller budgets."""
    plan = isoflop(seeds=(3, 1, 2), largest_budget_seeds=2)
    for budget in BUDGETS:
        seeds = {run.seed for run in plan if run.budget == budget}
        assert seeds == ({3, 1} if budget == max(BUDGETS) else {3, 1, 2})


def test_depth_follows_the_aspect() -> None:
    plan = grid(widths=[32, 64, 96], tokens=[5_000_000], aspect=16.0)
    assert [run.model.depth for run in plan] == [2, 4, 6]


def test_rungs_on_which_no_law_holds_are_refused_with_the_reason() -> None:
    plan = grid(widths=[24, 96], tokens=[100_000, 1_000_000])
    reasons = {(run.model.width, run.tokens): reason for run, reason in plan.skipped}
    assert reasons[24, 100_000] == "width 24: 195 steps, fewer than min_steps = 400"
    assert len(plan) + len(plan.skipped) == 4

    plan = grid(widths=[24, 96], tokens=[1_000_000], min_tokens_per_parameter=20.0)
    assert [reason for _, reason in plan.skipped] == [
        "width 96: 4.1 tokens per parameter, fewer than 20"
    ]

    with pytest.deprecated_call(match="use Plan.skipped"):
        assert plan.refused == plan.skipped

    optim = dataclasses.replace(OPTIM, warmup_tokens=800_000)
    plan = grid(widths=[24], tokens=[1_000_000, 2_000_000], optim=optim)
    assert (
        len(plan) == 1
        and "warm-up of 800,000 tokens does not end before" in plan.skipped[0][1]
    )


def test_a_plan_without_a_rung_is_an_error() -> None:
    with pytest.raises(
        ConfigError,
        match=r"every run is skipped; the first: width \d+: \d steps, fewer than",
    ):
        isoflop(budgets=[1e3, 1e9])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "give one of the two"),
        ({"budgets": (1e12,), "tokens": (1_000_000,)}, "give one of the two"),
        ({"budgets": (1e12, -1.0)}, "budgets = .*must be positive"),
        ({"budgets": (1e12, 1e12)}, "budgets = .*must not repeat"),
        ({"budgets": (1e12,), "widths": (64, 64)}, "widths = .*must not repeat"),
        ({"budgets": (1e12,), "widths": ()}, "widths = .*at least one"),
        ({"budgets": (1e12,), "seeds": ()}, "seeds = .*at least one"),
        ({"budgets": (1e12,), "sizes_per_budget": 0}, "sizes_per_budget = 0"),
        (
            {"budgets": (1e12,), "largest_budget_seeds": 0},
            "largest_budget_seeds = 0",
        ),
        (
            {"budgets": (1e12,), "lr_factors": (1.0, 0.0)},
            "lr_factors = .*must be positive",
        ),
        ({"budgets": (1e12,), "lr_factors": ()}, "lr_factors = .*at least one"),
        (
            {"budgets": (1e12,), "lr_N_exponent": 0.3},
            "lr_N_exponent = 0.3: give lr_N too",
        ),
        (
            {"budgets": (1e12,), "lr_D_exponent": 0.3, "lr_D": -1.0},
            "lr_D = -1.0: must be positive",
        ),
        (
            {
                "budgets": (1e12,),
                "lr_N_exponent": 0.3,
                "lr_N": 1e5,
                "lr_width_exponent": 0.7,
            },
            "give one of the two",
        ),
        (
            {
                "budgets": (1e12,),
                "lr_D_exponent": 0.3,
                "lr_D": 1e6,
                "base_tokens": 1000,
            },
            "give one of the two",
        ),
        ({"budgets": (1e12,), "base_tokens": 0}, "base_tokens = 0: must be positive"),
        (
            {"budgets": (1e12,), "warmup_fraction": 1.5},
            r"warmup_fraction = 1.5: must lie in \[0, 1\]",
        ),
        (
            {
                "budgets": (1e12,),
                "warmup_fraction": 0.1,
                "optim": OptimConfig(warmup_tokens=9),
            },
            "give one of the two; wa",
        ),
    ],
)
def test_invalid_plans_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(PlanConfig(**changes))


def test_round_trip_through_json(tmp_path: Path) -> None:
    plan = isoflop(budgets=[1e10, *BUDGETS])
    assert plan.skipped
    plan.to_json(tmp_path / "plan.json")
    assert Plan.from_json(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a plan"),
        ("[]", "not a plan"),
        ('{"name": "x"}', "not a plan"),
        ('{"name": "x", "runs": [3]}', "RunConfig = 3: must be a table"),
        ('{"name": "x", "runs": [{"tokns": 3}]}', "did you mean 'tokens'"),
    ],
)
def test_what_is_no_plan_is_an_error(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(ConfigError, match="no such file"):
        Plan.from_json(path)
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        Plan.from_json(path)


def test_the_table_prices_every_run() -> None:
    plan = isoflop()
    table = plan.table(train_tokens=1_000_000)
    assert list(table["run_id"]) == [run.run_id for run in plan]
    assert (table["tokens"] == table["steps"] * 512).all()
    np.testing.assert_array_equal(
        table["repeated_tokens"], np.maximum(0, table["tokens"] - 1_000_000)
    )
    ratios = table["flops"] / table["budget"]
    assert ratios.between(0.99, 1.0001).all()
    assert json.loads(table.to_json(orient="records"))  # plain columns


def rates(plan: Plan) -> dict[tuple[int, int], float]:
    return {(run.model.width, run.tokens): run.optim.lr for run in plan}


def test_the_default_rate_falls_with_width_under_sp_alone() -> None:
    sp = rates(grid([32, 64, 128], [5_000_000]))
    np.testing.assert_allclose(
        list(sp.values()), OPTIM.lr * np.array([0.5, 1.0, 2.0]) ** -0.7, rtol=1e-15
    )
    mup = rates(
        grid(
            [32, 64, 128],
            [5_000_000],
            model=dataclasses.replace(MODEL, parametrization="mup"),
        )
    )
    assert set(mup.values()) == {OPTIM.lr}
    assert set(
        rates(grid([32, 64, 128], [5_000_000], lr_width_exponent=0.0)).values()
    ) == {OPTIM.lr}


def test_a_rate_that_is_a_power_of_N_and_D_costs_every_run_in_full() -> None:
    sizes, tokens = [32, 64], [1_000_000, 2_000_000]
    of_size = grid(sizes, tokens, lr_N_exponent=0.4, lr_N=1e5)
    assert len(of_size.trunks()) == 2 and not of_size.rates_follow_tokens
    both = grid(sizes, tokens, lr_N_exponent=0.4, lr_N=1e5, lr_D_exponent=0.2, lr_D=1e6)
    for run in both:
        expected = (
            OPTIM.lr
            * (count_parameters(run.model).n_matmul / 1e5) ** -0.4
            * (run.tokens / 1e6) ** -0.2
        )
        assert run.optim.lr == pytest.approx(expected, rel=1e-15)
    assert len(both.trunks()) == 4 and both.rates_follow_tokens
    assert (
        both.flops == pytest.approx(both.table()["flops"].sum())
        and both.flops > 1.2 * of_size.flops
    )


def test_a_grid_of_rates_is_planned_about_every_run_of_the_rule() -> None:
    plan = grid(
        [32, 64], [1_000_000, 2_000_000], lr_factors=(0.5, 1.0, 2.0), seeds=(0, 1)
    )
    alone = rates(grid([32, 64], [1_000_000, 2_000_000]))
    assert len(plan) == 3 * 2 * len(alone) and not plan.rates_follow_tokens
    assert len(plan.trunks()) == 3 * 2 * 2  # of a size, a rate and a seed
    for cell, lr in alone.items():
        assert sorted(
            {r.optim.lr for r in plan if (r.model.width, r.tokens) == cell}
        ) == [lr / 2, lr, lr * 2]


def test_the_warm_up_is_a_fraction_of_the_shortest_run_on_each_trunk() -> None:
    plan = isoflop(warmup_fraction=0.05)
    assert [trunk.model.width for trunk in plan.trunks()] == [
        t.model.width for t in isoflop().trunks()
    ]
    for trunk in plan.trunks():
        shortest = min(run.steps * run.batch_tokens for run in trunk.runs)
        assert {run.optim.warmup_tokens for run in trunk.runs} == {int(0.05 * shortest)}
    alone = isoflop(
        warmup_fraction=0.05, optim=dataclasses.replace(OPTIM, schedule="cosine")
    )
    assert all(
        run.optim.warmup_tokens == int(0.05 * run.steps * run.batch_tokens)
        for run in alone
    )


def test_a_recipe_of_other_tokens_and_batch_is_moved_to_each_run() -> None:
    optim = dataclasses.replace(OPTIM, weight_decay=1e-4)
    plan = grid(
        [64],
        [1_000_000, 4_000_000],
        optim=optim,
        base_tokens=1_000_000,
        base_batch_tokens=512,
    )
    assert plan.runs[0].optim == optim
    assert plan.runs[1].optim == rescale_optim(optim, data_ratio=4.0)
    assert plan.rates_follow_tokens
    doubled = dataclasses.replace(optim, batch_size=8)
    (run,) = grid([64], [1_000_000], optim=doubled, base_batch_tokens=512)
    assert run.optim == rescale_optim(doubled, batch_ratio=2.0)
