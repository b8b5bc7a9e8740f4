"""The documentation fits the window that shows it."""

from __future__ import annotations

import re
from pathlib import Path

STYLE = Path(__file__).parents[1] / "docs" / "_static" / "wide.css"


def test_no_page_is_wider_than_its_window() -> None:
    """A rule that widens the page also lets a narrow window narrow it."""
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", STYLE.read_text())
    widths = {name.split("*/")[-1].strip(): body for name, body in rules}
    assert "max-width: 100%" in widths[".content"]
    for name in (".main", ".content"):  # items of a flex box, which do not shrink
        assert "min-width: 0" in widths[name]
