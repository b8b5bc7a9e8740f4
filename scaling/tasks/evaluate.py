"""A model on a task: scored, compared with baselines, with standard errors.

Metrics of each kind of task, all over the held-out examples:

| kind | metrics |
|---|---|
| choice | accuracy, accuracy_per_byte, choice_nats, answer_bits_per_byte; with fixed labels also macro_precision, macro_recall, macro_f1 |
| completion | those of the task (`text_metrics.py`), answer_bits_per_byte |
| perplexity | nats_per_token, perplexity, bits_per_byte |

`accuracy` picks the choice of the largest probability, `accuracy_per_byte` that of the
largest log-probability over its UTF-8 bytes: acc and acc_norm of lm-evaluation-harness.
The headline is `accuracy`, and predictions, macro averages and confusion go with it: a
model that was trained on the task has learned how likely each choice is as a whole. One
that was not finds long choices unlikely; where choices differ in length,
`accuracy_per_byte` is fairer to it. Without an end after it, a choice that begins another
one is never less likely than that one.

`answer_bits_per_byte` is the negative log-probability of the right answers in bits over
their bytes, both summed. `choice_nats` is the mean negative logarithm of the probability
of the right choice, if the probabilities of the choices are scaled to sum to 1. Both
change smoothly with the model where accuracy does not.
"""  # noqa: E501

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from scaling.data.errors import DataError
from scaling.tasks.estimates import (
    Estimate,
    estimate_mean,
    estimate_ratio,
    number_documents,
)
from scaling.tasks.examples import (
    ChoiceExample,
    Example,
    TaskData,
    draw_shots,
    list_pairs,
    make_few_shot_prompt,
)
from scaling.tasks.metrics import (
    make_confusion_table,
    measure_accuracy,
    measure_bits_per_byte,
    measure_macro_averages,
    measure_perplexity,
)
from scaling.tasks.split import name_document
from scaling.tasks.text_metrics import TEXT_METRICS

UNIFORM_BITS = 8.0
"""Bits per byte of a model that gives every byte the same probability."""

CONSTANT_CANDIDATES = 20
"""Training completions of which the baseline `constant` is one."""

CONSTANT_REFERENCES = 100
"""Training completions, at most, by which it is chosen."""


class Scores(NamedTuple):
    """Probabilities of texts.

    Attributes:
        log_probs: natural logarithm of the probability of each text, its tokens summed.
        tokens: number of tokens of each text.
    """

    log_probs: Float[np.ndarray, " n"]
    tokens: Int[np.ndarray, " n"]


@runtime_checkable
class Scorer(Protocol):
    """What a model offers to be evaluated."""

    def score_completions(
        self, prompts: Sequence[str], completions: Sequence[str]
    ) -> Scores:
        """Probability of each completion after its prompt."""
        ...

    def generate(
        self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str]
    ) -> list[str]:
        """The text that the model writes after each prompt, without the prompt.

        Args:
            max_tokens: of the written text.
            stop: the text ends before the first of these.
        """
        ...

    def score_texts(self, texts: Sequence[str]) -> Scores:
        """Probability of each text, from its beginning."""
        ...


@dataclass(frozen=True, eq=False)
class TaskResult:
    """What a model reached on a task.

    Attributes:
        task: name of the task.
        fingerprint: of its examples.
        n: held-out examples that were evaluated.
        documents: number of their documents, over which standard errors are.
        metrics: see the table of this module.
        baselines: metrics of what needs no model. `chance` picks any choice; `majority`
            gives the most frequent answer of the training examples (without fixed
            labels, the most frequent place of the answer); `constant` gives the
            training completion that scores best (`find_best_constant`), for metrics
            that reward texts that are near, as chrf and rougeL do; `uniform` gives
            every byte the same probability.
        predictions: one row per example: prompt, answer, predicted, and what the
            metrics were computed from.
        confusion: counts by right (rows) and predicted label, for fixed labels.
        shots: solved examples in each prompt.
    """

    task: str
    fingerprint: str
    n: int
    documents: int
    metrics: dict[str, Estimate]
    baselines: dict[str, dict[str, float]]
    predictions: pd.DataFrame
    confusion: pd.DataFrame | None
    shots: int


