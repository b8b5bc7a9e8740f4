"""Recipes compared at their own optima: how much compute one saves over the baseline,
by a law whose shape all of them share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.decisions import remarks
from analysis.decisions.allocate import counted_flops_per_token
from analysis.decisions.frontier import (
    FlopsPerToken,
    make_frontier,
)
from analysis.decisions.joint import (
    RecipeFits,
    Source,
    fit_each,
    fit_together,
    read_runs_of_fit,
)
from analysis.decisions.multiplier import (
    Recipe,
    compare_exponents,
    compute_slope,
    measure_furthest,
    tabulate_budgets,
    tabulate_efficiencies,
)
from analysis.decisions.reach import Reach
from analysis.decisions.sharing import SharingTest, assess_sharing
from analysis.decisions.verdict import choose_row, describe_interval, write_verdict
from analysis.fitting.fit import Fit
from analysis.laws.base import NotIdentifiedError
from analysis.laws.library import Law, get_law
from analysis.progress import show_progress
from analysis.table.runs import Runs, load_runs

RunTable = Runs | pd.DataFrame | Fit  # a fit stands for the runs that it was made from
FlopsOption = FlopsPerToken | str | None  # N -> FLOPs per token, "counted", or 6 N

SHARING = ("test", "joint", "separate")
TEST_LEVEL = 0.05  # of the test of one shape for all recipes
DEFAULT_NAMES = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Recipes compared with a baseline.

    Attributes:
        recipes: the baseline first.
        laws: the laws of all recipes and the draws of their parameters.
        table: one row per recipe and budget, see `at`.
        efficiencies: one row per recipe and variable, if the recipes share the law's
            exponents: how many of the baseline's parameters (or tokens, FLOPs) one of
            the recipe's is worth. Columns: recipe, variable, rho, low, high. Empty
            otherwise.
        exponents: one row per recipe and quantity of the law if each recipe was fitted
            by itself: the irreducible loss, the exponents, and the quantities derived
            from them. Columns: recipe, quantity, value_a, value_b, difference (b - a),
            low, high, and differs (the interval excludes 0), where a is the baseline
            and b the recipe. Coefficients such as A are left out, because their unit
            depends on the exponent. At level 0.90, one in ten quantities that are equal
            is expected to differ. Empty if the recipes share the shape.
        slopes: by recipe, (value, low, high) of d ln m / d ln C over the budgets inside
            all sweeps.
        sharing: the test of one shape for all recipes; None where it was not made,
            which a note explains.
        furthest: (reach, C, recipe) of the optimum that leaves its fitted runs by the
            largest factor, among all recipes and budgets of the table.
        verdict: the answer in words: that reach, a line per recipe, and the test.
        level: of all intervals.
        notes: what may make the comparison unfair or its intervals wrong.
    """

    recipes: tuple[Recipe, ...]
    laws: RecipeFits
    table: pd.DataFrame
    efficiencies: pd.DataFrame
    exponents: pd.DataFrame
    slopes: dict[str, tuple[float, float, float]]
    sharing: SharingTest | None
    furthest: tuple[Reach, float, str]
    verdict: str
    level: float
    notes: tuple[str, ...]

    @property
    def baseline(self) -> Recipe:
        """The recipe that the others are compared with."""
        return self.recipes[0]

    @property
    def is_joint(self) -> bool:
        """Whether the recipes share the law's shape."""
        return self.laws.joint is not None

    def describe_reach(self) -> str:
        """By what factors the budgets of the table leave the fitted runs, in words."""
        reach, C, name = self.furthest
        if reach.is_inside:
            return f"all budgets: {reach}"
        return f"at {C:.3g} FLOPs for {name}: {reach}"

    def at(self, budgets: Sequence[float] | np.ndarray) -> pd.DataFrame:
        """Compare at other budgets, FLOPs.

        Returns:
            One row per recipe and budget with the columns:

            - recipe, its name; C, FLOPs.
            - loss_a, loss_b: at the optimum of the baseline and of the recipe, nats per
              token.
            - multiplier, with its interval low and high.
            - reach: C over the smallest of the sweeps' largest C. Above 1, at least one
              law is extrapolated.
            - loss_a_low, loss_a_high, loss_b_low, loss_b_high: intervals of the losses.
            - beyond_floor: the share of draws in which the recipe's loss is at or below
              the baseline's irreducible loss.
        """
        C = np.asarray(budgets, float)
        return tabulate_budgets(self.laws, self.recipes, C, self.level)

    def __str__(self) -> str:
        percent = f"{100 * self.level:g} %"
        lines = [
            self.verdict,
            "",
            f"compute multiplier: C that {self.baseline.name} needs for the recipe's "
            f"loss, over the recipe's C ({percent} intervals; reach > 1: beyond a "
            "sweep)",
            _format_table(self.table),
        ]
        if len(self.efficiencies):
            lines += [
                "",
                f"efficiencies: what one of the recipe is worth in {self.baseline.name}"
                f"'s ({percent} intervals)",
                self.efficiencies.to_string(index=False, float_format="{:.4g}".format),
            ]
        if len(self.exponents):
            lines += [
                "",
                f"quantities of the law: value_a of {self.baseline.name}, value_b of "
                f"the recipe, b - a ({percent} intervals)",
                self.exponents.to_string(index=False, float_format="{:.4g}".format),
            ]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _format_table(table: pd.DataFrame) -> str:
    """The main columns of `Comparison.at` as text."""
    formats = {
        "C": "{:.3g}",
        "loss_a": "{:.4f}",
        "loss_b": "{:.4f}",
        "multiplier": "{:.4g}",
        "low": "{:.4g}",
        "high": "{:.4g}",
        "reach": "{:.3g}",
    }
    shown = table.loc[:, ["recipe", *formats]]
    writers = {name: form.format for name, form in formats.items()}
    return shown.to_string(index=False, formatters=writers)


