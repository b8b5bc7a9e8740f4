"""Suggestions for a word that was not recognized, for the end of an error message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def find_near(
    word: str, known: Iterable[str], most: int = 1, cutoff: float = 0.5
) -> list[str]:
    """At most `most` known words that resemble `word`, nearest first.

    Upper and lower case count as the same, so two known words that differ only in
    case are both returned.

    Args:
        word: as the user wrote it.
        known: the words that are recognized.
        most: how many words to return.
        cutoff: similarity, from 0 to 1, below which two words are unrelated
            (`difflib`).
    """
    spellings: dict[str, list[str]] = {}
    for name in known:
        spellings.setdefault(name.lower(), []).append(name)
    near = difflib.get_close_matches(word.lower(), spellings, most, cutoff)
    return [name for lower in near for name in spellings[lower]]


def did_you_mean(word: str, known: Iterable[str], most: int = 1) -> str:
    """What the user may have meant: the nearest known words, else all of them.

    Returns:
        For example `did you mean millions?` or `use one of: nats, bits, perplexity`.
    """
    names = list(known)
    near = find_near(word, names, most)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"use one of: {', '.join(names)}"
