"""Executables of the solver are compiled once for all processes, and their folder never
stands in the way of a fit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.fitting.programs import find_cache_folder

# Fits a table of so many rows and prints the numbers of executables compiled and taken.
FIT = """
import json, sys
from collections import Counter
import jax
import numpy as np
import pandas as pd
import analysis
import analysis.report.study

counts = Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event]))
rows = int(sys.argv[1])
N = np.geomspace(1e7, 1e9, rows)
D = np.geomspace(1e9, 1e11, rows)[np.random.default_rng(0).permutation(rows)]
runs = pd.DataFrame({"N": N, "D": D, "loss": 1.7 + 400 / N**0.34 + 1200 / D**0.37})
fit = analysis.fit(runs)
fit.bootstrap(20)
cache = "/jax/compilation_cache/"
print(json.dumps({
    "compiled": counts[cache + "cache_misses"],
    "taken": counts[cache + "cache_hits"],
    "E": fit.params["E"],
    "imported": [name for name in ("scipy.optimize", "scipy.stats") if name in sys.modules],
    "folder": jax.config.jax_compilation_cache_dir,
}))
"""


def fit_in_new_process(rows: int, **settings: str) -> dict[str, Any]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("JAX_")
    }
    environment |= {"JAX_PLATFORMS": "cpu", **settings}
    done = subprocess.run(
        [sys.executable, "-c", FIT, str(rows)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_a_table_of_about_the_same_size_compiles_nothing_in_a_second_process(
    tmp_path: Path,
) -> None:
    first = fit_in_new_process(30, SCALING_CACHE=str(tmp_path))
    assert first["compiled"] > 0
    second = fit_in_new_process(37, SCALING_CACHE=str(tmp_path))
    assert (second["compiled"], second["taken"]) == (0, first["compiled"])
    # Each takes a quarter of a second.
    assert second["imported"] == []
    assert second["E"] == pytest.approx(1.7, rel=1e-6)


def test_the_cache_leaves_the_setting_of_the_caller_alone(tmp_path: Path) -> None:
    assert fit_in_new_process(30, SCALING_CACHE=str(tmp_path))["folder"] is None
    chosen = str(tmp_path / "chosen")
    found = fit_in_new_process(
        30, JAX_COMPILATION_CACHE_DIR=chosen, SCALING_CACHE=str(tmp_path / "other")
    )
    assert found["folder"] == chosen
    assert any(Path(chosen).iterdir())
    assert not (tmp_path / "other").exists()


def test_a_folder_that_cannot_be_made_does_not_stop_a_fit(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    found = fit_in_new_process(30, SCALING_CACHE=str(blocked))
    assert found["E"] == pytest.approx(1.7, rel=1e-6)


def test_the_folder_follows_the_conventions_of_the_platform(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SCALING_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_cache_folder().is_relative_to(tmp_path / "scaling")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert find_cache_folder().is_relative_to(
        tmp_path / "Library" / "Caches" / "scaling"
    )