def compare(
    *recipes: RunTable | Mapping[str, RunTable],
    law: str | Law = "chinchilla",
    budgets: Sequence[float] | np.ndarray | None = None,
    objective: str = "huber",
    delta: float | None = None,
    draws: int = 1000,
    level: float = 0.90,
    seed: int = 0,
    sharing: str = "test",
    prior_fit: Fit | None = None,
    efficiencies: Sequence[str] | None = None,
    flops_per_token: FlopsOption | tuple[FlopsOption, ...] = None,
    at: Mapping[str, float] | None = None,
    extrapolate: bool = False,
    **fit_options: Any,
) -> Comparison:
    """Compare recipes (optimizer, architecture, data) with the first of them.

    All runs are fitted at once by a law whose irreducible loss and exponents the
    recipes share, for Hoffmann's law L_g = E + A / (rho_N_g N)^alpha + B / (rho_D_g
    D)^beta, where the efficiencies rho of the baseline are 1 (Volkova et al. 2026,
    arXiv:2602.07712). An F test says whether the runs bear one shape; if they do not,
    each recipe is fitted by itself, and the verdict says so.

    The compute multiplier at C is m(C) = C_a / C, where C_a is the C at which the
    baseline's optimum reaches the loss that the recipe reaches at its own optimum with
    C FLOPs. Above 1, the recipe is better. Its interval comes from draws of all
    parameters together. In a draw where the recipe's loss lies at or below the
    baseline's irreducible loss, m is infinite, and so may be the end of an interval.

    Args:
        recipes: two or more run tables, the baseline first, or one mapping of names to
            run tables. A fit stands for its runs: its law and its objective are those
            of the comparison, and its options if each recipe is fitted by itself.
        law: a law of N and D, or one of C.
        objective: as for `fit`.
        delta: as for `fit`.
        budgets: FLOPs. By default six over the range of C that all sweeps hold, and ten
            times the last of them.
        draws: of the parameters.
        level: of the intervals.
        seed: of the draws.
        sharing: "test"; "joint": share the shape whatever the test says; "separate":
            fit each recipe by itself.
        prior_fit: a fit of the same law, whose irreducible loss and exponents are taken
            over with their uncertainty. A few cells of N and D trained with every
            recipe are enough then.
        efficiencies: the variables in which recipes may differ, as ("D",). By default
            all, but D alone for a recipe with a single cell of N and D.
        flops_per_token: as for `allocate`, or "counted", as in each sweep's runs
            (`counted_flops_per_token`); a tuple if the recipes differ in it.
        at: values of the law's variables besides N, D and C.
        extrapolate: answer wherever the budgets lie, without a warning. Otherwise an
            `ExtrapolationWarning` says that a recipe's optimum at a budget that was
            given is more than 10 times outside its fitted runs.
        fit_options: noise, prior, fixed, ... as for `fit`.

    Raises:
        ExtrapolationError: an optimum at a budget that was given is more than 100 times
            outside the fitted runs, and `extrapolate` is not given.
        NotIdentifiedError: the runs do not determine the law.
        ValueError: fewer than two recipes, two of one name, a law without a frontier in
            compute, an unknown word, or a budget that is not positive.
    """
    named = name_recipes(recipes)
    sources = [_read_source(name, runs) for name, runs in named.items()]
    options = _list_flops_options(flops_per_token, len(sources))
    if sharing not in SHARING:
        raise ValueError(f"sharing is {sharing!r}; choose one of {', '.join(SHARING)}")
    law, fit_options = _choose_protocol(
        sources, get_law(law), {"objective": objective, "delta": delta, **fit_options}
    )
    sampling = {"draws": draws, "seed": seed}
    test = None
    notes: list[str] = []
    with show_progress("comparison of recipes", 2) as progress:
        if sharing == "separate":
            laws = fit_each(sources, law, **sampling, **fit_options)
        else:
            laws = fit_together(
                sources,
                law,
                prior_fit=prior_fit,
                efficiencies=efficiencies,
                **sampling,
                **fit_options,
            )
            progress.advance()
            test = assess_sharing(laws, fit_options.get("fixed") or {}, TEST_LEVEL)
            notes += _note_test(test, laws)
    compared = _make_recipes(sources, laws, options, at)
    C = _check_budgets(_choose_budgets(compared) if budgets is None else budgets)
    is_rejected = test is not None and not test.is_tenable
    if sharing == "test" and is_rejected and prior_fit is None:
        notes.append(_describe_rejected(laws, compared, C, level))
        try:
            laws = fit_each(sources, law, **sampling, **fit_options)
        except NotIdentifiedError as error:
            notes.append(f"the rejected shape is kept, for want of another: {error}")
        compared = _make_recipes(sources, laws, options, at)
    table = tabulate_budgets(laws, compared, C, level)
    furthest = measure_furthest(laws, compared, C)
    if budgets is not None:
        furthest[0].check(extrapolate)
    slopes = {}
    for group in range(1, len(compared)):
        slope = compute_slope(laws, compared, group, C, level)
        slopes[compared[group].name] = slope
    found_notes = (
        *laws.notes,
        *notes,
        *remarks.note_sources(sources, laws.fits, options, table),
        *laws.boot.notes,
    )
    found = Comparison(
        recipes=compared,
        laws=laws,
        table=table,
        efficiencies=tabulate_efficiencies(laws, compared, level),
        exponents=compare_exponents(laws, compared, level),
        slopes=slopes,
        sharing=test,
        furthest=furthest,
        verdict="",
        level=level,
        notes=tuple(dict.fromkeys(found_notes)),
    )
    return replace(found, verdict=write_verdict(found))


