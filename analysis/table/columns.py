"""The columns of the run table, read from the schema that `scaling` ships.

The schema is `scaling/store/columns.toml`. Only the folder of that package is looked
up; none of its code is imported, so that `analysis` works without Flax.
"""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path


def find_schema() -> Path:
    """The path of `scaling/store/columns.toml`.

    Raises:
        ImportError: the package `scaling` is not installed beside `analysis`.
    """
    spec = importlib.util.find_spec("scaling")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / "store" / "columns.toml"
        if path.is_file():
            return path
    raise ImportError(
        "scaling/store/columns.toml: not found; install the package `scaling`, which "
        "declares the columns of the run table"
    )


def read_meanings() -> dict[str, str]:
    """Column name -> meaning with its unit, in the order of the table."""
    meanings: dict[str, str] = {}
    for column in tomllib.loads(find_schema().read_text(encoding="utf-8"))["column"]:
        unit = column.get("unit")
        meaning = column["meaning"]
        meanings[column["name"]] = f"{meaning} [{unit}]" if unit else meaning
    return meanings


COLUMNS: dict[str, str] = read_meanings()
"""Meaning of each column of the run table, with its unit, by its name."""
