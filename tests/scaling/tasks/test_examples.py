"""Laws of examples, of their split, and of few-shot prompts."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.data.errors import DataError
from scaling.tasks.examples import (
    ChoiceExample,
    CompletionExample,
    Example,
    PerplexityExample,
    TaskData,
    draw_shots,
    make_few_shot_prompt,
)
from scaling.tasks.split import hash_document, split_examples

WORDS = st.text(st.sampled_from("abc "), min_size=1, max_size=4)
EXAMPLES = st.builds(
    lambda prompt, answer, document: CompletionExample(prompt, answer, document),
    WORDS,
    st.sampled_from(["x", "y"]),
    st.sampled_from(["", "d1", "d2", "d3", "d4", "d5"]),
)


def make_examples(count: int) -> list[CompletionExample]:
    return [CompletionExample(f"{i}?", f" {i}") for i in range(count)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChoiceExample("p", ("a",), 0), "two or more different"),
        (lambda: ChoiceExample("p", ("a", "a"), 0), "two or more different"),
        (lambda: ChoiceExample("p", ("a", ""), 0), "a choice is empty"),
        (lambda: ChoiceExample("p", ("a", "b"), 2), "answer = 2: must be an index"),
        (lambda: ChoiceExample("p", ("a", "b"), -1), "answer = -1"),
        (lambda: CompletionExample("p", " \n"), "completion = .*must hold text"),
        (lambda: PerplexityExample(""), "text = '': must hold text"),
    ],
)
def test_an_example_that_cannot_be_scored_is_rejected(make, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


def test_the_training_text_of_a_choice_is_the_right_one() -> None:
    assert ChoiceExample("p:", (" a", " b"), 1).pair == ("p:", " b")
    assert PerplexityExample("text").pair == ("", "text")


def test_all_examples_of_a_task_have_its_kind() -> None:
    with pytest.raises(DataError, match="needs examples of type ChoiceExample"):
        TaskData("t", "choice", (), (CompletionExample("p", "c"),))


def test_the_fingerprint_sees_every_example_and_its_side() -> None:
    one, two, three = make_examples(3)
    task = TaskData("t", "completion", (one,), (two,))
    prints = {
        dataclasses.replace(task, train=train, heldout=heldout).fingerprint
        for train, heldout in [
            ((one,), (two,)),
            ((two,), (one,)),
            ((one, two), ()),
            ((one,), (three,)),
            ((one, three), (two,)),
        ]
    }
    assert len(prints) == 5
    renamed = dataclasses.replace(task, name="other", about={"version": 2})
    assert renamed.fingerprint == task.fingerprint


@given(st.lists(EXAMPLES, max_size=40), st.floats(0.01, 1), st.randoms())
@settings(max_examples=60, deadline=None)
def test_a_split_keeps_documents_whole_and_no_example_straddles(
    examples: list[Example], fraction: float, random
) -> None:
    split = split_examples(examples, fraction)
    train = {example.pair for example in split.train}
    heldout = {example.pair for example in split.heldout}
    assert not train & heldout
    assert len(train) == len(split.train) and len(heldout) == len(split.heldout)
    assert train | heldout == {example.pair for example in examples}
    assert len(split.train) + len(split.heldout) + split.duplicates == len(examples)
    documents = {example.document for example in split.train} - {""}
    assert not documents & {example.document for example in split.heldout}
    shuffled = random.sample(examples, len(examples))
    again = split_examples(shuffled, fraction)
    assert {e.pair for e in again.heldout} == heldout


def test_held_out_examples_stay_held_out_when_others_are_added() -> None:
    few = split_examples(make_examples(200), 0.2)
    many = split_examples(make_examples(2000), 0.2)
    assert set(few.heldout) <= set(many.heldout)
    assert set(few.train) <= set(many.train)
    wider = split_examples(make_examples(2000), 0.3)
    assert set(many.heldout) < set(wider.heldout)
    assert abs(len(many.heldout) / 2000 - 0.2) < 4 * (0.2 * 0.8 / 2000) ** 0.5


def test_all_can_be_held_out_and_a_wrong_fraction_is_named() -> None:
    assert not split_examples(make_examples(20), 1.0).train
    for fraction in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(DataError, match="heldout_fraction"):
            split_examples(make_examples(20), fraction)


def test_a_document_may_be_placed_by_a_hash_of_its_own() -> None:
    low, high = "00" * 32, "ff" * 32
    examples = [CompletionExample("a", "b", low), CompletionExample("c", "d", high)]
    split = split_examples(examples, 0.5, bytes.fromhex)
    assert [e.document for e in split.heldout] == [low]
    assert [e.document for e in split.train] == [high]
    assert hash_document(low) != bytes.fromhex(low)


def test_shots_are_different_training_examples_and_follow_the_seed() -> None:
    train = make_examples(30)
    shots = draw_shots(train, 5, seed=1, index=7)
    assert len(set(shots)) == 5 and set(shots) <= set(train)
    assert shots == draw_shots(train, 5, seed=1, index=7)
    assert shots != draw_shots(train, 5, seed=2, index=7)
    assert shots != draw_shots(train, 5, seed=1, index=8)
    with pytest.raises(DataError, match="shots = 31: must lie between 0 and the 30"):
        draw_shots(train, 31, seed=0, index=0)


def test_a_few_shot_prompt_is_solved_examples_and_the_prompt() -> None:
    shot = ChoiceExample("a:", (" x", " y"), 1)
    example = CompletionExample("b:", " z")
    assert make_few_shot_prompt(example, []) == "b:"
    assert make_few_shot_prompt(example, [shot, shot], "|") == "a: y|a: y|b:"
