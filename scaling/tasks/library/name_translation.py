"""Names of languages, countries, currencies and scripts in another language.

They are from the translation catalogs of iso-codes, which the package `pycountry` ships.
Four in five are names of languages. Names that are the same in both languages are left
out: to copy would be right too often.
"""

from __future__ import annotations

import gettext
from pathlib import Path

from scaling.tasks.examples import CompletionExample, TaskData
from scaling.tasks.options import TaskOptions
from scaling.tasks.packages import find_package_file, find_version
from scaling.tasks.registry import register_task
from scaling.tasks.split import split_examples

CATALOGS = ("iso3166-1", "iso3166-3", "iso4217", "iso639-3", "iso639-5", "iso15924")
LANGUAGES = ("de", "fr", "hu", "it", "nl", "pl", "pt", "ru", "sv", "tr")
"""Languages of which all catalogs are there and hold thousands of names."""


@register_task("name_translation", "to", "heldout_fraction")
def open_name_translation(options: TaskOptions) -> TaskData:
    """English names and those of the language `to`, split by the English name."""
    language = options.read_word("to", "de", LANGUAGES)
    fraction = options.read_fraction("heldout_fraction", 0.1)
    wanted_by = f"task = {options.spec!r}"
    version = find_version("pycountry", wanted_by)
    examples = []
    for catalog in CATALOGS:
        name = f"pycountry/locales/{language}/LC_MESSAGES/{catalog}.mo"
        path = find_package_file("pycountry", name, wanted_by)
        for english, translated in read_catalog(path).items():
            if english != translated:
                prompt = f"en: {english}\n{language}:"
                completion = f" {translated}"
                examples.append(CompletionExample(prompt, completion, english))
    split = split_examples(examples, fraction)
    return TaskData(
        name="name_translation",
        kind="completion",
        train=split.train,
        heldout=split.heldout,
        metrics=("exact_match", "chrf"),
        about={"packages": {"pycountry": version}, "duplicates": split.duplicates},
    )


def read_catalog(path: Path) -> dict[str, str]:
    """The pairs of a compiled catalog of gettext, without its header."""
    with path.open("rb") as file:
        # gettext offers look-ups alone; the pairs are in its catalog.
        pairs = vars(gettext.GNUTranslations(file))["_catalog"]
    return {
        english: translated
        for english, translated in pairs.items()
        if isinstance(english, str) and english and translated.strip()
    }
