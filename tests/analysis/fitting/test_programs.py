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

import numpy as np
import pytest

from analysis.fitting import newton
from analysis.fitting.programs import Call, find_cache_folder, name_executable
from analysis.laws.base import bind_law
from analysis.laws.library import LAWS

# Fits a table of so many rows and prints what was lowered and compiled for it.
FIT = """
import json, sys
from collections import Counter
import jax
import numpy as np
import pandas as pd
import analysis
import analysis.report.study
from analysis.laws.library import LAWS
import dataclasses

counts = Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event]))
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: counts.update([event])
)
rows, name = int(sys.argv[1]), sys.argv[2]
law = LAWS["chinchilla"] if name == "chinchilla" else dataclasses.replace(
    LAWS["chinchilla"], name=name
)
N = np.geomspace(1e7, 1e9, rows)
D = np.geomspace(1e9, 1e11, rows)[np.random.default_rng(0).permutation(rows)]
runs = pd.DataFrame({"N": N, "D": D, "loss": 1.7 + 400 / N**0.34 + 1200 / D**0.37})
fit = analysis.fit(runs, law)
fit.bootstrap(20)
print(json.dumps({
    "lowered": counts["/jax/core/compile/jaxpr_to_mlir_module_duration"],
    "compiled": counts["/jax/core/compile/backend_compile_duration"],
    "taken": counts["/jax/compilation_cache/cache_hits"],
    "E": fit.params["E"],
    "imported": [name for name in sys.modules if name.startswith("scipy")],
    "folder": jax.config.jax_compilation_cache_dir,
}))
"""


def fit_in_new_process(
    rows: int, law: str = "chinchilla", **settings: str
) -> dict[str, Any]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("JAX_")
    }
    environment |= {"JAX_PLATFORMS": "cpu", **settings}
    done = subprocess.run(
        [sys.executable, "-c", FIT, str(rows), law],
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
    first = fit_in_new_process(50, SCALING_CACHE=str(tmp_path))
    assert first["compiled"] > 0
    second = fit_in_new_process(57, SCALING_CACHE=str(tmp_path))
    assert (second["lowered"], second["compiled"]) == (0, 0)
    assert second["imported"] == []  # takes a quarter of a second
    assert second["E"] == pytest.approx(1.7, rel=1e-6)


def test_a_law_of_the_users_own_is_found_by_its_program(tmp_path: Path) -> None:
    first = fit_in_new_process(30, "mine", SCALING_CACHE=str(tmp_path))
    second = fit_in_new_process(30, "mine", SCALING_CACHE=str(tmp_path))
    assert first["taken"] == 0
    assert second["taken"] == second["lowered"] == first["lowered"] > 0
    assert second["E"] == first["E"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
def test_an_executable_that_others_may_write_is_not_loaded(tmp_path: Path) -> None:
    first = fit_in_new_process(30, SCALING_CACHE=str(tmp_path))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.chmod(0o666)
    second = fit_in_new_process(30, SCALING_CACHE=str(tmp_path))
    assert second["compiled"] == first["compiled"] > 0


@pytest.mark.slow
def test_a_spoiled_executable_is_compiled_again(tmp_path: Path) -> None:
    first = fit_in_new_process(30, SCALING_CACHE=str(tmp_path))
    stored = [path for path in tmp_path.rglob("*") if path.is_file()]
    for path in stored:
        path.write_bytes(path.read_bytes()[:1000])
    second = fit_in_new_process(30, SCALING_CACHE=str(tmp_path))
    assert second["compiled"] == first["compiled"] == len(stored)
    assert second["E"] == first["E"]
    third = fit_in_new_process(30, SCALING_CACHE=str(tmp_path))
    assert third["compiled"] == 0


def test_names_tell_apart_what_an_executable_is_made_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def name(law: str, rows: int, **fixed: float) -> str:
        binding = bind_law(LAWS[law], fixed)
        call = Call(newton.compute_jacobian, binding, (np.zeros(4), np.zeros(rows)))
        return name_executable(call)

    names = {
        name("chinchilla", 64),
        name("chinchilla", 128),
        name("chinchilla", 64, E=1.7),
        name("kaplan", 64),
    }
    assert len(names) == 4
    assert name("chinchilla", 64, E=1.8) == name("chinchilla", 64, E=1.7)
    before = name("chinchilla", 64)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert name("chinchilla", 64) != before


@pytest.mark.slow
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
