"""The laws by name, and what their parameters are searched in."""

from __future__ import annotations

from analysis.laws.base import Law
from analysis.suggestions import find_near

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
    if LAWS.get(law.name, law) != law:
        raise ValueError(
            f"a different law is already registered as {law.name!r}; "
            "choose another name"
        )
    LAWS[law.name] = law
    return law


def get_law(law: str | Law) -> Law:
    """Return the law of that name, or the law itself.

    Raises:
        ValueError: unknown name.
    """
    if isinstance(law, Law):
        return law
    if law not in LAWS:
        near = find_near(law, LAWS, cutoff=0.3)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown law {law!r}{hint}; known laws: {', '.join(LAWS)}")
    return LAWS[law]
