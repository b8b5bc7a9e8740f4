"""The laws of several recipes: fitted together, with one shape for all of them, or each
by itself.

Fitted by itself, a recipe's law is ill-conditioned: its irreducible loss, exponents and
coefficients trade with each other, and two such fits differ more by that than by the
recipes. One shape for all recipes leaves only what the recipes differ in (Volkova et
al. 2026, arXiv:2602.07712).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit
from analysis.fitting.fit import fit as fit_law
from analysis.fitting.protocol import evaluate_objective
from analysis.laws.base import Params
from analysis.laws.grouped import LABEL, GroupedLaw, group_law, list_shape
from analysis.laws.library import Law
from analysis.table.runs import CANONICAL, Runs, load_runs

# How far a prior shape is moved to see how the coefficients follow, in standard
# deviations of its parameters.
PRIOR_STEP = 0.05


@dataclass(frozen=True, eq=False)
class Source:
    """What is known of a recipe before the comparison.

    Attributes:
        name: of the recipe.
        runs: its run table.
        fit: a fit of these runs, if the caller gave one.
    """

    name: str
    runs: Runs
    fit: Fit | None = None


@dataclass(frozen=True, eq=False)
class RecipeFits:
    """The laws of several recipes, and draws of their parameters.

    Attributes:
        grouping: which parameters the recipes share, and the names of all.
        fits: the law of each recipe, with its own runs; the baseline comes first.
        params: of all recipes, by the names of `grouping`.
        boot: draws of these.
        joint: the fit of all runs together; None if each recipe was fitted by itself.
        notes: what was held and why.
    """

    grouping: GroupedLaw
    fits: tuple[Fit, ...]
    params: dict[str, float]
    boot: Bootstrap
    joint: Fit | None = None
    notes: tuple[str, ...] = ()

    def evaluate(self, quantity: Callable[[Params], np.ndarray]) -> np.ndarray:
        """[R] a positive quantity of all parameters in each draw."""
        return self.boot.evaluate(quantity, logarithmic=True)

    def draw_quantity(self, name: str, group: int) -> np.ndarray:
        """[R] draws of a parameter or derived quantity of a recipe, counted from 0."""
        derived = dict(self.grouping.base.derived)

        def find_quantity(params: Params) -> np.ndarray:
            own = self.grouping.select_params(params, group)
            return np.asarray(derived[name](own) if name in derived else own[name])

        return self.boot.evaluate(find_quantity)


def fit_together(
    sources: Sequence[Source],
    law: Law,
    *,
    draws: int,
    seed: int,
    prior_fit: Fit | None = None,
    efficiencies: Sequence[str] | None = None,
    **fit_options: Any,
) -> RecipeFits:
    """Fit one law to the runs of all recipes.

    Args:
        sources: the recipes, the baseline first.
        law: of each recipe.
        draws: of the bootstrap.
        seed: of the bootstrap.
        prior_fit: a fit of the same law whose shape is taken over, with its
            uncertainty; None to fit the shape as well.
        efficiencies: the variables in which recipes may differ, as ("D",); None for
            all that their runs can tell apart.
        fit_options: as for `analysis.fit`.

    Raises:
        NotIdentifiedError: the runs do not determine the law.
        ValueError: the prior fit is of another law, or holds what is held already.
    """
    grouping = group_law(law, len(sources))
    runs = join_runs(sources)
    tied, notes = tie_coefficients(grouping, sources, efficiencies)
    tied |= fit_options.pop("tied", None) or {}
    fixed = dict(fit_options.pop("fixed", None) or {})
    shape: dict[str, float] = {}
    if prior_fit is not None:
        check_prior_fit(prior_fit, law)
        shape = {name: prior_fit.params[name] for name in list_shape(law)}
        notes.append(
            f"{', '.join(shape)} are those of the fit to {prior_fit.protocol.source}, "
            "with its uncertainty"
        )

    def fit_with_shape(held: Mapping[str, float]) -> Fit:
        return fit_law(
            runs, grouping.law, fixed={**held, **fixed}, tied=tied, **fit_options
        )

    joint = fit_with_shape(shape)
    notes += joint.protocol.notes
    if joint.certificate.at_bound:
        notes.append(
            f"at a bound of its range: {', '.join(joint.certificate.at_bound)}; the "
            "intervals leave its uncertainty out"
        )
    boot = joint.bootstrap(draws, seed=seed)
    if prior_fit is not None:
        boot = add_shape_draws(boot, joint, prior_fit, fit_with_shape)
    fits = []
    for group, source in enumerate(sources):
        fits.append(view_recipe(joint, grouping, group, source.runs))
    return RecipeFits(
        grouping=grouping,
        fits=tuple(fits),
        params=joint.params,
        boot=boot,
        joint=joint,
        notes=tuple(notes),
    )


def fit_each(
    sources: Sequence[Source],
    law: Law,
    *,
    draws: int,
    seed: int,
    **fit_options: Any,
) -> RecipeFits:
    """Fit each recipe's own law to its own runs; a fit that the caller gave is kept.

    The draws of the recipes are independent of each other, and are paired.

    Raises:
        NotIdentifiedError: a recipe's runs do not determine its law.
        ValueError: the fits that were given are of different laws.
    """
    fits = []
    for source in sources:
        fitted = source.fit
        if fitted is None:
            fitted = fit_law(source.runs, law, **fit_options)
        fits.append(fitted)
    seeds = np.random.SeedSequence(seed).generate_state(len(fits)).tolist()
    boots = []
    for fitted, own_seed in zip(fits, seeds, strict=True):
        boots.append(fitted.bootstrap(draws, seed=int(own_seed)))
    grouping = group_law(law, len(fits), shared=())
    params: dict[str, float] = {}
    columns: dict[str, np.ndarray] = {}
    notes: list[str] = []
    for group, (source, boot) in enumerate(zip(sources, boots, strict=True)):
        of_fit = fits[group].protocol.notes
        new = [note for note in of_fit if note not in source.runs.notes]
        notes += [f"{source.name}: {note}" for note in (*new, *boot.notes)]
        for name in law.params:
            own_name = grouping.name_parameter(name, group)
            params[own_name] = fits[group].params[name]
            columns[own_name] = boot.draws[name]
    # Draws about the fits are extended linearly if those of all recipes are.
    is_linear = all(boot.center for boot in boots)
    together = replace(
        boots[0],
        law=grouping.law,
        draws=columns,
        notes=tuple(notes),
        center=params if is_linear else {},
    )
    return RecipeFits(grouping, fits=tuple(fits), params=params, boot=together)


def join_runs(sources: Sequence[Source]) -> Runs:
    """One run table of all recipes, in their order, with the recipe as a label: 1 for
    the baseline.

    The trunks of two recipes count as different ones, whatever their names.
    """
    shared = set(CANONICAL) | set(sources[0].runs.columns)
    for source in sources:
        shared &= set(source.runs.table.columns)
    kept = [name for name in sources[0].runs.table.columns if name in shared]
    has_trunks = any("trunk" in source.runs.table.columns for source in sources)
    parts = []
    for group, source in enumerate(sources):
        table = source.runs.table
        part = table.loc[:, [*kept, "source_row"]].copy()
        part[LABEL] = float(group + 1)
        if has_trunks:
            part["trunk"] = name_trunks(table, source.name)
        parts.append(part)
    columns = {}
    for name in sources[0].runs.columns:
        if all(name in source.runs.columns for source in sources):
            columns[name] = sources[0].runs.columns[name]
    first = sources[0].runs
    return replace(
        first,
        table=pd.concat(parts, ignore_index=True),
        columns={**columns, LABEL: LABEL},
        source=" and ".join(source.name for source in sources),
        notes=(),
    )


def name_trunks(table: pd.DataFrame, recipe: str) -> list[str]:
    """[n] the trunk of each row, named after its recipe. A row without one is a trunk
    of its own.
    """
    own = [f"{recipe} row {row}" for row in range(len(table))]
    if "trunk" not in table.columns:
        return own
    names = []
    for trunk, alone in zip(table["trunk"], own, strict=True):
        names.append(alone if pd.isna(trunk) else f"{recipe} {trunk}")
    return names


def tie_coefficients(
    grouping: GroupedLaw,
    sources: Sequence[Source],
    efficiencies: Sequence[str] | None,
) -> tuple[dict[str, str], list[str]]:
    """(ties of the coefficients in which recipes do not differ, notes that say so).

    A recipe whose runs are too few to tell its coefficients apart differs from the
    baseline in the last of them alone, for Hoffmann's law in what its tokens are worth.

    Raises:
        ValueError: a variable in which recipes of this law cannot differ.
    """
    law = grouping.base
    known = [entry.variable for entry in law.efficiencies]
    for variable in efficiencies or ():
        if variable not in known:
            raise ValueError(
                f"efficiencies has {variable!r}; recipes of law {law.name!r} differ in "
                f"{' and '.join(known) or 'no variable that has a name'}"
            )
    tied = {}
    notes = []
    for group, source in enumerate(sources):
        if group == 0:
            continue
        free = known
        if efficiencies is not None:
            free = list(efficiencies)
        elif count_cells(source.runs, law) < len(known):
            free = known[-1:]
        held = [entry for entry in law.efficiencies if entry.variable not in free]
        for entry in held:
            own_name = grouping.name_parameter(entry.coefficient, group)
            tied[own_name] = entry.coefficient
        if held and efficiencies is None:
            notes.append(
                f"{source.name} has too few cells of {' and '.join(known)} to tell its "
                f"efficiencies apart: only that in {free[0]} is fitted, and that in "
                f"{', '.join(entry.variable for entry in held)} is 1"
            )
    return tied, notes


def count_cells(runs: Runs, law: Law) -> int:
    """Distinct values of the law's variables among the runs."""
    table = runs.table.loc[:, list(law.quantities)].to_numpy(float)
    return len(np.unique(np.round(np.log(table), 9), axis=0))


