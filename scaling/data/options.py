"""Options in the name of a source: `NAME:key=value,key=value`."""

from __future__ import annotations

from collections.abc import Iterable

from scaling.config.suggestions import did_you_mean
from scaling.data.errors import DataError


def parse_options(
    text: str, source: str, known: Iterable[str], field: str = "data.source"
) -> dict[str, str]:
    """Parse `key=value,key=value`.

    Args:
        text: the options alone; empty for none.
        source: the whole name, which error messages show.
        known: the keys that the source has.
        field: what holds the name, for error messages.

    Raises:
        DataError: an item is malformed, or its key is repeated or unknown.
    """
    options: dict[str, str] = {}
    known = sorted(known)
    field = f"{field} = {source!r}"
    for item in text.split(","):
        if not item:
            continue
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not value:
            raise DataError(f"{field}: option {item!r} must read key=value")
        if key not in known:
            hint = did_you_mean(key, known) if known else "it has no options"
            raise DataError(f"{field}: unknown option {key!r}; {hint}")
        if key in options:
            raise DataError(f"{field}: option {key!r} is given twice")
        options[key] = value
    return options


def check_option(source: str, ok: bool, option: str, value: object, fix: str) -> None:
    """Check the value of an option of a synthetic source.

    Raises:
        DataError: not `ok`; the message ends with `fix`.
    """
    if not ok:
        raise DataError(f"data.source: {source} option {option} = {value!r}: {fix}")
