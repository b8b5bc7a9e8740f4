"""The record of decisions of a sweep that steers itself, which a resumed sweep follows.

`OUT/decisions.jsonl` holds one JSON object per decision, in order, and
`OUT/decisions/NAME.json` the runs that a decision orders, as a plan. A decision is
written before it is acted upon. A sweep that was interrupted therefore follows the
decisions that exist and makes only those that are missing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from scaling.cli.output import null_nonfinite
from scaling.config import ConfigError
from scaling.planning.plan import Plan
from scaling.store.files import write_atomically

FILE = "decisions.jsonl"
FOLDER = "decisions"


@dataclass(frozen=True)
class Decision:
    """One decision.

    Attributes:
        name: of the step, such as "pilot" or "round 1"; unique in a sweep.
        decision: what was decided.
        reason: why.
        flops: of the runs that it orders, by which the budget is charged.
        values: the numbers that it rests on and that later steps need.
        plan: the runs that it orders.
    """

    name: str
    decision: str
    reason: str
    flops: float = 0.0
    values: dict[str, object] = field(default_factory=dict)
    plan: Plan | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.decision}\n    because {self.reason}"


class Journal:
    """The decisions of one folder."""

    def __init__(
        self, out: Path | None, report: Callable[[str], None] = lambda text: None
    ) -> None:
        """Read the decisions of a folder.

        Args:
            out: the folder of the sweep; None keeps the decisions in memory.
            report: is called with every decision that is made or followed.

        Raises:
            ConfigError: the file cannot be read.
        """
        self._out = out
        self._report = report
        self._decisions: dict[str, Decision] = {}
        if out is not None:
            self._decisions = _read_decisions(out)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """All decisions, in order."""
        return tuple(self._decisions.values())

    @property
    def flops(self) -> float:
        """FLOPs of all runs that were ordered."""
        return sum(decision.flops for decision in self.decisions)

    def decide(self, name: str, make: Callable[[], Decision]) -> Decision:
        """The recorded decision of this name; without one, a new one, which is recorded.

        Args:
            name: of the step.
            make: makes the decision.
        """
        known = self._decisions.get(name)
        if known is not None:
            self._report(f"{known}\n    (decided before)")
            return known
        decision = make()
        self._decisions[name] = decision
        if self._out is not None:
            _write_decisions(self._out, self.decisions)
        self._report(str(decision))
        return decision

    def tabulate_decisions(self) -> pd.DataFrame:
        """One row per decision: step, decision, reason, runs, FLOPs, FLOPs so far."""
        rows = []
        spent = 0.0
        for decision in self.decisions:
            spent += decision.flops
            rows.append(
                {
                    "step": decision.name,
                    "decision": decision.decision,
                    "reason": decision.reason,
                    "runs": len(decision.plan) if decision.plan is not None else 0,
                    "flops": decision.flops,
                    "flops_so_far": spent,
                }
            )
        return pd.DataFrame(rows)


def _get_plan_path(out: Path, name: str) -> Path:
    return out / FOLDER / f"{name.replace(' ', '_')}.json"


def _write_decisions(out: Path, decisions: tuple[Decision, ...]) -> None:
    """Write the newest plan, then all decisions at once: a line without its plan, or
    half a line, cannot be left behind.
    """
    newest = decisions[-1]
    if newest.plan is not None:
        newest.plan.to_json(_get_plan_path(out, newest.name))
    lines = []
    for decision in decisions:
        content = {
            entry.name: getattr(decision, entry.name)
            for entry in dataclasses.fields(Decision)
            if entry.name != "plan"
        }
        content["plan"] = None
        if decision.plan is not None:
            path = _get_plan_path(out, decision.name)
            content["plan"] = path.relative_to(out).as_posix()
        # JSON has no infinity, which an interval that is open may hold.
        lines.append(json.dumps(null_nonfinite(content), allow_nan=False) + "\n")
    write_atomically(out / FILE, "".join(lines))


def _read_decisions(out: Path) -> dict[str, Decision]:
    path = out / FILE
    if not path.exists():
        return {}
    decisions = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            content = json.loads(line)
            plan = content.pop("plan")
            if plan is not None:
                plan = Plan.from_json(out / plan)
            decision = Decision(**content, plan=plan)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{path}, line {number}: not a decision ({error}); remove the lines "
                "from there on, and the sweep decides them anew"
            ) from None
        decisions[decision.name] = decision
    return decisions
