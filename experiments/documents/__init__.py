"""Claims of five documents about large language models, put to the test.

The library began from five documents, which the claims name by the letters A to E;
`DOCUMENTS` says what each is. `claims` states each claim with the rule that decides it,
the experiment and the figure. `reproduce` runs them and writes the report.
"""

from __future__ import annotations

DOCUMENTS = {
    "A": "principles of large language models and scaling laws",
    "B": "an introduction to large language models",
    "C": "inference with large language models",
    "D": "the modules of a 7B model",
    "E": "unit scaling",
}
"""The five documents by letter."""


def name_documents(letters: str) -> str:
    """The documents behind letters such as "A, C", with what each one is about."""
    return "; ".join(
        f"{letter} ({DOCUMENTS[letter]})" for letter in letters.split(", ")
    )
