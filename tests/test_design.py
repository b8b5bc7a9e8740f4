"""The packages are built as docs/concepts/design.md says."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
DESIGN = (ROOT / "docs" / "concepts" / "design.md").read_text()


@pytest.fixture(scope="module")
def code_shape() -> ModuleType:
    path = ROOT / "benchmarks" / "code_shape.py"
    spec = importlib.util.spec_from_file_location("code_shape", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["code_shape"] = module
    spec.loader.exec_module(module)
    return module


def read_rooms(package: str) -> list[str]:
    """The rooms of a package in the order of its table, the highest first."""
    table = DESIGN.partition(f"| room of `{package}/` |")[2].partition("\n\n")[0]
    rooms = []
    for line in table.splitlines()[2:]:
        cell = line.split("|")[1]
        for name in re.findall(r"`([^`]+)`", cell):
            rooms.append(name.removesuffix("/").removesuffix(".py"))
    return rooms


@pytest.mark.parametrize("package", ["scaling", "analysis"])
def test_a_room_imports_only_rooms_above_it(
    code_shape: ModuleType, package: str
) -> None:
    modules = code_shape.read_modules(ROOT / package)
    graph = code_shape.build_room_graph(code_shape.build_module_graph(package, modules))
    rooms = read_rooms(package)
    assert set(rooms) == set(graph)
    for room, imported in graph.items():
        for other in imported:
            assert rooms.index(other) < rooms.index(room), f"{room} imports {other}"


def test_calls_are_checked_in_every_room_but_that_of_the_configuration() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    options = settings["tool"]["pytest"]["ini_options"]["addopts"]
    (checked,) = re.findall(r"--jaxtyping-packages=(\S+)", options)
    rooms = {f"scaling.{room}" for room in read_rooms("scaling")}
    expected = rooms - {"scaling.config"} | {"analysis", "beartype.beartype"}
    assert set(checked.split(",")) == expected


@pytest.mark.parametrize(
    ("package", "nodes_per_line"), [("scaling", 9), ("analysis", 10)]
)
def test_the_code_stays_readable(
    code_shape: ModuleType, package: str, nodes_per_line: float
) -> None:
    shape = code_shape.measure_package(ROOT / package)
    assert shape.nodes_per_line <= nodes_per_line
    assert shape.one_word_functions_percent < 20
    assert shape.module_circles == [] and shape.room_circles == []
    assert shape.rooms <= 14 and shape.levels <= 9


def test_every_file_that_the_page_names_exists() -> None:
    known = {path.name for path in ROOT.rglob("*") if ".venv" not in path.parts}
    for name in re.findall(r"`([\w/]+\.(?:py|toml|pyi|md))`", DESIGN):
        assert Path(name).name in known, name