def name_recipes(recipes: Sequence[object]) -> dict[str, RunTable]:
    """The run tables by name: those of a mapping, or a, b, c, ... in their order.

    Raises:
        ValueError: fewer than two recipes, or something that is no run table.
    """
    named: dict[str, RunTable] = {}
    if len(recipes) == 1 and isinstance(recipes[0], Mapping):
        named = {str(name): runs for name, runs in recipes[0].items()}
    else:
        for name, runs in zip(DEFAULT_NAMES, recipes, strict=False):
            if not isinstance(runs, Runs | pd.DataFrame | Fit):
                raise ValueError(
                    f"recipe {name} is {runs!r}; give a run table or a fit. The law "
                    "goes by name, as law='chinchilla', and several recipes in one "
                    "mapping of names to run tables"
                )
            named[name] = runs
    if len(named) < 2:
        raise ValueError(
            f"{len(named)} recipes are given; give the baseline and at least one more"
        )
    return named


def _read_source(name: str, runs: RunTable) -> Source:
    if isinstance(runs, Fit):
        return Source(name, read_runs_of_fit(runs), runs)
    if isinstance(runs, Runs):
        return Source(name, runs)
    return Source(name, load_runs(runs))


def _choose_protocol(
    sources: Sequence[Source], law: Law, fit_options: dict[str, Any]
) -> tuple[Law, dict[str, Any]]:
    """The law and the options of `fit` by which all recipes are fitted: those of the
    first fit among the sources, if there is one.

    Raises:
        ValueError: fits of different laws.
    """
    given = [source for source in sources if source.fit is not None]
    for source in given:
        first = given[0].fit
        assert first is not None and source.fit is not None
        if source.fit.law.name != first.law.name:
            raise ValueError(
                f"{given[0].name} was fitted with law {first.law.name!r}, {source.name} "
                f"with {source.fit.law.name!r}; give both as run tables, or fits of one "
                "law"
            )
    if not given or given[0].fit is None:
        return law, fit_options
    protocol = given[0].fit.protocol
    of_fit = {
        "objective": protocol.objective,
        "delta": protocol.delta,
        "residual": protocol.residual,
        "quantile": protocol.quantile,
        "noise": protocol.noise,
        "effects": protocol.effects,
        "prior": protocol.prior,
        "fixed": protocol.fixed,
        "tied": protocol.tied,
    }
    return given[0].fit.law, {**fit_options, **of_fit}


