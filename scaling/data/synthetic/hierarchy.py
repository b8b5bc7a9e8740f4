"""The Random Hierarchy Model: documents with latent trees of fixed depth, and an exact
entropy.

Cagnetta & Wyart 2024 (arXiv:2406.00048); Cagnetta et al. 2023 (arXiv:2307.02129).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from jaxtyping import Float, Int

from scaling.data.errors import DataError
from scaling.data.options import check_option
from scaling.data.synthetic.stationary import SMALLEST_HELDOUT

_check = partial(check_option, "hierarchy")
MOST_TUPLES, LONGEST = 2**16, 2**14  # tuples of s symbols; leaves of a document
BLOCK = 2**22  # numbers that the oracle holds at a time, about
TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Hierarchy:
    """Documents `[BOS x1 .. xn]`: n = s^L leaves of a tree whose root is a uniform one
    of `symbols` v.

    Each node rewrites its symbol by one of its `rules` m, uniform: s = `arity` symbols
    of the level below. The v m tuples of a level are distinct, so that a document has
    one tree. Only the leaves count in the loss. Each of the L = `levels` has its own
    rules. `documents` of them are for training.

    Axes: v symbols, m rules, s places, D documents.
    """

    symbols: int = 8
    rules: int = 4
    arity: int = 2
    levels: int = 4
    documents: int = 250_000
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.symbols >= 2, "symbols", self.symbols, "must be at least 2")
        _check(self.arity >= 2, "arity", self.arity, "must be at least 2")
        ok = self.arity <= 16 and self.symbols**self.arity <= MOST_TUPLES
        _check(
            ok, "arity", self.arity, f"symbols^arity must not exceed {MOST_TUPLES:,}"
        )
        most = self.symbols ** (self.arity - 1)
        _check(
            1 <= self.rules <= most,
            "rules",
            self.rules,
            f"must lie in 1 .. symbols^(arity - 1) = {most}",
        )
        ok = 1 <= self.levels <= 14 and self.arity**self.levels <= LONGEST
        _check(
            ok,
            "levels",
            self.levels,
            f"must be at least 1, and arity^levels at most {LONGEST:,}",
        )
        _check(self.documents >= 1, "documents", self.documents, "must be at least 1")
        _check(self.seed >= 0, "seed", self.seed, "must not be negative")

    @property
    def vocab(self) -> int:
        """The symbols and BOS."""
        return self.symbols + 1

    @property
    def loss_range(self) -> tuple[int, int]:
        """Ids of the leaves: BOS does not count."""
        return 0, self.symbols

    @property
    def leaves(self) -> int:
        """Tokens of a document that count, s^L."""
        return self.arity**self.levels

    @property
    def document_length(self) -> int:
        """BOS and leaves. A context must be a multiple of it."""
        return self.leaves + 1

    @property
    def entropy(self) -> float:
        """(ln v + (s^L - 1) / (s - 1) ln m) / s^L, nats per leaf: a root and a rule at
        each inner node, all uniform.

        It is the least possible loss on windows: these begin with BOS and hold
        whole documents, so that every leaf, the first of its document too, is a target
        after all that came before it in its document, and no other document tells
        anything about it.
        """
        nodes = (self.leaves - 1) // (self.arity - 1)
        return (math.log(self.symbols) + nodes * math.log(self.rules)) / self.leaves

    @cached_property
    def tuples(self) -> Int[np.ndarray, "L v m s"]:
        """What each rule writes, by level from the root."""
        rng = np.random.default_rng([self.seed, 0])
        shape, count = (self.symbols,) * self.arity, self.symbols * self.rules
        drawn = [
            rng.choice(self.symbols**self.arity, count, replace=False)
            for _ in range(self.levels)
        ]
        written = np.array([np.unravel_index(codes, shape) for codes in drawn])
        return np.moveaxis(written, 1, 2).reshape(
            self.levels, self.symbols, self.rules, self.arity
        )

    def generate(self, heldout_fraction: float) -> dict[str, np.ndarray]:
        """Streams "train" and "heldout"; the latter has the given fraction of
        `documents`, at least 65,536 tokens.

        Both end with one more BOS, so that the last document, too, lies in a window of
        context + 1 tokens.
        """
        heldout = max(
            round(heldout_fraction * self.documents),
            -(-SMALLEST_HELDOUT // self.document_length),
        )
        return {
            "train": self._sample(self.documents, 1),
            "heldout": self._sample(heldout, 2),
        }

    def _sample(self, count: int, stream: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, stream])
        nodes = rng.integers(self.symbols, size=(count, 1))
        for written in self.tuples:
            nodes = written[nodes, rng.integers(self.rules, size=nodes.shape)].reshape(
                count, -1
            )
        documents = np.pad(
            nodes.astype(np.uint16), ((0, 0), (1, 0)), constant_values=self.symbols
        )
        return np.append(documents.ravel(), np.uint16(self.symbols))

    def oracle_logprob(self, tokens: np.ndarray) -> np.ndarray:
        """Exact log probability of each token but the first given its predecessors,
        (..., T + 1) -> (..., T).

        The window must begin with BOS. -inf from the first impossible token of a
        document on.

        Raises:
            DataError: the window does not begin where a document does.
        """
        length, shape = self.document_length, np.shape(tokens)
        rows = np.asarray(tokens, np.int64).reshape(-1, shape[-1])
        padded = np.zeros((len(rows), -(-shape[-1] // length) * length), np.int64)
        padded[:, ::length] = self.symbols
        padded[:, : shape[-1]] = rows
        documents = padded.reshape(-1, length)
        if np.any(documents[:, 0] != self.symbols):
            fix = f"take windows at multiples of the document length {length}"
            raise DataError(
                f"oracle_logprob: the tokens do not begin with BOS = {self.symbols}; "
                f"{fix}"
            )
        chance = np.ones(documents.shape)  # BOS is certain
        size = max(1, BLOCK // (self.leaves * self.symbols * self.rules))
        for at in range(0, len(documents), size):
            chance[at : at + size, 1:] = self._leaf_chances(
                documents[at : at + size, 1:]
            )
        with np.errstate(divide="ignore"):
            return (
                np.log(chance)
                .reshape(padded.shape)[:, 1 : shape[-1]]
                .reshape(*shape[:-1], -1)
            )

    def _leaf_chances(self, leaves: Int[np.ndarray, "D n"]) -> Float[np.ndarray, "D n"]:
        """P(leaf | leaves before it), the sum over all trees.

        `below`[l][d, i] is the likelihood of what lies below node i of level l, by its
        symbol; a prefix needs that of complete nodes alone, the later ones are summed
        out. `_outward` carries it down to the next leaf.
        """
        documents, n = leaves.shape
        below = [
            np.eye(self.symbols + 1)[leaves][..., : self.symbols]
        ]  # BOS is no leaf
        for written in self.tuples[:0:-1]:
            below.insert(0, self._inward(written, below[0]))
        chances = np.empty(leaves.shape)
        for place in range(n):
            law = np.full((documents, self.symbols), 1 / self.symbols)
            for level, written in enumerate(self.tuples):
                node, step = (
                    place // self.arity ** (self.levels - level - 1),
                    self.arity,
                )
                law = self._outward(
                    written, law, below[level][:, node - node % step : node]
                )
            chances[:, place] = (law * below[-1][:, place]).sum(axis=1)
        return chances

    def _inward(
        self, written: Int[np.ndarray, "v m s"], below: Float[np.ndarray, "D n v"]
    ) -> np.ndarray:
        """Likelihoods one level up, scaled to sum to 1 over the symbols."""
        likelihood = np.ones(
            (below.shape[0], below.shape[1] // self.arity, *written.shape[:2])
        )
        for place in range(self.arity):
            likelihood *= below[:, place :: self.arity][..., written[..., place]]
        return _normalize_weights(likelihood.sum(axis=-1))

    def _outward(
        self,
        written: Int[np.ndarray, "v m s"],
        law: Float[np.ndarray, "D v"],
        known: Float[np.ndarray, "D k v"],
    ) -> Float[np.ndarray, "D v"]:
        """Law of a node's symbol from its parent's, with what is `known` of the k
        siblings before it.
        """
        joint = np.broadcast_to(law[..., None], (*law.shape, self.rules)).copy()
        for place in range(known.shape[1]):
            joint *= known[:, place][:, written[..., place]]
        symbol = written[..., known.shape[1]].ravel()
        return _normalize_weights(
            joint.reshape(len(law), -1) @ np.eye(self.symbols)[symbol]
        )


def _normalize_weights(weights: np.ndarray) -> np.ndarray:
    """Scaled to sum to 1; all 0 where the document is impossible."""
    return weights / np.maximum(weights.sum(axis=-1, keepdims=True), TINY)
