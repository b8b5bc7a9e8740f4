"""The names of text encodings."""

from __future__ import annotations

import codecs
from encodings.aliases import aliases

from scaling.config.conversion import ConfigError
from scaling.config.suggestions import find_near

_COMMON = ("utf-8", "utf-16", "latin-1", "cp1252", "shift_jis", "gb18030")


def canonicalize_encoding(name: str, field: str) -> str:
    """The one name of an encoding that has several, as Python knows it: "iso8859-1" for
    latin-1, "utf-8" with and without a byte order mark.

    Args:
        name: as the user wrote it.
        field: of the configuration, for the error message.

    Raises:
        ConfigError: there is no such encoding of text.
    """
    try:
        b"\0".decode(name, "ignore")  # "hex" and the like are codecs, but of no text
        canonical = codecs.lookup(name).name
    except (LookupError, ValueError):
        known = [alias for alias in aliases if not alias.isdigit()]
        near = find_near(name, sorted({*_COMMON, *known}))
        hint = (
            f"did you mean {near[0]!r}?" if near else f"use {', '.join(_COMMON)}, ..."
        )
        raise ConfigError(f"{field} = {name!r}: unknown encoding; {hint}") from None
    return "utf-8" if canonical == "utf-8-sig" else canonical
