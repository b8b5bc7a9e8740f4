"""Questions with one right answer, from the tables of ISO codes in `pycountry`.

A held-out fact does not follow from those to train on. The task measures what a model
knows from its training text, and what one question about a country teaches for another
about it. Two in three questions ask for the country of a region.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import NamedTuple

from scaling.tasks.examples import ChoiceExample, CompletionExample, Example, TaskData
from scaling.tasks.options import TaskOptions
from scaling.tasks.packages import find_package_file, find_version
from scaling.tasks.registry import register_task
from scaling.tasks.split import split_examples


class Relation(NamedTuple):
    """Facts of one form.

    Attributes:
        table: of pycountry.
        key: field of the table that stands in the question.
        value: field that is the answer.
        question: with a place for the key.
    """

    table: str
    key: str
    value: str
    question: str


RELATIONS = (
    Relation("3166-1", "alpha_2", "name", "Country with code {}?"),
    Relation("3166-1", "alpha_3", "name", "Country with code {}?"),
    Relation("3166-1", "numeric", "name", "Country with number {}?"),
    Relation("3166-1", "name", "alpha_2", "Two-letter code of {}?"),
    Relation("3166-1", "name", "alpha_3", "Three-letter code of {}?"),
    Relation("4217", "alpha_3", "name", "Currency with code {}?"),
    Relation("4217", "numeric", "name", "Currency with number {}?"),
    Relation("4217", "name", "alpha_3", "Code of the currency {}?"),
    Relation("639-3", "alpha_2", "name", "Language with code {}?"),
    Relation("639-3", "name", "alpha_2", "Two-letter code of the language {}?"),
    Relation("15924", "alpha_4", "name", "Script with code {}?"),
    Relation("3166-2", "name", "country", "Country of {}?"),
)


class Fact(NamedTuple):
    """A question and its answer.

    Attributes:
        relation: index of the relation.
    """

    relation: int
    question: str
    answer: str


@register_task("facts", "choices", "heldout_fraction", "seed")
def open_facts(options: TaskOptions) -> TaskData:
    """Questions to answer in words, or with `choices=4` to choose from answers of
    questions of the same form.
    """
    choices = options.read_integer("choices", 0, least=0, most=20)
    fraction = options.read_fraction("heldout_fraction", 0.1)
    seed = options.read_integer("seed", 0, least=0, most=2**31)
    wanted_by = f"task = {options.spec!r}"
    version = find_version("pycountry", wanted_by)
    facts = list(read_facts(wanted_by))
    examples: list[Example] = []
    for fact in facts:
        examples.append(CompletionExample(fact.question, f" {fact.answer}"))
    if choices >= 2:
        examples = add_distractors(facts, choices, seed)
    split = split_examples(examples, fraction)
    return TaskData(
        name="facts",
        kind="choice" if choices >= 2 else "completion",
        train=split.train,
        heldout=split.heldout,
        about={"packages": {"pycountry": version}, "duplicates": split.duplicates},
    )


def read_facts(wanted_by: str) -> Iterator[Fact]:
    """All facts with one answer: a question with several right answers is left out."""
    countries = {row["alpha_2"]: row["name"] for row in read_table("3166-1", wanted_by)}
    tables: dict[str, list[dict[str, str]]] = {}
    for index, relation in enumerate(RELATIONS):
        if relation.table not in tables:
            tables[relation.table] = read_table(relation.table, wanted_by)
        answers: dict[str, set[str]] = {}
        for row in tables[relation.table]:
            # The code of a part of a country begins with that of the country.
            values = row | {"country": countries.get(row.get("code", "")[:2], "")}
            key = values.get(relation.key)
            answer = values.get(relation.value)
            if key and answer:
                question = f"{relation.question.format(key)}\nAnswer:"
                answers.setdefault(question, set()).add(answer)
        for question, found in answers.items():
            if len(found) == 1:
                yield Fact(index, question, next(iter(found)))


def read_table(table: str, wanted_by: str) -> list[dict[str, str]]:
    """The rows of a table of pycountry."""
    name = f"pycountry/databases/iso{table}.json"
    path = find_package_file("pycountry", name, wanted_by)
    return json.loads(path.read_text(encoding="utf-8"))[table]


def add_distractors(facts: list[Fact], choices: int, seed: int) -> list[Example]:
    """Examples with wrong answers, drawn from the right ones of the same relation.

    An answer is drawn as often as it is right, so frequent answers give nothing away.
    """
    pools: dict[int, list[str]] = {}
    for fact in facts:
        pools.setdefault(fact.relation, []).append(fact.answer)
    examples: list[Example] = []
    for fact in facts:
        rng = random.Random(f"{seed} {fact.question}")
        texts: list[str] = []
        while len(texts) < choices - 1:
            wrong = rng.choice(pools[fact.relation])
            if wrong != fact.answer and wrong not in texts:
                texts.append(wrong)
        answer = rng.randrange(choices)
        texts.insert(answer, fact.answer)
        spaced = tuple(f" {text}" for text in texts)
        examples.append(ChoiceExample(fact.question, spaced, answer))
    return examples
