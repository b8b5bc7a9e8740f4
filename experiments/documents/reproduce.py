"""The claims of five documents about large language models, put to the test: verdict,
number, interval, rule, figure.

    scaling reproduce documents [--quick | --full] [--claims S1 S2 ...]

Trains small Transformers on source code as bytes and measures what can be measured
without training. --quick, the default, takes 11 minutes on two cores; --full prints its
price first and takes hours. Whatever is finished below --out is kept: interrupt it at
will, a second call is fast. Writes `claims.json` and `report.html`. A verdict follows
from the numbers by the claim's rule and can come out either way; the rules of S5 and S6
were restated once.
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
from typing import Any

import jinja2
import tyro

from analysis.report.html import inline_svg
from experiments.documents.claims import (
    activations,
    arithmetic,
    distributed,
    recipe,
    scale,
    unit_scaling,
)
from experiments.documents.evidence import Evidence
from experiments.documents.grids import FULL, QUICK
from experiments.documents.statement import PENDING, Claim, Result
from scaling.cli.output import print_plan
from scaling.config import ConfigError
from scaling.execution.sweep import drop_finished

MODULES = (scale, activations, distributed, recipe, unit_scaling, arithmetic)
CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for claim in sorted(
        (c for module in MODULES for c in module.CLAIMS),
        key=lambda claim: int(claim.id[1:]),
    )
}
WAITING = {
    "S11": (
        "B, C, D",
        "pre-training then fine-tuning beats training on the task alone",
    ),
    "S17": (
        "A, C, D",
        "compression (pruning, quantisation) saves memory at little loss",
    ),
    "S19": ("A", "beam search gives better text than greedy decoding"),
}


@dataclass(frozen=True)
class Documents:
    """Put the documents' claims to the test.

    Attributes:
        quick: minutes on two cores; the default.
        full: larger models, more tokens and seeds; prints its price first.
        claims: which of them; all when left out.
        workers: processes, one per core. Default: one per core on CPU.
    """

    quick: tyro.conf.FlagCreatePairsOff[bool] = False
    full: tyro.conf.FlagCreatePairsOff[bool] = False
    out: Path = Path("runs/documents")
    claims: tuple[str, ...] = tuple(CLAIMS)
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.quick and self.full:
            raise ConfigError("--quick and --full: give one of the two")
        for name in self.claims:
            if name in WAITING:
                raise ConfigError(
                    f"claim {name!r}: its experiment is not there yet; there are {', '.join(CLAIMS)}"
                )
            if name not in CLAIMS:
                raise ConfigError(
                    f"claim {name!r}: unknown; claims are {', '.join(CLAIMS)}"
                )


def examine_claims(args: Documents) -> list[Result]:
    """Train what the claims need and decide each; progress goes to standard error."""
    evidence = Evidence(FULL if args.full else QUICK, args.out, args.workers)
    claims = [CLAIMS[name] for name in dict.fromkeys(args.claims)]
    grids = dict.fromkeys(grid for claim in claims for grid in claim.needs)
    plan = evidence.plan(grids)
    if len(plan) and drop_finished(plan, args.out / "runs").runs:
        for grid in grids if args.full else ():
            print(f"\nthe runs of {grid!r}", flush=True)
            print_plan(
                evidence.plan([grid]),
                args.out / "runs",
                timing=True,
                workers=args.workers,
            )
        start = time.monotonic()
        evidence.train(plan)
        print(
            f"trained the runs: {time.monotonic() - start:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    results = []
    for claim in claims:
        start = time.monotonic()
        result = Result(claim, claim.experiment(evidence), time.monotonic() - start)
        results.append(result)
        print(
            f"{claim.id}: {result.verdict}, {result.seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    return results


def to_json_data(result: Result) -> dict[str, Any]:
    """A result as JSON data; a number that is not finite is null."""
    numbers = {
        name: {
            key: x if math.isfinite(x) else None
            for key, x in dataclasses.asdict(number).items()
        }
        for name, number in result.finding.numbers.items()
    }
    claim = result.claim
    said = {
        name: getattr(claim, name)
        for name in ("id", "documents", "statement", "rule", "change")
    }
    return said | {
        "verdict": result.verdict,
        "numbers": numbers,
        "remark": result.finding.remark,
    }


def write_report(results: Sequence[Result], size: str, out: Path) -> Path:
    """Write `claims.json` and the page; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    pending = [
        {"id": i, "documents": d, "statement": s, "verdict": PENDING}
        for i, (d, s) in WAITING.items()
    ]
    content = {"size": size, "claims": [*map(to_json_data, results), *pending]}
    (out / "claims.json").write_text(
        json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
    )
    pictures = {
        r.claim.id: inline_svg(r.finding.figure, r.claim.id.lower(), r.claim.statement)
        for r in results
        if r.finding.figure is not None
    }
    page = environment.get_template("documents.html.j2").render(
        results=results,
        pictures=pictures,
        pending=pending,
        size=size,
        counts=collections.Counter(r.verdict for r in results),
    )
    (out / "report.html").write_text(page, encoding="utf-8")
    return out / "report.html"


def print_verdicts(results: Sequence[Result]) -> None:
    """The table of verdicts on standard output."""
    rows = [
        (r.claim.id, r.claim.documents, r.claim.short, r.verdict, r.headline)
        for r in results
    ]
    rows += [
        (i, documents, statement, PENDING, "")
        for i, (documents, statement) in WAITING.items()
    ]
    rows.sort(key=lambda row: int(row[0][1:]))
    titles = ("id", "document", "claim", "verdict", "number with 95 % interval")
    widths = [max(len(row[i]) for row in (titles, *rows)) for i in range(4)]
    for row in (titles, *rows):
        print(
            "  ".join(
                [
                    *(text.ljust(w) for text, w in zip(row[:4], widths, strict=True)),
                    row[4],
                ]
            ).rstrip()
        )


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
