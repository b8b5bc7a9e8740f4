"""Suggestions name what was probably meant, and everything where nothing is near."""

from __future__ import annotations

import pytest

from scaling.config.suggestions import did_you_mean, find_near


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("widht", "did you mean 'width'?"),
        ("WIDTH", "did you mean 'width'?"),
        ("zzzz", "known: depth, width"),
        ("", "known: depth, width"),
    ],
)
def test_the_nearest_word_is_named_or_all_of_them(word: str, expected: str) -> None:
    assert did_you_mean(word, ["depth", "width"]) == expected


def test_a_mapping_says_how_to_show_a_word() -> None:
    known = {"h100": "gpu:h100", "t4": "gpu:t4"}
    assert did_you_mean("h10", known) == "did you mean 'gpu:h100'?"
    assert did_you_mean("zx", known, label="GPUs") == "GPUs: gpu:h100, gpu:t4"


def test_as_many_near_words_are_named_as_asked_for() -> None:
    near = did_you_mean("WIDTH", ["depth", "width"], most=2)
    assert near == "did you mean 'width' or 'depth'?"


def test_a_word_that_is_only_begun_finds_all_that_continue_it() -> None:
    assert find_near("a", ["a100-40gb", "a100-80gb", "h100"]) == [
        "a100-40gb",
        "a100-80gb",
    ]
