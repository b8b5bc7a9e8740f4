"""The loop of a sweep that steers itself: rate, pilot, rounds of design, training, fit.

What is to be trained is decided from what was trained, by `rates.py` and `rounds.py`,
and recorded by `journal.py`. `train` is a parameter, so that the loop runs on simulated
runs as well as on real ones.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd

from analysis import DesignPrior, Quantity
from analysis.decisions.quantity import parse_quantity
from scaling.cli.steering.journal import Decision, Journal
from scaling.cli.steering.rates import (
    FACTORS,
    RateChoice,
    choose_rate,
    extend_rates,
    find_next_factor,
    plan_rates,
)
from scaling.cli.steering.rounds import (
    LEVEL,
    ROUNDING,
    Evidence,
    NextRuns,
    check_forecast,
    choose_runs,
    count_family_flops,
    update_prior,
    weigh_evidence,
)
from scaling.cli.steering.settings import AutoSettings
from scaling.config import ConfigError, RunConfig, to_dict
from scaling.planning.design_space import LARGEST_SHARE
from scaling.planning.plan import Plan, PlanConfig

RATE_SHARE = 0.05
"""Of the budget, for the first search of the learning rate."""

LARGEST_RATE_SHARE = 0.10
"""Of the budget, with further rates."""

PILOT_SHARES = (0.12, 0.15, 0.20)
"""Of the budget, for rate and first law together: the first that affords a law."""

LEAST_GAIN = 0.05
"""The rest of the budget is not spent if it would narrow the interval by less."""


@dataclass(frozen=True)
class Trained:
    """What came of a plan.

    Attributes:
        table: the run table of its runs that finished.
        failures: a reason for each run that did not.
    """

    table: pd.DataFrame
    failures: dict[str, str]


Train = Callable[[Plan], Trained]
"""Trains what is missing of a plan."""


class Steering:
    """The loop of decisions: what is known so far, and what to train next."""

    def __init__(
        self,
        config: PlanConfig,
        settings: AutoSettings,
        *,
        train: Train,
        journal: Journal,
        prior: DesignPrior,
        train_tokens: int | None = None,
    ) -> None:
        """Start with no run.

        Args:
            config: the recipe, the sizes and the limits. Its budgets are not used.
            settings: what the sweep is for and what it may spend.
            train: trains a plan.
            journal: the decisions so far.
            prior: the law and noise that are assumed before the sweep.
            train_tokens: length of the training stream, the most tokens of a run; None
                for no limit.
        """
        self.config = config
        self.settings = settings
        self.journal = journal
        self.prior = prior
        self.train_tokens = train_tokens
        self.want = parse_quantity(settings.quantity)
        self.per_token = count_family_flops(config)
        self.spent = 0.0
        self.runs: list[RunConfig] = []
        self.failures: dict[str, str] = {}
        self.is_tuned = False
        self.table = pd.DataFrame()
        self._train = train
        self._weighed: dict[int, Evidence | str] = {0: "no run yet"}

    def steer(self) -> None:
        """Take every decision and train what it orders.

        Raises:
            ConfigError: the budget affords no law, or the folder holds the decisions of
                another sweep.
        """
        self._record_settings()
        self._record_data()
        self._tune_rate()
        self._train_pilot()
        number = 1
        while True:
            decision = self._decide_round(number)
            if decision.plan is None:
                break
            self._train_runs(decision)
            number += 1
        if self.evidence is None:
            raise ConfigError(
                f"flops = {self.settings.flops:g}: the runs that it affords do not "
                "determine the law; raise it, or add smaller widths"
            )

    # --- before the first run ------------------------------------------------------

    def _record_settings(self) -> None:
        asked = _as_json(
            {
                "settings": {
                    **dataclasses.asdict(self.settings),
                    "want": self.settings.quantity,
                },
                "config": to_dict(self.config),
                "prior": self.prior.source,
            }
        )

        def make() -> Decision:
            return Decision(
                "settings",
                f"spend up to {self.settings.flops:.3g} FLOPs for {self.want}",
                f"it was asked for; {self.prior} are assumed at first",
                values=asked,
            )

        stored = self._follow("settings", make).values
        for part in asked:
            if stored[part] != asked[part]:
                changed = _describe_change(stored[part], asked[part], part)
                raise ConfigError(
                    f"{changed}: this folder holds a sweep that steers itself with other "
                    f"settings; give those, or another --out"
                )

    def _record_data(self) -> None:
        def make() -> Decision:
            if self.train_tokens is None:
                return Decision("data", "no limit of tokens", "the source has none")
            return Decision(
                "data",
                f"train on at most {self.train_tokens:,} tokens a run",
                "the training stream has so many, and runs that see text again leave "
                "the law of fresh text",
                values={"train_tokens": self.train_tokens},
            )

        self._follow("data", make)

    # --- learning rate -------------------------------------------------------------

    def _tune_rate(self) -> None:
        """Train small sizes at several rates, and keep the best multiple of the planned
        one.
        """
        if not self.settings.tune:
            return
        first = self._follow("rates", self._decide_rates)
        if first.plan is None:
            return
        table = self._train(first.plan).table
        attempted = list(FACTORS)
        while True:
            choice = choose_rate(self.config, table, self._get_run_noise())
            factor = find_next_factor(choice.edge, attempted)
            if factor is None:
                break
            more = extend_rates(first.plan, self.config, factor)
            if self.spent + more.flops > LARGEST_RATE_SHARE * self.settings.flops:
                break
            attempted.append(factor)
            order = Decision(
                f"rates {factor:g}",
                f"train {len(more)} more runs at {factor:g} times the planned rate",
                choice.reason,
                more.flops,
                plan=more,
            )
            followed = self._follow(order.name, lambda order=order: order)
            assert followed.plan is not None
            more_table = self._train(followed.plan).table
            table = pd.concat([table, more_table], ignore_index=True)
        found = choice
        decision = self._follow("rate", lambda: _describe_rate(self.config, found))
        factor = decision.values["factor"]
        assert isinstance(factor, float)
        optim = dataclasses.replace(self.config.optim, lr=self.config.optim.lr * factor)
        self.config = dataclasses.replace(self.config, optim=optim)
        self.is_tuned = True

    def _decide_rates(self) -> Decision:
        budget = RATE_SHARE * self.settings.flops
        plan = plan_rates(self.config, budget)
        if plan is None:
            return Decision(
                "rates",
                f"keep the planned rate, {self.config.optim.lr:.4g} at the base width",
                f"{100 * RATE_SHARE:g} % of the budget affords no runs to tune it",
            )
        widths = sorted({run.model.width for run in plan})
        return Decision(
            "rates",
            f"train {len(plan)} runs of {plan.runs[0].steps} steps: widths "
            f"{_join(widths)} at {_join(FACTORS)} times the planned rate",
            "the rate is tuned at small sizes and transferred to the others by the rule "
            f"of {self.config.model.parametrization}; these runs enter no law",
            plan.flops,
            plan=plan,
        )

    def _get_run_noise(self) -> float:
        """Standard deviation of the log loss of a run."""
        return (self.prior.trunk**2 + self.prior.row**2) ** 0.5

    # --- pilot and rounds ----------------------------------------------------------

    def _train_pilot(self) -> None:
        decision = self._follow("pilot", self._decide_pilot)
        if decision.plan is not None:
            self._train_runs(decision)

    def _decide_pilot(self) -> Decision:
        """The smallest design that determines the law with a degree of freedom left.

        It is made for the exponent a, where the law has one: a loss far away does not
        say much about the law between the runs.
        """
        pilot_want = self.want
        if "a" in dict(self.prior.law.derived):
            pilot_want = Quantity("a")
        problem = ""
        for share in PILOT_SHARES:
            budget = share * self.settings.flops - self.spent
            try:
                found = self._choose_runs(pilot_want, budget, budget)
            except ValueError as error:
                problem = str(error)
                continue
            table = found.design.table
            points = len(table[["n_matmul", "tokens"]].drop_duplicates())
            if points > len(self.prior.binding.free):
                return _describe_order("pilot", found, "a first law and its noise")
            problem = f"runs at {points} sizes and tokens are too few for the law"
        return Decision(
            "pilot",
            "no pilot",
            f"{100 * PILOT_SHARES[-1]:g} % of the budget affords no law: {problem}",
        )

    def _decide_round(self, number: int) -> Decision:
        """The runs of a round, or, without a plan, the end of the sweep."""
        known = {decision.name: decision for decision in self.journal.decisions}
        decision = known.get(f"round {number}") or known.get("stop")
        if decision is None:
            decision = self._find_round(number)
        found = decision
        return self._follow(found.name, lambda: found)

    def _find_round(self, number: int) -> Decision:
        settings = self.settings
        evidence = self.evidence
        if number > settings.rounds:
            return Decision("stop", "train no more", "all rounds are done")
        wanted = settings.until
        if evidence and wanted and evidence.half_width <= wanted:
            reason = (
                f"{self.want} is known to {_format_half_width(evidence)}, as wanted"
            )
            return Decision("stop", "train no more", reason)
        remaining = settings.flops - self.spent
        rounds_left = settings.rounds - number + 1
        try:
            found = self._choose_runs(self.want, remaining, remaining / rounds_left)
        except ValueError as error:
            reason = f"the rest of the budget affords no more runs: {error}"
            return Decision("stop", "train no more", reason)
        if found.after > (1 - LEAST_GAIN) * found.before:
            reason = (
                f"the rest of the budget would narrow the interval of {self.want} by "
                f"less than {100 * LEAST_GAIN:g} %"
            )
            return Decision("stop", "train no more", reason)
        purpose = "the cheapest trunks of a design for the rest of the budget"
        if rounds_left == 1:
            purpose = "the design for the rest of the budget"
        return _describe_order(f"round {number}", found, purpose)

    def _choose_runs(self, want: Quantity, budget: float, first: float) -> NextRuns:
        return choose_runs(
            self.config,
            budget,
            want,
            update_prior(self.prior, self.evidence),
            first=first,
            largest=LARGEST_SHARE * self.settings.flops,
            least_points=0 if self.evidence else len(self.prior.binding.free) + 1,
            trained=[run for run in self.runs if run.run_id not in self.failures],
            failed=self.failures,
            max_tokens=self.train_tokens,
        )

    # --- training and fitting ------------------------------------------------------

    @property
    def evidence(self) -> Evidence | None:
        """What the runs so far say; None if they do not determine the law."""
        found = self._weigh_runs(self.table)
        return None if isinstance(found, str) else found

    def _weigh_runs(self, table: pd.DataFrame) -> Evidence | str:
        """What some runs say, or why they do not determine the law.

        The law is fitted when it is asked for: a sweep that follows recorded decisions
        does not need it.

        Args:
            table: the first runs of the sweep.
        """
        count = len(table)
        if count not in self._weighed:
            try:
                found = weigh_evidence(table, self.prior.law, self.want, self.per_token)
            except ValueError as error:
                self._weighed[count] = str(error)
            else:
                self._weighed[count] = found
        return self._weighed[count]

    def _train_runs(self, order: Decision) -> None:
        """Train what a decision orders, and fit the law to all runs so far."""
        assert order.plan is not None
        outcome = self._train(order.plan)
        self.failures |= outcome.failures
        self.runs += order.plan.runs
        earlier = self.table
        pieces = [piece for piece in (earlier, outcome.table) if len(piece)]
        self.table = pd.concat(pieces, ignore_index=True)
        name = f"law after {order.name}"

        def make() -> Decision:
            found = self._weigh_runs(self.table)
            if isinstance(found, str):
                return Decision(name, "none yet", found)
            notes = []
            if outcome.failures:
                notes.append(
                    f"{len(outcome.failures)} runs failed and are not tried again"
                )
            before = self._weigh_runs(earlier) if len(earlier) else ""
            if not isinstance(before, str):
                notes.append(check_forecast(before, outcome.table))
            return _describe_evidence(name, found, notes)

        self._follow(name, make)

    def _follow(self, name: str, make: Callable[[], Decision]) -> Decision:
        """Take a decision, or the recorded one, and charge the budget with it.

        Raises:
            ConfigError: the budget would be exceeded.
        """
        decision = self.journal.decide(name, make)
        self.spent += decision.flops
        if self.spent > self.settings.flops * ROUNDING:
            raise ConfigError(
                f"flops = {self.settings.flops:g}: {name} would raise what is spent to "
                f"{self.spent:.4g}; raise it"
            )
        return decision


def _describe_rate(config: PlanConfig, choice: RateChoice) -> Decision:
    """The decision on the learning rate."""
    lr = config.optim.lr * choice.factor
    reason = choice.reason
    if choice.edge:
        reason += ", and the search ends there: the best rate may lie beyond"
    if choice.by_width:
        best = [f"{width}: {factor:.2f}" for width, factor in choice.by_width.items()]
        reason += f"; by width {_join(best)}"
    kept = "keep" if choice.factor == 1 else "take"
    return Decision(
        "rate",
        f"{kept} {choice.factor:.3g} times the planned rate, {lr:.4g} at the base width",
        reason,
        values={
            "factor": float(choice.factor),
            "lr": lr,
            "interval": [float(end) for end in choice.interval],
            "by_width": {str(width): best for width, best in choice.by_width.items()},
        },
    )


def _describe_order(name: str, found: NextRuns, purpose: str) -> Decision:
    """The decision to train the runs of a design."""
    runs = found.plan.runs
    trunks = len({run.trunk_id for run in runs})
    widths = sorted({run.model.width for run in runs})
    tokens = sorted(run.tokens for run in runs)
    expected = found.design.expected
    return Decision(
        name,
        f"train {len(runs)} runs on {trunks} trunks, widths {widths[0]} to {widths[-1]}, "
        f"{tokens[0]:,} to {tokens[-1]:,} tokens",
        f"{purpose}, which is expected to give {expected.intervals[0]} "
        f"({100 * expected.level:g} % interval); {expected.prior}",
        found.flops,
        values={"expected_half_width": found.after, "expected_without": found.before},
        plan=found.plan,
    )


def _describe_evidence(name: str, evidence: Evidence, notes: Iterable[str]) -> Decision:
    """What the law is after some runs."""
    law = evidence.fit
    low, high = evidence.interval
    values: dict[str, object] = {
        "params": {key: float(value) for key, value in law.params.items()},
        "noise": dict(law.protocol.components),
        "value": evidence.value,
        "interval": [low, high],
        "half_width": evidence.half_width,
        "runs": len(law.residuals),
    }
    for derived, value in law.derived().items():
        values[derived] = float(value)
        values[f"{derived}_interval"] = list(evidence.boot.interval(derived, LEVEL))
    reasons = [f"{len(law.residuals)} runs were fitted"]
    components = law.protocol.components
    if components:
        reasons.append(
            f"trunks differ by {100 * components['trunk']:.2g} %, runs by "
            f"{100 * components['row']:.2g} %"
        )
    if not law.certificate.ok:
        reasons.append("the fit is not certified")
    reasons += [*notes, *evidence.notes]
    return Decision(
        name,
        f"{evidence.want} = {evidence.value:.4g} [{low:.4g}, {high:.4g}]",
        "; ".join(reasons),
        values=values,
    )


def _format_half_width(evidence: Evidence) -> str:
    if evidence.want.is_loss:
        return f"±{100 * evidence.half_width:.2g} %"
    return f"±{evidence.half_width:.2g}"


def _join(values: Iterable[object]) -> str:
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def _as_json(value: dict[str, object]) -> dict[str, object]:
    """Values as they are read back from the journal."""
    return json.loads(json.dumps(value))


def _describe_change(stored: object, asked: object, name: str = "") -> str:
    """The first field that differs, with both values."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        for key in {**stored, **asked}:
            if stored.get(key) != asked.get(key):
                path = f"{name}.{key}" if name else str(key)
                return _describe_change(stored.get(key), asked.get(key), path)
    return f"{name} = {asked!r} was {stored!r}"
