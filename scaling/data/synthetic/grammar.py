"""Sentences of a random context-free grammar that a stack parses without ever looking
ahead.

An s-grammar (Korenjak & Hopcroft 1966): every rule is A -> t B1 .. Bk with distinct
terminals t within each A, so
that the next terminal decides the rule and the stack is the whole memory. Entropy of a
branching process: Grenander 1967; Booth & Thompson 1973. Dependencies reach as far as
sentences are long, and lengths are heavy-tailed.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from jaxtyping import Float, Int

from scaling.data.options import check_option
from scaling.data.synthetic.stationary import Stationary

_check = partial(check_option, "grammar")
Stack = tuple[int, ...]  # nonterminals, the next one to expand last
# Of a stack only the top may be known: the nodes below are children of an outer node, a
# nonterminal or (last) the end of the sentence, of which there is a law. Above it all
# is as it is before a window.
Outer = Float[np.ndarray, " outer"]
Beliefs = dict[
    Stack, tuple[float, Outer]
]  # probability of a known top, law of its outer node
Found = tuple[Stack, float, Outer]


@dataclass(frozen=True)
class Grammar(Stationary):
    """`rules` rules A -> t B1 .. Bk (k = 0, 1, 2) for each of `nonterminals` A, over
    `terminals` ids and EOS.

    Dirichlet(1) rule probabilities, tilted by a factor per child until the mean number
    of children has the spectral `radius`. Each A has a rule without children and one
    with two, the first of which is the next
    nonterminal on a random cycle: all can be reached. A sentence derives from
    nonterminal 0 and ends with EOS. `tokens` is the length of the training stream; the
    held-out stream is an independent sample. Both are
    stationary: they begin anywhere in a sentence, as windows do.

    Axes: A and B nonterminals, R rules of each.
    """

    nonterminals: int = 8
    terminals: int = 16
    rules: int = 4
    radius: float = 0.9
    tokens: int = 4_000_000
    seed: int = 0
    random_streams = (3, 4)

    def __post_init__(self) -> None:
        _check(
            1 <= self.nonterminals <= 64,
            "nonterminals",
            self.nonterminals,
            "must lie in 1 .. 64",
        )
        _check(
            2 <= self.terminals <= 4096,
            "terminals",
            self.terminals,
            "must lie in 2 .. 4096",
        )
        ok = 2 <= self.rules <= self.terminals
        _check(
            ok, "rules", self.rules, f"must lie in 2 .. terminals = {self.terminals}"
        )
        _check(
            0.05 <= self.radius <= 0.99,
            "radius",
            self.radius,
            "must lie in [0.05, 0.99]",
        )
        self._check_sample("grammar")

    @property
    def vocab(self) -> int:
        """The terminals and EOS."""
        return self.terminals + 1

    # --- the rules --------------------------------------------------------------------

    @cached_property
    def first(self) -> Int[np.ndarray, "A R"]:
        """Terminal of each rule, distinct in each row."""
        rng = np.random.default_rng([self.seed, 0])
        return np.array(
            [
                rng.choice(self.terminals, self.rules, replace=False)
                for _ in range(self.nonterminals)
            ]
        )

    @cached_property
    def children(self) -> list[list[Stack]]:
        """Nonterminals B1 .. Bk of each rule, by nonterminal and rule."""
        rng = np.random.default_rng([self.seed, 1])
        cycle = rng.permutation(self.nonterminals)
        following = dict(zip(cycle.tolist(), np.roll(cycle, -1).tolist(), strict=True))
        table = []
        for a in range(self.nonterminals):
            counts = [0, 2, *rng.integers(3, size=self.rules - 2).tolist()]
            drawn = [
                tuple(rng.integers(self.nonterminals, size=k).tolist()) for k in counts
            ]
            table.append([drawn[0], (following[a], drawn[1][1]), *drawn[2:]])
        return table

    @cached_property
    def probabilities(self) -> Float[np.ndarray, "A R"]:
        """Probability of each rule: weight x exp(tilt x children), with the tilt that
        gives the radius.
        """
        # Imported here because it takes longer than all other modules of the data.
        from scipy.optimize import brentq

        weights = np.random.default_rng([self.seed, 2]).dirichlet(
            np.ones(self.rules), self.nonterminals
        )
        counts = np.array([[len(b) for b in row] for row in self.children])

        def tilted(tilt: float) -> np.ndarray:
            p = weights * np.exp(tilt * (counts - 1))
            return p / p.sum(axis=1, keepdims=True)

        def excess(tilt: float) -> float:
            return (
                float(
                    np.abs(np.linalg.eigvals(self._mean_children(tilted(tilt)))).max()
                )
                - self.radius
            )

        return tilted(brentq(excess, -50.0, 50.0, xtol=1e-14))  # type: ignore[arg-type]

    def _mean_children(self, probabilities: np.ndarray) -> Float[np.ndarray, "A B"]:
        means = np.zeros((self.nonterminals, self.nonterminals))
        for a, row in enumerate(self.children):
            for r, symbols in enumerate(row):
                for b in symbols:
                    means[a, b] += probabilities[a, r]
        return means

    @cached_property
    def _moves(self) -> list[dict[int, tuple[float, Stack]]]:
        """By nonterminal and terminal: the rule's probability, and its children in the
        order of the stack.
        """
        table = zip(
            self.first.tolist(), self.probabilities.tolist(), self.children, strict=True
        )
        return [
            {t: (p, symbols[::-1]) for t, p, symbols in zip(ts, ps, rows, strict=True)}
            for ts, ps, rows in table
        ]

    # --- exact laws -------------------------------------------------------------------

    @cached_property
    def visits(self) -> Float[np.ndarray, " A"]:
        """Expected number of nodes of each nonterminal in a sentence: row 0 of (I -
        M)^-1, M the mean children.
        """
        system = np.eye(self.nonterminals) - self._mean_children(self.probabilities)
        return np.linalg.solve(system.T, np.eye(self.nonterminals)[0])

    @property
    def sentence_length(self) -> float:
        """Expected number of terminals of a sentence, (I - M)^-1 1; EOS is one token
        more.
        """
        return float(self.visits.sum())

    @cached_property
    def entropy(self) -> float:
        """Entropy rate H_S / (length + 1), H = (I - M)^-1 h0, h0 that of each
        nonterminal's rules; nats per token.

        This is the least loss of a long context. A window starts inside a sentence of
        which the stack is unknown: its exact least loss, the mean of `oracle_logprob`,
        is larger by the information that the window gives on that stack, over the
        number of its targets.
        """
        own = -(self.probabilities * np.log(self.probabilities)).sum(axis=1)
        return float(self.visits @ own / (self.sentence_length + 1))

    def oracle_logprob(self, tokens: np.ndarray) -> np.ndarray:
        """Exact log probability of each token but the first given those before it,
        (..., T + 1) -> (..., T).

        The stack at the start of the window has the stationary law, given the first
        token: the parser carries all stacks that are still possible, which soon is one.
        -inf from the first impossible token on. 10 us a token.
        """
        shape = np.shape(tokens)
        rows = np.asarray(tokens, np.int64).reshape(-1, shape[-1])
        chance = np.array([self._parse(row) for row in rows.tolist()]).reshape(shape)[
            ..., 1:
        ]
        with np.errstate(divide="ignore"):
            return np.log(chance)

    def _parse(self, row: list[int]) -> list[float]:
        """Probability of each token given those before it, the stationary law before
        the first.
        """
        beliefs, chances = self._start, []
        for token in row:
            beliefs = self._step(beliefs, token)
            chance = sum((weight for weight, _ in beliefs.values()), 0.0)
            beliefs = {
                stack: (weight / chance, outer)
                for stack, (weight, outer) in beliefs.items()
            }
            chances.append(chance)
        return chances

    def _step(self, beliefs: Beliefs, token: int) -> Beliefs:
        """Joint law of the token and the stacks after it."""
        after: Beliefs = {}
        for stack, (weight, outer) in beliefs.items():
            found: Sequence[Found] = ()
            if not stack:
                found = [((0,), 1.0, self._outside)] if token == self.terminals else ()
            elif token in self._moves[stack[-1]]:
                p, pushed = self._moves[stack[-1]][token]
                rest = stack[:-1] + pushed
                found = (
                    [(rest, p, outer)]
                    if rest
                    else [(top, p * q, v) for top, q, v in self._climb(outer)]
                )
            for known, p, v in found:
                before, u = after.get(known, (0.0, v))
                total = before + weight * p
                after[known] = (
                    total,
                    (v if u is v else (before * u + weight * p * v) / total),
                )
        return after

    def _climb(self, outer: Outer) -> list[Found]:
        """What is on top once the outer node is complete: the next sibling of an
        ancestor, or the end.
        """
        tops = (outer @ self._pending).reshape(self.nonterminals, -1)
        chances = tops.sum(axis=1).tolist()
        found: list[Found] = [
            ((b,), p, tops[b] / p) for b, p in enumerate(chances) if p > 0
        ]
        end = float(outer @ self._complete[:, -1])
        return [*found, ((), end, self._outside)] if end > 0 else found

    @cached_property
    def _outside(self) -> Outer:
        """The end of the sentence as outer node."""
        return np.append(np.zeros(self.nonterminals), 1.0)

    @cached_property
    def _start(self) -> Beliefs:
        """Stationary law: before any node of a sentence, or before its EOS."""
        nodes, length = np.eye(self.nonterminals + 1), self.sentence_length + 1
        inside = {
            (a,): (visits / length, nodes[a])
            for a, visits in enumerate(self.visits.tolist())
        }
        return inside | {(): (1 / length, self._outside)}

    @cached_property
    def _complete(self) -> Float[np.ndarray, "outer outer"]:
        """Expected visits on the way up through last children, from a node to an
        ancestor or the end.
        """
        N = self.nonterminals
        up = np.zeros((N + 1, N + 1))
        up[0, N] = 1 / self.visits[0]  # a node 0 is the root of its sentence so often
        for a, row in enumerate(self.children):
            for p, symbols in zip(self.probabilities[a], row, strict=True):
                if symbols:
                    up[symbols[-1], a] += p * self.visits[a] / self.visits[symbols[-1]]
        return np.linalg.inv(np.eye(N + 1) - up)

    @cached_property
    def _pending(self) -> Float[np.ndarray, "outer tops"]:
        """From a complete node: probability that B is the next on the stack, and of its
        parent: tops = (B, outer).
        """
        N = self.nonterminals
        pushed = np.zeros((N + 1, N, N + 1))
        for a, row in enumerate(self.children):
            for p, symbols in zip(self.probabilities[a], row, strict=True):
                if len(symbols) == 2:
                    pushed[symbols[0], symbols[1], a] += (
                        p * self.visits[a] / self.visits[symbols[0]]
                    )
        return self._complete @ pushed.reshape(N + 1, -1)

    # --- samples ----------------------------------------------------------------------

    def _sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """A stationary stream of `count` tokens, in a Python loop over lists: 300 ns a
        step.
        """
        bounds = self.probabilities.cumsum(axis=1)[:, :-1].tolist()
        first, pushed = (
            self.first.tolist(),
            [[b[::-1] for b in row] for row in self.children],
        )
        stack, ids = self._draw_stack(rng), np.empty(count, np.uint16)
        for start in range(0, count, 2**20):
            steps = []
            for u in rng.random(min(2**20, count - start)).tolist():
                if stack:
                    a = stack.pop()
                    r = bisect(bounds[a], u)
                    steps.append(first[a][r])
                    stack.extend(pushed[a][r])
                else:
                    steps.append(self.terminals)
                    stack.append(0)
            ids[start : start + len(steps)] = steps
        return ids

    def _draw_stack(self, rng: np.random.Generator) -> list[int]:
        """A stack from the stationary law, climbed from a random node to the end of its
        sentence.
        """
        stack: list[int] = []
        found = [(top, weight, outer) for top, (weight, outer) in self._start.items()]
        while True:
            chances = np.array([p for _, p, _ in found])
            top, _, outer = found[rng.choice(len(found), p=chances / chances.sum())]
            if not top:
                return stack
            stack.insert(0, top[0])
            found = self._climb(np.eye(len(outer))[rng.choice(len(outer), p=outer)])
