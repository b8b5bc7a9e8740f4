"""The error of data that cannot be used."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used; the message names the field, the value and the fix."""
