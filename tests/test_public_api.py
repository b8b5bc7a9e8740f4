"""What the reference documents is what the package roots export, and nothing else."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

REFERENCE = Path(__file__).parents[1] / "docs" / "reference" / "api.md"
DIRECTIVE = re.compile(r"^\.\. auto\w+:: (.+)$", re.MULTILINE)
DOCUMENTED = DIRECTIVE.findall(REFERENCE.read_text())

# Old names, which warn and go with the next release.
DEPRECATED = {"Price", "Target", "parse_target", "price"}


@pytest.mark.parametrize("path", DOCUMENTED)
def test_what_is_documented_is_importable_from_the_root(path: str) -> None:
    module_name, name = path.rsplit(".", maxsplit=1)
    root = importlib.import_module(path.partition(".")[0])
    module = importlib.import_module(module_name)
    assert getattr(root, name) is getattr(module, name)


@pytest.mark.parametrize("package", ["scaling", "analysis"])
def test_what_the_root_exports_is_documented(package: str) -> None:
    exported = set(importlib.import_module(package).__all__) - DEPRECATED
    documented = set()
    for path in DOCUMENTED:
        if path.startswith(f"{package}."):
            documented.add(path.rsplit(".", maxsplit=1)[1])
    assert exported == documented
