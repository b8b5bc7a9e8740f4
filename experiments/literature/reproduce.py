"""Published fits, refitted: what was printed beside what this library finds on the same
runs, with a verdict per line.

    scaling reproduce literature --data-dir DIR     # or: python -m
    experiments.literature.reproduce --data-dir DIR

DIR holds the public tables by the names in `experiments/literature/entries.py`. Without
it, the tables that are published as plain files are downloaded once (pooch, with pinned
checksums; needs the `literature` extra) and the entries that need others are skipped,
and said to be. Writes `literature.json` and `report.html` below --out. The seven
entries with published numbers take about two minutes on two cores, most of it
compiling; `caballero` one more, and `revisiting`,
whose long curves m4 fits slowly, far longer: name the entries you want with --entries.
Expect `reproduced` on most lines, and on the others the reason.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd
import tyro

from experiments.literature.entries import ENTRIES, Line

RAW = "https://raw.githubusercontent.com"
DOWNLOADS = {  # file -> (address, sha256)
    "epoch_chinchilla.csv": (
        f"{RAW}/epoch-research/analyzing-chinchilla/HEAD/data/svg_extracted_data.csv",
        "193478df4e90f040016431996c45682659306840ecdadf83cfb9cd5ca0aa1b30",
    ),
    "llama3_isoflops.csv": (
        f"{RAW}/eric-czech/llama3_isoflop_extraction/7ec1fb7ddfbf5fb6363879eb895ae872a4bb9952/isoflops_points.csv",
        "5675ea68f14be53bd09bf0d65667c0f25668aa82ecc48020864ae371e7a38a8a",
    ),
    "revisiting_lang.csv": (
        f"{RAW}/google-research/google-research/9853680c781781bd8d3de20aa61c7373ce059913/"
        "revisiting_neural_scaling_laws/data/benchmark.lang.csv",
        "63c346db00a66b692e1ea9a0f71a2f2b267e55f74be5b863a92e199dffbf0983",
    ),
}


@dataclass(frozen=True)
class Literature:
    """Refit what has been published.

    Attributes:
        data_dir: folder of the public tables; downloaded where possible when left out.
        entries: which of them; all when left out.
        draws: bootstrap draws for the published intervals.
    """

    data_dir: Path | None = None
    out: Path = Path("runs/literature")
    draws: int = 4000
    entries: tuple[str, ...] = tuple(ENTRIES)


def find(name: str, data_dir: Path | None) -> Path:
    """The table of that name.

    Raises:
        FileNotFoundError: not in data_dir, or without one, not a file that can be
        downloaded.
    """
    if data_dir is not None:
        if not (data_dir / name).is_file():
            raise FileNotFoundError(f"{name} is not in {data_dir}")
        return data_dir / name
    if name not in DOWNLOADS:
        raise FileNotFoundError(
            f"{name} is not published as one file; put it in a folder and give --data-dir"
        )
    try:
        import pooch
    except ModuleNotFoundError:
        raise FileNotFoundError(
            f"{name}: pip install 'scaling[literature]' to download it, or give --data-dir"
        ) from None
    address, digest = DOWNLOADS[name]
    try:
        return Path(
            pooch.retrieve(address, known_hash=f"sha256:{digest}", progressbar=False)
        )
    except (OSError, ValueError) as error:  # no network; or a file that has changed
        raise FileNotFoundError(
            f"{name} could not be had from {address} ({error}); give --data-dir"
        ) from error


def refit(args: Literature) -> tuple[list[Line], list[str]]:
    """(one line per published number, what was skipped and why).

    Raises:
        ValueError: an entry that there is not.
    """
    unknown = [name for name in args.entries if name not in ENTRIES]
    if unknown:
        raise ValueError(f"no entry {unknown[0]!r}; entries are {', '.join(ENTRIES)}")
    lines, skipped = [], []
    for name in args.entries:
        start = time.perf_counter()
        try:
            found = ENTRIES[name](lambda file: find(file, args.data_dir), args.draws)
        except FileNotFoundError as error:
            skipped.append(f"{name}: {error}")
            continue
        lines += found
        print(
            f"{name}: {len(found)} lines, {time.perf_counter() - start:.0f} s",
            file=sys.stderr,
        )
    return lines, skipped


def write(lines: list[Line], skipped: list[str], out: Path) -> Path:
    """Write `literature.json` and the page; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [dataclasses.asdict(one) for one in lines]
    (out / "literature.json").write_text(
        json.dumps({"lines": rows, "skipped": skipped}, indent=1) + "\n"
    )
    grouped: dict[str, list[Line]] = {}
    for one in lines:
        grouped.setdefault(one.entry, []).append(one)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True
    )
    counts = collections.Counter(one.verdict for one in lines)
    page = environment.get_template("literature.html.j2").render(
        grouped=grouped, counts=counts, skipped=skipped
    )
    (out / "report.html").write_text(page, encoding="utf-8")
    return out / "report.html"


def main(argv: Sequence[str] | None = None) -> int:
    """Refit, print, write."""
    args = tyro.cli(Literature, args=argv, description=__doc__)
    lines, skipped = refit(args)
    table = pd.DataFrame([dataclasses.asdict(one) for one in lines])
    if len(table):
        print(table.drop(columns="remark").to_string(index=False))
        print(
            ", ".join(
                f"{count} {verdict}"
                for verdict, count in collections.Counter(table["verdict"]).items()
            )
        )
    for why in skipped:
        print(f"skipped {why}")
    print(write(lines, skipped, args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
