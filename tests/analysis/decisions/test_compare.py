"""The compute multiplier of recipes, on sweeps whose multiplier is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis import (
    Comparison,
    ExtrapolationError,
    Fit,
    NotIdentifiedError,
    compare,
    fit,
    load_runs,
    plot_comparison,
    tuned,
)
from analysis.decisions.compare import name_recipes
from analysis.decisions.multiplier import compute_multiplier
from analysis.laws.library import LAWS

DRAWS = 200


def simulate_sweep(params: dict[str, float], seed: int) -> pd.DataFrame:
    C, N = np.meshgrid(
        1e18 * 4.0 ** np.arange(5), np.geomspace(2e7, 3e9, 7), indexing="ij"
    )
    C, N = C.ravel(), N.ravel()
    D = C / (6 * N)
    loss = LAWS["chinchilla"].predict(params, N=N, D=D)
    loss = loss * np.exp(0.003 * np.random.default_rng(seed).standard_normal(len(loss)))
    return pd.DataFrame({"N": N, "D": D, "C": C, "loss": loss})


def improve(params: dict[str, float], N: float, D: float) -> dict[str, float]:
    """The law of a recipe whose parameters count N times, and its tokens D times.

    A run of C FLOPs is then worth one of N D C: that is its compute multiplier.
    """
    A = params["A"] * N ** -params["alpha"]
    B = params["B"] * D ** -params["beta"]
    return params | {"A": A, "B": B}


@pytest.fixture(scope="module")
def plain(true: dict[str, float]) -> pd.DataFrame:
    return simulate_sweep(true, 0)


@pytest.fixture(scope="module")
def better(true: dict[str, float]) -> pd.DataFrame:
    return simulate_sweep(improve(true, 1.1, 1.4), 1)


@pytest.fixture(scope="module")
def steeper(true: dict[str, float]) -> pd.DataFrame:
    beta = true["beta"] + 0.03
    return simulate_sweep(true | {"beta": beta, "B": true["B"] * 1e10**0.03}, 2)


@pytest.fixture(scope="module")
def known(plain: pd.DataFrame, better: pd.DataFrame) -> Comparison:
    return compare(plain, better, draws=DRAWS)


def is_covered(comparison: Comparison, value: float) -> np.ndarray:
    table = comparison.table
    return ((table["low"] <= value) & (value <= table["high"])).to_numpy(bool)


def read_efficiencies(found: Comparison, column: str) -> dict[str, float]:
    """A column of the efficiencies of the only recipe beside the baseline."""
    table = found.efficiencies
    return dict(zip(table["variable"], table[column].to_numpy(float), strict=True))


def measure_widths(found: Comparison) -> np.ndarray:
    """Upper over lower end of the multiplier's interval at each budget."""
    ends = found.table[["low", "high"]].to_numpy(float)
    return ends[:, 1] / ends[:, 0]


def test_known_efficiencies_and_their_multiplier_are_recovered(
    known: Comparison,
) -> None:
    assert known.is_joint and known.sharing is not None and known.sharing.is_tenable
    assert is_covered(known, 1.54).all()
    assert not is_covered(known, 1.0).any()
    rho = read_efficiencies(known, "rho")
    low = read_efficiencies(known, "low")
    high = read_efficiencies(known, "high")
    assert low["N"] < 1.1 < high["N"] and low["D"] < 1.4 < high["D"]
    found = known.table["multiplier"].to_numpy(float)
    np.testing.assert_allclose(found, rho["N"] * rho["D"], rtol=1e-6)
    text = str(known)
    for part in ("b needs 6", "of a's compute at 2.56e+20", "a token is worth"):
        assert part in known.verdict
    for part in ("multiplier", "reach", "efficiencies", "tenable at the 5 % level"):
        assert part in text


def test_one_shape_narrows_the_interval(
    known: Comparison, plain: pd.DataFrame, better: pd.DataFrame
) -> None:
    apart = compare(plain, better, draws=DRAWS, sharing="separate")
    assert not apart.is_joint and apart.sharing is None
    joint = np.log(measure_widths(known))
    assert np.all(joint < 0.8 * np.log(measure_widths(apart)))
    assert is_covered(apart, 1.54).all()
    assert apart.exponents["differs"].tolist() == [False] * 5
    assert "exponents cannot be told apart" in apart.verdict


def test_the_point_estimate_solves_its_definition(known: Comparison) -> None:
    a, b = known.recipes
    for row in known.table.to_dict("records"):
        found = compute_multiplier(known.laws, known.recipes, 1, row["C"], of_fits=True)
        assert row["loss_b"] == pytest.approx(found.loss_b[0])
        assert b.fit.predict(N=1e9, D=1e10) < a.fit.predict(N=1e9, D=1e10)
        params = {name: np.array([v]) for name, v in a.fit.params.items()}
        there = a.frontier.best_loss(params, row["multiplier"] * row["C"])[0]
        assert there == pytest.approx(row["loss_b"], rel=1e-10)


