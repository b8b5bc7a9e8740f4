"""What a sweep that steers itself is for, and what it may spend."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.config import ConfigError

ROUNDS = 3
"""Of design, training and fit after the pilot, where nothing else is asked for."""


@dataclass(frozen=True)
class AutoSettings:
    """What a sweep that steers itself is for, and what it may spend.

    Attributes:
        flops: the whole budget.
        want: the quantity whose interval is to be narrow, as "a" or "loss@C=1e15"; by
            default the loss at target_C, or "a" without it.
        target_C: FLOPs of the training run that is to be decided on; None for ten times
            the largest run of the sweep.
        until: half-width of the interval at which the sweep stops, of a loss as a
            fraction of it; None to spend the budget.
        rounds: of design, training and fit after the pilot.
        tune: whether the learning rate is tuned.

    Raises:
        ConfigError: a value is out of range.
    """

    flops: float
    want: str | None = None
    target_C: float | None = None
    until: float | None = None
    rounds: int = ROUNDS
    tune: bool = True

    def __post_init__(self) -> None:
        for name in ("flops", "target_C", "until", "rounds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} = {value}: must be positive")

    @property
    def quantity(self) -> str:
        """The quantity that is wanted, in words that `parse_quantity` reads."""
        if self.want is not None:
            return self.want
        return "a" if self.target_C is None else f"loss@C={self.target_C!r}"
