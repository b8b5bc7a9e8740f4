"""Metrics against values by hand, other implementations' conventions and simulations."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from scaling.data.errors import DataError
from scaling.tasks import packages
from scaling.tasks.estimates import (
    estimate_bootstrap,
    estimate_mean,
    estimate_ratio,
    number_documents,
)
from scaling.tasks.metrics import (
    make_confusion_table,
    measure_accuracy,
    measure_bits_per_byte,
    measure_macro_averages,
    measure_perplexity,
    pass_at_k,
)
from scaling.tasks.text_metrics import TEXT_METRICS


def apart(count: int) -> np.ndarray:
    """Every example is a document of its own."""
    return np.arange(count)


# --- standard errors ------------------------------------------------------------------


def test_the_standard_error_of_a_share_is_binomial() -> None:
    values = np.array([1.0] * 30 + [0.0] * 70)
    value, error = estimate_mean(values, apart(100))
    assert value == 0.3
    assert error == pytest.approx(math.sqrt(0.3 * 0.7 / 99))


def test_copies_within_documents_add_no_information() -> None:
    rng = np.random.default_rng(0)
    amounts, sizes = rng.random(50), rng.random(50) + 1
    once = estimate_ratio(amounts, sizes, apart(50))
    copied = estimate_ratio(
        np.repeat(amounts, 7), np.repeat(sizes, 7), np.repeat(apart(50), 7)
    )
    assert copied == pytest.approx(once)
    naive = estimate_ratio(np.repeat(amounts, 7), np.repeat(sizes, 7), apart(350))
    assert naive.standard_error < once.standard_error / 2


def test_standard_errors_are_the_spread_over_repeated_samples() -> None:
    """Nats and tokens of documents with an effect of their own, 400 times."""
    rng = np.random.default_rng(1)
    ratios, errors, bootstrap_errors = [], [], []
    for _ in range(400):
        sizes = rng.integers(5, 50, 60).astype(float)
        amounts = sizes * (2 + 0.5 * rng.standard_normal(60))
        found = estimate_ratio(amounts, sizes, apart(60))
        ratios.append(found.value)
        errors.append(found.standard_error)
        if len(bootstrap_errors) < 40:
            sums = np.stack([amounts, sizes], axis=1)
            other = estimate_bootstrap(sums, apart(60), lambda s: s[:, 0] / s[:, 1])
            assert other.value == pytest.approx(found.value)
            bootstrap_errors.append(other.standard_error)
    spread = np.std(ratios, ddof=1)
    # The spread of 400 values is known to 3.5 %.
    assert np.mean(errors) == pytest.approx(spread, rel=0.12)
    assert np.mean(bootstrap_errors) == pytest.approx(spread, rel=0.15)


def test_one_document_has_no_standard_error() -> None:
    assert math.isnan(estimate_mean(np.ones(5), np.zeros(5, int)).standard_error)
    found = estimate_bootstrap(np.ones((5, 1)), np.zeros(5, int), lambda s: s[:, 0])
    assert found.value == 5 and math.isnan(found.standard_error)


def test_an_impossible_text_gives_an_infinite_value_without_error() -> None:
    nats = np.array([1.0, np.inf])
    found = measure_bits_per_byte(nats, np.ones(2), apart(2))
    assert found.value == math.inf and math.isnan(found.standard_error)
    assert measure_perplexity(nats, np.ones(2), apart(2)).value == math.inf
    assert measure_perplexity(np.array([1e6]), np.ones(1), apart(1)).value == math.inf


def test_documents_are_numbered_by_first_use() -> None:
    assert number_documents(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


# --- choices --------------------------------------------------------------------------

ANSWERS = np.array([0, 0, 0, 0, 1, 1, 2])
PREDICTIONS = np.array([0, 0, 0, 1, 1, 0, 0])


def test_macro_averages_by_hand() -> None:
    found = measure_macro_averages(ANSWERS, PREDICTIONS, apart(7), classes=4)
    # Class 2 is never predicted and counts 0; class 3 does not occur and does not count.
    assert found["macro_precision"].value == pytest.approx((3 / 5 + 1 / 2 + 0) / 3)
    assert found["macro_recall"].value == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert found["macro_f1"].value == pytest.approx((6 / 9 + 2 / 4 + 0) / 3)
    accuracy = measure_accuracy(ANSWERS, PREDICTIONS, apart(7))
    assert accuracy.value == pytest.approx(4 / 7)


def test_the_confusion_table_has_answers_as_rows() -> None:
    table = make_confusion_table(ANSWERS, PREDICTIONS, ["a", "b", "c"])
    assert table.loc["a"].tolist() == [3, 1, 0]
    assert table["a"].tolist() == [3, 1, 1]
    assert table.to_numpy().sum() == 7


def test_perfect_predictions_score_one_and_renaming_classes_changes_nothing() -> None:
    perfect = measure_macro_averages(ANSWERS, ANSWERS, apart(7), classes=4)
    assert {estimate.value for estimate in perfect.values()} == {1.0}
    swap = np.array([2, 0, 1])
    before = measure_macro_averages(ANSWERS, PREDICTIONS, apart(7), 3)
    after = measure_macro_averages(swap[ANSWERS], swap[PREDICTIONS], apart(7), 3)
    for name, estimate in before.items():
        assert after[name] == pytest.approx(estimate)


def test_the_error_of_macro_f1_is_its_spread_over_samples() -> None:
    rng = np.random.default_rng(2)
    values, errors = [], []
    for _ in range(150):
        answers = rng.integers(0, 3, 200)
        predictions = np.where(rng.random(200) < 0.6, answers, rng.integers(0, 3, 200))
        found = measure_macro_averages(answers, predictions, apart(200), 3)["macro_f1"]
        values.append(found.value)
        errors.append(found.standard_error)
        if len(errors) == 1:
            truth = 0.6 + 0.4 / 3
    assert np.mean(values) == pytest.approx(truth, abs=0.01)
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.2)


# --- probabilities --------------------------------------------------------------------


def test_perplexity_and_bits_per_byte_by_hand() -> None:
    nats = np.array([2.0, 4.0])
    tokens = np.array([1.0, 2.0])
    found = measure_perplexity(nats, tokens, apart(2))
    assert found.value == pytest.approx(math.e**2) and found.standard_error == 0
    bits = measure_bits_per_byte(nats * math.log(2), np.array([3.0, 5.0]), apart(2))
    assert bits.value == pytest.approx(6 / 8)


# --- pass@k ---------------------------------------------------------------------------


def test_pass_at_k_is_the_exact_ratio_of_binomials() -> None:
    for n in (1, 5, 12):
        for c in range(n + 1):
            for k in range(1, n + 1):
                failing = Fraction(math.comb(n - c, k), math.comb(n, k))
                assert pass_at_k(n, c, k) == pytest.approx(float(1 - failing))


def test_pass_at_k_is_unbiased_and_stable() -> None:
    p, n, k = 0.15, 9, 4
    weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    mean = sum(w * pass_at_k(n, c, k) for c, w in enumerate(weights))
    assert mean == pytest.approx(1 - (1 - p) ** k)
    assert pass_at_k(10**6, 1, 1) == pytest.approx(1e-6, rel=1e-9)
    assert 0 < pass_at_k(10**6, 500, 1000) < 1


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, -1, 1), (5, 1, 6), (5, 1, 0)])
def test_pass_at_k_rejects_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="must lie between"):
        pass_at_k(n, c, k)


# --- generated text -------------------------------------------------------------------

WRITTEN = ["the cat sat on the mat", " a dog ", "", "the end of it"]
RIGHT = ["the cat is on the mat", "a dog", "nothing", "the end of it all"]


def test_exact_match_ignores_white_space_at_the_ends_alone() -> None:
    found = TEXT_METRICS["exact_match"](
        ["a b", " a b\n", "a  b"], ["a b"] * 3, apart(3)
    )
    assert found.value == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", sorted(TEXT_METRICS))
def test_right_text_scores_the_most_and_wrong_text_nothing(name: str) -> None:
    most = 100 if name in ("bleu", "chrf") else 1
    metric = TEXT_METRICS[name]
    assert metric(RIGHT[:1] * 3, RIGHT[:1] * 3, apart(3)).value == pytest.approx(most)
    assert metric(["zzz"] * 3, RIGHT[:1] * 3, apart(3)).value == pytest.approx(0)


def test_corpus_scores_are_those_of_sacrebleu() -> None:
    from sacrebleu.metrics import BLEU, CHRF

    written = [text.strip() for text in WRITTEN]
    for name, scorer in (("bleu", BLEU()), ("chrf", CHRF())):
        found = TEXT_METRICS[name](WRITTEN, RIGHT, apart(4))
        assert found.value == pytest.approx(scorer.corpus_score(written, [RIGHT]).score)
        assert found.standard_error > 0


def test_rouge_by_hand() -> None:
    written, right = ["the cat sat"], ["The cat sat down today"]
    scores = {
        name: TEXT_METRICS[name](written, right, apart(1)).value
        for name in ("rouge1", "rouge2", "rougeL")
    }
    assert scores["rouge1"] == pytest.approx(2 * 1 * (3 / 5) / (1 + 3 / 5))
    assert scores["rouge2"] == pytest.approx(2 * 1 * (2 / 4) / (1 + 2 / 4))
    crossed = TEXT_METRICS["rougeL"](["b a c"], ["a b c"], apart(1)).value
    assert crossed == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("metric", "package"), [("bleu", "sacrebleu"), ("rouge1", "rouge-score")]
)
def test_a_missing_package_is_named(
    metric: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(packages.importlib, "import_module", absent)
    with pytest.raises(
        DataError,
        match=rf'`{package}` is not installed; run: pip install "scaling\[tas',
    ):
        TEXT_METRICS[metric](WRITTEN, RIGHT, apart(4))