def test_a_steeper_recipe_shares_no_shape(
    plain: pd.DataFrame, steeper: pd.DataFrame
) -> None:
    found = compare(plain, steeper, draws=DRAWS)
    assert found.sharing is not None and not found.sharing.is_tenable
    assert not found.is_joint and "rejected at the 5 % level" in found.verdict
    assert any("under the rejected shape" in note for note in found.notes)
    differs = dict(
        zip(found.exponents["quantity"], found.exponents["differs"], strict=True)
    )
    assert differs["beta"] and not differs["alpha"] and not differs["E"]
    assert found.slopes["b"][1] > 0 and "grows with scale" in found.verdict
    kept = compare(plain, steeper, draws=20, sharing="joint")
    assert kept.is_joint and "rejected" in kept.verdict


def test_one_recipe_is_no_better_than_itself(
    plain: pd.DataFrame, true: dict[str, float]
) -> None:
    found = compare(plain, simulate_sweep(true, 3), draws=DRAWS)
    assert is_covered(found, 1.0).all()
    assert "cannot be told apart there" in found.verdict


def test_three_recipes_by_name_and_the_order_of_rows_does_not_matter(
    known: Comparison,
    plain: pd.DataFrame,
    better: pd.DataFrame,
    true: dict[str, float],
) -> None:
    third = simulate_sweep(improve(true, 1.0, 0.8), 4)
    named = {"AdamW": plain, "Muon": better, "SGD": third}
    found = compare(named, draws=DRAWS)
    assert [recipe.name for recipe in found.recipes] == ["AdamW", "Muon", "SGD"]
    last = (found.table["recipe"] == "SGD").to_numpy(bool)
    assert np.all(is_covered(found, 0.8)[last])
    first = found.table.loc[found.table["recipe"] == "Muon", "multiplier"]
    assert first.iloc[0] == pytest.approx(known.table["multiplier"][0], rel=0.02)
    assert found.laws.joint is not None and found.laws.joint.certificate.ok

    shuffled = {name: t.sample(frac=1, random_state=5) for name, t in named.items()}
    again = compare(shuffled, draws=2)
    np.testing.assert_allclose(
        again.table["multiplier"], found.table["multiplier"], rtol=1e-6
    )
    figure = plot_comparison(found)
    gids = {child.get_gid() for ax in figure.axes for child in ax.get_children()}
    assert {"multiplier-1", "multiplier-2", "frontier-0", "frontier-2"} <= gids


def simulate_cells(params: dict[str, float], seed: int, seeds: int = 6) -> pd.DataFrame:
    """Two sizes at two token budgets, several seeds each."""
    N, D, _ = np.meshgrid([1e8, 4e8], [2e9, 8e9], range(seeds), indexing="ij")
    N, D = N.ravel(), D.ravel()
    noise = 0.003 * np.random.default_rng(seed).standard_normal(len(N))
    loss = LAWS["chinchilla"].predict(params, N=N, D=D) * np.exp(noise)
    return pd.DataFrame({"N": N, "D": D, "C": 6 * N * D, "loss": loss})


@pytest.mark.slow
def test_with_a_known_law_four_cells_are_enough(
    plain: pd.DataFrame, true: dict[str, float]
) -> None:
    cells = simulate_cells(true, 6)
    better = simulate_cells(improve(true, 1.1, 1.4), 7)
    with pytest.raises(NotIdentifiedError):
        compare(cells.loc[cells["N"] == 1e8], better.loc[better["N"] == 1e8])
    prior = fit(plain)
    found = compare(cells, better, prior_fit=prior, draws=DRAWS)
    assert is_covered(found, 1.54).all()
    assert measure_widths(found).max() < 1.2
    assert any("those of the fit" in note for note in found.notes)
    for fitted in (recipe.fit for recipe in found.recipes):
        assert fitted.params["alpha"] == prior.params["alpha"]
    held = compare(
        cells,
        better,
        fixed={name: prior.params[name] for name in ("E", "alpha", "beta")},
        draws=DRAWS,
    )
    assert measure_widths(found).mean() > measure_widths(held).mean()
    with pytest.raises(ValueError, match="give law='power_law_C'"):
        compare(cells, better, prior_fit=fit(plain, "power_law_C"))


def test_a_single_cell_tells_one_efficiency(
    plain: pd.DataFrame, true: dict[str, float]
) -> None:
    better = simulate_cells(improve(true, 1.0, 1.4), 7).iloc[:6]
    found = compare({"base": plain, "new": better}, draws=DRAWS)
    rho = read_efficiencies(found, "rho")
    assert rho["N"] == 1 and rho["D"] == pytest.approx(1.4, rel=0.1)
    assert any("new has too few cells" in note for note in found.notes)
    with pytest.raises(ValueError, match="efficiencies has 'C'"):
        compare(plain, better, efficiencies=("C",))


