"""Laws of the hierarchy: the oracle sums over all trees, and a document costs one root
and its rules.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from scaling.data import DataError
from scaling.data.synthetic.hierarchy import Hierarchy

TINY = Hierarchy(symbols=3, rules=2, arity=2, levels=2, documents=2000)


def every_document(source: Hierarchy) -> set[tuple[int, ...]]:
    """All documents there are, by rewriting in every way."""
    found = {(root,) for root in range(source.symbols)}
    for written in source.tuples:
        longer = set()
        for nodes in found:
            for choice in itertools.product(*(written[node] for node in nodes)):
                longer.add(tuple(np.concatenate(choice).tolist()))
        found = longer
    return found


def test_entropy_is_the_published_one() -> None:
    assert Hierarchy().entropy == pytest.approx(
        (math.log(8) + 15 * math.log(4)) / 16, rel=1e-15
    )
    assert round(Hierarchy().entropy, 4) == 1.4296


@pytest.mark.parametrize(
    "source", [TINY, Hierarchy(symbols=2, rules=3, arity=3, levels=2, seed=5)]
)
def test_all_documents_are_alike_and_counted_by_the_entropy(source: Hierarchy) -> None:
    documents = every_document(source)
    assert math.log(len(documents)) == pytest.approx(
        source.entropy * source.leaves, rel=1e-12
    )
    rows = np.pad(sorted(documents), ((0, 0), (1, 0)), constant_values=source.symbols)
    logp = source.oracle_logprob(rows)
    np.testing.assert_allclose(
        logp.sum(axis=1), -source.entropy * source.leaves, rtol=1e-12
    )
    for place in range(1, source.leaves):  # the law of each leaf is that of counting
        prefixes, number = np.unique(rows[:, : place + 1], axis=0, return_counts=True)
        longer, part = np.unique(rows[:, : place + 2], axis=0, return_counts=True)
        whole = dict(zip(map(tuple, prefixes.tolist()), number.tolist(), strict=True))
        expected = [
            n / whole[tuple(row[:-1])]
            for row, n in zip(longer.tolist(), part.tolist(), strict=True)
        ]
        np.testing.assert_allclose(
            np.exp(source.oracle_logprob(longer)[:, -1]), expected, rtol=1e-12
        )


def test_oracle_is_a_distribution_at_every_position() -> None:
    grid = np.stack(
        np.meshgrid([3], *[np.arange(4)] * 4, indexing="ij"), axis=-1
    ).reshape(-1, 5)
    p = np.exp(TINY.oracle_logprob(grid))
    assert p.prod(axis=1).sum() == pytest.approx(1.0, abs=1e-12)
    impossible = TINY.oracle_logprob(np.array([3, 3, 0, 0, 0]))  # BOS is no leaf
    assert np.all(impossible == -math.inf)


def test_windows_cost_the_entropy_exactly_whatever_the_sample() -> None:
    """All documents are equally likely, so that each window of whole ones costs the
    same: the floor has no noise.
    """
    source = Hierarchy(documents=3000)
    train = source.generate(0.1)["train"]
    windows = np.lib.stride_tricks.sliding_window_view(train, 2 * 17 + 1)[:: 2 * 17]
    logp = source.oracle_logprob(windows)
    counted = windows[:, 1:] < source.symbols
    np.testing.assert_array_equal(logp[~counted], 0.0)
    assert counted.sum(axis=1).tolist() == [32] * 1500
    np.testing.assert_allclose(-logp.sum(axis=1) / 32, source.entropy, rtol=1e-12)


def test_oracle_refuses_windows_that_cut_a_document() -> None:
    with pytest.raises(DataError, match="document length 5"):
        TINY.oracle_logprob(TINY.generate(0.1)["train"][1:50])
