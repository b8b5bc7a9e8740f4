"""Packages that a task takes its data from or that compute a metric."""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path
from types import ModuleType

from scaling.data.errors import DataError


def find_version(package: str, wanted_by: str, extra: str = "tasks") -> str:
    """The version of an installed package, for provenance.

    Args:
        wanted_by: what needs it, for the message, as "task = 'facts'".
        extra: of this library, which installs it.

    Raises:
        DataError: it is not installed.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise make_missing_error(package, wanted_by, extra) from None


def import_package(module: str, package: str, wanted_by: str) -> ModuleType:
    """A module of a package of the extra `tasks`.

    Raises:
        DataError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise make_missing_error(package, wanted_by, "tasks") from None


def find_package_file(package: str, name: str, wanted_by: str) -> Path:
    """A data file of an installed package, without importing the package.

    Args:
        name: path inside the package, as "pycountry/databases/iso4217.json".

    Raises:
        DataError: the package or the file is missing.
    """
    version = find_version(package, wanted_by)
    path = Path(str(importlib.metadata.distribution(package).locate_file(name)))
    if not path.is_file():
        raise DataError(
            f"{wanted_by}: the package `{package}` {version} has no file {name}; "
            "reinstall it, or install the version that constraints.txt names"
        )
    return path


def make_missing_error(package: str, wanted_by: str, extra: str) -> DataError:
    """The error about a package that is not installed."""
    return DataError(
        f"{wanted_by}: the package `{package}` is not installed; "
        f'run: pip install "scaling[{extra}]"'
    )
