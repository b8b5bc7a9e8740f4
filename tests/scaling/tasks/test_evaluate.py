"""Laws of the evaluation, with models whose answers are known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest

from scaling.data.errors import DataError
from scaling.tasks.evaluate import Scores, evaluate_task, find_best_constant
from scaling.tasks.examples import (
    ChoiceExample,
    CompletionExample,
    PerplexityExample,
    TaskData,
)

LABELS = (" no", " yes")


def count_bytes(text: str) -> int:
    return len(text.encode())


class Uniform:
    """Gives every byte the same probability; a token is a byte. Remembers what it was
    asked.
    """

    written = ""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.max_tokens = 0
        self.stop: Sequence[str] = ()

    def measure(self, prompt: str, completion: str) -> float:
        return -count_bytes(completion) * math.log(256)

    def score_completions(
        self, prompts: Sequence[str], completions: Sequence[str]
    ) -> Scores:
        self.prompts = list(prompts)
        pairs = zip(prompts, completions, strict=True)
        log_probs = np.array([self.measure(*pair) for pair in pairs])
        return Scores(log_probs, np.array([count_bytes(text) for text in completions]))

    def generate(
        self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str]
    ) -> list[str]:
        self.max_tokens, self.stop = max_tokens, stop
        return [self.written for _ in prompts]

    def score_texts(self, texts: Sequence[str]) -> Scores:
        return self.score_completions([""] * len(texts), texts)


class Oracle(Uniform):
    """Knows the right answers of a task: a bit for each byte of a right one."""

    def __init__(self, task: TaskData) -> None:
        super().__init__()
        self.right = dict(example.pair for example in task.heldout)

    def measure(self, prompt: str, completion: str) -> float:
        right = self.right[prompt.split("\n\n")[-1]] == completion
        return -count_bytes(completion) * math.log(2 if right else 256)

    def generate(
        self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str]
    ) -> list[str]:
        return [self.right[p.split("\n\n")[-1]] + "\nand more" for p in prompts]


class Constant(Uniform):
    """Prefers one text, always."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.written = text

    def measure(self, prompt: str, completion: str) -> float:
        return -1.0 if completion == self.written else -10.0


def make_choices(count: int, start: int = 0) -> tuple[ChoiceExample, ...]:
    """Every fourth answer is yes."""
    numbers = range(start, start + count)
    return tuple(ChoiceExample(f"{i}?", LABELS, int(i % 4 == 0)) for i in numbers)


CHOICE = TaskData(
    "c", "choice", make_choices(40, 1000), make_choices(80), labels=LABELS
)
ADDITION = TaskData(
    "a",
    "completion",
    tuple(CompletionExample(f"{i}+1=", f"{i + 1}") for i in range(90, 105)),
    tuple(CompletionExample(f"{i}+1=", f"{i + 1}") for i in range(50)),
    metrics=("exact_match", "chrf"),
)


# --- choices --------------------------------------------------------------------------


def test_an_oracle_is_right_everywhere() -> None:
    found = evaluate_task(CHOICE, Oracle(CHOICE))
    shares = ("accuracy", "accuracy_per_byte")
    for name in (*shares, "macro_precision", "macro_recall", "macro_f1"):
        assert found.metrics[name].value == 1.0
    assert found.metrics["answer_bits_per_byte"] == pytest.approx((1.0, 0.0))
    assert found.confusion is not None
    assert found.confusion.to_numpy().tolist() == [[60, 0], [0, 20]]
    assert found.n == 80 and found.documents == 80
    assert found.fingerprint == CHOICE.fingerprint


def test_a_constant_answer_reaches_the_majority_baseline() -> None:
    found = evaluate_task(CHOICE, Constant(" no"))
    assert found.metrics["accuracy"].value == 0.75
    for name, value in found.baselines["majority"].items():
        assert found.metrics[name].value == pytest.approx(value)
    wrong = evaluate_task(CHOICE, Constant(" yes"))
    assert wrong.metrics["accuracy"].value == 0.25
    assert found.baselines["chance"]["accuracy"] == 0.5


