"""What every law does with its parameters: bound, tied, grouped, inverted, derived."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.laws.base import Law, bind_law, namespace, power
from analysis.laws.curves import CURVE_LAWS
from analysis.laws.grouped import GroupedLaw, group_law
from analysis.laws.library import LAWS
from tests.analysis.curves.conftest import TRUTH as CURVE_TRUTH
from tests.analysis.laws.test_library import TRUTH

CHINCHILLA = LAWS["chinchilla"]
PUBLISHED = TRUTH["chinchilla"]


def test_variables_are_positive_however_small() -> None:
    params = PUBLISHED | {"alpha": 0.5, "beta": 0.5}
    assert CHINCHILLA.predict(params, N=0.25, D=0.16) == 1.7 + 400 / 0.5 + 1200 / 0.4
    for N in (0.0, -0.5, np.nan, np.array([1.0, 0.0])):
        with pytest.raises(ValueError, match="N must be positive"):
            CHINCHILLA.predict(PUBLISHED, N=N, D=1e9)


@pytest.mark.parametrize("count", [1, 3])
def test_a_law_has_a_term_for_each_coefficient(count: int) -> None:
    law = Law("x", "E + A / N", ("N",), ("E", "A"), (), lambda p, x: (1.0,) * count)
    with pytest.raises(ValueError, match="zip"):
        law.predict({"E": 1.0, "A": 1.0}, N=1.0)
    with pytest.raises(ValueError, match="zip"):
        bind_law(law).columns({}, {}, {"N": np.ones(1)})
    with pytest.raises(ValueError, match="zip"):
        group_law(law, 2).law.predict(
            {"E": 1.0, "E_2": 1.0, "A": 1.0, "A_2": 1.0}, N=1.0, recipe=1
        )


def test_lists_of_parameters() -> None:
    assert CHINCHILLA.params == ("E", "A", "B", "alpha", "beta")
    assert CHINCHILLA.asymptotes == ("E",)
    assert LAWS["downstream"].asymptotes == ("epsilon",)
    assert LAWS["mixing"].asymptotes == ("c",)
    assert LAWS["m4_D"].asymptotes == ()  # its floor is no coefficient
    assert CHINCHILLA.equation == "loss = E + A / N^alpha + B / D^beta"
    assert LAWS["batch_size"].equation == "batch_tokens = A D^p_D"
    # The equals signs of an explanation are none of the law's own.
    assert LAWS["gadre"].equation.startswith("loss = E + (A M^eta")


def test_scalars_are_numpys() -> None:
    import jax.numpy as jnp

    assert namespace(2.0) is np
    assert namespace(np.ones(2)) is np
    assert namespace(jnp.ones(2)) is jnp
    assert power(9.0, -0.5) == pytest.approx(1 / 3)


def test_fixed_coefficients_and_offsets_are_the_rest_of_the_sum() -> None:
    x = {"N": np.array([1e6, 1e9]), "D": np.array([1e9, 1e10])}
    fixed = {"A": 400.0, "alpha": 0.34}
    binding = bind_law(CHINCHILLA, fixed)
    assert binding.free == ("E", "B", "beta")
    columns, offset = binding.columns({"beta": 0.37}, fixed, x)
    np.testing.assert_allclose(columns[0], 1.0)
    np.testing.assert_allclose(columns[1], x["D"] ** -0.37)
    np.testing.assert_allclose(offset, 400 / x["N"] ** 0.34)

    law, truth = LAWS["distillation"], TRUTH["distillation"]
    x = {name: np.array([2.5, 3.0]) for name in law.variables}
    (column,), offset = bind_law(law).columns(truth, {}, x)
    np.testing.assert_allclose(offset, x["L_T"])
    np.testing.assert_allclose(offset + truth["K"] * column, law.predict(truth, **x))


def test_tied_parameters_follow_free_and_fixed_ones() -> None:
    binding = bind_law(CHINCHILLA, {"alpha": 0.3}, {"beta": "alpha", "B": "A"})
    assert binding.complete({"E": 1.0, "A": 2.0, "alpha": 0.3}) == {
        "E": 1.0,
        "A": 2.0,
        "B": 2.0,
        "alpha": 0.3,
        "beta": 0.3,
    }
    assert binding.complete({"A": 2.0}) == {"A": 2.0, "B": 2.0}


def test_what_may_be_fixed() -> None:
    assert bind_law(CHINCHILLA, {"E": 0.0}).free == ("A", "B", "alpha", "beta")
    assert bind_law(LAWS["broken_D"], {"c0": -0.5}).fixed == ("c0",)
    for value in (np.nan, np.inf, -1e-9):
        with pytest.raises(ValueError, match="must be finite and not negative"):
            bind_law(CHINCHILLA, {"E": value})
    with pytest.raises(ValueError, match="must be finite"):
        bind_law(CHINCHILLA, {"alpha": np.inf})
    for tied in ({"alpha": "E"}, {"E": "alpha"}):
        with pytest.raises(ValueError, match="ties a coefficient to an exponent"):
            bind_law(CHINCHILLA, tied=tied)
    with pytest.raises(ValueError, match="is tied itself"):
        bind_law(CHINCHILLA, tied={"E": "A", "A": "B"})


# --- quantities that follow from parameters -------------------------------------------


def derive(name: str, law: str, **params: float) -> float:
    laws = {**LAWS, **CURVE_LAWS}
    return float(dict(laws[law].derived)[name](params))


def test_derived_quantities_by_hand() -> None:
    for law in ("chinchilla", "precision"):
        assert derive("a", law, alpha=0.3, beta=0.2) == pytest.approx(0.4)
        assert derive("b", law, alpha=0.3, beta=0.2) == pytest.approx(0.6)
    kaplan = TRUTH["kaplan"]
    assert derive("N_c", "kaplan", **kaplan) == pytest.approx(8.8e13)
    assert derive("D_c", "kaplan", **kaplan) == pytest.approx(5.4e13)
    assert derive("lambda", "annealing", tau=1000.0) == pytest.approx(0.999)


def test_the_frontier_by_hand() -> None:
    """alpha = beta = 1/2, A = 4 B: N = 4 sqrt(C/6), and E is never reached."""
    values = {"E": 1.0, "A": 8.0, "B": 2.0, "alpha": 0.5, "beta": 0.5}
    params = {name: np.array([value]) for name, value in values.items()}
    frontier = CHINCHILLA.frontier
    assert frontier is not None
    C = 6 * 400.0 * 100.0
    size = frontier.size(params, np.array([C]))
    np.testing.assert_allclose(size, 4 * np.sqrt(C / 6))
    lowest = float(CHINCHILLA.predict(values, N=size[0], D=C / (6 * size[0])))
    np.testing.assert_allclose(frontier.flops(params, np.array([lowest])), C)
    for loss in (1.0, 0.5):
        assert frontier.flops(params, np.array([loss])) == np.inf
    assert frontier.flops(params, np.array([1.0 + 1e-6])) < np.inf


def test_where_a_coefficient_is_zero_the_optimum_is_beyond_all_models() -> None:
    """Without a term in N one parameter is too many, without one in D no size is enough;
    both are still positive numbers, so that the law can be asked there.
    """
    frontier = CHINCHILLA.frontier
    assert frontier is not None
    params = {name: np.array([value]) for name, value in PUBLISHED.items()}
    zero, C = np.array([0.0]), np.array([1e21])
    (smallest,) = frontier.size(params | {"A": zero}, C)
    (largest,) = frontier.size(params | {"B": zero}, C)
    assert 0 < smallest < 1e-100
    assert 1e100 < largest < np.inf


# --- links ----------------------------------------------------------------------------


@pytest.mark.parametrize("kappa", [0.2, 0.99, 1.01, 3.0])
def test_the_sigmoid_law_is_solved_at_every_size_of_the_sum(kappa: float) -> None:
    link = LAWS["m4_D"].link
    assert link is not None
    params = {"E": 1.5, "L0": 8.0, "kappa": kappa}
    loss = 1.5 + 6.5 * np.array([1e-5, 0.01, 0.3, 0.7, 0.99, 1 - 1e-5])
    s = (loss - 1.5) / (8.0 - loss) ** kappa
    np.testing.assert_allclose(link.forward(params, s), loss, rtol=1e-9)
    np.testing.assert_allclose(link.inverse(params, loss), s, rtol=1e-9)


def test_losses_outside_the_range_of_a_link_are_moved_into_it() -> None:
    link = LAWS["m4_D"].link
    assert link is not None
    params = {"E": 1.5, "L0": 8.0, "kappa": 1.0}
    # A millionth of the range from its ends.
    inside = np.array([1.5 + 6.5e-6, 8.0 - 6.5e-6])
    expected = (inside - 1.5) / (8.0 - inside)
    for outside in ([1.5, 8.0], [1.0, 9.0]):
        found = link.inverse(params, np.array(outside))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    coverage = LAWS["repeated_sampling"].link
    assert coverage is not None
    found = coverage.inverse({}, np.array([0.0, np.exp(-2.0), 1.0]))
    assert np.all(np.isfinite(found))
    assert found[1] == pytest.approx(2.0)
    assert found[0] > 600
    assert 0 < found[2] < 1e-14


def test_kaplans_link_is_a_power() -> None:
    link = LAWS["kaplan"].link
    assert link is not None
    params = {"alpha_D": 0.5}
    assert link.forward(params, 9.0) == pytest.approx(3.0)
    assert link.inverse(params, 3.0) == pytest.approx(9.0)


# --- curves ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", CURVE_LAWS)
def test_draws_of_parameters_give_a_curve_each(name: str) -> None:
    law, truth = CURVE_LAWS[name], CURVE_TRUTH[name]
    x = {"S1": np.array([0.1, 0.2, 0.4, 0.5])}
    for variable in ("drop", "log_lr", "S", "age"):
        x[variable] = np.linspace(0.1, 2.0, 12).reshape(4, 3)
    x = {variable: x[variable] for variable in law.variables}
    factors = np.array([[1.0], [1.1]])
    together = law.predict({k: v * factors for k, v in truth.items()}, **x)
    assert together.shape == (2, 4)
    for row, factor in zip(together, factors.ravel(), strict=True):
        alone = law.predict({k: v * factor for k, v in truth.items()}, **x)
        np.testing.assert_allclose(row, alone, rtol=1e-12)


def test_the_reference_of_a_curve_is_where_the_learning_rate_changed_most() -> None:
    law = CURVE_LAWS["annealing"]
    drop = np.array([[0.0, 0.1], [0.2, 0.2], [-0.5, -0.3], [0.5, -0.4]])
    x = {"S1": np.array([1.0, 2.0, 4.0, 8.0]), "drop": drop, "age": 10 * drop}
    reference = law.choose_reference(x)
    assert reference["drop"].tolist() == [-0.5, -0.3]
    assert reference["age"].tolist() == [-5.0, -3.0]
    assert reference["S1"] == pytest.approx(math.sqrt(8.0))


# --- several groups -------------------------------------------------------------------


@pytest.fixture
def grouped() -> GroupedLaw:
    return group_law(CHINCHILLA, 3)


THREE = PUBLISHED | {"A_2": 200.0, "B_2": 1200.0, "A_3": 0.0, "B_3": 2400.0}


def test_each_group_has_its_own_coefficients(grouped: GroupedLaw) -> None:
    assert grouped.shared == ("E", "alpha", "beta")
    assert set(grouped.law.params) == set(THREE)
    assert grouped.law.labels == ("recipe",)
    assert grouped.law.quantities == ("N", "D")
    x = {"N": np.array([1e7, 1e8]), "D": np.array([1e9, 1e10])}
    for group, (A, B) in enumerate([(400.0, 1200.0), (200.0, 1200.0), (0.0, 2400.0)]):
        found = grouped.law.predict(THREE, **x, recipe=np.full(2, group + 1))
        own = PUBLISHED | {"A": A, "B": B}
        np.testing.assert_allclose(found, CHINCHILLA.predict(own, **x))
        assert grouped.select_params(THREE, group) == own


def test_the_reference_run_belongs_to_every_group(grouped: GroupedLaw) -> None:
    x = {"N": np.array([1e8]), "D": np.array([1e10]), "recipe": np.array([0])}
    terms = dict(zip(grouped.law.linear, grouped.law.terms(PUBLISHED, x), strict=True))
    for name in ("A", "A_2", "A_3"):
        assert terms[name] == pytest.approx(1e8**-0.34)
    for name in ("B", "B_2", "B_3"):
        assert terms[name] == pytest.approx(1e10**-0.37)


def test_half_the_coefficient_is_worth_two_to_the_one_over_alpha(
    grouped: GroupedLaw,
) -> None:
    of_size, of_tokens = CHINCHILLA.efficiencies
    draws = {name: np.array([value]) for name, value in THREE.items()}
    for efficiency, group, expected in (
        (of_size, 0, 1.0),
        (of_size, 1, 2 ** (1 / 0.34)),
        (of_size, 2, np.inf),
        (of_tokens, 1, 1.0),
        (of_tokens, 2, 0.5 ** (1 / 0.37)),
    ):
        found = grouped.compute_efficiency(draws, efficiency, group)
        assert found == pytest.approx([expected])


def test_quantities_of_the_shape_are_those_of_groups_that_share_it() -> None:
    assert group_law(CHINCHILLA, 2).law.derived == CHINCHILLA.derived
    apart = group_law(CHINCHILLA, 2, ("E", "alpha"))
    assert apart.law.derived == ()
    assert [entry.name for entry in apart.law.nonlinear] == ["alpha", "beta", "beta_2"]
    own_floor = group_law(CHINCHILLA, 2, ("alpha", "beta"))
    assert own_floor.law.asymptotes == ("E", "E_2")
    x = {"N": np.array([1e8]), "D": np.array([1e10]), "recipe": np.array([2])}
    params = PUBLISHED | {"E_2": 1.0, "A_2": 400.0, "B_2": 1200.0}
    difference = CHINCHILLA.predict(PUBLISHED, N=1e8, D=1e10)
    assert own_floor.law.predict(params, **x) == pytest.approx([difference - 0.7])
