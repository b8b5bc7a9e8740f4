"""Plans that are found by what they determine, and the interval that a plan will give."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scaling.config import ConfigError
from scaling.planning.design_space import LARGEST_SHARE, make_design_space
from scaling.planning.plan import Plan, PlanConfig, make_model, make_run

if TYPE_CHECKING:
    from analysis import DesignPrior, Expectation


def read_prior(prior_fit: Path | None) -> DesignPrior | None:
    """The law and noise of a saved fit; None for those of the recipe of preset isoflop."""
    if prior_fit is None:
        return None
    from analysis import Fit, make_prior_from_fit

    return make_prior_from_fit(Fit.from_json(prior_fit), str(prior_fit))


def find_plan(
    config: PlanConfig, flops: float, want: str, prior_fit: Path | None
) -> Plan:
    """The plan within a compute budget that makes the interval of a quantity narrowest.
    No run is longer than the training stream.

    Args:
        config: the recipe, the sizes and the limits of the runs.
        flops: of the whole plan, shared trunks once.
        want: the quantity, as "a" or "loss@C=1e15".
        prior_fit: a saved fit whose law and noise are assumed.

    Raises:
        ConfigError: the budget or the stream affords too few runs, or the quantity is
            unknown.
        DataError: there is no such data.
    """
    from analysis import design

    # A token that is seen again does not count as a new one.
    stream = count_train_tokens(config)
    try:
        space = make_design_space(config, LARGEST_SHARE * flops, max_tokens=stream)
    except ConfigError as error:
        raise ConfigError(f"{error}; the stream has {stream:,} tokens") from None
    try:
        found = design(space.table(), flops, want, read_prior(prior_fit))
    except ValueError as error:
        raise ConfigError(f"--flops {flops:g} --for {want}: {error}") from None
    return space.make_plan(found.table["candidate"].tolist())


def count_train_tokens(config: PlanConfig) -> int:
    """Length of the training stream, which is prepared if it is not yet.

    Raises:
        ConfigError, DataError: the family cannot be trained on the text.
    """
    from scaling.execution.sweep import prepare_data

    model = make_model(config, min(config.widths))
    tokens = config.optim.batch_size * model.context
    smallest = make_run(config, model, tokens, budget=None)
    return prepare_data(Plan(config.name, (smallest,))).train_tokens


def expect_plan(
    plan: Plan, want: str | None, prior_fit: Path | None
) -> Expectation | None:
    """The intervals that a plan is expected to give; None where its runs do not have
    the variables of the prior's law.

    Args:
        plan: with or without finished runs.
        want: a quantity besides those that are stated by default.
        prior_fit: a saved fit whose law and noise are assumed.

    Raises:
        ConfigError: the quantity is unknown.
    """
    from analysis import expect_intervals
    from analysis.decisions.expected import COLUMNS, list_default_quantities
    from analysis.decisions.prior import read_default_prior
    from analysis.decisions.quantity import parse_quantity

    prior = read_prior(prior_fit) or read_default_prior()
    if not set(prior.law.variables) <= set(COLUMNS):
        return None
    table = plan.table()
    quantities = list_default_quantities(prior.law, table)
    try:
        if want is not None:
            asked = parse_quantity(want)
            others = [known for known in quantities if str(known) != str(asked)]
            quantities = [asked, *others]
        return expect_intervals(table, quantities, prior)
    except ValueError as error:
        raise ConfigError(f"--for {want}: {error}") from None
