"""Laws of the grammar: sentences, the stationary parser and the branching process
describe one distribution.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from scaling.data.synthetic.grammar import Grammar

SOURCE = Grammar(tokens=20_000, radius=0.7, seed=3)


def means(source: Grammar) -> np.ndarray:
    """Expected children of each nonterminal, by nonterminal."""
    table = np.zeros((source.nonterminals, source.nonterminals))
    for a, row in enumerate(source.children):
        for p, symbols in zip(source.probabilities[a], row, strict=True):
            np.add.at(table[a], list(symbols), p)
    return table


def sentences(source: Grammar, stream: np.ndarray) -> list[np.ndarray]:
    """The whole sentences of a stream, each with its EOS."""
    ends = np.flatnonzero(stream == source.terminals) + 1
    return [stream[a:b] for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize(
    "source",
    [Grammar(), SOURCE, Grammar(nonterminals=1, terminals=2, rules=2, radius=0.5)],
)
def test_rules_have_the_stated_shape(source: Grammar) -> None:
    assert all(len(set(row)) == source.rules for row in source.first.tolist())
    np.testing.assert_allclose(source.probabilities.sum(axis=1), 1.0, atol=1e-12)
    assert np.abs(np.linalg.eigvals(means(source))).max() == pytest.approx(
        source.radius, rel=1e-9
    )


def test_one_nonterminal_is_known_by_hand() -> None:
    """A -> a | b A A with probabilities 1 - r/2 and r/2: sentences of 1 / (1 - r)
    terminals.
    """
    source = Grammar(nonterminals=1, terminals=2, rules=2, radius=0.6)
    coin = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    assert source.sentence_length == pytest.approx(1 / 0.4, rel=1e-9)
    assert source.entropy == pytest.approx(2.5 * coin / 3.5, rel=1e-9)


def test_oracle_meets_the_entropy_on_samples() -> None:
    for stream in SOURCE.generate(0.5).values():
        nll = -SOURCE.oracle_logprob(stream[:10_000])
        assert np.all(np.isfinite(nll))
        blocks = (
            nll[: len(nll) // 500 * 500].reshape(-1, 500).mean(axis=1)
        )  # neighbors are correlated
        assert (
            abs(nll.mean() - SOURCE.entropy)
            < 4 * blocks.std() / math.sqrt(len(blocks))
            < 0.05
        )


def test_sentences_have_the_length_and_the_entropy_of_the_branching_process() -> None:
    found = sentences(SOURCE, SOURCE.generate(0.5)["train"])
    lengths = np.array([len(s) for s in found])
    error = lengths.std() / math.sqrt(len(lengths))
    assert abs(lengths.mean() - (SOURCE.sentence_length + 1)) < 4 * error
    # after an EOS the stack is known: a sentence costs the logarithms of its rules
    stop = [SOURCE.terminals]
    cost = np.array([-SOURCE.oracle_logprob(np.r_[stop, s]).sum() for s in found[:600]])
    whole = SOURCE.entropy * (SOURCE.sentence_length + 1)
    assert abs(cost.mean() - whole) < 4 * cost.std() / math.sqrt(len(cost))


def test_windows_that_start_inside_sentences_cost_more_and_ever_less() -> None:
    stream = SOURCE.generate(0.5)["train"][:6800]
    windows = stream.reshape(-1, 17)
    alone, after = -SOURCE.oracle_logprob(windows), -SOURCE.oracle_logprob(stream)
    known = np.append(np.nan, after)[: windows.size].reshape(windows.shape)[:, 1:]
    gap = alone[1:].mean(axis=0) - known[1:].mean(
        axis=0
    )  # the value of the tokens before the window
    assert gap[0] > 0.05 and gap[-1] < gap[0] / 3 and gap.min() > -0.01


def test_streams_begin_anywhere_in_a_sentence() -> None:
    """The rest of the sentence at the start has the stationary law: that of a sentence
    chosen by its length.
    """
    stream = SOURCE.generate(0.5)["train"]
    lengths = np.array([len(s) for s in sentences(SOURCE, stream)])
    starts = [SOURCE._draw_stack(np.random.default_rng(i)) for i in range(1000)]
    ended = np.mean([not stack for stack in starts])  # an EOS comes first
    assert abs(ended - 1 / lengths.mean()) < 4 * math.sqrt(ended / 1000)
    own = np.linalg.solve(
        np.eye(SOURCE.nonterminals) - means(SOURCE), np.ones(SOURCE.nonterminals)
    )  # terminals below
    rest = np.array([own[stack].sum() for stack in starts])
    expected = (
        np.mean(lengths**2) / (2 * lengths.mean()) - 0.5
    )  # terminals to come, EOS not among them
    assert (
        abs(rest.mean() - expected) < 4 * rest.std() / math.sqrt(1000) + 0.1 * expected
    )


def test_the_impossible_is_minus_infinity_from_there_on() -> None:
    source = Grammar(nonterminals=1, terminals=2, rules=2, radius=0.6)
    leaf = int(source.first[0, 0])
    logp = source.oracle_logprob(
        np.array([2, leaf, leaf, 2])
    )  # EOS a, and the sentence is over
    assert np.isfinite(logp[0]) and logp[1] == logp[2] == -math.inf