def check_prior_fit(prior_fit: Fit, law: Law) -> None:
    """
    Raises:
        ValueError: the fit is of another law than the recipes are compared by.
    """
    if prior_fit.law.name != law.name:
        raise ValueError(
            f"prior_fit is of law {prior_fit.law.name!r}, and the recipes are compared "
            f"by {law.name!r}; give law={prior_fit.law.name!r}, or another prior fit"
        )


def add_shape_draws(
    boot: Bootstrap,
    joint: Fit,
    prior_fit: Fit,
    fit_with_shape: Callable[[Mapping[str, float]], Fit],
) -> Bootstrap:
    """Draws of a fit whose shape is held, with the uncertainty of that shape.

    To first order the coefficients follow the shape linearly, positive ones by their
    logarithms. How they follow is read off fits with each parameter of the shape moved
    by a twentieth of its standard deviation.

    Args:
        boot: draws of `joint`.
        joint: fitted with the shape of `prior_fit`.
        prior_fit: whose draws the shape's uncertainty is.
        fit_with_shape: the fit of the same runs with another shape.
    """
    law = prior_fit.law
    shape = {name: prior_fit.params[name] for name in list_shape(law)}
    # Another seed than that of `boot`, of which the shape is independent.
    prior = prior_fit.bootstrap(len(boot), seed=boot.seed + 1)
    draws = dict(boot.draws)
    for name in shape:
        draws[name] = prior.draws[name]
    for name, center in shape.items():
        deviation = prior.draws[name] - center
        spread = float(np.std(deviation))
        if spread == 0:  # held in the prior fit as well
            continue
        step = PRIOR_STEP * spread
        moved = fit_with_shape({**shape, name: center + step})
        for own_name, value in joint.params.items():
            if own_name in shape:
                continue
            if value > 0 and moved.params[own_name] > 0:
                slope = np.log(moved.params[own_name] / value) / step
                draws[own_name] = draws[own_name] * np.exp(slope * deviation)
            else:
                slope = (moved.params[own_name] - value) / step
                draws[own_name] = draws[own_name] + slope * deviation
    return replace(boot, draws=draws, center=dict(joint.params))