def add_trunks(params: dict[str, float], seed: int, trunk: float) -> pd.DataFrame:
    """A sweep of seven sizes by four token budgets, whose runs of one size share a
    trunk.
    """
    rng = np.random.default_rng(seed)
    N, D = np.meshgrid(np.geomspace(2e7, 3e9, 7), 1e9 * 3.0 ** np.arange(4))
    N, D = N.ravel(), D.ravel()
    luck = dict(zip(np.unique(N), trunk * rng.standard_normal(7), strict=True))
    noise = np.array([luck[size] for size in N]) + 0.002 * rng.standard_normal(28)
    loss = LAWS["chinchilla"].predict(params, N=N, D=D) * np.exp(noise)
    return pd.DataFrame({"N": N, "D": D, "C": 6 * N * D, "loss": loss, "trunk": N})


@pytest.mark.slow
def test_the_trunks_of_each_recipe_have_effects_of_their_own(
    true: dict[str, float],
) -> None:
    plain = add_trunks(true, 0, 0.006)
    better = add_trunks(improve(true, 1.0, 1.5), 1, 0.006)
    found = compare(plain, better, draws=DRAWS)
    joint = found.laws.joint
    assert joint is not None and joint.protocol.effects == "trunk"
    assert len(set(joint.data["trunk"])) == 14
    assert is_covered(found, 1.5).all()
    by_row = compare(plain, better, draws=DRAWS, effects="row", delta=1e-2)
    assert by_row.laws.joint is not None
    # The runs are fewer than they look: the test counts that.
    assert found.sharing is not None and found.sharing.is_tenable


@pytest.mark.slow
def test_the_interval_covers_and_true_sharing_is_rarely_rejected(
    true: dict[str, float],
) -> None:
    """30 pairs of sweeps with trunk effects; binomial limits at one in a thousand."""
    covered = 0
    rejected = 0
    for seed in range(30):
        plain = add_trunks(true, 2 * seed, 0.006)
        better = add_trunks(improve(true, 1.1, 1.3), 2 * seed + 1, 0.006)
        found = compare(plain, better, draws=400, budgets=[3e19], sharing="joint")
        covered += int(is_covered(found, 1.43)[0])
        assert found.sharing is not None
        rejected += int(not found.sharing.is_tenable)
    assert 21 <= covered <= 30
    assert rejected <= 6


def test_budgets_beyond_a_sweep_are_marked(
    known: Comparison, plain: pd.DataFrame, better: pd.DataFrame
) -> None:
    assert known.table["C"].iloc[[0, -2, -1]].tolist() == pytest.approx(
        [1e18, 2.56e20, 2.56e21]
    )
    assert known.table["reach"].iloc[[-2, -1]].tolist() == pytest.approx([1, 10])
    assert known.verdict.startswith("at 2.56e+21 FLOPs for ")
    assert any("a's extrapolated law" in note for note in known.notes)
    with pytest.raises(ExtrapolationError, match="extrapolate=True"):
        compare(plain, better, budgets=[1e23], draws=20)
    far = compare(plain, better, budgets=[1e23], draws=20, extrapolate=True)
    assert "beyond a sweep" in far.verdict
    assert np.isnan(far.slopes["b"]).all()


def test_columns_and_values_that_differ_are_noted(
    plain: pd.DataFrame, true: dict[str, float]
) -> None:
    renamed = plain.rename(columns={"N": "params"}).assign(tokenizer="bpe")
    runs = load_runs(renamed, N="params")
    other = simulate_sweep(true, 3).assign(tokenizer="bytes")
    found = compare(runs, other, draws=20)
    text = str(found)
    assert "N is params in a and N in b" in text and "tokenizer is bpe in a" in text
    assert compare(runs, other, draws=20).table.equals(found.table)


def test_a_fit_stands_for_its_runs(
    known: Comparison, plain: pd.DataFrame, better: pd.DataFrame
) -> None:
    found = compare(fit(plain), fit(better), draws=DRAWS)
    np.testing.assert_allclose(
        found.table["multiplier"], known.table["multiplier"], rtol=1e-9
    )
    saved = Fit.from_json(fit(plain).to_json())
    again = compare(saved, better, draws=DRAWS)
    np.testing.assert_allclose(again.table["low"], known.table["low"], rtol=1e-6)
    with pytest.raises(ValueError, match="fits of one law"):
        compare(fit(plain), fit(better, "power_law_C"))


