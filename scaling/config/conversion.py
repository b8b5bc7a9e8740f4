"""Configurations as plain data: checked, converted, and read from TOML.

A configuration is a frozen dataclass whose fields are annotated with numbers, strings,
booleans, `Literal`, `X | None`, tuples, and further such dataclasses.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import numbers
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from scaling.config.suggestions import did_you_mean

T = TypeVar("T")

JsonObject = dict[str, Any]
"""Nested plain data, as JSON and TOML have it."""

get_type_hints = functools.cache(typing.get_type_hints)


class ConfigError(ValueError):
    """A configuration that cannot be run. The message names the field, the value and
    the fix.
    """


def require(ok: bool, name: str, value: object, fix: str) -> None:
    """Raise a `ConfigError` about a field unless `ok`."""
    if not ok:
        raise ConfigError(f"{name} = {value!r}: {fix}")


def join_path(where: str, name: str) -> str:
    """The path of a field: `where.name`, or the name alone at the top."""
    return f"{where}.{name}" if where else name


def require_positive(config: object, where: str, *names: str) -> None:
    """Raise a `ConfigError` about fields that are neither positive nor None."""
    for name in names:
        value = getattr(config, name)
        ok = value is None or value > 0
        require(ok, join_path(where, name), value, "must be positive")


def require_not_negative(config: object, where: str, *names: str) -> None:
    """Raise a `ConfigError` about fields that are negative."""
    for name in names:
        value = getattr(config, name)
        require(value >= 0, join_path(where, name), value, "must not be negative")


def require_at_least_one(config: object, where: str, *names: str) -> None:
    """Raise a `ConfigError` about fields that are neither at least 1 nor None."""
    for name in names:
        value = getattr(config, name)
        ok = value is None or value >= 1
        require(ok, join_path(where, name), value, "must be at least 1")


def to_dict(config: object) -> JsonObject:
    """A configuration as nested plain data."""
    return dataclasses.asdict(config)  # type: ignore[arg-type]


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal data give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def from_dict(cls: type[T], values: object, where: str = "") -> T:
    """Build a configuration from nested plain data, such as parsed JSON or TOML.

    Args:
        cls: the dataclass to build. If it has a method `choose_class(values, where)`,
            that says which of its subclasses to build.
        values: its fields by name; fields that are missing take their defaults.
        where: the path of this table in error messages, e.g. "model".

    Raises:
        ConfigError: a key is unknown (the message names the nearest known one), a value
            has the wrong type, or a value is invalid.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where or cls.__name__} = {values!r}: must be a table")
    choose_class = getattr(cls, "choose_class", None)
    if choose_class is not None:
        cls = choose_class(values, where)
    hints = get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    built: JsonObject = {}
    for key, value in values.items():
        path = join_path(where, key)
        if key not in known:
            hint = did_you_mean(key, sorted(known), label="known keys")
            raise ConfigError(f"{path}: unknown key of {cls.__name__}; {hint}")
        built[key] = convert_value(hints[key], value, path)
    return cls(**built)


def convert_fields(config: object, where: str) -> None:
    """Check every field of a configuration against its annotation and convert it.

    Equal configurations then have equal JSON: 4 and 4.0 become one value.

    Raises:
        ConfigError: a value has the wrong type.
    """
    for name, hint in get_type_hints(type(config)).items():
        path = join_path(where, name)
        value = convert_value(hint, getattr(config, name), path)
        object.__setattr__(config, name, value)


def convert_value(hint: Any, value: Any, path: str) -> Any:
    """A value as its annotation has it.

    Raises:
        ConfigError: the value does not have that type; the message begins with `path`.
    """
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        listed = ", ".join(map(repr, choices))
        require(value in choices, path, value, f"choose one of {listed}")
        return value
    if origin in (types.UnionType, typing.Union):
        members = typing.get_args(hint)
        if value is None and type(None) in members:
            return None
        first = next(member for member in members if member is not type(None))
        return convert_value(first, value, path)
    if origin is tuple:
        require(isinstance(value, list | tuple), path, value, "must be a list")
        item_hint = typing.get_args(hint)[0]
        items = enumerate(value)
        return tuple(convert_value(item_hint, x, f"{path}[{i}]") for i, x in items)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        require(isinstance(value, dict), path, value, "must be a table")
        return from_dict(typing.cast(type, hint), value, path)
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if hint in (int, float) and is_number:
        return _convert_number(hint, value, path)
    is_bool = isinstance(value, bool)  # a bool is an int to Python, not to us
    ok = isinstance(value, hint) and is_bool == (hint is bool)
    require(ok, path, value, f"must be {hint.__name__}")
    return value


def _convert_number(hint: type, value: Any, path: str) -> int | float:
    try:
        number = float(value)
    except OverflowError:  # a whole number of more than 308 digits
        number = math.inf
    require(math.isfinite(number), path, value, "must be finite")
    if hint is float:
        return number
    require(number.is_integer(), path, value, "must be a whole number")
    return int(value)


def read_toml(path: str | Path, cls: type[T]) -> T:
    """Read a preset.

    Raises:
        ConfigError: the file does not exist, is not TOML, or names an unknown key.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"preset {str(path)!r}: no such file") from None
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits is a ValueError but no TOMLDecodeError.
        raise ConfigError(f"preset {str(path)!r}: not valid TOML: {error}") from None
    return from_dict(cls, values)
