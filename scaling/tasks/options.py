"""Options of a task: `NAME:key=value,key=value`, checked and converted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scaling.config.suggestions import did_you_mean
from scaling.data.errors import DataError
from scaling.data.options import parse_options


@dataclass(frozen=True)
class TaskOptions:
    """What a user wrote after the colon.

    Attributes:
        spec: the whole name, for error messages.
        values: the options that were given.
    """

    spec: str
    values: dict[str, str]

    def read_integer(self, key: str, default: int, least: int, most: int) -> int:
        """A whole number in a range."""
        text = self.values.get(key, str(default))
        if not (
            text.isascii() and text.isdecimal() and least <= int(text[:20]) <= most
        ):
            self._reject(key, text, f"must be a whole number from {least} to {most}")
        return int(text)

    def read_fraction(self, key: str, default: float) -> float:
        """A number in (0, 1]."""
        text = self.values.get(key, str(default))
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 < value <= 1:
            self._reject(key, text, "must be a number above 0 and at most 1")
        return value

    def read_flag(self, key: str, default: bool) -> bool:
        """`true` or `false`."""
        return self.read_word(key, str(default).lower(), ("true", "false")) == "true"

    def read_word(self, key: str, default: str, known: Iterable[str]) -> str:
        """One of the known words."""
        text = self.values.get(key, default)
        words = list(known)
        if text not in words:
            self._reject(key, text, did_you_mean(text, words))
        return text

    def read_text(self, key: str, default: str) -> str:
        """Any text."""
        return self.values.get(key, default)

    def _reject(self, key: str, text: str, fix: str) -> None:
        raise DataError(f"task = {self.spec!r}: option {key} = {text!r}: {fix}")


def read_options(text: str, spec: str, known: Iterable[str]) -> TaskOptions:
    """Parse what follows the colon in the name of a task.

    Raises:
        DataError: an item is malformed, or its key is repeated or unknown.
    """
    return TaskOptions(spec, parse_options(text, spec, known, field="task"))
