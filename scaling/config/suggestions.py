"""Suggestions for a word that was not recognized, for the end of an error message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

_CUTOFF = 0.5  # similarity of difflib below which two words are unrelated


def did_you_mean(
    word: str,
    known: Iterable[str] | Mapping[str, str],
    *,
    label: str = "known",
    most: int = 1,
) -> str:
    """What the user may have meant: the nearest known words, else all of them.

    Args:
        word: as the user wrote it.
        known: the words that are recognized; a mapping gives the text to show for each.
        label: stands before the list of all known words.
        most: how many near words to name.

    Returns:
        For example `did you mean 'width'?` or `known: depth, width`.
    """
    shown = (
        dict(known) if isinstance(known, Mapping) else {name: name for name in known}
    )
    near = find_near(word, shown, most)
    if near:
        return f"did you mean {' or '.join(repr(shown[name]) for name in near)}?"
    return f"{label}: {', '.join(shown.values())}"


def find_near(word: str, known: Iterable[str], most: int = 1) -> list[str]:
    """At most `most` known words that resemble `word`, nearest first, else all that
    begin with it.

    Upper and lower case count as the same.
    """
    names = list(known)
    by_lower_case: dict[str, str] = {}
    for name in names:
        by_lower_case.setdefault(name.lower(), name)
    near = difflib.get_close_matches(word.lower(), by_lower_case, most, _CUTOFF)
    if near:
        return [by_lower_case[name] for name in near]
    return [name for name in names if word and name.startswith(word)]