def _note_test(test: SharingTest | None, laws: RecipeFits) -> list[str]:
    """What the verdict does not say of the test of one shape."""
    if test is None:
        return [
            "one shape for all recipes is not tested: the runs leave no degree of "
            "freedom for it"
        ]
    return []


def _describe_rejected(
    laws: RecipeFits, recipes: Sequence[Recipe], C: np.ndarray, level: float
) -> str:
    """A note on the multipliers that the rejected shape would give."""
    row = choose_row(tabulate_budgets(laws, recipes, C, level), recipes[1].name)
    texts = []
    for recipe in recipes[1:]:
        found = tabulate_budgets(laws, recipes, np.array([row["C"]]), level)
        own = choose_row(found, recipe.name)
        texts.append(f"{recipe.name} {describe_interval(own)}")
    return (
        "each recipe is fitted by itself; under the rejected shape the multiplier at "
        f"{row['C']:.3g} FLOPs would be: {', '.join(texts)}"
    )


def _list_flops_options(
    flops_per_token: FlopsOption | tuple[FlopsOption, ...], count: int
) -> tuple[FlopsOption, ...]:
    """The option for FLOPs per token of each recipe.

    Raises:
        ValueError: a word other than "counted", or a tuple of another length.
    """
    options = flops_per_token
    if not isinstance(options, tuple):
        options = (options,) * count
    if len(options) != count:
        raise ValueError(
            f"flops_per_token has {len(options)} entries for {count} recipes; give one "
            "for each, or one for all"
        )
    for option in options:
        if isinstance(option, str) and option != "counted":
            raise ValueError(
                f"flops_per_token is {option!r}; give N -> FLOPs per token, 'counted', "
                "or None for 6 N"
            )
    return options


def _make_recipes(
    sources: Sequence[Source],
    laws: RecipeFits,
    options: Sequence[FlopsOption],
    at: Mapping[str, float] | None,
) -> tuple[Recipe, ...]:
    recipes = []
    for source, fit, option in zip(sources, laws.fits, options, strict=True):
        per_token = option
        if isinstance(per_token, str):
            per_token = counted_flops_per_token(fit)
        recipes.append(Recipe(source.name, fit, make_frontier(fit.law, per_token, at)))
    return tuple(recipes)


def _choose_budgets(recipes: Sequence[Recipe]) -> np.ndarray:
    """[7] six budgets over the common range of C, and ten times its end."""
    smallest = [float(recipe.fit.compute.min()) for recipe in recipes]
    largest = [recipe.largest for recipe in recipes]
    low = max(smallest)
    high = min(largest)
    if low >= high:  # the sweeps have no C in common
        low = min(smallest)
        high = max(largest)
    if low == high:  # every run has one C
        return np.array([low])
    return np.append(np.geomspace(low, high, 6), 10 * high)


def _check_budgets(budgets: Sequence[float] | np.ndarray) -> np.ndarray:
    """The budgets in ascending order.

    Raises:
        ValueError: no budget, or one that is not positive and finite.
    """
    C = np.sort(np.asarray(budgets, float))
    is_valid = C.ndim == 1 and len(C) > 0 and np.all(np.isfinite(C) & (C > 0))
    if not is_valid:
        raise ValueError(
            f"budgets is {budgets!r}; give at least one number of FLOPs, all positive "
            "and finite"
        )
    return C