def view_recipe(joint: Fit, grouping: GroupedLaw, group: int, runs: Runs) -> Fit:
    """The law of one recipe, counted from 0, as a fit of its own runs, with the
    parameters and the covariance of the fit of all runs.
    """
    rows = joint.data[LABEL] == group + 1
    data = {name: values[rows] for name, values in joint.data.items() if name != LABEL}
    tied = joint.protocol.tied
    fixed = {}
    free = []
    positions = []
    for name in grouping.base.params:
        own_name = grouping.name_parameter(name, group)
        leader = tied.get(own_name, own_name)
        if leader in joint.free:
            free.append(name)
            positions.append(joint.free.index(leader))
        else:
            fixed[name] = joint.params[leader]
    protocol = replace(
        joint.protocol,
        columns=dict(runs.columns),
        source=runs.source,
        n_rows=len(runs),
        excluded=tuple(runs.reasons()),
        notes=runs.notes,
        fixed=fixed,
        tied={},
    )
    residuals = joint.residuals[rows]
    return replace(
        joint,
        law=grouping.base,
        protocol=protocol,
        params=grouping.select_params(joint.params, group),
        free=tuple(free),
        covariance=joint.covariance[np.ix_(positions, positions)],
        objective=evaluate_objective(
            protocol, joint.whitened[rows], data.get("weight")
        ),
        residuals=residuals,
        data=data,
    )


def read_runs_of_fit(fit: Fit) -> Runs:
    """The rows that a fit was made from, as a run table."""
    table = pd.DataFrame(fit.data)
    variables = {}
    for name in (*fit.law.variables, fit.law.target, "weight", "loss_se"):
        if name in table.columns and name not in ("N", "D", "C", "loss"):
            variables[name] = name
    runs = load_runs(table, **variables)
    columns = {**runs.columns, **fit.protocol.columns}
    known = {name: columns[name] for name in runs.columns}
    return replace(runs, columns=known, source=fit.protocol.source)