class _Outcome(NamedTuple):
    """What the evaluation of one kind of task gives."""

    metrics: dict[str, Estimate]
    baselines: dict[str, dict[str, float]]
    predictions: pd.DataFrame
    confusion: pd.DataFrame | None = None


def evaluate_task(
    task: TaskData,
    scorer: Scorer,
    *,
    shots: int = 0,
    limit: int | None = None,
    seed: int = 0,
    max_tokens: int | None = None,
) -> TaskResult:
    """Evaluate a model on the held-out examples of a task.

    Args:
        shots: solved training examples before each prompt. Whether the prompt then
            fits the context is the model's business.
        limit: evaluate the first so many examples. They are in the order of their
            hashes, so the choice is fair and the same for every model.
        seed: of the draw of shots.
        max_tokens: of generated text. Default: the bytes of the longest completion of
            the training examples, or of the held-out ones if there are none.

    Raises:
        DataError: the task holds no held-out examples or too few shots, an argument is
            out of range, or the model's scores are no log-probabilities.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit = {limit}: must be at least 1, or None for all")
    examples = task.heldout[:limit]
    if not examples:
        raise DataError(
            f"task {task.name!r}: has no held-out examples; raise heldout_fraction"
        )
    if shots and task.kind == "perplexity":
        raise DataError(
            f"shots = {shots}: task {task.name!r} is of kind 'perplexity', which has no "
            "prompts; use shots = 0"
        )
    documents = number_documents(name_document(example) for example in examples)
    prompts = []
    for index, example in enumerate(examples):
        shown = draw_shots(task.train, shots, seed, index)
        prompts.append(make_few_shot_prompt(example, shown))
    if task.kind == "choice":
        outcome = _evaluate_choices(task, scorer, prompts, documents)
    elif task.kind == "completion":
        outcome = _evaluate_completions(task, scorer, prompts, documents, max_tokens)
    else:
        outcome = _evaluate_texts(scorer, examples, documents)
    return TaskResult(
        task=task.name,
        fingerprint=task.fingerprint,
        n=len(examples),
        documents=int(documents.max()) + 1,
        metrics=outcome.metrics,
        baselines=outcome.baselines,
        predictions=outcome.predictions,
        confusion=outcome.confusion,
        shots=shots,
    )


def count_bytes(texts: Sequence[str]) -> Float[np.ndarray, " n"]:
    """UTF-8 bytes of each text."""
    return np.array([len(text.encode("utf-8")) for text in texts], float)


def _check_scores(scores: Scores, count: int, method: str) -> Scores:
    """The scores as arrays of float64 and int.

    Raises:
        DataError: they are not `count` log-probabilities.
    """
    log_probs = np.asarray(scores.log_probs, float)
    tokens = np.asarray(scores.tokens)
    if log_probs.shape != (count,) or tokens.shape != (count,):
        raise DataError(
            f"{method}: returned log_probs of shape {log_probs.shape} and tokens of shape "
            f"{tokens.shape}; both must be ({count},), one for each text"
        )
    # Rounding can lift the logarithm of a probability near 1 above 0.
    wrong = np.isnan(log_probs) | (log_probs > 1e-3)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise DataError(
            f"{method}: log_probs[{at}] = {log_probs[at]}: must be the logarithm of a "
            "probability, at most 0; a model that diverged gives NaN"
        )
    if (tokens < 1).any():
        at = int(np.argmax(tokens < 1))
        raise DataError(
            f"{method}: tokens[{at}] = {tokens[at]}: must be at least 1; every text has "
            "a token"
        )
    return Scores(log_probs, tokens.astype(int))


# --- choices --------------------------------------------------------------------------


def _evaluate_choices(
    task: TaskData,
    scorer: Scorer,
    prompts: Sequence[str],
    documents: Int[np.ndarray, " n"],
) -> _Outcome:
    examples = _select_choices(task.heldout[: len(prompts)])
    repeated: list[str] = []
    choices: list[str] = []
    for prompt, example in zip(prompts, examples, strict=True):
        repeated += [prompt] * len(example.choices)
        choices += example.choices
    scores = _check_scores(
        scorer.score_completions(repeated, choices), len(choices), "score_completions"
    )
    ends = np.cumsum([len(example.choices) for example in examples])[:-1]
    sums = np.split(scores.log_probs, ends)
    per_byte = np.split(scores.log_probs / count_bytes(choices), ends)
    answers = np.array([example.answer for example in examples])
    predictions = np.array([int(np.argmax(values)) for values in sums])
    predictions_per_byte = np.array([int(np.argmax(values)) for values in per_byte])
    answer_nats = np.array([-x[a] for x, a in zip(sums, answers, strict=True)])
    choice_nats = np.array(
        [_score_choice(x, int(a)) for x, a in zip(sums, answers, strict=True)]
    )
    right = [example.pair.completion for example in examples]
    metrics = {
        "accuracy": measure_accuracy(answers, predictions, documents),
        "accuracy_per_byte": measure_accuracy(answers, predictions_per_byte, documents),
        "choice_nats": estimate_mean(choice_nats, documents),
        "answer_bits_per_byte": measure_bits_per_byte(
            answer_nats, count_bytes(right), documents
        ),
    }
    confusion = None
    if task.labels is not None:
        count = len(task.labels)
        metrics |= measure_macro_averages(answers, predictions, documents, count)
        labels = [label.strip() for label in task.labels]
        confusion = make_confusion_table(answers, predictions, labels)
    table = pd.DataFrame(
        {
            "prompt": [example.prompt for example in examples],
            "answer": answers,
            "predicted": predictions,
            "predicted_per_byte": predictions_per_byte,
            "log_probs": [values.tolist() for values in sums],
            "choice_nats": choice_nats,
            "answer_nats": answer_nats,
        }
    )
    return _Outcome(metrics, _find_choice_baselines(task, examples), table, confusion)


def _select_choices(examples: Sequence[Example]) -> list[ChoiceExample]:
    return [example for example in examples if isinstance(example, ChoiceExample)]


def _score_choice(log_probs: Float[np.ndarray, " k"], answer: int) -> float:
    """-log of the probability of the answer among the choices."""
    if log_probs[answer] == -math.inf:
        return math.inf
    return float(np.logaddexp.reduce(log_probs) - log_probs[answer])


def _find_choice_baselines(
    task: TaskData, examples: Sequence[ChoiceExample]
) -> dict[str, dict[str, float]]:
    sizes = np.array([len(example.choices) for example in examples], float)
    chance = {
        "accuracy": float(np.mean(1 / sizes)),
        "accuracy_per_byte": float(np.mean(1 / sizes)),
        "choice_nats": float(np.mean(np.log(sizes))),
    }
    baselines = {
        "chance": chance,
        "uniform": {"answer_bits_per_byte": UNIFORM_BITS},
    }
    if not task.train:
        return baselines
    counts = Counter(example.answer for example in _select_choices(task.train))
    # Of answers that are equally frequent, the one with the lowest index.
    most_frequent = min(counts, key=lambda answer: (-counts[answer], answer))
    answers = np.array([example.answer for example in examples])
    guesses = np.full(len(answers), most_frequent)
    share = float(np.mean(answers == guesses))
    majority = {"accuracy": share, "accuracy_per_byte": share}
    if task.labels is not None:
        apart = np.arange(len(answers))
        averages = measure_macro_averages(answers, guesses, apart, len(task.labels))
        majority |= {name: estimate.value for name, estimate in averages.items()}
    baselines["majority"] = majority
    return baselines


# --- completions ----------------------------------------------------------------------


def _evaluate_completions(
    task: TaskData,
    scorer: Scorer,
    prompts: Sequence[str],
    documents: Int[np.ndarray, " n"],
    max_tokens: int | None,
) -> _Outcome:
    pairs = list_pairs(task.heldout[: len(prompts)])
    right = [pair.completion for pair in pairs]
    if max_tokens is None:
        known = list_pairs(task.train or task.heldout)
        max_tokens = int(count_bytes([pair.completion for pair in known]).max())
    written = scorer.generate(prompts, max_tokens, task.stop)
    if len(written) != len(prompts):
        raise DataError(
            f"generate: returned {len(written)} texts for {len(prompts)} prompts; must "
            "return one for each"
        )
    written = [cut_at_stop(text, task.stop) for text in written]
    scores = _check_scores(
        scorer.score_completions(prompts, right), len(right), "score_completions"
    )
    metrics = {
        name: TEXT_METRICS[name](written, right, documents) for name in task.metrics
    }
    metrics["answer_bits_per_byte"] = measure_bits_per_byte(
        -scores.log_probs, count_bytes(right), documents
    )
    baselines = {"uniform": {"answer_bits_per_byte": UNIFORM_BITS}}
    if task.train:
        known = [pair.completion for pair in list_pairs(task.train)]
        counts = Counter(known)
        most_frequent = min(counts, key=lambda text: (-counts[text], text))
        constants = {}
        for name in task.metrics:
            # No other constant has more exact matches than the most frequent text.
            if name != "exact_match":
                constants[name] = find_best_constant(known, name)
        majority = dict.fromkeys(task.metrics, most_frequent)
        baselines["majority"] = _score_constants(majority, right, documents)
        if constants:
            baselines["constant"] = _score_constants(constants, right, documents)
    table = pd.DataFrame(
        {
            "prompt": [pair.prompt for pair in pairs],
            "answer": right,
            "predicted": written,
            "answer_nats": -scores.log_probs,
        }
    )
    return _Outcome(metrics, baselines, table)


def find_best_constant(completions: Sequence[str], metric: str) -> str:
    """The text that scores best if it is the answer to everything.

    The candidates are the most frequent completions, the first ones where many are
    equally frequent. They are scored against completions at even distances.

    Args:
        completions: of the training examples, at least one.
        metric: a name of `TEXT_METRICS`.
    """
    counts = Counter(completions).most_common(CONSTANT_CANDIDATES)
    candidates = [text for text, _ in counts]
    references = completions[:: math.ceil(len(completions) / CONSTANT_REFERENCES)]
    # One document, so that no standard error is computed.
    document = np.zeros(len(references), int)
    scores = []
    for text in candidates:
        guesses = [text] * len(references)
        scores.append(TEXT_METRICS[metric](guesses, references, document).value)
    return candidates[int(np.argmax(scores))]


def _score_constants(
    constants: Mapping[str, str],
    right: Sequence[str],
    documents: Int[np.ndarray, " n"],
) -> dict[str, float]:
    """The value of each metric if its text is the answer to everything."""
    values = {}
    for name, text in constants.items():
        guesses = [text] * len(right)
        values[name] = TEXT_METRICS[name](guesses, right, documents).value
    return values


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stops."""
    ends = [text.find(word) for word in stop]
    return text[: min([end for end in ends if end >= 0], default=len(text))]


# --- texts ----------------------------------------------------------------------------


def _evaluate_texts(
    scorer: Scorer, examples: Sequence[Example], documents: Int[np.ndarray, " n"]
) -> _Outcome:
    texts = [example.pair.completion for example in examples]
    scores = _check_scores(scorer.score_texts(texts), len(texts), "score_texts")
    nats = -scores.log_probs
    tokens = scores.tokens.astype(float)
    lengths = count_bytes(texts)
    metrics = {
        "nats_per_token": estimate_ratio(nats, tokens, documents),
        "perplexity": measure_perplexity(nats, tokens, documents),
        "bits_per_byte": measure_bits_per_byte(nats, lengths, documents),
    }
    baselines = {"uniform": {"bits_per_byte": UNIFORM_BITS}}
    table = pd.DataFrame(
        {"text": texts, "nats": nats, "tokens": scores.tokens, "bytes": lengths}
    )
    return _Outcome(metrics, baselines, table)
