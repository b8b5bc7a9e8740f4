"""What the ids of a dataset's rows mean to training."""

from __future__ import annotations

from typing import NamedTuple

LossRange = tuple[int, int] | None
"""Token ids lo <= id < hi that count as targets in the loss; None if all do."""


class RowFormat(NamedTuple):
    """What the ids of rows mean to training.

    Attributes:
        loss_range: Which targets count.
        has_examples: Whether the ids carry the flags of examples
            (`scaling.data.examples`).
        separator: The id between documents that see themselves alone; None if a row is
            one sequence.
    """

    loss_range: LossRange = None
    has_examples: bool = False
    separator: int | None = None


PLAIN_ROWS = RowFormat()
"""Text, of which a row is one sequence and every target counts."""