def test_the_notes_on_the_runs_of_a_recipe_stand_with_its_name(
    plain: pd.DataFrame, better: pd.DataFrame
) -> None:
    """A baseline that was not tuned makes the other recipe look better."""
    tables = []
    for factor in (0.5, 1.0, 2.0):
        lost = 0.002 * np.log(factor / 2.0) ** 2  # the best rate is the largest
        tables.append(plain.assign(lr=factor, loss=plain["loss"] * (1 + lost)))
    baseline = tuned(load_runs(pd.concat(tables, ignore_index=True)))
    for runs in (baseline, fit(baseline)):
        found = compare({"plain": runs, "better": better}, draws=20)
        notes = [note for note in found.notes if "untuned" in note]
        assert len(notes) == 1
        assert notes[0].startswith("plain: untuned: in 35 of 35 cells")


def test_below_the_irreducible_loss_the_multiplier_is_infinite(
    plain: pd.DataFrame, true: dict[str, float]
) -> None:
    lower = simulate_sweep(true | {"E": 1.2}, 4)
    found = compare(plain, lower, budgets=[1e18, 1e23], draws=20, extrapolate=True)
    assert not found.is_joint
    assert np.isinf(found.table["multiplier"][1]) and "b needs" in found.verdict
    assert any(
        "below a's irreducible loss in 100 % of the draws at 1e+23 FLOPs" in note
        for note in found.notes
    )
    assert isinstance(plot_comparison(found), Figure)


def test_laws_of_compute_and_given_flops(plain: pd.DataFrame) -> None:
    C = np.geomspace(1e18, 1e21, 12)
    noise = np.exp(0.001 * np.random.default_rng(0).standard_normal((2, 12)))
    base, double = (1.7 + 2000 * (factor * C) ** -0.16 for factor in (1.0, 2.0))
    runs = [pd.DataFrame({"C": C, "loss": base * noise[0]})]
    runs.append(pd.DataFrame({"C": C, "loss": double * noise[1]}))
    found = compare(*runs, law="power_law_C", draws=DRAWS, sharing="joint")
    assert found.is_joint and is_covered(found, 2.0).all()
    assert found.efficiencies["variable"].tolist() == ["C"]
    with pytest.raises(ValueError, match="or one of C"):
        compare(plain, plain, law="power_law_N", draws=5)
    costly = compare(
        plain,
        plain,
        budgets=[1e20],
        draws=10,
        flops_per_token=(None, lambda n: 12 * n),
    )  # each token of b costs twice as much
    assert costly.table["multiplier"].tolist() == pytest.approx([0.5], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": [-1.0]}, "budgets is"),
        ({"sharing": "maybe"}, "choose one of test, joint, separate"),
        ({"flops_per_token": (None,)}, "1 entries for 2 recipes"),
        ({"flops_per_token": "6ND"}, "give N -> FLOPs per token"),
    ],
)
def test_bad_options_are_named(
    plain: pd.DataFrame, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(plain, plain, draws=10, **options)  # pyright: ignore[reportArgumentType]


def test_what_is_no_recipe_is_named(plain: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="law='chinchilla'"):
        name_recipes((plain, plain, "chinchilla"))
    with pytest.raises(ValueError, match="at least one more"):
        compare(plain)


def test_the_figure_says_what_it_shows(known: Comparison) -> None:
    fig = plot_comparison(known, ("AdamW", "Muon with a long name"))
    fig.draw_without_rendering()
    gids = {child.get_gid() for ax in fig.axes for child in ax.get_children()}
    assert {
        "multiplier-1",
        "band-multiplier-1",
        "equal",
        "budgets-1",
        "frontier-0",
        "frontier-1",
        "band-0",
        "band-1",
        "beyond",
    } <= gids
    text = "\n".join(t.get_text() for t in fig.findobj(Text) if isinstance(t, Text))
    for part in ("Muon", "AdamW", "FLOPs", "nats per token", "90 % interval"):
        assert part in text
    for ax in fig.axes:
        assert ax.title.get_window_extent().x1 <= fig.bbox.x1
        legend = ax.get_legend()
        assert legend is not None
        assert not any(
            legend.get_window_extent().padded(-1).overlaps(other.bbox)
            for other in fig.axes
        )


def test_separate_fits_move_every_irreducible_loss_alike(
    true: dict[str, float],
) -> None:
    """The second recipe's irreducible loss moves linearly, as the first one's does: the
    interval of ln m lies evenly about its value.
    """
    plain = add_trunks(true, 0, 0.02)
    better = add_trunks(improve(true, 1.0, 1.5), 1, 0.02)
    C = [3e19]
    found = compare(plain, better, draws=2000, sharing="separate", budgets=C)
    assert found.laws.boot.center
    assert {"E", "E_2"} <= set(found.laws.grouping.law.asymptotes)
    row = found.table.iloc[0]
    above = np.log(row["high"] / row["multiplier"])
    below = np.log(row["multiplier"] / row["low"])
    assert above == pytest.approx(below, rel=0.2)
