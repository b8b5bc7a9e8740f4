"""Published fits, refitted: each printed number beside the one that this library finds
on the same runs, with a verdict.

    scaling reproduce literature --data-dir DIR

`python -m experiments.literature.reproduce` does the same. DIR holds the public tables
by the names in `experiments/literature/entries.py`. Without it, the tables that are
published as plain files are downloaded once (by pooch, with pinned checksums; this
needs the `literature` extra), and the entries that need other tables are skipped. The
command names what it skips.

It prints the lines, and writes `literature.json` and `report.html` below --out. The
entries with published numbers take some two minutes on two cores, most of it compiling,
and the comparisons of laws on learning curves, `caballero` and `revisiting`, as long
again: choose with --entries. Expect `reproduced` on most lines, and on the others the
reason.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd
import tyro

from experiments.literature.entries import ENTRIES
from experiments.literature.lines import Line


@dataclass(frozen=True)
class Download:
    """Where a public table is published as a plain file."""

    address: str
    sha256: str


RAW = "https://raw.githubusercontent.com"
DOWNLOADS = {
    "epoch_chinchilla.csv": Download(
        f"{RAW}/epoch-research/analyzing-chinchilla/HEAD/data/svg_extracted_data.csv",
        "193478df4e90f040016431996c45682659306840ecdadf83cfb9cd5ca0aa1b30",
    ),
    "llama3_isoflops.csv": Download(
        f"{RAW}/eric-czech/llama3_isoflop_extraction/"
        "7ec1fb7ddfbf5fb6363879eb895ae872a4bb9952/isoflops_points.csv",
        "5675ea68f14be53bd09bf0d65667c0f25668aa82ecc48020864ae371e7a38a8a",
    ),
    "revisiting_lang.csv": Download(
        f"{RAW}/google-research/google-research/"
        "9853680c781781bd8d3de20aa61c7373ce059913/"
        "revisiting_neural_scaling_laws/data/benchmark.lang.csv",
        "63c346db00a66b692e1ea9a0f71a2f2b267e55f74be5b863a92e199dffbf0983",
    ),
}
"""By name of the table."""


@dataclass(frozen=True)
class Literature:
    """Refit what has been published.

    Attributes:
        data_dir: folder of the public tables. Default: download those that can be.
        out: folder of the report.
        draws: bootstrap draws for the published intervals.
        entries: which publications to refit. Default: all.
    """

    data_dir: Path | None = None
    out: Path = Path("runs/literature")
    draws: int = 4000
    entries: tuple[str, ...] = tuple(ENTRIES)


def find_table(name: str, data_dir: Path | None) -> Path:
    """The path of a public table, which is downloaded if no folder is given.

    Raises:
        FileNotFoundError: the table is not in `data_dir`; or no folder is given and the
            table cannot be downloaded.
    """
    if data_dir is not None:
        if not (data_dir / name).is_file():
            raise FileNotFoundError(f"{name} is not in {data_dir}")
        return data_dir / name
    if name not in DOWNLOADS:
        raise FileNotFoundError(
            f"{name} is not published as one file; put it in a folder and give "
            "--data-dir"
        )
    return _download_table(name, DOWNLOADS[name])


def _download_table(name: str, download: Download) -> Path:
    try:
        import pooch
    except ModuleNotFoundError:
        raise FileNotFoundError(
            f"{name}: pip install 'scaling[literature]' to download it, or give "
            "--data-dir"
        ) from None
    try:
        path = pooch.retrieve(
            download.address,
            known_hash=f"sha256:{download.sha256}",
            progressbar=False,
        )
    except (OSError, ValueError) as error:
        # There is no network, or the published file has changed.
        raise FileNotFoundError(
            f"{name} cannot be downloaded from {download.address} ({error}); give "
            "--data-dir"
        ) from error
    return Path(path)


def refit_entries(args: Literature) -> tuple[list[Line], list[str]]:
    """One line per published number, and which entries were skipped and why.

    Raises:
        ValueError: there is no entry of a given name.
    """
    unknown = [name for name in args.entries if name not in ENTRIES]
    if unknown:
        raise ValueError(f"no entry {unknown[0]!r}; entries are {', '.join(ENTRIES)}")
    lines = []
    skipped = []
    for name in args.entries:
        start = time.perf_counter()
        find = functools.partial(find_table, data_dir=args.data_dir)
        try:
            found = ENTRIES[name](find, args.draws)
        except FileNotFoundError as error:
            skipped.append(f"{name}: {error}")
            continue
        lines += found
        seconds = time.perf_counter() - start
        print(f"{name}: {len(found)} lines, {seconds:.0f} s", file=sys.stderr)
    return lines, skipped


def write_report(lines: list[Line], skipped: list[str], out: Path) -> Path:
    """Write `literature.json` and the page; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "lines": [dataclasses.asdict(line) for line in lines],
        "skipped": skipped,
    }
    (out / "literature.json").write_text(json.dumps(content, indent=1) + "\n")
    lines_by_entry: dict[str, list[Line]] = {}
    for line in lines:
        lines_by_entry.setdefault(line.entry, []).append(line)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True
    )
    page = environment.get_template("literature.html.j2").render(
        lines_by_entry=lines_by_entry,
        counts=collections.Counter(line.verdict for line in lines),
        skipped=skipped,
    )
    path = out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def print_lines(lines: list[Line], skipped: list[str]) -> None:
    """Print the table of lines, the number of each verdict, and what was skipped."""
    if lines:
        table = pd.DataFrame([dataclasses.asdict(line) for line in lines])
        print(table.drop(columns="remark").to_string(index=False))
        counts = collections.Counter(line.verdict for line in lines)
        print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    for reason in skipped:
        print(f"skipped {reason}")


def main(argv: Sequence[str] | None = None) -> int:
    """Refit, print, write."""
    args = tyro.cli(Literature, args=argv, description=__doc__)
    lines, skipped = refit_entries(args)
    print_lines(lines, skipped)
    print(write_report(lines, skipped, args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
