"""Laws of the synthetic sources: samples, oracle and formulas describe one and the same
distribution.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from scaling.data import DataError, Synthetic, open_synthetic
from scaling.data.sources import open_source
from scaling.data.synthetic.markov import Markov
from scaling.data.synthetic.protocol import SYNTHETIC
from scaling.data.synthetic.zipf_facts import BASE, ZipfFacts

FACTS = "zipf_facts:examples=500"

# --- options ------------------------------------------------------------------------------------------------


def test_options_reach_the_source() -> None:
    assert open_synthetic("markov") == Markov()
    assert open_synthetic("markov:states=64,tokens=1e5") == Markov(
        states=64, tokens=100_000
    )
    assert open_synthetic("zipf_facts:a=0.5,items=1024") == ZipfFacts(a=0.5, items=1024)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("markov:staets=3", "unknown option 'staets'; did you mean 'states'"),
        ("markov:states=3.5", "must be a whole number"),
        ("markov:states=1", "states = 1: must lie in"),
        ("markov:states=4,branching=5", "branching = 5: must lie in 1 .. states = 4"),
        ("zipf_facts:a=x", "option a = 'x' must be a number"),
        ("zipf_facts:a=nan", "a = nan: must lie in"),
        ("zipf_facts:eps=0.95", "eps = 0.95: must lie in"),
        ("zipf_facts:items=inf", "must be a whole number"),
        ("pdfa:concentration=0", "concentration = 0.0: must lie in"),
        ("pdfa:states=1", "states = 1: must lie in"),
        ("grammar:rules=17", "rules = 17: must lie in 2 .. terminals = 16"),
        ("grammar:radius=1", "radius = 1.0: must lie in"),
        ("hierarchy:rules=9", "rules = 9: must lie in 1 .. symbols.* = 8"),
        ("hierarchy:levels=15", "levels = 15: must be at least 1, and"),
        ("hierarchy:arity=30", "arity = 30: symbols"),
        ("random_walk", "unknown synthetic source"),
    ],
)
def test_bad_options_name_the_value_and_the_remedy(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_synthetic(source)


SMALL = [
    "markov:tokens=5000",
    "pdfa:tokens=5000",
    "grammar:tokens=5000",
    "hierarchy:documents=300",
    FACTS,
]


@pytest.mark.parametrize("source", SMALL)
def test_streams_are_a_pure_function_of_the_options(source: str) -> None:
    one, two = (
        open_synthetic(source).generate(0.1),
        open_synthetic(source).generate(0.1),
    )
    other = open_synthetic(source + ",seed=1").generate(0.1)
    for name in ("train", "heldout"):
        np.testing.assert_array_equal(one[name], two[name])
        assert not np.array_equal(one[name], other[name])
    assert not np.array_equal(one["train"], one["heldout"][: len(one["train"])])
    assert one["train"].max() < open_synthetic(source).vocab


@pytest.mark.parametrize("source", SMALL)
def test_every_synthetic_source_is_suggested_for_a_misspelled_name(source: str) -> None:
    assert isinstance(open_synthetic(source), Synthetic)
    name = source.partition(":")[0]
    assert name in SYNTHETIC
    with pytest.raises(DataError, match=f"did you mean '{name}'"):
        open_source(f"{name}x")


@pytest.mark.parametrize(
    "source", ["markov:states=5", "pdfa:symbols=3", "grammar:terminals=5"]
)
def test_the_oracle_of_a_stream_does_not_depend_on_when_it_is_cut(source: str) -> None:
    """A window that starts one token earlier, that token summed out, has the same law."""
    chain = open_synthetic(source)
    V = chain.vocab
    words = np.stack(np.meshgrid(*[np.arange(V)] * 4, indexing="ij"), axis=-1)
    p = np.exp(
        chain.oracle_logprob(words)
    )  # entry t: of token t + 1, given tokens 0 .. t
    np.testing.assert_allclose(
        p[:, :, :, :, 2].sum(axis=3)[p[:, :, :, 0, :2].prod(-1) > 0], 1.0, atol=1e-12
    )
    first = np.linalg.lstsq(
        np.r_[p[:, :, 0, 0, 0].T - np.eye(V), np.ones((1, V))], np.eye(V + 1)[-1]
    )[0]
    joint = first[:, None, None, None] * p[..., 0] * p[..., 1] * p[..., 2]
    np.testing.assert_allclose(joint.sum(axis=0), joint.sum(axis=3), atol=1e-12)


# --- markov -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("states", "branching", "seed"), [(2, 1, 0), (5, 5, 1), (64, 4, 2), (512, 4, 3)]
)
def test_the_stationary_law_is_stationary(
    states: int, branching: int, seed: int
) -> None:
    chain = Markov(states=states, branching=branching, seed=seed)
    assert all(len(set(row)) == branching for row in chain.successors.tolist())
    transition = np.zeros((states, states))
    np.put_along_axis(transition, chain.successors, chain.probabilities, axis=1)
    pi = chain.stationary
    assert pi.min() > 0 and abs(pi.sum() - 1) < 1e-12
    np.testing.assert_allclose(pi @ transition, pi, atol=1e-12)


def test_entropy_of_chains_known_by_hand() -> None:
    assert Markov(states=7, branching=1).entropy == pytest.approx(0.0, abs=1e-15)
    assert 0 < Markov(states=64, branching=4).entropy < math.log(4)
    # two states, full branching: pi = (b, a) / (a + b) for switching probabilities a
    # and b
    chain = Markov(states=2, branching=2, seed=5)
    a, b = (
        1 - chain.probabilities[i, chain.successors[i].tolist().index(i)]
        for i in (0, 1)
    )
    h = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (a, b)]
    assert chain.entropy == pytest.approx((b * h[0] + a * h[1]) / (a + b), rel=1e-12)


def test_markov_oracle_meets_the_entropy_on_samples() -> None:
    chain = Markov(states=64, tokens=200_000, seed=1)
    for stream in chain.generate(0.5).values():
        nll = -chain.oracle_logprob(stream)
        assert np.all(np.isfinite(nll))  # no sampled step is impossible
        error = nll.std() / math.sqrt(len(nll))
        assert abs(nll.mean() - chain.entropy) < 5 * error < 0.02
        np.testing.assert_allclose(
            np.bincount(stream, minlength=64) / len(stream),
            chain.stationary,
            atol=5 / math.sqrt(len(stream)),
        )


def test_markov_oracle_is_a_distribution_and_forbids_the_rest() -> None:
    chain = Markov(states=32, branching=4, seed=2)
    pairs = np.stack(np.meshgrid(np.arange(32), np.arange(32), indexing="ij"), axis=-1)
    p = np.exp(chain.oracle_logprob(pairs)[..., 0])
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-12)
    assert (p > 0).sum() == 32 * 4


# --- zipf_facts ---------------------------------------------------------------------------------------------


def test_documents_have_the_stated_shape() -> None:
    facts = ZipfFacts(items=1000, examples=5000, eps=0.0)
    train = facts.generate(0.1)["train"]
    assert (
        facts.document_length == 5 and len(train) == 5 * 5000 + 1 and train[-1] == BASE
    )
    rows = train[:-1].reshape(-1, 5)
    lo, hi = facts.loss_range
    assert np.all(rows[:, 0] == BASE) and rows[:, 1:4].max() < BASE
    assert rows[:, 4].min() >= lo and rows[:, 4].max() < hi == facts.vocab
    ids = rows[:, 1] * 256 + rows[:, 2] * 16 + rows[:, 3]
    assert ids.max() < 1000
    for identity in np.unique(ids):  # without noise a fact has one answer
        assert len(np.unique(rows[ids == identity, 4])) == 1


def test_zipf_oracle_meets_its_floor_and_the_entropy_of_the_digits() -> None:
    facts = ZipfFacts(items=300, examples=100_000, eps=0.1, labels=5)
    length = facts.document_length
    nll = -facts.oracle_logprob(facts.generate(0.1)["train"]).reshape(-1, length)
    digits, answer, bos = nll[:, :-2].sum(axis=1), nll[:, -2], nll[:, -1]
    np.testing.assert_array_equal(bos, 0.0)
    assert abs(answer.mean() - facts.entropy) < 5 * answer.std() / math.sqrt(
        len(answer)
    )
    entropy = -np.sum(facts.theta * np.log(facts.theta))
    assert abs(digits.mean() - entropy) < 5 * digits.std() / math.sqrt(len(digits))


def test_zipf_oracle_is_a_distribution_at_every_position() -> None:
    facts = ZipfFacts(items=20, labels=3, eps=0.2)
    grid = np.stack(
        np.meshgrid([BASE], *[np.arange(facts.vocab)] * 3, indexing="ij"), axis=-1
    ).reshape(-1, 4)
    p = np.exp(facts.oracle_logprob(grid))
    assert p.prod(axis=1).sum() == pytest.approx(1.0, abs=1e-12)


def test_zipf_oracle_refuses_windows_that_cut_a_document() -> None:
    facts = ZipfFacts(items=300, examples=100)
    with pytest.raises(DataError, match="document length 5"):
        facts.oracle_logprob(facts.generate(0.1)["train"][1:50])


def test_sampled_frequencies_are_zipf() -> None:
    facts = ZipfFacts(items=256, examples=200_000, eps=0.0)
    rows = facts.generate(0.1)["train"][:-1].reshape(-1, 4)
    counts = np.bincount(rows[:, 1] * 16 + rows[:, 2], minlength=256)[facts.ids]
    np.testing.assert_allclose(
        counts / len(rows), facts.theta, atol=5 * 0.5 / math.sqrt(len(rows))
    )


def test_excess_without_noise_is_the_published_sum() -> None:
    facts = ZipfFacts(a=0.7, items=5000, eps=0.0)
    theta, log_c = facts.theta, math.log(16)
    assert facts.entropy == 0.0
    unseen = theta * (1 - theta) ** 1000
    assert facts.excess(examples=1000) == pytest.approx(log_c * unseen.sum(), rel=1e-12)
    assert facts.excess(facts=100) == pytest.approx(
        log_c * theta[100:].sum(), rel=1e-12
    )
    both = log_c * (theta[100:].sum() + unseen[:100].sum())
    assert facts.excess(facts=100, examples=1000) == pytest.approx(both, rel=1e-12)


def test_excess_with_noise_averages_the_learning_curve_over_sightings() -> None:
    facts = ZipfFacts(items=200, eps=0.1, labels=4)
    seen = np.arange(len(facts.learning_curve))
    for n in (
        3,
        50,
        5000,
    ):  # n = 3: no fact can be seen more often than there are examples
        expected = sum(
            t * facts.learning_curve @ binom.pmf(seen, n, t) for t in facts.theta
        )
        assert facts.excess(examples=n) == pytest.approx(expected, rel=1e-9)


def test_excess_is_monotone_between_its_limits() -> None:
    facts = ZipfFacts(items=4096)
    uniform = math.log(16) - facts.entropy
    assert (
        facts.excess(examples=0)
        == pytest.approx(uniform)
        == pytest.approx(facts.excess(facts=0))
    )
    assert facts.excess(facts=4096) == 0.0
    by_examples = [
        facts.excess(examples=n) for n in (0, 1, 10, 100, 10**4, 10**6, 10**9)
    ]
    assert by_examples == sorted(by_examples, reverse=True) and by_examples[-1] < 1e-6
    assert facts.excess(facts=50, examples=10**9) == pytest.approx(
        facts.excess(facts=50), abs=1e-6
    )


@pytest.mark.parametrize("a", [0.5, 1.0])
def test_excess_follows_the_published_exponents(a: float) -> None:
    """Hutter 2021: ln C A^(1/(1+a)) Gamma(a/(1+a))/(1+a) n^(-a/(1+a)) and ln C (A/a)
    k^-a, A = theta_1.
    """
    facts = ZipfFacts(a=a, items=2**22, eps=0.0)
    first, beta, log_c = facts.theta[0], facts.exponents["beta_D"], math.log(16)
    n, k = 10_000, 1000
    asymptote = log_c * first ** (1 - beta) * math.gamma(beta) / (1 + a) * n**-beta
    assert facts.excess(examples=n) == pytest.approx(asymptote, rel=0.05)
    tail = log_c * first / a * (k**-a - facts.items**-a)
    assert facts.excess(facts=k) == pytest.approx(tail, rel=0.01)


@pytest.mark.parametrize(("labels", "eps"), [(3, 0.2), (16, 0.05)])
def test_the_learning_curve_is_that_of_a_bayesian_learner(
    labels: int, eps: float
) -> None:
    """Simulated: posterior over labels after m noisy answers, its loss on the next one."""
    facts = ZipfFacts(labels=labels, eps=eps)
    curve, rng, trials = facts.learning_curve, np.random.default_rng(0), 200_000
    assert np.all(np.diff(curve) <= 1e-12) and curve[-1] < 1e-10
    wrong = eps / (labels - 1)
    channel = np.full((labels, labels), wrong) + np.eye(labels) * (1 - eps - wrong)
    for m in (0, 1, 2, 3):
        answers = np.where(
            rng.random((trials, m)) < eps, rng.integers(1, labels, (trials, m)), 0
        )  # truth: 0
        evidence = np.log(channel)[:, answers].sum(axis=-1).T
        posterior = np.exp(evidence - evidence.max(axis=1, keepdims=True))
        posterior /= posterior.sum(axis=1, keepdims=True)
        loss = -np.log(posterior @ channel) @ channel[0] - facts.entropy
        assert curve[m] == pytest.approx(
            loss.mean(), abs=5 * loss.std() / math.sqrt(trials) + 1e-12
        )


def test_noise_too_strong_for_the_exact_sum_is_an_error() -> None:
    with pytest.raises(DataError, match="not known after 101 sightings; lower it"):
        ZipfFacts(labels=2, eps=0.45, items=16).excess(examples=10)
