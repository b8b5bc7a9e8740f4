"""Rules come out either way, measures recover what was put in, arithmetic is exact, the
page escapes what it shows.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from experiments.documents import grids, reproduce, update
from experiments.documents.accuracy import measure_accuracies
from experiments.documents.claims import (
    activations,
    arithmetic,
    distributed,
    models,
    recipe,
    scale,
    unit_scaling,
)
from experiments.documents.evidence import Evidence
from experiments.documents.reproduce import CLAIMS
from experiments.documents.statement import (
    NOT_TESTABLE,
    REFUTED,
    SUPPORTED,
    UNDECIDED,
    Claim,
    Estimate,
    Finding,
    Result,
    all_hold,
    any_holds,
    make_exact,
)
from experiments.documents.stats import estimate_mean, fit_slopes
from scaling.cli.main import main
from scaling.config import ConfigError
from scaling.model.family import build_family

Row = tuple[float, float, float]


def _numbers(values: dict[str, Row]) -> dict[str, Estimate]:
    return {name: Estimate(*row) for name, row in values.items()}


UP, DOWN, OPEN = (0.2, 0.1, 0.3), (-0.2, -0.3, -0.1), (0.0, -0.1, 0.1)
S1 = (scale.ONE_OVER, scale.REDUCTION, scale.EXCESS)
OVER = (activations.OVER_SHALLOW, activations.OVER_LAST)
RESIDUALS = (activations.WITHOUT, activations.WITH)
S6 = [f"gradient kept, {name}" for name in (activations.SCALED, activations.UNSCALED)]
S7 = (distributed.EQUAL, distributed.SPEED_UP, distributed.APART)
S11 = [models.name_gain(task) for task in models.TASKS]
S17 = [models.name_rise(name) for name in (models.ROUNDED, models.PRUNED)]
LITTLE = (0.002, 0.001, 0.003)
S19 = (models.LIKELIER, models.LESS_REPEATED)
S8 = (recipe.RATE, recipe.METHOD, recipe.BATCH)
ARMS = [arm for arm in grids.REMEDIES if arm != "none"]
S12 = [
    f"fall of the {what} by {arm}" for what in ("held-out loss", "gap") for arm in ARMS
]
S13 = ("span at the start", "span trained", "octaves gained", "ln loss over SP's")
S14 = (f"progress, {update.LITERAL}",)
FAST, SLOW, ONE, TWO = (
    (1.8, 1.7, 1.9),
    (0.8, 0.7, 0.9),
    (1.0, 1.0, 1.0),
    (2.0, 2.0, 2.0),
)
GONE = (-3.0, -3.1, -2.9)
NARROW, WIDE = (0.4, 0.3, 0.5), (2.0, 1.8, 2.2)


def _named(names: Any, *rows: Row) -> dict[str, Row]:
    return dict(zip(names, rows, strict=True))


def _residuals(without: Row, kept: Row, octaves: Row) -> dict[str, Row]:
    """S5: the gradient over the shallowest model's without any norm; nothing vanishes
    elsewhere.
    """
    names = [
        f"{what}, {s}, {n}"
        for what in OVER
        for s in activations.SETTINGS.values()
        for n in RESIDUALS
    ]
    changed = (f"{activations.OVER_SHALLOW}, no norm, {name}" for name in RESIDUALS)
    return (
        dict.fromkeys(names, OPEN)
        | _named(changed, without, kept)
        | {activations.LAYER_NORM: octaves}
    )


def _unit(*rows: Row) -> dict[str, Row]:
    """S13: the literal form passes nothing, the other form gets the rows."""
    bad = (WIDE, WIDE, DOWN, UP)
    pairs = zip(unit_scaling.FORMS.values(), (bad, rows), strict=True)
    return {
        f"{what}, {name}": row
        for name, values in pairs
        for what, row in zip(S13, values, strict=True)
    }


def _init(first: Row, second: Row) -> dict[str, Row]:
    """S15: spans of the two readings."""
    return {
        f"span of {kind}s, {reading}, {setting}": row
        for reading, row in zip(unit_scaling.READINGS, (first, second), strict=True)
        for setting in (unit_scaling.ALONE, unit_scaling.TOGETHER)
        for kind in ("signal", "gradient")
    }


CASES: dict[str, dict[str, dict[str, Row]]] = {
    "S1": {
        SUPPORTED: _named(S1, UP, (2.0, 1.8, 2.2), UP),
        REFUTED: _named(S1, UP, UP, UP),
        UNDECIDED: _named(S1, UP, UP, (1.0, 0.1, 3.0)),
    },
    "S2": {
        name: {"change of the drop per doubling": row}
        for name, row in ((SUPPORTED, DOWN), (REFUTED, UP))
    },
    "S3": {
        SUPPORTED: {"all": UP, "small": UP},
        REFUTED: {"all": UP, "small": DOWN},
        UNDECIDED: {"all": OPEN},
    },
    "S4": {SUPPORTED: {"loss": UP, "time": UP}, REFUTED: {"loss": DOWN, "time": UP}},
    "S5": {
        SUPPORTED: _residuals(without=GONE, kept=OPEN, octaves=UP),
        REFUTED: _residuals(without=GONE, kept=GONE, octaves=UP),
        UNDECIDED: _residuals(without=OPEN, kept=OPEN, octaves=UP),
    },
    "S6": {
        SUPPORTED: _named(S6, ONE, UP),
        REFUTED: _named(S6, ONE, ONE),
        UNDECIDED: _named(S6, ONE, (0.6, 0.55, 0.65)),
    },
    "S7": {
        NOT_TESTABLE: _named(S7, ONE, FAST, ONE),
        SUPPORTED: _named(S7, ONE, FAST, TWO),
        REFUTED: _named(S7, ONE, SLOW, TWO),
    },
    "S8": {
        SUPPORTED: _named(S8, UP, UP, UP),
        REFUTED: _named(S8, UP, UP, DOWN),
        UNDECIDED: _named(S8, UP, OPEN, UP),
    },
    "S9": {
        SUPPORTED: {"depth": UP, "width": UP},
        REFUTED: {"depth": DOWN, "width": UP},
    },
    "S10": {
        SUPPORTED: {"parameters": (6.9e11, 6.9e11, 6.9e11)},
        REFUTED: {"parameters": (6.7e9, 6.7e9, 6.7e9)},
    },
    "S11": {
        SUPPORTED: _named(S11, UP, UP),
        REFUTED: _named(S11, UP, DOWN),
        UNDECIDED: _named(S11, UP, OPEN),
    },
    "S12": {
        SUPPORTED: dict.fromkeys(S12, UP),
        REFUTED: dict.fromkeys(S12, UP) | {S12[0]: DOWN},
    },
    "S13": {
        SUPPORTED: _unit(NARROW, NARROW, UP, DOWN),
        REFUTED: _unit(NARROW, NARROW, UP, UP),
    },
    "S14": {
        SUPPORTED: _named(S14, ONE),
        REFUTED: _named(S14, OPEN),
        UNDECIDED: _named(S14, (0.5, 0.2, 0.8)),
    },
    "S15": {
        SUPPORTED: _init(WIDE, NARROW),
        REFUTED: _init(WIDE, WIDE),
        UNDECIDED: _init(WIDE, ONE),
    },
    "S16": {
        name: {"share of printed numbers that agree": (x, x, x)}
        for name, x in ((SUPPORTED, 1.0), (REFUTED, 0.9))
    },
    "S17": {
        SUPPORTED: _named(S17, LITTLE, LITTLE),
        REFUTED: _named(S17, LITTLE, UP),
        UNDECIDED: _named(S17, LITTLE, OPEN),
    },
    "S18": {
        SUPPORTED: {"share of pairs that agree": (0.97, 0.95, 0.98)},
        REFUTED: {"share of pairs that agree": (0.6, 0.5, 0.7)},
        UNDECIDED: {"share of pairs that agree": (0.9, 0.8, 0.95)},
    },
    "S19": {
        SUPPORTED: _named(S19, UP, UP),
        REFUTED: _named(S19, UP, DOWN),
        UNDECIDED: _named(S19, UP, OPEN),
    },
}


def test_every_claim_is_decided() -> None:
    assert set(CASES) == set(CLAIMS)
    assert set(CLAIMS) == {f"S{i}" for i in range(1, 20)}


@pytest.mark.parametrize(
    ("name", "verdict"), [(name, verdict) for name in CASES for verdict in CASES[name]]
)
def test_each_rule_comes_out_either_way(name: str, verdict: str) -> None:
    assert {SUPPORTED, REFUTED} <= set(CASES[name])
    assert CLAIMS[name].decide(_numbers(CASES[name][verdict])) == verdict


def test_what_is_not_known_stays_open_unless_the_rest_decides() -> None:
    assert all_hold(True, None) is None and all_hold(False, None) is False
    assert any_holds(True, None) is True and any_holds(False, None) is None
    assert (
        Estimate(1.0, 0.5, 2.0).above(0.6) is None
        and make_exact(1.0).within(0.5, 1.5) is True
    )


def _grid(
    loss: Any, noise: float = 0.0, tokens: tuple[int, ...] = (100, 200, 400)
) -> pd.DataFrame:
    """A family's table of a given loss(N, D), N from 1e4 in doublings, three seeds,
    equal trunks.
    """
    rng, rows = np.random.default_rng(0), []
    for N in 1e4 * 2.0 ** np.arange(6):
        for seed in range(3):
            for D in tokens:
                row = {
                    "n_matmul": N,
                    "width": N**0.5,
                    "seed": seed,
                    "tokens": D,
                    "trunk_id": f"{N}-{seed}",
                }
                value = loss(N, D) * math.exp(noise * rng.standard_normal())
                rows.append(
                    row
                    | {
                        "flops": 6 * N * D,
                        "loss": value,
                        "wall_seconds": 1e-9 * N**0.8 * D + 3,
                    }
                )
    return pd.DataFrame(rows)


def test_the_exponents_of_performance_are_recovered() -> None:
    found = scale.estimate_performance_exponents(
        _grid(lambda N, D: 1e-6 + 40 / N**0.4 * (1 + D**-0.5), 1e-3)
    )
    assert found[scale.ONE_OVER].value == pytest.approx(0.4, abs=0.01)
    assert found[scale.ONE_OVER].high < 0.5


def test_the_trend_of_the_drops_has_the_sign_of_the_curvature() -> None:
    shrinking, drops = scale.estimate_drop_trend(
        _grid(lambda N, D: 1 + 40 / N**0.4, 1e-4)
    )
    growing, _ = scale.estimate_drop_trend(_grid(lambda N, D: 4 - 1e-5 * N, 1e-4))
    assert shrinking.high < 0 < growing.low
    assert (np.diff(drops["drop"]) < 0).all()


def test_the_data_exponent_and_the_price_are_recovered() -> None:
    table = _grid(lambda N, D: 9 * N**-0.1 * D**-0.2)
    exponent, by_size = scale.estimate_data_exponent(table)
    assert exponent.value == pytest.approx(0.2) and len(by_size) == 18
    price = scale.estimate_compute_exponents(table)
    assert price["exponent of time in FLOPs"].value == pytest.approx(0.8)
    assert price["exponent of loss in compute"].low > 0.05


def test_capacity_is_compared_at_equal_tokens() -> None:
    widths = _grid(lambda N, D: 5 - 0.1 * math.log2(N**0.5) - D)
    depths = pd.DataFrame(
        {
            "depth": [1, 1, 2, 2, 4, 4],
            "tokens": 200,
            "loss": [3.0, 3.1, 2.9, 3.0, 2.8, 2.9],
        }
    )
    found = scale.estimate_capacity_gains(widths, depths)
    assert found["fall per doubling of depth"].value == pytest.approx(0.1)
    assert found["fall per doubling of width"].value == pytest.approx(0.1)


def test_concordance_counts_pairs() -> None:
    table = pd.DataFrame({"loss": [1.0, 2.0, 3.0], "accuracy": [0.9, 0.5, 0.7]})
    assert scale.measure_concordance([table]) == pytest.approx(2 / 3)
    assert scale.measure_concordance([table.assign(accuracy=-table["loss"])]) == 1.0


def test_the_critical_batch_is_recovered_from_a_hyperbola() -> None:
    rows = []
    for batch in (256, 1024, 4096):
        least = 1e5 * (1 + batch / 2000)  # tokens to a loss of 2
        for D in np.geomspace(5e4, 4e5, 9):
            rows.append(
                {
                    "batch_tokens": batch,
                    "lr": 1e-3,
                    "tokens": D,
                    "loss": 2 + math.log(least / D),
                    "seed": 0,
                }
            )
    critical = recipe.fit_critical_batch(pd.DataFrame(rows))
    assert critical.size == pytest.approx(2000, rel=1e-3)
    examples = critical.table
    np.testing.assert_allclose(examples["fitted"], examples["examples"], rtol=1e-6)


def test_spread_is_of_best_rates() -> None:
    rows = [
        {
            "optimizer": method,
            "lr": lr,
            "loss": level + (lr != 1) + 0.001 * seed,
            "seed": seed,
        }
        for method, level in (("adamw", 2.0), ("sgd", 3.0))
        for lr in (0.25, 1.0, 4.0)
        for seed in (0, 1)
    ]
    found = recipe.measure_spread(
        recipe.find_best_cells(pd.DataFrame(rows), "optimizer")
    )
    assert found.value == pytest.approx(math.log(1.5), abs=1e-3) and found.low > 0.3
    assert recipe.measure_rate_cost(pd.DataFrame(rows)).value == pytest.approx(
        math.log(1.5), abs=1e-3
    )


def test_remedies_are_paired_by_seed() -> None:
    rows = []
    for i, arm in enumerate(grids.REMEDIES):
        rows += [
            {"arm": arm, "seed": s, "heldout": 3.0 + s - 0.1 * i, "train": 1.0 + s}
            for s in range(3)
        ]
    found = recipe.measure_remedies(pd.DataFrame(rows))
    assert found[f"fall of the held-out loss by {ARMS[0]}"].low == pytest.approx(0.1)
    assert len(found) == 2 * len(ARMS)


def test_trainable_octaves_interpolate_and_stop_at_the_grid() -> None:
    rates, inf = [1, 4, 16, 64], math.inf
    assert activations.measure_trainable_octaves(
        rates, [3.0, 2.0, 2.0, 3.0], 2.5
    ) == pytest.approx(1 + 2 + 1)
    assert activations.measure_trainable_octaves(
        rates, [inf, 2.0, inf, 2.0], 2.5
    ) == pytest.approx(2)
    assert activations.measure_trainable_octaves(
        rates, [2.0] * 4, 2.5
    ) == pytest.approx(6)
    assert activations.measure_trainable_octaves(rates, [3.0] * 4, 2.5) == 0


def test_attention_is_healthy_only_with_the_scale() -> None:
    entropy = {
        scale: float(activations.measure_attention_health(64, scale, 0)[0])
        for scale in (1 / 8, 1.0)
    }
    assert entropy[1 / 8] > 0.8 > 0.3 > entropy[1.0]


def test_seven_billion_parameters_exactly() -> None:
    finding = CLAIMS["S10"].experiment(None)
    assert finding.numbers["parameters"] == make_exact(6_738_415_616)
    assert CLAIMS["S10"].decide(finding.numbers) == REFUTED


def test_the_worked_examples_recomputed() -> None:
    found = {one.quantity: one for one in arithmetic.recompute_worked_examples()}
    ours = {
        "softmax, row 1, entry 5": math.exp(20)
        / sum(math.exp(5 * i) for i in range(5)),
        "-1 log .6 - 2 log .7 - 3 log .8": -math.log(0.6 * 0.7**2 * 0.8**3),
        "h1, entry 1": 15,
        "h1, entry 2": 34,
        "h2 from a1 = [14, 29], entry 1": 333,
        "h2 from a1 = [14, 29], entry 2": 420,
        "z = w.x + b": 0.7,
        "ReLU of the z said, .6": 0.6,
        "half the sum of squares of y - yhat": 0.49,
    }
    for quantity, value in ours.items():
        assert found[quantity].recomputed == pytest.approx(value, rel=1e-6)
    assert [one.quantity for one in found.values() if one.agrees] == [
        "softmax, row 5, entry 5"
    ]


def test_the_update_is_the_formula() -> None:
    w, g, rate = {"a": jnp.array([[3.0, -2.0]])}, {"a": jnp.array([[0.6, 0.8]])}, 0.5
    for subtract, expected in (
        (False, [[3 * 0.5 * 0.6, -2 * 0.5 * 0.8]]),
        (True, [[3 - 0.3, -2 - 0.4]]),
    ):
        rule = update.make_update_rule(subtract)
        moves, _ = rule.update(g, rule.init(w), w, rate=rate, decay=0.0)
        np.testing.assert_allclose(w["a"] + moves["a"], expected, rtol=1e-6)


def test_no_gradient_reaches_a_block_that_nothing_leads_to(make_model) -> None:
    windows = np.random.default_rng(0).integers(0, 16, (2, 17))
    config = make_model(depth=2, scan_layers="always", residual=False)
    found = activations.compute_block_gradients(
        config, build_family(config).init(0), jnp.asarray(windows)
    )
    assert found.shape == (2,)
    assert found[0] == 0  # outputs start at zero and nothing skips them


def test_statistics_cover_what_they_are_given() -> None:
    assert estimate_mean([1.0, 1.0]) == Estimate(1.0, 1.0, 1.0)
    low, high = (getattr(estimate_mean([0.0, 2.0]), end) for end in ("low", "high"))
    assert (low, high) == pytest.approx(
        (1 - 12.706, 1 + 12.706), abs=1e-3
    )  # t(1) at 97.5 %
    line = fit_slopes([1.0, 3.0, 5.0, 7.0], [0, 1, 2, 3])[0]
    assert line.value == pytest.approx(2) and line.high - line.low < 1e-9


def test_runs_are_shared_restored_and_measured_once(
    tmp_path, make_run, monkeypatch
) -> None:
    runs = [make_run(tokens=tokens) for tokens in (640, 1280)]
    monkeypatch.setitem(grids.GRIDS, "family", lambda size: runs)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    evidence = Evidence(grids.QUICK, tmp_path, workers=0)
    plan = evidence.plan(["family", "family"])
    assert len(plan) == 2
    evidence.train(plan)
    table = measure_accuracies(evidence)
    assert len(table) == 2 and table["accuracy"].between(0, 1).all()
    assert evidence.measured("accuracy", lambda: pytest.fail("kept")) == table.to_dict(
        "records"
    )
    params = evidence.params(runs[0])
    assert params is not None and all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)
    )


def _claim(**changes: Any) -> Claim:
    fields = dict(
        id="S1",
        documents="A",
        short="short",
        statement="says",
        rule="rule",
        change="change",
    )
    decide, experiment = (lambda n: SUPPORTED), (lambda evidence: None)
    return Claim(**(fields | {"decide": decide, "experiment": experiment} | changes))


def test_the_page_escapes_and_loads_nothing(tmp_path) -> None:
    evil = "<script>alert(1)</script>"
    claim = _claim(statement=evil, short=evil, rule=evil, change=evil)
    finding = Finding({evil: make_exact(math.inf)}, evil, table=[{evil: evil}])
    page = reproduce.write_report(
        [Result(claim, finding, 1.0)], "quick", tmp_path
    ).read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") >= 8
    assert "default-src 'none'" in page and not re.search(r"(src|href)=.http", page)
    written = json.loads((tmp_path / "claims.json").read_text())
    assert written["claims"][0]["numbers"][evil]["value"] is None
    assert len(written["claims"]) == 1


def test_the_command_answers(tmp_path, capsys) -> None:
    argv = ["reproduce", "documents", "--claims", "S10", "S16", "--out", str(tmp_path)]
    assert main(argv) == 0
    shown = capsys.readouterr()
    assert "S10" in shown.out and "refuted" in shown.out
    assert "S16: refuted" in shown.err
    assert "6,738,415,616" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--quick", "--full"], "one of the two"),
        (["--claims", "S99"], "unknown; claims are S1"),
    ],
)
def test_wrong_arguments_are_named(
    argv: list[str], message: str, tmp_path, capsys
) -> None:
    try:
        status = main(["reproduce", "documents", *argv, "--out", str(tmp_path)])
        assert status == 2
    except SystemExit as stop:
        assert stop.code == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_both_sizes_make_plans_whose_runs_are_valid() -> None:
    for size in (
        grids.QUICK,
        dataclasses.replace(grids.FULL, seeds=(0,), few_seeds=(0,)),
    ):
        for name, grid in grids.GRIDS.items():
            runs = grid(size)
            assert len(set(runs)) == len(runs) > 0, name
            assert all(
                run.branch_step * run.batch_tokens >= run.optim.warmup_tokens
                for run in runs
                if run.steps > 40
            )
    with pytest.raises(ConfigError, match="one of the two"):
        reproduce.Documents(quick=True, full=True)
