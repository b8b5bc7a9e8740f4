"""The ids of runs and trunks, which must survive the growth of the configuration.

An id is the hash of what decides a run's outcome. If it were the hash of all fields,
the next field that somebody adds to `ModelConfig` would change every id, and an
upgraded library would train finished sweeps again. So two kinds of fields are told
apart:

- The fields of the first schema (`FIRST_FIELDS`) always enter the id, with their value.
- A field that was added later enters only if its value departs from the default that it
  was introduced with. That default must mean "as before the field existed".

To add a field, declare it with such a default; nothing else is needed. To change the
default of a later field, keep the first one in its metadata, since runs are stored
under ids that assume it: `field(default=new, metadata={"introduced_as": old})`.
A field with the metadata `{"label": True}` never enters.

The configuration of an architecture extends `ArchitectureConfig`. The fields that it adds
are its first schema, which nothing here lists: they all enter, with their value, but for
those whose metadata says what they were introduced as.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from scaling.config.conversion import JsonObject, canonical_json

FIRST_FIELDS: dict[str, frozenset[str]] = {
    "UnitMultipliers": frozenset(
        {
            "activation",
            "attention_ratio",
            "attention_softmax",
            "loss_softmax",
            "residual",
        }
    ),
    "ArchitectureConfig": frozenset(
        {
            "architecture",
            "base_depth",
            "base_width",
            "context",
            "depth",
            "dropout",
            "dtype",
            "parametrization",
            "remat",
            "unit",
            "vocab",
            "width",
        }
    ),
    "ModelConfig": frozenset(
        {
            "activation",
            "base_depth",
            "base_width",
            "context",
            "depth",
            "dropout",
            "dtype",
            "ff_ratio",
            "head_dim",
            "n_heads",
            "norm",
            "parametrization",
            "position",
            "qk_norm",
            "remat",
            "residual",
            "scan_layers",
            "tied",
            "unit",
            "vocab",
            "width",
            "zero_init_outputs",
        }
    ),
    "DataConfig": frozenset(
        {
            "heldout_fraction",
            "seed",
            "source",
            "tokenizer",
            "unique_tokens",
        }
    ),
    "OptimConfig": frozenset(
        {
            "accumulate",
            "batch_size",
            "beta1",
            "beta2",
            "clip_norm",
            "cooldown_fraction",
            "epsilon",
            "lr",
            "optimizer",
            "schedule",
            "warmup_tokens",
            "weight_decay",
        }
    ),
    "RunConfig": frozenset(
        {
            "data",
            "eval_tokens",
            "model",
            "optim",
            "seed",
            "tokens",
        }
    ),
}
"""By dataclass, the fields that every id holds. Frozen: never add to it."""

_EXTENDED = "ArchitectureConfig"
"""The dataclass that others extend with first fields of their own."""


def hash_identity(identity: JsonObject) -> str:
    """The id of an identity: 16 hexadecimal digits of the sha256 of its JSON."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]


def describe_identity(config: Any) -> JsonObject:
    """What of a configuration enters its id, as nested plain data."""
    identity: JsonObject = {}
    for field in dataclasses.fields(config):
        if field.metadata.get("label"):
            continue
        value = getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        if is_first_field(type(config), field):
            identity[field.name] = describe_identity(value) if nested else value
        elif nested:
            departures = describe_identity(value)
            if departures:
                identity[field.name] = departures
        elif value != get_introduced_default(field):
            identity[field.name] = value
    return identity


def is_first_field(cls: type, field: dataclasses.Field[object]) -> bool:
    """Whether a field of a dataclass belongs to its first schema."""
    listed = [base for base in cls.__mro__ if base.__name__ in FIRST_FIELDS]
    if not listed:
        return False
    nearest = listed[0]
    if nearest.__name__ == _EXTENDED and field.name not in nearest.__dataclass_fields__:
        return "introduced_as" not in field.metadata
    return field.name in FIRST_FIELDS[nearest.__name__]


def get_introduced_default(field: dataclasses.Field[object]) -> object:
    """The value of a later field that means "as before the field existed".

    Raises:
        TypeError: the field has no default, so old configurations would have no value.
    """
    if "introduced_as" in field.metadata:
        return field.metadata["introduced_as"]
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    raise TypeError(
        f"field {field.name!r}: give it a default that means 'as before the field "
        "existed', or stored runs lose their ids"
    )