def test_a_uniform_model_has_eight_bits_per_byte_and_the_entropy_of_its_choices() -> (
    None
):
    examples = tuple(ChoiceExample(f"{i}", ("ä", "bb", "cc"), i % 3) for i in range(30))
    task = TaskData("u", "choice", (), examples)
    found = evaluate_task(task, Uniform())
    assert found.metrics["answer_bits_per_byte"] == pytest.approx((8.0, 0.0))
    assert found.metrics["choice_nats"] == pytest.approx((math.log(3), 0.0))
    for baseline in ("chance", "uniform"):
        for name, value in found.baselines[baseline].items():
            if not name.startswith("accuracy"):
                assert found.metrics[name].value == pytest.approx(value)
    assert "majority" not in found.baselines  # nothing to train on
    assert "macro_f1" not in found.metrics and found.confusion is None


def test_a_long_choice_can_win_by_the_byte_alone() -> None:
    """It has less probability, but more for each byte."""

    class LongIsCheap(Uniform):
        def score_completions(
            self, prompts: Sequence[str], completions: Sequence[str]
        ) -> Scores:
            log_probs = [-4.0 if len(text) == 8 else -3.0 for text in completions]
            return Scores(np.array(log_probs), np.ones(len(log_probs), int))

    example = ChoiceExample("p", ("12345678", "1234"), 0)
    task = TaskData("n", "choice", (), (example,))
    found = evaluate_task(task, LongIsCheap())
    # -4 < -3; -4 / 8 > -3 / 4
    assert found.metrics["accuracy"].value == 0.0
    assert found.metrics["accuracy_per_byte"].value == 1.0
    assert found.predictions["predicted"].tolist() == [1]
    assert found.predictions["predicted_per_byte"].tolist() == [0]


def test_a_model_that_knows_the_probability_of_labels_is_most_often_right() -> None:
    """It answers the frequent short label, as is best; by the byte it would answer the
    rare long one.
    """

    class Calibrated(Uniform):
        def measure(self, prompt: str, completion: str) -> float:
            return math.log({" no": 0.6, " certainly": 0.4}[completion])

    labels = (" no", " certainly")
    examples = [ChoiceExample(f"{i}", labels, int(i % 10 >= 6)) for i in range(50)]
    task = TaskData("k", "choice", (), tuple(examples), labels=labels)
    found = evaluate_task(task, Calibrated())
    assert found.metrics["accuracy"].value == pytest.approx(0.6)
    assert found.metrics["accuracy_per_byte"].value == pytest.approx(0.4)
    assert found.confusion is not None
    assert found.confusion.to_numpy().tolist() == [[30, 0], [20, 0]]


def test_standard_errors_count_documents() -> None:
    copies = tuple(
        dataclasses.replace(example, prompt=f"{example.prompt}{k}", document=str(i))
        for i, example in enumerate(CHOICE.heldout)
        for k in range(5)
    )
    task = dataclasses.replace(CHOICE, heldout=copies)
    one = evaluate_task(CHOICE, Constant(" no"))
    five = evaluate_task(task, Constant(" no"))
    assert five.n == 400 and five.documents == 80
    assert five.metrics["accuracy"] == pytest.approx(one.metrics["accuracy"])


# --- few-shot prompts and limits ------------------------------------------------------


def test_shots_stand_before_the_prompt_and_are_from_the_training_examples() -> None:
    scorer = Oracle(CHOICE)
    found = evaluate_task(CHOICE, scorer, shots=3, seed=5)
    assert found.metrics["accuracy"].value == 1.0 and found.shots == 3
    train = {prompt + completion for prompt, completion in map(_pair, CHOICE.train)}
    for prompt in scorer.prompts:
        *shots, _ = prompt.split("\n\n")
        assert len(set(shots)) == 3 and set(shots) <= train
    before = scorer.prompts
    evaluate_task(CHOICE, scorer, shots=3, seed=5)
    assert scorer.prompts == before
    evaluate_task(CHOICE, scorer, shots=3, seed=6)
    assert scorer.prompts != before


def _pair(example) -> tuple[str, str]:
    return example.pair


