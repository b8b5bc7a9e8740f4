"""Facts with Zipf frequencies: a source whose scaling exponents in N and in D are known
exactly.

Hutter 2021 (arXiv:2102.04074, section 3); the same law as Michaud et al. 2023
(arXiv:2303.13506): exponent a in the number of facts a model can hold, a / (1 + a) in
the number of examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice

import numpy as np
from jaxtyping import Int

from scaling.data.errors import DataError
from scaling.data.options import check_option

_check = partial(check_option, "zipf_facts")
BASE = 16  # digits 0..15; then BOS; then the labels
SMALLEST_HELDOUT = 16_384  # examples
MOST_SIGHTINGS, MOST_ARRANGEMENTS = (
    100,
    20_000,
)  # of one fact; bounds the work of the exact sum
KNOWN = 1e-10  # nats of excess


@dataclass(frozen=True)
class ZipfFacts:
    """Documents `[BOS d1 .. dm answer]`: m base-16 digits of an item's id, and its
    label.

    Item i of `items` is drawn with probability theta_i ~ i^-(1 + a); its id is a random
    permutation's i-th value. Its label f(i) is one of `labels`, uniform and fixed; in
    each example another, uniform one stands in its place with probability `eps`. Only
    the answer counts in the loss. `examples` documents are for training.

    For a = 0.5 take at least 2^20 items before comparing with the asymptotic exponents;
    the sums of `excess` are exact for any number.
    """

    a: float = 1.0
    items: int = 65_536
    labels: int = 16
    eps: float = 0.05
    examples: int = 1_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        _check(0 < self.a <= 10, "a", self.a, "must lie in (0, 10]")
        _check(2 <= self.items <= 2**28, "items", self.items, "must lie in 2 .. 2^28")
        _check(
            2 <= self.labels <= 2**15, "labels", self.labels, "must lie in 2 .. 2^15"
        )
        limit = 1 - 1 / self.labels
        fix = f"must lie in [0, {limit:g}), where the label is the likeliest answer"
        _check(0 <= self.eps < limit, "eps", self.eps, fix)
        _check(self.examples >= 1, "examples", self.examples, "must be at least 1")
        _check(self.seed >= 0, "seed", self.seed, "must not be negative")

    @cached_property
    def digits(self) -> int:
        """Base-16 digits of an id."""
        return next(m for m in range(1, 8) if BASE**m >= self.items)

    @property
    def vocab(self) -> int:
        """16 digits, BOS, the labels."""
        return BASE + 1 + self.labels

    @property
    def loss_range(self) -> tuple[int, int]:
        """Ids of the labels: the only targets that count."""
        return BASE + 1, self.vocab

    @property
    def document_length(self) -> int:
        """BOS, digits, answer. A context must be a multiple of it."""
        return self.digits + 2

    @cached_property
    def theta(self) -> np.ndarray:
        """Probability of each item, most frequent first, shape (items,)."""
        weights = np.arange(1, self.items + 1, dtype=np.float64) ** -(1 + self.a)
        return weights / weights.sum()

    @cached_property
    def ids(self) -> np.ndarray:
        """Id of each item, shape (items,): a permutation, so that the digits say
        nothing about the frequency."""
        return np.random.default_rng([self.seed, 0]).permutation(self.items)

    @cached_property
    def answers(self) -> np.ndarray:
        """Label of each id, 0 .. labels - 1, shape (items,)."""
        return np.random.default_rng([self.seed, 1]).integers(
            self.labels, size=self.items
        )

    # --- samples and their exact probabilities ----------------------------------------

    def generate(self, heldout_fraction: float) -> dict[str, np.ndarray]:
        """Streams "train" and "heldout"; the latter has the given fraction of
        `examples`, at least 16,384.

        Both end with one more BOS, so that the last answer, too, lies in a window of
        context + 1 tokens.
        """
        heldout = max(round(heldout_fraction * self.examples), SMALLEST_HELDOUT)
        return {
            "train": self._sample(self.examples, 2),
            "heldout": self._sample(heldout, 3),
        }

    def _sample(self, count: int, stream: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, stream])
        item = np.searchsorted(
            self.theta.cumsum()[:-1], rng.random(count), side="right"
        )
        identity = self.ids[item]
        answer = self.answers[identity]
        wrong = (answer + rng.integers(1, self.labels, size=count)) % self.labels
        answer = np.where(rng.random(count) < self.eps, wrong, answer)
        documents = np.empty((count, self.document_length), np.uint16)
        documents[:, 0] = BASE
        for place in range(1, self.digits + 1):
            documents[:, place] = identity // BASE ** (self.digits - place) % BASE
        documents[:, -1] = BASE + 1 + answer
        return np.append(documents.ravel(), np.uint16(BASE))

    def oracle_logprob(self, tokens: np.ndarray) -> np.ndarray:
        """Exact log probability of each token but the first given its predecessors,
        (..., T + 1) -> (..., T).

        The window must begin with BOS. Digits have the probability of their prefix;
        -inf marks the impossible. Raises `DataError` when the window does not begin
        where a document does.
        """
        length, shape = self.document_length, np.shape(tokens)
        rows = np.asarray(tokens, np.int64).reshape(-1, shape[-1])
        padded = np.full((len(rows), -(-shape[-1] // length) * length), BASE)
        padded[:, : shape[-1]] = rows
        documents = padded.reshape(-1, length)
        if np.any(documents[:, 0] != BASE):
            fix = f"take windows at multiples of the document length {length}"
            raise DataError(
                f"oracle_logprob: the tokens do not begin with BOS = {BASE}; {fix}"
            )
        result = np.zeros(documents.shape)  # BOS is certain: log 1
        prefix = np.zeros(len(documents), np.int64)
        for place in range(1, length - 1):
            result[:, place], prefix = self._digit_logprob(
                place, prefix, documents[:, place]
            )
        result[:, -1] = self._answer_logprob(prefix, documents[:, -1])
        return result.reshape(padded.shape)[:, 1 : shape[-1]].reshape(*shape[:-1], -1)

    def _digit_logprob(
        self, place: int, prefix: np.ndarray, token: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log probability of the digit at this place, and the prefix that ends with it."""
        longer = prefix * BASE + np.clip(token, 0, BASE - 1)
        whole = np.maximum(self._mass[place - 1][prefix], np.finfo(np.float64).tiny)
        part = np.where((token >= 0) & (token < BASE), self._mass[place][longer], 0.0)
        with np.errstate(divide="ignore"):
            return np.log(part / whole), longer

    @cached_property
    def _mass(self) -> list[np.ndarray]:
        """Probability of each prefix of 0, 1, .., m digits."""
        mass = np.zeros(BASE**self.digits)
        mass[self.ids] = self.theta
        return [
            mass.reshape(BASE**place, -1).sum(axis=1)
            for place in range(self.digits + 1)
        ]

    def _answer_logprob(self, identity: np.ndarray, token: np.ndarray) -> np.ndarray:
        known = identity < self.items
        right = token - BASE - 1 == self.answers[np.where(known, identity, 0)]
        possible = known & (token >= self.loss_range[0]) & (token < self.loss_range[1])
        with np.errstate(divide="ignore"):
            logp = np.log(np.where(right, 1 - self.eps, self.eps / (self.labels - 1)))
        return np.where(possible, logp, -np.inf)

    # --- exact laws -------------------------------------------------------------------

    @property
    def entropy(self) -> float:
        """Irreducible loss: -(1 - eps) ln(1 - eps) - eps ln(eps / (C - 1)), nats per
        answer.
        """
        if self.eps == 0:
            return 0.0
        return -(1 - self.eps) * math.log1p(-self.eps) - self.eps * math.log(
            self.eps / (self.labels - 1)
        )

    @property
    def exponents(self) -> dict[str, float]:
        """Exponents of the excess as items -> infinity: alpha_N in capacity, beta_D in
        examples.
        """
        return {"alpha_N": self.a, "beta_D": self.a / (1 + self.a)}

    def excess(self, facts: int | None = None, examples: int | None = None) -> float:
        """Expected loss above `entropy` of the ideal learner that knows the `facts`
        most frequent items at best and has seen `examples` examples; None stands for no
        limit.

        A fact seen m times costs `learning_curve[m]`, and m is binomial: the sum over
        items and m is exact. Without noise (eps = 0) it is ln C * [sum_{i>k} theta_i +
        sum_{i<=k} theta_i (1 - theta_i)^n].
        """
        for name, value in (("facts", facts), ("examples", examples)):
            _check(value is None or value >= 0, name, value, "must not be negative")
        k = self.items if facts is None else min(facts, self.items)
        unknown = float(self.learning_curve[0] * self.theta[k:].sum())
        if examples is None:
            return unknown
        theta = self.theta[:k]
        weight = theta * np.exp(
            examples * np.log1p(-theta)
        )  # theta_i times Binomial(n, theta_i) at m = 0
        learned = 0.0
        for m, cost in enumerate(self.learning_curve):
            learned += float(cost * weight.sum())
            weight = weight * (examples - m) / (m + 1) * theta / (1 - theta)
        return unknown + learned

    @cached_property
    def learning_curve(self) -> np.ndarray:
        """Bayes excess on one fact after 0, 1, 2, .. sightings, nats, until it falls
        below 1e-10.

        Before any sighting the best prediction is uniform: ln C - entropy.
        """
        costs = [math.log(self.labels) - self.entropy]
        while costs[-1] > KNOWN and self.eps > 0:
            m = len(costs)
            ways = _list_arrangements(m, min(m, self.labels - 1))
            ok = m <= MOST_SIGHTINGS and len(ways) <= MOST_ARRANGEMENTS
            _check(
                ok,
                "eps",
                self.eps,
                f"a fact is not known after {m} sightings; lower it for an exact sum",
            )
            costs.append(self._cost(ways))
        return np.array(costs)

    def _cost(self, counts: Int[np.ndarray, "arrangements shown"]) -> float:
        """Expected loss above `entropy` when the answers seen fell on the labels in one
        of these ways.

        Column 0 counts the true label. The other labels are alike, and a row stands for
        all ways to deal its counts out to them. Labels beyond the columns were never
        seen.
        """
        m, others = int(counts[0].sum()), self.labels - 1
        wrong, hidden = self.eps / others, others - (counts.shape[1] - 1)
        log_factorial = np.array(
            [math.lgamma(i + 1) for i in range(max(m, others) + 1)]
        )
        ways = (
            log_factorial[m] - log_factorial[counts].sum(axis=1) + log_factorial[others]
        )
        for count in range(m + 1):
            alike = (counts[:, 1:] == count).sum(axis=1) + (hidden if count == 0 else 0)
            ways -= log_factorial[alike]
        chance = np.exp(
            ways
            + counts[:, 0] * math.log1p(-self.eps)
            + (m - counts[:, 0]) * math.log(wrong)
        )
        seen = np.pad(
            counts, ((0, 0), (0, 1))
        )  # the last column stands for all hidden labels
        number = np.append(np.ones(counts.shape[1]), hidden)
        log_ratio = math.log((1 - self.eps) / wrong)
        posterior = np.exp(log_ratio * (seen - seen.max(axis=1, keepdims=True)))
        posterior /= (posterior @ number)[:, None]
        log_p = np.log(wrong + posterior * (1 - self.eps - wrong))
        loss = -(1 - self.eps) * log_p[:, 0] - wrong * (log_p[:, 1:] @ number[1:])
        return float(chance @ loss) - self.entropy


def _list_arrangements(m: int, shown: int) -> Int[np.ndarray, "arrangements shown"]:
    """Ways in which m answers fall on the true label (column 0) and, in falling order,
    on `shown` others.

    One more than 20,000 of them at most.
    """
    partitions = (
        (m - wrong, p) for wrong in range(m + 1) for p in _list_partitions(wrong, shown)
    )
    some = islice(partitions, MOST_ARRANGEMENTS + 1)
    return np.array([(right, *p, *[0] * (shown - len(p))) for right, p in some])


def _list_partitions(
    total: int, parts: int, largest: int | None = None
) -> Iterator[tuple[int, ...]]:
    """Ways to write `total` as a sum of at most `parts` positive numbers, in falling
    order.
    """
    if total == 0:
        yield ()
    elif parts > 0:
        for first in range(min(total, largest or total), (total - 1) // parts, -1):
            yield from (
                (first, *rest)
                for rest in _list_partitions(total - first, parts - 1, first)
            )
