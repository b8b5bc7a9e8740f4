"""The learning rate at every step of a run.

Units: steps; learning rates as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

COOLDOWNS = ("linear", "exponential", "sqrt")
# The lowest learning rate of an exponential cooldown over the peak, where none is given.
EXPONENTIAL_END = 0.1


class Rise(NamedTuple):
    """The first step at which the learning rate rises after the warm-up."""

    step: int
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class Schedule:
    """The learning rate of every step.

    Attributes:
        lr: [T + 1] the learning rate of step i at position i. Position 0 is what it was
            before the first step, 0 for a run with a warm-up.

    Raises:
        ValueError: `lr` has fewer than two values, a value that is negative or not
            finite, or no positive value.
    """

    lr: np.ndarray

    def __post_init__(self) -> None:
        lr = np.array(self.lr, float)
        if lr.ndim != 1 or len(lr) < 2:
            raise ValueError(
                f"lr has shape {lr.shape}; give one learning rate for each step, after "
                "that before the first step: [0, lr_1, lr_2, ...]"
            )
        bad = np.flatnonzero(~(np.isfinite(lr) & (lr >= 0)))
        if len(bad):
            raise ValueError(
                f"lr is {lr[bad[0]]:g} at step {bad[0]}; "
                "give a finite learning rate of at least 0"
            )
        if not (lr > 0).any():
            raise ValueError("lr is 0 at every step; give a positive learning rate")
        lr.flags.writeable = False
        object.__setattr__(self, "lr", lr)

    @property
    def steps(self) -> int:
        """T, the number of steps."""
        return len(self.lr) - 1

    @property
    def peak(self) -> float:
        """The largest learning rate."""
        return float(self.lr.max())

    @property
    def warmup_steps(self) -> int:
        """The step at which the learning rate stops rising for the first time."""
        is_rising = np.diff(self.lr) > 0
        falls = np.flatnonzero(~is_rising)
        return int(falls[0]) if len(falls) else self.steps

    def find_rise(self) -> Rise | None:
        """The first rise after the warm-up; None if there is none."""
        start = self.warmup_steps
        rises = np.flatnonzero(np.diff(self.lr[start:]) > 0)
        if not len(rises):
            return None
        step = start + int(rises[0]) + 1
        return Rise(step, float(self.lr[step - 1]), float(self.lr[step]))

    @classmethod
    def constant(cls, peak: float, steps: int, warmup_steps: int = 0) -> Schedule:
        """A warm-up from 0 that is linear in the step, then the peak.

        Args:
            peak: learning rate after the warm-up.
            steps: in all.
            warmup_steps: steps of the warm-up.

        Raises:
            ValueError: no positive peak, or a warm-up that is not shorter than the run.
        """
        return cls(_start_run(peak, steps, warmup_steps))

    @classmethod
    def cosine(
        cls, peak: float, steps: int, warmup_steps: int = 0, end: float = 0.0
    ) -> Schedule:
        """The warm-up of `constant`, then half a cosine down to `end` at the last step.

        Raises:
            ValueError: as `constant`, or an `end` outside [0, peak].
        """
        lr = _start_run(peak, steps, warmup_steps)
        _check_end(end, peak)
        share = np.linspace(0.0, 1.0, steps - warmup_steps + 1)
        lr[warmup_steps:] = end + 0.5 * (peak - end) * (1 + np.cos(np.pi * share))
        return cls(lr)

    @classmethod
    def wsd(
        cls,
        peak: float,
        steps: int,
        warmup_steps: int = 0,
        cooldown_steps: int = 0,
        end: float = 0.0,
        shape: str = "linear",
    ) -> Schedule:
        """The warm-up of `constant`, the peak, then a cooldown (warmup-stable-decay).

        Args:
            peak: learning rate of the stable phase.
            steps: in all.
            warmup_steps: steps of the warm-up.
            cooldown_steps: the last steps, in which the learning rate falls.
            end: learning rate of the last step. An exponential cooldown to 0 ends at a
                tenth of the peak.
            shape: "linear", "exponential", or "sqrt" for 1 - sqrt(share of the cooldown).

        Raises:
            ValueError: as `cosine`, an unknown shape, or a cooldown longer than what
                follows the warm-up.
        """
        lr = _start_run(peak, steps, warmup_steps)
        _check_end(end, peak)
        if shape not in COOLDOWNS:
            raise ValueError(
                f"shape {shape!r} is unknown; choose one of {', '.join(COOLDOWNS)}"
            )
        if not 0 <= cooldown_steps <= steps - warmup_steps:
            raise ValueError(
                f"cooldown_steps is {cooldown_steps}; between the warm-up and the end "
                f"are {steps - warmup_steps} steps: give at most so many"
            )
        share = np.linspace(0.0, 1.0, cooldown_steps + 1)
        if shape == "linear":
            cooldown = peak + (end - peak) * share
        elif shape == "sqrt":
            cooldown = peak + (end - peak) * np.sqrt(share)
        else:
            lowest = end or EXPONENTIAL_END * peak
            cooldown = peak * (lowest / peak) ** share
        lr[steps - cooldown_steps :] = cooldown
        return cls(lr)

    @classmethod
    def from_rows(
        cls, step: np.ndarray, lr: np.ndarray, warmup_steps: int | None = None
    ) -> Schedule:
        """The schedule that logged learning rates belong to.

        Before the first row the learning rate rises linearly from 0 at step 0 to the
        first row's at `warmup_steps`, and stays there. Between two rows it is linear,
        except where it jumps from one constant value to another: a jump takes place at
        the row that first has the new value.

        Args:
            step: [n] rising whole numbers from 1.
            lr: [n] the learning rate of each.
            warmup_steps: the first row's step by default.

        Raises:
            ValueError: steps that do not rise from 1, or a warm-up that ends after the
                first row.
        """
        if len(step) == 0 or step[0] < 1 or np.any(np.diff(step) <= 0):
            raise ValueError("step must rise from row to row, and be at least 1")
        first = int(step[0])
        warmup = first if warmup_steps is None else warmup_steps
        if not 0 <= warmup <= first:
            raise ValueError(
                f"warmup_steps is {warmup}, and the first row is at step {first}: give "
                "at most that; rows of the warm-up itself need no warmup_steps"
            )
        last = int(step[-1])
        filled = np.interp(np.arange(last + 1), step, lr)
        for row in find_jumps(lr):
            filled[int(step[row - 1]) : int(step[row])] = lr[row - 1]
        ramp = np.arange(warmup) / max(warmup, 1)
        filled[:warmup] = lr[0] * ramp
        return cls(filled)


def find_jumps(lr: Float[np.ndarray, " n"]) -> list[int]:
    """The rows at which a constant learning rate becomes another constant one."""
    is_same = np.diff(lr) == 0
    jumps = []
    for row in range(2, len(lr) - 1):
        if is_same[row - 2] and not is_same[row - 1] and is_same[row]:
            jumps.append(row)
    return jumps


def _start_run(peak: float, steps: int, warmup_steps: int) -> np.ndarray:
    """[T + 1] the warm-up and the peak after it."""
    if not (np.isfinite(peak) and peak > 0):
        raise ValueError(f"peak is {peak!r}; give a positive learning rate")
    if not 0 <= warmup_steps < steps:
        raise ValueError(
            f"warmup_steps is {warmup_steps} of {steps} steps; "
            "give at least 0 and fewer than all"
        )
    lr = np.full(steps + 1, float(peak))
    lr[:warmup_steps] = peak * np.arange(warmup_steps) / max(warmup_steps, 1)
    return lr


def _check_end(end: float, peak: float) -> None:
    if not 0 <= end <= peak:
        raise ValueError(
            f"end is {end!r}; give a learning rate from 0 to the peak, {peak:g}"
        )
