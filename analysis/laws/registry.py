"""The laws by name, and what their parameters are searched in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from analysis.laws.base import Law
from analysis.suggestions import find_near

AnyLaw = TypeVar("AnyLaw", bound=Law)

# No fit of a language model has been published with an exponent outside this range. A
# fit that ends at one of its ends reports it.
EXPONENT = (0.01, 4.0)
# The range of an exponent of either sign, of `monomial`.
SIGNED = (-2.0, 2.0)

LAWS: dict[str, Law] = {}
"""All laws by name; `register` adds one."""


def register(law: Law) -> Law:
    """Add a law, so that `fit` and `Fit.from_json` find it by its name.

    Raises:
        ValueError: another law has that name.
    """
    return add_law(LAWS, law, kind="law")


def get_law(law: str | Law) -> Law:
    """Return the law of that name, or the law itself.

    Raises:
        ValueError: unknown name.
    """
    return law if isinstance(law, Law) else find_law(LAWS, law, kind="law")


def add_law(laws: dict[str, AnyLaw], law: AnyLaw, kind: str) -> AnyLaw:
    """Add a law to some laws by name.

    Args:
        laws: name -> law; changed in place.
        law: the new one.
        kind: what the laws are called in messages.

    Raises:
        ValueError: another law has that name.
    """
    if laws.get(law.name, law) != law:
        raise ValueError(
            f"a different {kind} is already registered as {law.name!r}; "
            "choose another name"
        )
    laws[law.name] = law
    return law


def find_law(laws: Mapping[str, AnyLaw], name: str, kind: str) -> AnyLaw:
    """Return the law of that name.

    Raises:
        ValueError: unknown name. The message lists those that are known.
    """
    if name not in laws:
        near = find_near(name, laws, cutoff=0.3)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"unknown {kind} {name!r}{hint}; known laws: {', '.join(laws)}"
        )
    return laws[name]