def test_a_limit_takes_the_first_examples_whatever_the_seed() -> None:
    found = evaluate_task(CHOICE, Uniform(), limit=10, seed=3)
    expected = [example.pair.prompt for example in CHOICE.heldout[:10]]
    assert found.predictions["prompt"].tolist() == expected and found.n == 10


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        (CHOICE, {"limit": 0}, "limit = 0: must be at least 1"),
        (CHOICE, {"shots": 41}, "shots = 41: must lie between 0 and the 40"),
        (dataclasses.replace(CHOICE, heldout=()), {}, "has no held-out examples"),
        (
            TaskData("p", "perplexity", (), (PerplexityExample("x"),)),
            {"shots": 1},
            "has no prompts",
        ),
    ],
)
def test_impossible_settings_are_named(task, settings: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_task(task, Uniform(), **settings)


# --- completions ----------------------------------------------------------------------


def test_an_oracle_writes_what_is_right_and_is_cut_at_the_stop() -> None:
    found = evaluate_task(ADDITION, Oracle(ADDITION), shots=2)
    assert found.metrics["exact_match"] == (1.0, 0.0)
    assert found.metrics["chrf"].value == pytest.approx(100)
    assert found.metrics["answer_bits_per_byte"].value == pytest.approx(1)
    predictions = found.predictions
    assert (predictions["answer"] == predictions["predicted"]).all()


def test_a_constant_text_reaches_the_majority_baseline() -> None:
    scorer = Constant("100")
    found = evaluate_task(ADDITION, scorer)
    assert found.metrics["exact_match"].value == 0
    assert scorer.max_tokens == 3 and scorer.stop == ("\n",)
    train = (*ADDITION.train, CompletionExample("1+6=", "7"))
    train = (*train, CompletionExample("5+2=", "7"))
    task = dataclasses.replace(ADDITION, train=train)
    seven = evaluate_task(task, Constant("7"))
    for name, value in seven.baselines["majority"].items():
        assert seven.metrics[name].value == pytest.approx(value)
    assert seven.metrics["exact_match"].value == pytest.approx(1 / 50)


def test_the_best_constant_is_a_text_that_is_near_to_many() -> None:
    """The most frequent text has nothing in common with the others."""
    near = [f"The capital of {name}" for name in ("Peru", "Chile", "Cuba", "Mali")]
    completions = ["zzz", "zzz", *near]
    assert find_best_constant(completions, "exact_match") == "zzz"
    assert find_best_constant(completions, "chrf") in near
    train = tuple(CompletionExample(f"{i}", t) for i, t in enumerate(completions))
    heldout = tuple(CompletionExample(f"{i}?", f"The capital of {i}") for i in range(9))
    task = TaskData("c", "completion", train, heldout, metrics=("exact_match", "chrf"))
    found = evaluate_task(task, Constant("The capital of Peru")).baselines
    assert found["constant"]["chrf"] > 50 > found["majority"]["chrf"]
    assert "exact_match" not in found["constant"]


# --- texts ----------------------------------------------------------------------------


def test_perplexity_over_texts_of_different_length() -> None:
    texts = tuple(PerplexityExample("é" * (i + 1)) for i in range(9))
    task = TaskData("p", "perplexity", (), texts)
    found = evaluate_task(task, Uniform())
    assert found.metrics["perplexity"].value == pytest.approx(256)
    assert found.metrics["bits_per_byte"] == pytest.approx((8.0, 0.0), abs=1e-9)
    assert found.metrics["nats_per_token"].value == pytest.approx(math.log(256))
    assert found.predictions["bytes"].tolist() == [2 * (i + 1) for i in range(9)]


# --- broken models --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log_probs", "tokens", "message"),
    [
        ([math.nan] * 160, [1] * 160, r"log_probs\[0\] = nan: must be the logarithm"),
        ([0.5] * 160, [1] * 160, r"log_probs\[0\] = 0.5"),
        ([-1.0] * 80, [1] * 80, r"shape \(80,\) .*must be \(160,\)"),
        ([-1.0] * 160, [0] * 160, r"tokens\[0\] = 0: must be at least 1"),
    ],
)
def test_scores_that_are_no_probabilities_are_rejected(
    log_probs: list, tokens: list, message: str
) -> None:
    class Broken(Uniform):
        def score_completions(
            self, prompts: Sequence[str], completions: Sequence[str]
        ) -> Scores:
            return Scores(np.array(log_probs), np.array(tokens))

    with pytest.raises(DataError, match=message):
        evaluate_task(CHOICE, Broken())


def test_an_answer_of_probability_zero_is_an_infinite_loss() -> None:
    class Certain(Uniform):
        def measure(self, prompt: str, completion: str) -> float:
            return 0.0 if completion == " no" else -math.inf

    found = evaluate_task(CHOICE, Certain())
    assert found.metrics["accuracy"].value == 0.75
    for name in ("answer_bits_per_byte", "choice_nats"):
        assert found.metrics[name].value == math.inf
        assert math.isnan(found.metrics[name].standard_error)
