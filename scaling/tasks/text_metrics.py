"""Measures of generated text against one right text each.

| name | range | what |
|---|---|---|
| exact_match | 0 to 1 | the share of texts that are equal, white space at both ends removed |
| chrf | 0 to 100 | chrF2 of the corpus, by sacrebleu (Popović 2015) |
| bleu | 0 to 100 | BLEU of the corpus, by sacrebleu (Papineni et al. 2002; Post 2018) |
| rouge1, rouge2, rougeL | 0 to 1 | mean F-measure of the texts, by rouge-score, without stemming (Lin 2004) |

A new one is a function, decorated with `register_text_metric`.
"""  # noqa: E501

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from scaling.tasks.estimates import Estimate, estimate_bootstrap, estimate_mean
from scaling.tasks.packages import import_package

Documents = Int[np.ndarray, " n"]
TextMetric = Callable[[Sequence[str], Sequence[str], Documents], Estimate]

TEXT_METRICS: dict[str, TextMetric] = {}


def register_text_metric(name: str) -> Callable[[TextMetric], TextMetric]:
    """Decorate a measure of generated texts, right texts and document numbers."""

    def register(metric: TextMetric) -> TextMetric:
        TEXT_METRICS[name] = metric
        return metric

    return register


@register_text_metric("exact_match")
def measure_exact_match(
    written: Sequence[str], right: Sequence[str], documents: Documents
) -> Estimate:
    """The share of texts that are equal up to white space at both ends."""
    matches = [a.strip() == b.strip() for a, b in zip(written, right, strict=True)]
    return estimate_mean(np.array(matches, float), documents)


@register_text_metric("chrf")
def measure_chrf(
    written: Sequence[str], right: Sequence[str], documents: Documents
) -> Estimate:
    """chrF2 of the corpus: character n-grams up to 6, recall counts twice."""
    return _measure_corpus("CHRF", written, right, documents)


@register_text_metric("bleu")
def measure_bleu(
    written: Sequence[str], right: Sequence[str], documents: Documents
) -> Estimate:
    """BLEU of the corpus: word n-grams up to 4, tokenizer 13a, exponential smoothing."""
    return _measure_corpus("BLEU", written, right, documents)


def _measure_corpus(
    metric: str, written: Sequence[str], right: Sequence[str], documents: Documents
) -> Estimate:
    """A metric of sacrebleu, which is a function of counts summed over texts."""
    wanted_by = f"metric {metric.lower()!r}"
    library = import_package("sacrebleu.metrics", "sacrebleu", wanted_by)
    scorer = getattr(library, metric)(**_NO_WARNING.get(metric, {}))
    stripped = [text.strip() for text in written]
    references = [[text.strip() for text in right]]
    # sacrebleu has no public access to the counts; a test holds the value of this
    # against its corpus_score.
    counts = scorer._extract_corpus_statistics(stripped, references)

    def score_counts(sums: Float[np.ndarray, "r k"]) -> Float[np.ndarray, " r"]:
        whole = np.rint(sums).astype(int).tolist()
        scores = [scorer._compute_score_from_stats(row).score for row in whole]
        return np.array(scores, float)

    return estimate_bootstrap(np.array(counts, float), documents, score_counts)


# `force` silences the warning about text that looks tokenized.
_NO_WARNING: dict[str, dict[str, bool]] = {"BLEU": {"force": True}}


def _measure_rouge(
    variant: str, written: Sequence[str], right: Sequence[str], documents: Documents
) -> Estimate:
    """Mean F-measure of a variant of ROUGE; words are runs of a-z and 0-9."""
    library = import_package(
        "rouge_score.rouge_scorer", "rouge-score", f"metric {variant!r}"
    )
    scorer = library.RougeScorer([variant], use_stemmer=False)
    scores = [
        scorer.score(reference, text)[variant].fmeasure
        for text, reference in zip(written, right, strict=True)
    ]
    return estimate_mean(np.array(scores, float), documents)


for _variant in ("rouge1", "rouge2", "rougeL"):
    TEXT_METRICS[_variant] = functools.partial(_measure_rouge, _variant)
