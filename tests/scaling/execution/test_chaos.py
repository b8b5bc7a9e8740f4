"""Every run is trained once and no loss changes, when workers are killed or several
sweeps share a folder. Slow: it takes minutes.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from scaling.store.table import run_table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chaos() -> ModuleType:
    """`benchmarks/chaos.py`, which is no package."""
    path = Path(__file__).parents[3] / "benchmarks" / "chaos.py"
    spec = importlib.util.spec_from_file_location("chaos", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["chaos"] = module
    spec.loader.exec_module(module)
    return module


def test_twenty_kills_lose_nothing_and_repeat_nothing(
    chaos: ModuleType, tmp_path: Path
) -> None:
    answer = chaos.attack_all_rounds(
        chaos.Chaos(kills=20, runs=8, steps=2000), tmp_path
    )
    assert answer["kills"] == 20 and answer["resumes"] > 0
    assert answer["lost"] == answer["duplicated"] == answer["different"] == 0


def test_three_sweeps_share_a_folder(chaos: ModuleType, tmp_path: Path) -> None:
    plan = chaos.make_plan(chaos.Chaos(runs=12, steps=400))
    plan.to_json(tmp_path / "plan.json")
    command = [
        sys.executable,
        chaos.__file__,
        "sweep",
        str(tmp_path / "plan.json"),
        str(tmp_path / "out"),
        "1",
    ]
    sweeps = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    told = [sweep.communicate()[1] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0, 0]
    events = [
        json.loads(line)
        for text in told
        for line in text.splitlines()
        if line.startswith("{")
    ]
    finished = Counter(
        event["run_id"]
        for event in events
        if event["event"] in ("finished", "repeated")
    )
    assert finished == Counter(run.run_id for run in plan)
    assert set(run_table(tmp_path / "out")["run_id"]) == {run.run_id for run in plan}
