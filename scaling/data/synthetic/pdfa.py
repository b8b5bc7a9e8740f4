"""A unifilar hidden Markov source: hidden states, few symbols, and a next state that
the symbol decides.

Unlike `markov` it needs memory: the last symbol does not tell the state. Because state
and symbol decide the next state, the entropy rate is a sum over states all the same
(Shannon 1948, theorem 7; Crutchfield & Feldman 2003, arXiv:cond-mat/0102181).
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from jaxtyping import Float, Int

from scaling.data.options import check_option
from scaling.data.synthetic.stationary import Stationary, stationary_law

_check = partial(check_option, "pdfa")
MOST_WORDS = 2**17  # of one length that `position_losses` sums over
TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True, eq=False)
class Machine:
    """A probabilistic deterministic automaton. Axes: S states, V symbols.

    emissions: probability of each symbol in each state
    successors: the state after it
    """

    emissions: Float[np.ndarray, "S V"]
    successors: Int[np.ndarray, "S V"]

    @cached_property
    def labeled(self) -> Float[np.ndarray, "V S S"]:
        """P(symbol, next state | state)."""
        states, symbols = self.emissions.shape
        steps = np.zeros((symbols, states, states))
        steps[np.arange(symbols), np.arange(states)[:, None], self.successors] = (
            self.emissions
        )
        return steps

    @cached_property
    def stationary(self) -> Float[np.ndarray, " S"]:
        """The distribution pi of the hidden state far from any start."""
        return stationary_law(self.labeled.sum(axis=0))

    @cached_property
    def entropy(self) -> float:
        """Entropy rate sum_s pi_s H(emission | s), nats per token."""
        return float(
            -np.sum(self.stationary[:, None] * _multiply_by_log(self.emissions))
        )

    def oracle_logprob(self, tokens: np.ndarray) -> np.ndarray:
        """Exact log probability of each token but the first given all before it, the
        state unknown at the start.

        Bayes' filter over the states from their stationary law, (..., T + 1) -> (...,
        T); -inf once impossible.
        """
        shape = np.shape(tokens)
        columns = np.asarray(tokens, np.int64).reshape(-1, shape[-1]).T
        belief = np.broadcast_to(
            self.stationary, (columns.shape[1], len(self.stationary))
        )
        chance = np.empty(columns.shape)
        for t, symbol in enumerate(columns):
            joint = (belief[:, None, :] @ self.labeled[symbol])[:, 0]
            chance[t] = joint.sum(axis=1)
            belief = joint / np.maximum(chance[t], TINY)[:, None]
        with np.errstate(divide="ignore"):
            return np.log(chance[1:].T).reshape(*shape[:-1], -1)

    def position_losses(self, count: int) -> Float[np.ndarray, " count"]:
        """Expected loss of the optimal predictor at the first `count` targets of a
        window, nats.

        Entry t is H(X_t+1 | X_0 .. X_t): it falls towards `entropy`. Sums over every
        word, words that lead to the same belief (to 1e-12) taken as one.

        Raises:
            DataError: there are too many words of that length, more than 131,072.
        """
        beliefs, weights, losses = self.stationary[None], np.ones(1), []
        for t in range(count):
            words = len(beliefs) * self.emissions.shape[1]
            _check(
                words <= MOST_WORDS,
                "count",
                count,
                f"{words:,} words by position {t + 1}; lower it",
            )
            joint = np.einsum("ns,vsz->nvz", beliefs, self.labeled).reshape(
                -1, len(self.stationary)
            )
            weights = (weights[:, None] * (beliefs @ self.emissions)).ravel()
            joint, weights = joint[weights > 0], weights[weights > 0]
            rounded = np.round(joint / joint.sum(axis=1, keepdims=True), 12)
            beliefs, merged = np.unique(rounded, axis=0, return_inverse=True)
            weights = np.bincount(merged.ravel(), weights)
            losses.append(
                -weights @ _multiply_by_log(beliefs @ self.emissions).sum(axis=1)
            )
        return np.array(losses)

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """A stationary stream of `count` symbols, in a Python loop over lists: 200 ns a
        step.
        """
        bounds = self.emissions.cumsum(axis=1)[:, :-1].tolist()
        successors = self.successors.tolist()
        state = int(rng.choice(len(bounds), p=self.stationary))
        ids = np.empty(count, np.uint16)
        for start in range(0, count, 2**20):
            steps = []
            for u in rng.random(min(2**20, count - start)).tolist():
                symbol = bisect(bounds[state], u)
                steps.append(symbol)
                state = successors[state][symbol]
            ids[start : start + len(steps)] = steps
        return ids


EVEN = Machine(np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([[0, 1], [1, 0]]))
"""The Even process: ones come in even runs. Entropy rate 2/3 bit; no finite past
suffices.
"""


@dataclass(frozen=True)
class Pdfa(Stationary):
    """`states` hidden states that emit `symbols` ids with Dirichlet(`concentration`)
    probabilities.

    One symbol of each state, chosen at random, leads to the next state on a random
    cycle through all of them, so that the stationary law is unique; the others lead
    anywhere. `tokens` is the length of the training stream; the held-out stream is an
    independent sample. Both start from the stationary law.
    """

    states: int = 16
    symbols: int = 4
    concentration: float = 0.5
    tokens: int = 4_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        _check(2 <= self.states <= 256, "states", self.states, "must lie in 2 .. 256")
        _check(
            2 <= self.symbols <= 256, "symbols", self.symbols, "must lie in 2 .. 256"
        )
        ok = (
            0.2 <= self.concentration <= 100
        )  # below, a state may in effect never be left along the cycle
        _check(ok, "concentration", self.concentration, "must lie in [0.2, 100]")
        self._check_sample("pdfa")

    @property
    def vocab(self) -> int:
        """One id per symbol."""
        return self.symbols

    @cached_property
    def machine(self) -> Machine:
        """The automaton that the options describe."""
        rng = np.random.default_rng([self.seed, 0])
        emissions = rng.dirichlet(
            np.full(self.symbols, self.concentration), self.states
        )
        successors = rng.integers(self.states, size=(self.states, self.symbols))
        cycle = rng.permutation(self.states)
        successors[cycle, rng.integers(self.symbols, size=self.states)] = np.roll(
            cycle, -1
        )
        return Machine(emissions, successors)

    @property
    def entropy(self) -> float:
        """Entropy rate sum_s pi_s H(emission | s), nats per token: the least loss of a
        long context.

        A window of T targets starts with its state unknown: its exact least loss, the
        mean of `oracle_logprob`, is larger by the information that it gives on that
        state over T, at most H(pi) / T.
        """
        return self.machine.entropy

    def oracle_logprob(self, tokens: np.ndarray) -> np.ndarray:
        """Exact log probability of each token but the first given those before it,
        (..., T + 1) -> (..., T).
        """
        return self.machine.oracle_logprob(tokens)

    def _sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return self.machine.sample(count, rng)


def _multiply_by_log(p: np.ndarray) -> np.ndarray:
    return p * np.log(np.maximum(p, TINY))
