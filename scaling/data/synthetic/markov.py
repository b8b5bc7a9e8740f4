"""A Markov chain over ids: the smallest source with an exact entropy rate.

A counting learner's excess over the entropy is V (b - 1) / (2 n) after n tokens (V
states, b successors): slope -1.
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from scaling.data.options import check_option
from scaling.data.synthetic.stationary import Stationary, stationary_law

_check = partial(check_option, "markov")
MOST_STATES = 4096  # the stationary distribution solves a dense system of this size


@dataclass(frozen=True)
class Markov(Stationary):
    """`states` ids, each followed by one of `branching` distinct successors with
    Dirichlet(1) probabilities.

    One successor of each state is the next on a random cycle through all of them: every
    state can then be reached, and the stationary distribution is unique. The others are
    drawn at random. `tokens` is the length of the training stream; the held-out stream
    is an independent sample of the same chain. Both start from the stationary law.
    """

    states: int = 256
    branching: int = 4
    tokens: int = 4_000_000
    seed: int = 0
    random_streams = (2, 3)

    def __post_init__(self) -> None:
        _check(
            2 <= self.states <= MOST_STATES,
            "states",
            self.states,
            f"must lie in 2 .. {MOST_STATES}",
        )
        ok = 1 <= self.branching <= self.states
        _check(
            ok, "branching", self.branching, f"must lie in 1 .. states = {self.states}"
        )
        self._check_sample("markov")

    @property
    def vocab(self) -> int:
        """One id per state."""
        return self.states

    @cached_property
    def successors(self) -> np.ndarray:
        """Ids that may follow each state, shape (states, branching), distinct in each
        row.
        """
        rng = np.random.default_rng([self.seed, 0])
        cycle = rng.permutation(self.states)
        following = np.empty(self.states, np.int64)
        following[cycle] = np.roll(cycle, -1)
        drawn = [
            rng.choice(self.states - 1, self.branching - 1, replace=False)
            for _ in cycle
        ]
        others = np.array(drawn, np.int64)
        others += others >= following[:, None]  # skip over the successor on the cycle
        return np.concatenate([following[:, None], others], axis=1)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Probability of each successor, shape (states, branching)."""
        rng = np.random.default_rng([self.seed, 1])
        return rng.dirichlet(np.ones(self.branching), self.states)

    @cached_property
    def stationary(self) -> np.ndarray:
        """The distribution pi with pi P = pi, shape (states,)."""
        transition = np.zeros((self.states, self.states))
        np.put_along_axis(transition, self.successors, self.probabilities, axis=1)
        return stationary_law(transition)

    @cached_property
    def entropy(self) -> float:
        """Entropy rate sum_i pi_i H(P_i), nats per token."""
        return float(
            -np.sum(
                self.stationary[:, None]
                * self.probabilities
                * np.log(self.probabilities)
            )
        )

    def oracle_logprob(self, tokens: np.ndarray) -> np.ndarray:
        """Exact log P(token | its predecessor), (..., T + 1) -> (..., T); -inf for an
        impossible step.
        """
        tokens = np.asarray(tokens, np.int64)
        before, after = tokens[..., :-1], tokens[..., 1:]
        match = self.successors[before] == after[..., None]
        with np.errstate(divide="ignore"):
            return np.log(np.where(match, self.probabilities[before], 0.0).sum(axis=-1))

    def _sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """One chain of `count` states, in a Python loop over lists: 200 ns a step."""
        # the last bound is left out, so that rounding can never point past the last
        # successor
        bounds = self.probabilities.cumsum(axis=1)[:, :-1].tolist()
        successors = self.successors.tolist()
        state = int(rng.choice(self.states, p=self.stationary))
        ids = np.empty(count, np.uint16)
        for start in range(0, count, 2**20):
            steps = []
            for u in rng.random(min(2**20, count - start)).tolist():
                steps.append(state)
                state = successors[state][bisect(bounds[state], u)]
            ids[start : start + len(steps)] = steps
        return ids
