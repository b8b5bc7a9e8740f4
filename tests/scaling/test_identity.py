"""Laws of the ids: they stay what commit d17ff75 made them, however the configuration
grows.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.config import (
    ArchitectureConfig,
    DataConfig,
    ExpertConfig,
    ModelConfig,
    OptimConfig,
    ParentConfig,
    RunConfig,
    TeacherConfig,
    from_dict,
    to_dict,
)
from scaling.config.architecture import UnitMultipliers
from scaling.config.identity import (
    FIRST_FIELDS,
    describe_identity,
    get_introduced_default,
    is_first_field,
)

DATA = Path(__file__).parents[1] / "data"
FROZEN: list[dict[str, Any]] = json.loads((DATA / "d17ff75" / "ids.json").read_text())
LATER: dict[str, dict[str, Any]] = json.loads((DATA / "later_fields.json").read_text())
CLASSES = (
    UnitMultipliers,
    ArchitectureConfig,
    ModelConfig,
    DataConfig,
    OptimConfig,
    RunConfig,
)


@dataclass(frozen=True)
class Streams:
    """A table of options as a later version may add one."""

    count: int = 1
    top: int = 1


@dataclass(frozen=True)
class GrownModel(ModelConfig):
    """Today's model with options that a later version may add."""

    latent_width: int | None = None
    block_length: int = 0
    streams: Streams = field(default_factory=Streams)


@dataclass(frozen=True)
class GrownRun(RunConfig):
    """Today's run with such a model and an option of its own."""

    model: GrownModel = field(default_factory=GrownModel)
    averaging: str = "none"


def grow(config: dict[str, Any], **options: Any) -> GrownRun:
    """A stored configuration as the later version reads it."""
    model = config["model"] | options.pop("model", {})
    return from_dict(GrownRun, config | {"model": model} | options)


@pytest.mark.parametrize("case", FROZEN, ids=[case["name"] for case in FROZEN])
def test_ids_of_the_first_schema_stay(case: dict[str, Any]) -> None:
    run = from_dict(RunConfig, case["config"])
    assert run.run_id == case["run_id"]
    assert run.trunk_id == case["trunk_id"]


@pytest.mark.parametrize("case", FROZEN, ids=[case["name"] for case in FROZEN])
def test_a_field_that_means_as_before_changes_no_id(case: dict[str, Any]) -> None:
    run = grow(case["config"])
    assert run.run_id == case["run_id"]
    assert run.trunk_id == case["trunk_id"]


@settings(deadline=None, max_examples=50)
@given(
    case=st.sampled_from(FROZEN),
    latent_width=st.none() | st.integers(1, 8),
    block_length=st.integers(0, 3),
    count=st.integers(1, 3),
    averaging=st.sampled_from(["none", "ema"]),
)
def test_a_value_that_departs_changes_the_id(
    case: dict[str, Any],
    latent_width: int | None,
    block_length: int,
    count: int,
    averaging: str,
) -> None:
    """Equal ids if and only if every later option means "as before"."""
    model = {
        "latent_width": latent_width,
        "block_length": block_length,
        "streams": {"count": count},
    }
    run = grow(case["config"], model=model, averaging=averaging)
    as_before = (latent_width, block_length, count, averaging) == (None, 0, 1, "none")
    assert (run.run_id == case["run_id"]) == as_before
    assert (run.trunk_id == case["trunk_id"]) == as_before


def test_a_default_that_changes_later_keeps_the_ids_of_both_values() -> None:
    """The value that the field was introduced with stays what the id leaves out."""

    @dataclass(frozen=True)
    class Before(ModelConfig):
        block_length: int = 0

    @dataclass(frozen=True)
    class After(ModelConfig):
        block_length: int = field(default=4, metadata={"introduced_as": 0})

    for value in (0, 4):
        assert describe_identity(Before(block_length=value)) == describe_identity(
            After(block_length=value)
        )
    assert describe_identity(After()) != describe_identity(ModelConfig())


def test_the_first_schema_is_frozen_and_still_whole() -> None:
    """No field of the first schema may leave or lose its name: its ids would change."""
    assert sum(len(names) for names in FIRST_FIELDS.values()) == 62
    for cls in CLASSES:
        names = {f.name for f in dataclasses.fields(cls) if not f.metadata.get("label")}
        assert FIRST_FIELDS[cls.__name__] <= names, cls


def test_defaults_of_later_fields_are_recorded() -> None:
    """Ids assume the default that a field was introduced with.

    Record a new field in tests/data/later_fields.json; never change an entry.
    """
    found: dict[str, dict[str, Any]] = {}
    for cls in (*CLASSES, ExpertConfig, ParentConfig, TeacherConfig):
        for entry in dataclasses.fields(cls):
            if entry.metadata.get("label") or is_first_field(cls, entry):
                continue
            default = get_introduced_default(entry)
            if dataclasses.is_dataclass(default):
                default = to_dict(default)
            found.setdefault(cls.__name__, {})[entry.name] = default
    assert found == LATER


def test_a_later_field_without_a_default_is_rejected() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Careless(ModelConfig):
        block_length: int

    with pytest.raises(TypeError, match="'block_length': give it a default"):
        describe_identity(Careless(block_length=1))
