"""The claims of five documents about large language models, put to the test: verdict,
number, interval, rule, figure.

    scaling reproduce documents [--quick | --full] [--claims S1 S2 ...]

Trains small Transformers on source code as bytes, and measures what can be measured
without training. --quick, the default, takes about 9 minutes on two idle cores; --full
prints its cost first and takes hours. Finished runs below --out are kept, so that the
command can be interrupted, and a second call takes a minute. It prints the verdicts, and
writes `claims.json` and `report.html`. Each verdict follows from the numbers by the
claim's rule, which can support or refute the claim; the rules of S5 and S6 were restated
once.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import tyro

from analysis.report.html import inline_svg
from experiments.documents import DOCUMENTS, name_documents
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
from experiments.documents.grids import FULL, QUICK
from experiments.documents.statement import Claim, Estimate, Result
from scaling.cli.output import print_plan
from scaling.config import ConfigError
from scaling.execution.sweep import drop_finished

MODULES = (scale, activations, distributed, recipe, unit_scaling, arithmetic, models)


def get_claim_number(claim_id: str) -> int:
    """The number in an id such as "S12", by which claims are ordered."""
    return int(claim_id[1:])


CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for claim in sorted(
        (claim for module in MODULES for claim in module.CLAIMS),
        key=lambda claim: get_claim_number(claim.id),
    )
}
"""All claims, by id."""


@dataclass(frozen=True)
class Documents:
    """Put the documents' claims to the test.

    Attributes:
        quick: minutes on two cores; the default.
        full: larger models, more tokens and seeds; prints its cost first.
        out: folder of the runs and the report.
        claims: which claims to test. Default: all.
        workers: processes. Default: one per core on CPU.
    """

    quick: tyro.conf.FlagCreatePairsOff[bool] = False
    full: tyro.conf.FlagCreatePairsOff[bool] = False
    out: Path = Path("runs/documents")
    claims: tuple[str, ...] = tuple(CLAIMS)
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.quick and self.full:
            raise ConfigError("--quick and --full: give one of the two")
        known = ", ".join(CLAIMS)
        for name in self.claims:
            if name not in CLAIMS:
                raise ConfigError(f"claim {name!r}: unknown; claims are {known}")


def examine_claims(args: Documents) -> list[Result]:
    """Train what the claims need and decide each; progress goes to standard error."""
    evidence = Evidence(FULL if args.full else QUICK, args.out, args.workers)
    claims = [CLAIMS[name] for name in dict.fromkeys(args.claims)]
    train_missing_runs(args, evidence, claims)
    results = []
    for claim in claims:
        start = time.monotonic()
        finding = claim.experiment(evidence)
        result = Result(claim, finding, time.monotonic() - start)
        results.append(result)
        _print_progress(f"{claim.id}: {result.verdict}, {result.seconds:.0f} s")
    return results


def train_missing_runs(
    args: Documents, evidence: Evidence, claims: Sequence[Claim]
) -> None:
    """Train the runs that the claims need and that are not finished yet.

    With --full, the cost of each grid is printed first.
    """
    grids = dict.fromkeys(grid for claim in claims for grid in claim.needs)
    plan = evidence.plan(grids)
    runs_dir = args.out / "runs"
    if len(plan) == 0 or not drop_finished(plan, runs_dir).runs:
        return
    if args.full:
        for grid in grids:
            print(f"\nthe runs of {grid!r}", flush=True)
            print_plan(
                evidence.plan([grid]), runs_dir, timing=True, workers=args.workers
            )
    start = time.monotonic()
    evidence.train(plan)
    _print_progress(f"trained the runs: {time.monotonic() - start:.0f} s")


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def to_json_data(result: Result) -> dict[str, object]:
    """A result as JSON data; a number that is not finite is null."""
    claim = result.claim
    return {
        "id": claim.id,
        "documents": claim.documents,
        "statement": claim.statement,
        "rule": claim.rule,
        "change": claim.change,
        "verdict": result.verdict,
        "numbers": {
            name: _to_json_numbers(number)
            for name, number in result.finding.numbers.items()
        },
        "remark": result.finding.remark,
    }


def _to_json_numbers(estimate: Estimate) -> dict[str, float | None]:
    return {
        name: value if math.isfinite(value) else None
        for name, value in dataclasses.asdict(estimate).items()
    }


def write_report(results: Sequence[Result], size: str, out: Path) -> Path:
    """Write `claims.json` and the page; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    claims = [to_json_data(result) for result in results]
    content = {"size": size, "claims": claims}
    (out / "claims.json").write_text(
        json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
    )
    pictures = {}
    for result in results:
        claim = result.claim
        if result.finding.figure is not None:
            pictures[claim.id] = inline_svg(
                result.finding.figure, claim.id.lower(), claim.statement
            )
    page = environment.get_template("documents.html.j2").render(
        results=results,
        pictures=pictures,
        size=size,
        counts=collections.Counter(result.verdict for result in results),
        documents=DOCUMENTS,
        name_documents=name_documents,
    )
    path = out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def print_verdicts(results: Sequence[Result]) -> None:
    """Print the table of verdicts, and what the letters of the documents mean."""
    rows = [
        (
            result.claim.id,
            result.claim.documents,
            result.claim.short,
            result.verdict,
            result.headline,
        )
        for result in results
    ]
    rows.sort(key=lambda row: get_claim_number(row[0]))
    titles = ("id", "document", "claim", "verdict", "number with 95 % interval")
    table = [titles, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)]
        print("  ".join([*cells, row[4]]).rstrip())
    print("\ndocuments:")
    for letter, subject in DOCUMENTS.items():
        print(f"{letter}  {subject}")


def main(argv: Sequence[str] | None = None) -> int:
    """Train, decide, print, write."""
    args = tyro.cli(
        Documents, args=argv, prog="scaling reproduce documents", description=__doc__
    )
    results = examine_claims(args)
    print_verdicts(results)
    print(write_report(results, "full" if args.full else "quick", args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
