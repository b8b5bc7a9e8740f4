"""Whatever a file or folder holds, an importer gives a table or a documented error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import analysis
from analysis.importers.base import NamePattern
from analysis.importers.text_logs import LOG_FORMATS

DOCUMENTED = (ValueError, FileNotFoundError, ImportError)
ROW = '{"run_id": "a", "lr": [0.1, 0.2], "loss": [3.0, 2.5], "x": {"y": 1}}\n'
STATE = '{"global_step": 2, "log_history": [{"step": 1, "loss": 3.0}, {"step": 2}]}'
RESULTS = (
    '{"results": {"t": {"acc,none": 0.5}}, "config": {"model_args": "pretrained=a"}}'
)
TABLE = (
    '"Name","State","N","eval/loss"\n"w1","finished","1e6","3.0"\n"w2","crashed",,\n'
)
LEVANTER = (
    '{"config": {"seed": 1}, "summary": {"parameter_count": 10, "eval/loss": 3.0}}\n'
    '{"tracker": "a", "event": "log", "step": 1, "metrics": {"eval/loss": 2.5}}\n'
)
CHART = "Step,w1 - loss,w1 - loss__MIN,w2 - loss\n1,3.0,3.0,2.5\n2,,,2.0\n"
LOG = "\n".join(line for one in LOG_FORMATS.values() for line in one.samples)

# Importer -> (file that it reads, a good one, how it is called).
READERS: dict[str, tuple[str, str, Callable[[Path], pd.DataFrame]]] = {
    "chart": (
        "chart.csv",
        CHART,
        lambda root: analysis.from_wandb_chart(
            root / "chart.csv", series="w{width}", keep="lowest"
        ),
    ),
    "mapping": (
        "sizes.csv",
        "run,N\nw1,1e6\nw2,2e6\n",
        lambda root: analysis.from_wandb_chart(
            write(root, "chart.csv", CHART), mapping=root / "sizes.csv"
        ),
    ),
    "wandb-table": (
        "runs.csv",
        TABLE,
        lambda root: analysis.from_wandb_table(root / "runs.csv", names="w{width}"),
    ),
    "levanter": ("w1/tracker_metrics.jsonl", LEVANTER, analysis.from_levanter),
    "json-folder": (
        "w1.json",
        ROW,
        lambda root: analysis.from_json_folder(
            root, names="w{width}.json", explode=("lr", "loss")
        ),
    ),
    "json-lines": (
        "a.jsonl",
        ROW,
        lambda root: analysis.from_json_lines(
            root / "a.jsonl", explode=("lr", "loss"), keep="lowest"
        ),
    ),
    "lm-eval": ("results_1.json", RESULTS, analysis.from_lm_eval),
    "trainer-state": ("run/trainer_state.json", STATE, analysis.from_trainer_state),
    "trainer-state-all": (
        "trainer_state.json",
        STATE,
        lambda root: analysis.from_trainer_state(root, keep="all"),
    ),
    "nanogpt": ("a.log", LOG, lambda root: analysis.from_text_log(root, "nanogpt")),
    "megatron": (
        "a.log",
        LOG,
        lambda root: analysis.from_text_log(root, "megatron", keep="all"),
    ),
    "mlflow-meta": ("1/a/meta.yaml", "run_id: a\nstatus: 3\n", analysis.from_mlflow),
    "mlflow-metric": (
        "1/a/metrics/loss",
        "1 3.0 1\n",
        lambda root: analysis.from_mlflow(
            write(root, "1/a/meta.yaml", "run_id: a\n").parents[2], history="loss"
        ),
    ),
    "mlflow-database": (
        "a.db",
        "SQLite format 3",
        lambda root: analysis.from_mlflow(root / "a.db"),
    ),
    "trackio": ("a.db", "", lambda root: analysis.from_trackio(root / "a.db")),
}


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def mutate(good: str, junk: bytes, start: int, end: int) -> bytes:
    """A good file with some of its bytes replaced."""
    data = good.encode()
    return data[:start] + junk + data[end:]


PIECES = st.one_of(
    st.binary(max_size=20),
    st.text(alphabet='{}[]":,. 019-eNnaul\\\n\t', max_size=20).map(str.encode),
    st.sampled_from(
        [
            b"null",
            b"NaN",
            b"1e999",
            b"9" * 5000,
            b"\xff\xfe",
            b"\x00",
            b"[" * 20_000,
            b'{"a":' * 20_000,
            b"\\ud800",
            b'"results": []',
            b"[[1], null]",
        ]
    ),
)


@pytest.mark.parametrize("name", READERS)
@settings(deadline=None, max_examples=40)
@given(
    junk=PIECES,
    start=st.integers(0, 120),
    length=st.sampled_from([0, 1, 5, 1000]),
)
@example(junk=b"", start=0, length=0)
def test_junk_is_a_table_or_a_documented_error(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    junk: bytes,
    start: int,
    length: int,
) -> None:
    file, good, read = READERS[name]
    root = tmp_path_factory.mktemp("junk")
    path = write(root, file, "")
    path.write_bytes(mutate(good, junk, start, start + length))
    try:
        table = read(root)
    except DOCUMENTED as error:
        assert str(error)
        return
    assert len(table) > 0
    assert "run_id" in table.columns
    assert all(isinstance(run_id, str) for run_id in table["run_id"])


@settings(deadline=None, max_examples=200)
@given(text=st.text(alphabet="{}:sabw_.!10[]*", max_size=14), name=st.text(max_size=9))
def test_any_text_is_a_pattern_or_an_error(text: str, name: str) -> None:
    try:
        row = NamePattern("series", text).read(name)
    except ValueError as error:
        assert str(error)
        return
    assert row


@pytest.mark.parametrize("name", sorted({*READERS} - {"mlflow-database", "trackio"}))
def test_the_good_file_is_read(tmp_path: Path, name: str) -> None:
    file, good, read = READERS[name]
    write(tmp_path, file, good)
    options = {"nanogpt": "it has loss and train_loss and val_loss"}
    if name in options:
        with pytest.raises(ValueError, match=options[name]):
            read(tmp_path)
        return
    assert len(read(tmp_path)) > 0
