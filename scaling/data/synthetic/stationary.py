"""What the stationary synthetic sources share: any window is as good as another, and
every target counts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

import numpy as np

from scaling.data.options import check_option

SMALLEST_HELDOUT = 65_536  # tokens


class Stationary(ABC):
    """A source of two independent samples of one stationary process, of `tokens` and of
    a share of that many.
    """

    tokens: int
    seed: int
    random_streams = (1, 2)  # numbers of those of "train" and "heldout", after the seed
    loss_range = None  # every target counts
    document_length = None

    def _check_sample(self, source: str) -> None:
        check = partial(check_option, source)
        check(self.tokens >= 2, "tokens", self.tokens, "must be at least 2")
        check(self.seed >= 0, "seed", self.seed, "must not be negative")

    def generate(self, heldout_fraction: float) -> dict[str, np.ndarray]:
        """Streams "train" and "heldout"; the latter has the given fraction of `tokens`,
        at least 65,536.
        """
        counts = {
            "train": self.tokens,
            "heldout": max(round(heldout_fraction * self.tokens), SMALLEST_HELDOUT),
        }
        rngs = [
            np.random.default_rng([self.seed, number]) for number in self.random_streams
        ]
        return {
            name: self._sample(counts[name], rng)
            for name, rng in zip(counts, rngs, strict=True)
        }

    @abstractmethod
    def _sample(self, count: int, rng: np.random.Generator) -> np.ndarray: ...


def stationary_law(transition: np.ndarray) -> np.ndarray:
    """The distribution pi with pi P = pi of an irreducible chain, (states, states) ->
    (states,).
    """
    system = transition.T - np.eye(len(transition))
    system[-1] = (
        1.0  # one balance equation follows from the others; it gives way to sum(pi) = 1
    )
    return np.linalg.solve(system, np.eye(len(transition))[-1])
