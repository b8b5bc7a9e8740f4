"""Laws of tasks in files: every layout and format, and what each broken file says."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaling.data.errors import DataError
from scaling.tasks.examples import ChoiceExample
from scaling.tasks.files import read_task
from scaling.tasks.rows import LONGEST_ROW

REVIEWS = [
    {"text": f"review {i}", "label": "good" if i % 3 else "bad"} for i in range(200)
]


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_choice(path: Path, row: dict) -> ChoiceExample:
    """The example of a file with one row."""
    task = read_task(write_jsonl(path / "one.jsonl", [row]), heldout_fraction=1.0)
    example = task.heldout[0]
    assert isinstance(example, ChoiceExample)
    return example


# --- layouts and formats --------------------------------------------------------------


def test_all_formats_give_the_same_task(tmp_path: Path) -> None:
    frame = pd.DataFrame(REVIEWS)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    write_jsonl(tmp_path / "a.jsonl", REVIEWS)
    tasks = [read_task(tmp_path / f"a.{s}") for s in ("csv", "parquet", "jsonl")]
    assert len({task.fingerprint for task in tasks}) == 1
    task = tasks[0]
    assert task.kind == "choice" and task.labels == (" bad", " good")
    assert len(task.train) + len(task.heldout) == 200
    for example in task.train:
        number = int(example.pair.prompt.split()[1].removesuffix("\nLabel:"))
        assert example.pair.completion == (" good" if number % 3 else " bad")


def test_prompts_and_completions_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} +", "completion": f"\t{i}\n", "x": 1} for i in range(40)]
    task = read_task(write_jsonl(tmp_path / "a.jsonl", rows))
    pairs = {example.pair for example in (*task.train, *task.heldout)}
    assert pairs == {(f"{i} +", f"\t{i}\n") for i in range(40)}
    assert task.stop == ("\n\n",)  # right completions hold a single line end


def test_a_conversation_is_formatted_by_the_template(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": messages}])
    task = read_task(path, heldout_fraction=1.0)
    assert task.heldout[0].pair == ("User: Hi\nAssistant:", " Hello")
    assert task.stop == ("\nUser:",)
    pd.DataFrame([{"messages": messages}]).to_parquet(tmp_path / "a.parquet")
    same = read_task(tmp_path / "a.parquet", heldout_fraction=1.0)
    assert same.fingerprint == task.fingerprint


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        # The fields of MMLU, ARC, HellaSwag, BoolQ-like, RACE and processed documents.
        (
            {"question": "q", "choices": ["a", "b"], "answer": 1},
            "Question: q\nAnswer:",
            1,
        ),
        (
            {
                "question": "q",
                "choices": {"text": ["x", "y"], "label": ["1", "2"]},
                "answerKey": "2",
            },
            "Question: q\nAnswer:",
            1,
        ),
        ({"ctx": "He went", "endings": ["home", "away"], "label": "1"}, "He went", 1),
        (
            {"passage": "p", "question": "q", "choices": ["no", "yes"], "label": 0},
            "p\nQuestion: q\nAnswer:",
            0,
        ),
        (
            {"question": "q", "options": ["u", "v", "w"], "answer": "C"},
            "Question: q\nAnswer:",
            2,
        ),
        ({"query": "as it is:", "choices": ["u", "v"], "gold": "v"}, "as it is:", 1),
        ({"query": "n", "choices": ["1", "0"], "gold": 0}, "n", 0),
        ({"query": "n", "choices": [3, 4], "gold": "4"}, "n", 1),
    ],
)
def test_multiple_choice_documents(
    tmp_path: Path, row: dict, prompt: str, answer: int
) -> None:
    example = read_choice(tmp_path, row)
    assert example.prompt == prompt and example.answer == answer
    assert all(choice.startswith(" ") for choice in example.choices)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": 2}, "'answer' = '2': is not among the 2 choices; give an index"),
        ({"answer": -1}, "is not among the 2 choices"),
        ({"answer": "C"}, "is not among"),
        ({"answer": "c"}, "is not among"),
        ({"answer": None}, "'answer' = None: must be a string or a whole number"),
        ({"answer": True}, "'answer' = True: must be"),
        ({"answer": 0.0}, "'answer' = 0.0: must be"),
        ({"gold": 0}, "fields 'answer' and 'gold' say the same thing"),
        ({"query": "q"}, "fields 'question' and 'query' say the same thing"),
        ({"question": " "}, "'question' = ' ': is empty"),
        ({"choices": ["a"]}, "two or more choices"),
        ({"choices": ["a", "a "]}, "different texts"),
        ({"choices": ["a", ""]}, "'choices' = '': is empty"),
        ({"choices": "ab"}, "must be a list"),
        ({"choices": {"text": ["a", "b"], "label": ["x"]}}, "different labels|2 texts"),
        ({"choices": {"text": ["a", "b"]}}, "'choices.label' = None: must be a list"),
        ({"choices": ["B", "A"], "answer": "A"}, "means choice 1 as text and 0 as let"),
        ({"choices": ["1", "0"], "answer": "0"}, "means choice 1 as text and 0 as ind"),
    ],
)
def test_a_wrong_choice_document_is_an_error(
    tmp_path: Path, changes: dict, message: str
) -> None:
    row = {"question": "q", "choices": ["a", "b"], "answer": 0} | changes
    with pytest.raises(DataError, match=rf"one.jsonl, line 1: .*({message})"):
        read_choice(tmp_path, row)


# --- sides ----------------------------------------------------------------------------


def test_a_document_column_keeps_examples_on_one_side(tmp_path: Path) -> None:
    rows = [row | {"document": i % 40} for i, row in enumerate(REVIEWS)]
    task = read_task(write_jsonl(tmp_path / "a.jsonl", rows), heldout_fraction=0.3)
    train = {example.document for example in task.train}
    heldout = {example.document for example in task.heldout}
    assert train and heldout and not train & heldout
    with pytest.raises(DataError, match="'document' and 'group' say the same thing"):
        both = [row | {"group": 1} for row in rows]
        read_task(write_jsonl(tmp_path / "b.jsonl", both))


def test_an_example_of_two_documents_is_an_error(tmp_path: Path) -> None:
    rows = [row | {"group": i} for i, row in enumerate(REVIEWS)]
    rows.append(REVIEWS[3] | {"group": 999})
    with pytest.raises(
        DataError, match=r"line 201: the same example is in .*line 4 with another doc"
    ):
        read_task(write_jsonl(tmp_path / "a.jsonl", rows))


def test_a_second_file_holds_the_held_out_examples(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [*REVIEWS[:100], REVIEWS[0]])
    heldout = write_jsonl(tmp_path / "test.jsonl", REVIEWS[100:])
    task = read_task(train, heldout)
    assert len(task.train) == 100 and len(task.heldout) == 100
    assert task.about["duplicates"] == 1
    write_jsonl(tmp_path / "test.jsonl", REVIEWS[98:])
    with pytest.raises(
        DataError, match=r"test.jsonl, line 1: the same example is in .*line 99"
    ):
        read_task(train, heldout)
    write_jsonl(tmp_path / "test.jsonl", [{"text": "new", "label": "godo"}])
    with pytest.raises(DataError, match=r"does not occur in .*did you mean 'good'"):
        read_task(train, heldout)
    write_jsonl(tmp_path / "test.jsonl", [{"prompt": "new", "completion": "x"}])
    with pytest.raises(DataError, match="write both with the same"):
        read_task(train, heldout)


def test_an_empty_side_names_the_fix(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", REVIEWS[:2])
    with pytest.raises(DataError, match="no example is held out; add examples"):
        read_task(path, heldout_fraction=1e-9)
    with pytest.raises(DataError, match="no example is to train on"):
        read_task(path, heldout_fraction=1 - 1e-9)


# --- hostile files --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.jsonl: holds no rows"),
        (b"\n \n", "a.jsonl: holds no rows"),
        (b'{"text": "a"', "line 1: not valid JSON"),
        (b'{"text": "a", "label": NaN}', "line 1: not valid JSON .*NaN"),
        (b'\n{"text": "a", "text": "b"}', "line 2: .*it has 'text' twice"),
        (b"[" * 100_000, "line 1: not valid JSON"),
        (b'["a"]', "line 1: needs an object with named fields; found list"),
        (b'{"text": "\xff"}', "line 1: not UTF-8"),
        (b'{"text": "\\ud800", "label": "a"}', "'text': not encodable as UTF-8"),
        (b'{"text": "a\\u0000", "label": "a"}', "'text' = .*holds byte 0"),
        (b'{"text": 1, "label": "a"}', "'text' = 1: must be a string"),
        (b'{"text": "a", "label": ""}', "'label' = '': is empty"),
        (b'{"text": "a", "label": "x"}', "all rows have 'x'; there must be two"),
        (b'{"txet": "a", "label": "x"}', "fields txet, label: not those of an example"),
        (b'{"text": "a"}', "text alone there is the task perplexity"),
        (
            b'{"text": "a", "label": "x", "prompt": "b", "completion": "c"}',
            "line 1: the fields are ambiguous",
        ),
        (
            b'{"text": "a", "label": "x"}\n{"prompt": "b", "completion": "c"}',
            "line 2: has the fields .*write all rows with the same",
        ),
        (
            b'{"text": "a", "label": "Yes"}\n{"text": "b", "label": "yes"}',
            "line 2: field 'label' = 'yes': stands as 'Yes' in .*line 1",
        ),
        (b'{"messages": "hi"}', "'messages' = 'hi': must be a list"),
        (b'{"messages": []}', "line 1: field 'messages' = ..: needs messages"),
        (b'{"messages": [1]}', "must be an object with the fields role and content"),
    ],
)
def test_a_broken_file_names_line_field_and_fix(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_task(path)
    assert "a.jsonl" in str(error.value) and len(str(error.value)) < 1200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ("text,label\n", "holds no rows"),
        ("text,text\na,b\n", "line 1: column name 'text' is empty or given twice"),
        ("text,\na,b\n", "line 1: column name '' is empty"),
        ("text,label\na,b,c\n", "line 2: has 3 fields, the header has 2"),
        ('text,label\n"a,b\n', "line 2: not valid CSV"),
        ('text,label\n"a"b,c\n', "line 2: not valid CSV"),
        ("messages\nhi\n", "must be a list .*use .jsonl"),
        ("text,label\n" + "a" * 200_000 + ",b\n", "line 2: not valid CSV .*field"),
    ],
)
def test_a_broken_csv_names_line_and_fix(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"a.csv.*{message}"):
        read_task(path)


def test_a_huge_line_is_named_before_it_is_read(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*REVIEWS, {"text": "x" * LONGEST_ROW}])
    with pytest.raises(DataError, match="line 201: longer than 1,048,576 bytes"):
        read_task(path)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"a.parquet: not a readable Parquet file"):
        read_task(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").mkdir()
    for name in ("absent.csv", "b.parquet"):
        with pytest.raises(DataError, match=f"{name}: there is no such file"):
            read_task(tmp_path / name)
    with pytest.raises(DataError, match=r"cannot read task files of type '.txt'"):
        read_task(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"row 2: field 'label' = None: must be"):
        frame = pd.DataFrame({"text": ["a", "b"], "label": ["x", None]})
        frame.to_parquet(tmp_path / "c.parquet")
        read_task(tmp_path / "c.parquet")


def test_too_many_labels_are_texts(tmp_path: Path) -> None:
    rows = [{"text": f"{i}", "label": f"label {i}"} for i in range(300)]
    with pytest.raises(DataError, match=r"at most 256 .*prompt and completion"):
        read_task(write_jsonl(tmp_path / "a.jsonl", rows))


def test_an_unknown_metric_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", REVIEWS)
    with pytest.raises(DataError, match="did you mean 'rouge1'"):
        read_task(path, metrics=("rouge_1",))


# --- fuzzing --------------------------------------------------------------------------

FIELDS = ["text", "label", "prompt", "completion", "messages", "question", "ctx"]
FIELDS += ["choices", "answer", "gold", "document", "group", "passage", "role"]
NAMES = st.sampled_from([*FIELDS, "content", "other"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(["", " ", "A", "0", "\0", "\ud800", "user", "assistant"]),
    st.text(max_size=4),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(NAMES | st.sampled_from(["text", "label"]), inner, max_size=3)
    ),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(NAMES, VALUES, max_size=5), max_size=5)
NO_RESET = settings(
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def read_or_reject(path: Path) -> None:
    try:
        task = read_task(path, heldout_fraction=1.0)
    except DataError as error:
        assert path.name in str(error)
    else:
        assert task.heldout


@given(ROWS)
@NO_RESET
def test_any_objects_are_a_task_or_a_data_error(tmp_path: Path, rows: list) -> None:
    read_or_reject(write_jsonl(tmp_path / "fuzz.jsonl", rows))


@given(st.binary(max_size=60), st.sampled_from([".jsonl", ".csv", ".parquet"]))
@NO_RESET
def test_any_bytes_are_a_task_or_a_data_error(
    tmp_path: Path, content: bytes, suffix: str
) -> None:
    path = tmp_path / f"fuzz{suffix}"
    path.write_bytes(content)
    read_or_reject(path)


@given(st.data())
@NO_RESET
def test_any_damage_to_a_good_file_is_a_task_or_a_data_error(
    tmp_path: Path, data: st.DataObject
) -> None:
    suffix = data.draw(st.sampled_from([".jsonl", ".csv", ".parquet"]))
    good = tmp_path / f"good{suffix}"
    if not good.exists():
        frame = pd.DataFrame(REVIEWS[:8])
        frame.to_json(tmp_path / "good.jsonl", orient="records", lines=True)
        frame.to_csv(tmp_path / "good.csv", index=False)
        frame.to_parquet(tmp_path / "good.parquet")
    content = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path / f"fuzz{suffix}"
    path.write_bytes(content)
    read_or_reject(path)
